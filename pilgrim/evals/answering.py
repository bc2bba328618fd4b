"""Asking a chatbot: from a user's message to a reply, or to how likely each of some replies is.

Both go through the chat template, so the model is asked as it was trained. A message that is too long for
the model's context loses its beginning, and that is counted. "Too long" leaves room for the reply: for one
that is written, the tokens that it may have, but not more than a quarter of the context; for one that is
scored, its own.

Replies are the likeliest ones (temperature 0), so they depend on nothing but model and message: not on what
else is in the batch (in fp32; in bf16, a batch of another shape may turn a token that is on the edge).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pilgrim.core.processes import ALONE, Processes
from pilgrim.evals.prompts import Row
from pilgrim.infer.dealing import dealt_replies
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.tools import ToolUse
from pilgrim.text.chat import Message, render_prompt, truncate_turns
from pilgrim.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Asked:
    """A message as ids, up to the opening of the assistant's turn; `cut` if it lost its beginning."""

    ids: list[int]
    cut: bool


@dataclass(frozen=True)
class Said:
    """A reply as text, its calls included. `ended`: by itself. `cramped`: it had less room than allowed."""

    text: str
    ended: bool
    cut: bool
    cramped: bool


def ask(prompt: str, tokenizer: Tokenizer, context: int, reply_tokens: int) -> Asked:
    """The ids of the user's message, with room for `reply_tokens` behind them."""
    turns = (Message("user", prompt),)
    kept, cut = truncate_turns(turns, tokenizer, context - reply_tokens)
    return Asked(render_prompt(kept, tokenizer), cut)


def choice_rows(
    prompt: str, choices: Sequence[str], tokenizer: Tokenizer, context: int
) -> tuple[list[Row], bool]:
    """A row to be scored for each of the replies `choices`, and whether the message was cut."""
    replies = tokenizer.encode_batch(list(choices))
    asked = ask(prompt, tokenizer, context, max(map(len, replies)))
    return [Row((*asked.ids, *reply), len(asked.ids)) for reply in replies], asked.cut


def reply_to(
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    calculator: bool,
    processes: Processes = ALONE,
) -> list[Said]:
    """The likeliest reply to each message. Of several `processes`, each writes some, and all have all."""
    context = engine.config.context
    reserved = min(max_tokens, context // 4)
    asked = [ask(prompt, tokenizer, context, reserved) for prompt in prompts]
    replies = dealt_replies(
        engine,
        [one.ids for one in asked],
        Sampling(temperature=0, max_tokens=max_tokens),
        (tokenizer.im_end_id, tokenizer.eot_id),
        processes,
        ToolUse(tokenizer) if calculator else None,
    )
    return [
        Said(
            tokenizer.decode(reply.ids), reply.ended, one.cut, not reply.ended and len(reply.ids) < max_tokens
        )
        for one, reply in zip(asked, replies, strict=True)
    ]
