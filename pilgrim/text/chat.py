"""A conversation as the token ids that a model is trained on and prompted with.

The layout is ChatML behind the <|endoftext|> that also begins every document of pretraining:

    <|endoftext|><|im_start|>system
    You are kind.<|im_end|>
    <|im_start|>user
    Hello<|im_end|>
    <|im_start|>assistant
    Hello, friend.<|im_end|>

Training, evaluation and chatting all call this file, so that a model is never asked in other ids than
it has learned. `render` also gives the loss mask: what the assistant says and the <|im_end|> with which
it stops is trained, everything else is only read. `render_prompt` stops where the assistant begins.

**Tools.** An assistant may call functions, and in a list of messages that looks as in OpenAI's API: its
message has calls, a message of the role "tool" has each result, and the assistant goes on with another
message (messages.py, calls.py, rows.py). All of these are *one* turn, as the model writes it without
stopping; every call is followed by its result, in the order of the calls:

    <|im_start|>assistant
    She makes <tool_call>9*2</tool_call><tool_response>18</tool_response> dollars.<|im_end|>

What the assistant says is trained, its calls with their marks included; results and their marks are not.
Nor is an <|im_end|> that it did not say: where a call still waits for its result, or the assistant for its
word after one. Functions are defined in the system's turn, behind the system's own words.

Two things have to be right for a prompt to be the beginning of what was trained. Each stretch between special
tokens ("user\\nHello") is encoded as one string, because that is what every program does that tokenizes a
rendered template. And the ids of "assistant\\n" must not depend on what follows, or else training would
teach other ids than the prompt has. Here the split pattern could bite, because it takes white space together
with a line end as one piece: "\\n" and "\\n\\nHello" would share a token. So a turn is stripped of the white
space around it, by the template as well; a line end before anything else is always a piece of its own. Within
a turn of several messages, white space is kept as it is.

A message that spells out "<|im_end|>" is plain text here, as it was written, and so are results and
definitions. Other programs tokenize the rendered template as a whole and would take those characters for the
token, so the template breaks them with a space ("< |im_end|>"). Only for such messages do their ids differ
from ours; in both, no message can forge the end of a turn.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from pilgrim.core.errors import DataError
from pilgrim.text.calls import (
    CALL,
    END_OF_CALL,
    END_OF_RESPONSE,
    MARKS,
    RESPONSE,
    Call,
    call_of,
    definitions,
    text_of,
)
from pilgrim.text.messages import Message, Role, answered, check, check_waits, turns_of
from pilgrim.text.rows import messages_from_row, row_of
from pilgrim.text.tokenizer import CHAT_TEMPLATE, Tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "Call",
    "Message",
    "Rendered",
    "Role",
    "Truncated",
    "messages_from_row",
    "messages_of_reply",
    "render",
    "render_prompt",
    "row_of",
    "truncate_turns",
]


@dataclass(frozen=True)
class Rendered:
    """A conversation to train on; `mask[i]` is True where `ids[i]` is to be learned. Equally long."""

    ids: list[int]
    mask: list[bool]


class Truncated(NamedTuple):
    """What is left of a conversation; `was_cut` when even the last message had to lose its beginning."""

    messages: tuple[Message, ...]
    was_cut: bool


class Part(NamedTuple):
    """Some text, or a special token by its id; `trained`: the model learns to say it."""

    what: str | int
    trained: bool = False


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """The whole conversation and its loss mask.

    Raises DataError if the turns are not in order (see `messages_from_row`) or none is the assistant's.
    """
    check(messages, "conversation")
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            "conversation: has no assistant message to learn from; leave it out of the training data"
        )
    return _encoded([part for turn in turns_of(messages) for part in _parts(turn, tokenizer)], tokenizer)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The conversation so far, up to where the assistant is to speak: a prefix of `render`'s ids.

    Behind a user's message that is the opening of the assistant's turn; behind a tool's result, the turn goes
    on. Raises DataError if the turns are not in order, or nobody waits for the assistant.
    """
    check(messages, "conversation")
    check_waits(messages)
    turns = turns_of(messages)
    parts = [part for turn in turns for part in _parts(turn, tokenizer)]
    if messages[-1].role == "tool":
        del parts[-2:]  # its <|im_end|> and line end
    else:
        parts += [Part(tokenizer.im_start_id), Part("assistant\n")]
    return _encoded(parts, tokenizer).ids


def truncate_turns(messages: Sequence[Message], tokenizer: Tokenizer, limit: int) -> Truncated:
    """Drops the oldest exchanges until `render_prompt` has at most `limit` ids.

    An exchange is a user's message with all that was said and called until the next one, so no call is parted
    from its result. The system message and the last exchange stay; if those are still too long, the user's
    last message keeps only the end that fits. Raises DataError if the others alone leave no room, or as
    `render_prompt` does.
    """
    excess = len(render_prompt(messages, tokenizer)) - limit
    begins = [i for i, message in enumerate(messages) if message.role == "user"]
    system, left = list(messages[: begins[0]]), begins[0]
    for begin, end in pairwise(begins):
        if excess <= 0:
            break
        dropped = [part for turn in turns_of(messages[begin:end]) for part in _parts(turn, tokenizer)]
        excess -= len(_encoded(dropped, tokenizer).ids) - 1  # which counts an <|endoftext|>
        left = end
    kept = (*system, *messages[left:])
    if excess <= 0:
        return Truncated(kept, was_cut=False)
    return Truncated(_with_the_end_that_fits(kept, len(system), tokenizer, limit), was_cut=True)


