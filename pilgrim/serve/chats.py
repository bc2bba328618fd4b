"""/v1/chat/completions: a conversation goes on, as a model does it that was taught to answer.

The conversation is rendered as it was in training (text/chat.py), tools included: the client's functions are
told to the model in the system's turn. What the reply may be is said in allowed.py.
"""

import asyncio
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import Response

from pilgrim.serve.allowed import grammar_of, never_drawn, tools_of
from pilgrim.serve.asked import AskedChat, ChatMessage
from pilgrim.serve.catalog import Loaded
from pilgrim.serve.driver import Job
from pilgrim.serve.refusals import Refusal, blamed_on
from pilgrim.serve.replies import Exchange, Json, Reply, served, too_long
from pilgrim.serve.settings import Office
from pilgrim.serve.writing import Piece, Ran, Told, Writer
from pilgrim.text.calls import Call
from pilgrim.text.chat import messages_from_row, render_prompt
from pilgrim.text.tokenizer import Tokenizer


async def chat(request: Request, office: Office) -> Response:
    """Raises Refusal."""
    return await served(request, office, AskedChat, begin)


async def begin(asked: AskedChat, model: Loaded) -> Exchange:
    """Has the replies written. Raises Refusal."""
    if not model.entry.chats:
        raise Refusal(
            f"{model.entry.id} is a base model, which has not learned to answer; use /v1/completions, or a "
            "later stage",
            param="model",
        )
    _refuse_what_is_not_there(asked)
    context = model.engine.config.context
    sampling, stops = asked.sampling(_most(asked, context)), asked.stops
    asked.wants_usage  # noqa: B018  refuses what contradicts itself
    top = (asked.top_logprobs or 0) if asked.logprobs else None
    model.driver.refuse_more_than(asked.choices)
    tokenizer, tools = model.tokenizer, tools_of(asked)
    prompt, grammars = await asyncio.to_thread(
        lambda: (
            _prompt(asked, model),
            [grammar_of(asked, tools, tokenizer) for _ in range(asked.choices)],
        )
    )
    jobs = [
        Job(
            prompt,
            sampling,
            Writer(tokenizer, stops, tools),
            (tokenizer.eot_id, tokenizer.im_end_id),
            index,
            asked.biases | never_drawn(tools),
            top,
            grammar,
        )
        for index, grammar in enumerate(grammars)
    ]
    form = ChatForm(tokenizer, bool(asked.logprobs))
    ticket = model.driver.submit(jobs)
    return Exchange(asked, form, model.entry.id, len(prompt), len(jobs), ticket)


def _refuse_what_is_not_there(asked: AskedChat) -> None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refusal("top_logprobs: only with logprobs = true", param="top_logprobs")
    if asked.max_tokens == 0:
        raise Refusal("max_tokens = 0 leaves no room for an answer; give 1 or more", param="max_tokens")


def _most(asked: AskedChat, context: int) -> int:
    """The longest reply."""
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        raise Refusal("max_tokens and max_completion_tokens are the same; give one", param="max_tokens")
    return asked.max_completion_tokens or asked.max_tokens or context


# The prompt ---------------------------------------------------------------------------------------


def _prompt(asked: AskedChat, model: Loaded) -> list[int]:
    """Raises Refusal for turns that are not in order, and for a conversation that leaves no room."""
    context = model.engine.config.context
    characters = sum(len(message.text) for message in asked.messages)
    if characters > context * model.longest_token:  # no need to count
        raise too_long(f"{characters} characters", context, "messages")
    row: Json = {"messages": [_row_of(message) for message in asked.messages]}
    if asked.tools:
        row["tools"] = [
            tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in asked.tools
        ]
    with blamed_on("messages"):
        prompt = render_prompt(messages_from_row(row, "messages"), model.tokenizer)
    if len(prompt) >= context:
        raise too_long(len(prompt), context, "messages")
    return prompt


def _row_of(message: ChatMessage) -> Json:
    """As training data has it. A developer is what a system was before OpenAI gave it that name."""
    row: Json = {"role": "system" if message.role == "developer" else message.role, "content": message.text}
    if message.tool_calls:
        row["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if message.tool_call_id:
        row["tool_call_id"] = message.tool_call_id
    return row


# Shapes -------------------------------------------------------------------------------------------


class ChatForm:
    """OpenAI's chat completions."""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs

    def whole(self, index: int, reply: Reply) -> Json:
        message: Json = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.calls:
            message |= {"content": reply.text or None, "tool_calls": [_call(call) for call in reply.calls]}
        if reply.ran:
            message["executed_calls"] = [_executed(ran) for ran in reply.ran]
        return self._choice(index, "message", message, reply.tokens, reply.finish)

    def opening(self, index: int) -> Json | None:
        return self._choice(index, "delta", {"role": "assistant", "content": ""}, (), None)

    def part(self, index: int, piece: Piece) -> Json:
        delta: Json = {"content": piece.text} if piece.text else {}
        if piece.calls:
            delta["tool_calls"] = [{"index": n, **_call(call)} for n, call in enumerate(piece.calls)]
        if piece.ran:
            delta["executed_calls"] = [_executed(ran) for ran in piece.ran]
        return self._choice(index, "delta", delta, piece.tokens, piece.finish)

    def _choice(self, index: int, name: str, said: Json, tokens: Sequence[Told], finish: str | None) -> Json:
        logprobs = None
        if self._logprobs:
            logprobs = {"content": [self._told(token) for token in tokens if token.scores], "refusal": None}
        return {"index": index, name: said, "logprobs": logprobs, "finish_reason": finish}

    def _told(self, token: Told) -> Json:
        assert token.scores is not None
        likeliest = [self._scored(i, value) for i, value in token.scores.likeliest]
        return self._scored(token.token_id, token.scores.log_prob) | {"top_logprobs": likeliest}

    def _scored(self, token_id: int, log_prob: float) -> Json:
        data = self._tokenizer.decode_bytes(token_id)
        return {"token": data.decode(errors="replace"), "logprob": log_prob, "bytes": list(data)}


def _call(call: Call) -> Json:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _executed(ran: Ran) -> Json:
    """Ours: a call that the server ran, its result, and its place in the content, in characters."""
    return {**_call(ran.call), "result": ran.result, "offset": ran.place}
