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

Two things have to be right for that. Each stretch between special tokens ("assistant\\nHello, friend.")
is encoded as one string, because that is what every program does that tokenizes a rendered template.
And the ids of "assistant\\n" must not depend on what follows, or else training would teach other ids than
the prompt has. Here the split pattern could bite, because it takes white space together with a line end
as one piece: "\\n" and "\\n\\nHello" would share a token. So the content is stripped of the white space
around it, by the template as well; a line end before anything else is always a piece of its own.

A message that spells out "<|im_end|>" is plain text here, as it was written. Other programs tokenize
the rendered template as a whole and would take those characters for the token, so the template breaks
them with a space ("< |im_end|>"). Only for such messages do their ids differ from ours; in both, no
message can forge the end of a turn.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from pilgrim.core.errors import DataError
from pilgrim.text.tokenizer import CHAT_TEMPLATE, Tokenizer, refuse_lone_surrogates

__all__ = [
    "CHAT_TEMPLATE",
    "Message",
    "Rendered",
    "Role",
    "Truncated",
    "messages_from_row",
    "render",
    "render_prompt",
    "truncate_turns",
]

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn. White space around `content` is not rendered."""

    role: Role
    content: str


@dataclass(frozen=True)
class Rendered:
    """A conversation to train on; `mask[i]` is True where `ids[i]` is to be learned. Equally long."""

    ids: list[int]
    mask: list[bool]


class Truncated(NamedTuple):
    """What is left of a conversation; `was_cut` when even the last message had to lose its beginning."""

    messages: tuple[Message, ...]
    was_cut: bool


def render(messages: Sequence[Message], tokenizer: Tokenizer) -> Rendered:
    """The whole conversation and its loss mask.

    Raises DataError if the turns are not in order (see `messages_from_row`) or none is the assistant's.
    """
    _check(messages, "conversation")
    if not any(message.role == "assistant" for message in messages):
        raise DataError(
            "conversation: has no assistant message to learn from; leave it out of the training data"
        )
    opening_length = len(tokenizer.encode("assistant\n"))
    ids, mask = [tokenizer.eot_id], [False]
    for message, turn in zip(messages, _turns(messages, tokenizer), strict=True):
        ids += turn
        # <|im_start|>, the opening, what is trained up to and with <|im_end|>, and the line end
        trained = len(turn) - opening_length - 2 if message.role == "assistant" else 0
        mask += [False] * (len(turn) - trained - 1) + [True] * trained + [False]
    return Rendered(ids, mask)


def render_prompt(messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The conversation so far, then the opening of the assistant's turn: a prefix of `render`'s ids.

    Raises DataError if the turns are not in order or the last one is not the user's.
    """
    _check(messages, "conversation")
    if messages[-1].role != "user":
        raise DataError(
            f"conversation: ends with a message of the {messages[-1].role}, "
            "but only a user's message can be answered; add one"
        )
    turns = _turns(messages, tokenizer)
    return [tokenizer.eot_id, *(i for turn in turns for i in turn), *_opening(tokenizer)]


def truncate_turns(messages: Sequence[Message], tokenizer: Tokenizer, limit: int) -> Truncated:
    """Drops the oldest exchanges until `render_prompt` has at most `limit` ids.

    An exchange is a user's message with its answer. The system message and the last user message stay;
    if those two are still too long, the last message keeps only the end that fits. Raises DataError if
    the system message alone leaves no room, or as `render_prompt` does.
    """
    kept = list(messages)
    excess = len(render_prompt(kept, tokenizer)) - limit
    first = 1 if kept[0].role == "system" else 0
    while excess > 0 and len(kept) - first > 1:
        excess -= sum(map(len, _turns(kept[first : first + 2], tokenizer)))
        del kept[first : first + 2]
    if excess <= 0:
        return Truncated(tuple(kept), was_cut=False)
    return Truncated((*kept[:-1], _end_that_fits(kept, tokenizer, limit)), was_cut=True)


def messages_from_row(row: dict[str, Any], place: str) -> tuple[Message, ...]:
    """The conversation of a JSONL row: {"messages": [{"role": …, "content": …}, …]}, other keys aside.

    `place` is the file and line, for errors. The turns must be in order: at most one system message, at
    the beginning; then user and assistant in turns, the user first. Raises DataError if they are not.
    """
    items = row.get("messages")
    if not isinstance(items, list):
        raise DataError(f'{place}: has no list called "messages"; give it one of {{"role": …, "content": …}}')
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
            raise DataError(f'{place}: message {number} must be an object with a "role" and a "content"')
    messages = tuple(Message(item["role"], item["content"]) for item in items)
    _check(messages, place)
    return messages


def _turns(messages: Sequence[Message], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of each turn, from its <|im_start|> to the line end behind its <|im_end|>."""
    texts = [f"{message.role}\n{message.content.strip()}" for message in messages]
    line_end = tokenizer.encode("\n")
    return [
        [tokenizer.im_start_id, *ids, tokenizer.im_end_id, *line_end] for ids in tokenizer.encode_batch(texts)
    ]


def _opening(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.im_start_id, *tokenizer.encode("assistant\n")]


def _end_that_fits(kept: Sequence[Message], tokenizer: Tokenizer, limit: int) -> Message:
    """The last message with as much of its end as fits into `limit`, found by halving."""
    content = kept[-1].content

    def fits(start: int) -> bool:
        shortened = [*kept[:-1], Message("user", content[start:])]
        return len(render_prompt(shortened, tokenizer)) <= limit

    if not fits(len(content)):
        raise DataError(
            f"conversation: {limit} tokens of context have no room for the system message; "
            "shorten that, or take a model with a longer context"
        )
    return Message("user", content[bisect_left(range(len(content)), True, key=fits) :].strip())


def _check(messages: Sequence[Message], place: str) -> None:
    """Raises DataError unless the turns are in order and their contents are text."""
    if not messages:
        raise DataError(f"{place}: the conversation is empty; give it at least one message")
    due = "user"
    for number, message in enumerate(messages, start=1):
        where = f"{place}: message {number}"
        if message.role not in get_args(Role):
            raise DataError(f"{where} has the role {message.role!r}; a role is system, user or assistant")
        if not isinstance(message.content, str):
            kind = type(message.content).__name__
            raise DataError(f"{where} has a content of type {kind}; it must be a string")
        refuse_lone_surrogates(message.content, where)
        if message.role == "system":
            if number > 1:
                raise DataError(f"{where} is a system message; there can be one only, at the beginning")
        elif message.role != due:
            raise DataError(f"{where} is the {message.role}'s where the {due}'s is due; the two take turns")
        else:
            due = "assistant" if due == "user" else "user"