def messages_of_reply(ids: list[int], tokenizer: Tokenizer) -> tuple[Message, ...]:
    """What a model wrote in its turn, as messages: its words and calls, and the results in between.

    A call that was broken off is left out, as is a result that nobody called for. Where a call has no result,
    the reply ends for us: what a model writes behind it, it has made up.
    """
    turn, at = [Message("assistant", "")], 0
    while at < len(ids):
        mark = _next(ids, at, MARKS)
        words, unanswered = tokenizer.decode(ids[at:mark]), turn[-1].tool_calls
        if unanswered and words.strip():
            break
        if not unanswered:
            turn[-1] = replace(turn[-1], content=turn[-1].content + words)
        at = mark + 1
        if ids[mark : mark + 1] == [CALL]:
            end = _next(ids, at, MARKS)
            if ids[end : end + 1] == [END_OF_CALL]:
                call = call_of(tokenizer.decode(ids[at:end]))
                turn[-1] = replace(turn[-1], tool_calls=(*unanswered, call))
                end += 1
            at = end
        elif ids[mark : mark + 1] == [RESPONSE]:
            end = _next(ids, at, (END_OF_RESPONSE,))
            if len(unanswered) == 1 and ids[mark - 1] == END_OF_CALL and end < len(ids):
                turn += [Message("tool", tokenizer.decode(ids[at:end])), Message("assistant", "")]
            at = end + 1
    return tuple(turn)


def _next(ids: Sequence[int], at: int, wanted: Sequence[int]) -> int:
    """The first place from `at` on that has one of the wanted ids; the end if none has."""
    return next((i for i in range(at, len(ids)) if ids[i] in wanted), len(ids))


# The parts of a turn ----------------------------------------------------------------------------------


def _parts(turn: Sequence[Message], tokenizer: Tokenizer) -> list[Part]:
    """A turn, from its <|im_start|> to the line end behind its <|im_end|>."""
    begin, line_end = Part(tokenizer.im_start_id), Part("\n")
    last = turn[-1]
    if last.role in ("system", "user"):
        text = f"{last.role}\n{_with_definitions(last)}"
        return [begin, Part(text), Part(tokenizer.im_end_id), line_end]
    ended = last.role == "assistant" and not last.tool_calls  # else it had not come to its end
    end = Part(tokenizer.im_end_id, trained=ended)
    return [begin, Part("assistant\n"), *_spoken(turn), end, line_end]


def _spoken(turn: Sequence[Message]) -> list[Part]:
    """What the assistant says in a turn, and the results that it is told."""
    parts: list[Part] = []
    for place, message in enumerate(turn):
        if message.role == "tool":
            continue
        words = message.content.lstrip() if place == 0 else message.content
        if place == len(turn) - 1 and not message.tool_calls:
            words = words.rstrip()
        parts.append(Part(words, True))
        for call, result in answered(turn, place):
            parts += [Part(CALL, True), Part(text_of(call), True), Part(END_OF_CALL, True)]
            if result is not None:
                parts += [Part(RESPONSE), Part(result.content), Part(END_OF_RESPONSE)]
    return parts


def _with_definitions(message: Message) -> str:
    """A system's or a user's words, and the functions that are defined there."""
    words = message.content.strip()
    return "\n\n".join([words] * bool(words) + [definitions(message.tools)] * bool(message.tools))


def _encoded(parts: Sequence[Part], tokenizer: Tokenizer) -> Rendered:
    """The ids of the parts behind an <|endoftext|>."""
    encoded = iter(tokenizer.encode_batch([part.what for part in parts if isinstance(part.what, str)]))
    ids, mask = [tokenizer.eot_id], [False]
    for part in parts:
        some = next(encoded) if isinstance(part.what, str) else [part.what]
        ids += some
        mask += [part.trained] * len(some)
    return Rendered(ids, mask)


def _with_the_end_that_fits(
    kept: Sequence[Message], place: int, tokenizer: Tokenizer, limit: int
) -> tuple[Message, ...]:
    """The user's message at `place` with as much of its end as fits into `limit`, found by halving."""
    content = kept[place].content

    def shortened(start: int) -> tuple[Message, ...]:
        return (*kept[:place], Message("user", content[start:].strip()), *kept[place + 1 :])

    def fits(start: int) -> bool:
        return len(render_prompt(shortened(start), tokenizer)) <= limit

    if not fits(len(content)):
        others = "the system message" + (" and what was called" if len(kept) > place + 1 else "")
        raise DataError(
            f"conversation: {limit} tokens of context have no room for {others}; "
            "shorten that, or take a model with a longer context"
        )
    return shortened(bisect_left(range(len(content)), True, key=fits))
