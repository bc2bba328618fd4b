"""/v1/completions: a text is continued, as a base model does it.

A prompt that is text begins, like every document of training, with <|endoftext|>; token ids are taken as they
are. With `echo` the prompt comes back in front of the reply, and with `logprobs` what the model thought of
each of its tokens; that is how evaluation programs measure a model. They ask for one token more than they
look at, so with `echo` the token that ends a reply is told too.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request
from fastapi.responses import Response

from pilgrim.core.errors import PilgrimError
from pilgrim.infer.sampling import TokenScores
from pilgrim.serve.asked import AskedCompletion
from pilgrim.serve.catalog import Loaded
from pilgrim.serve.driver import Job
from pilgrim.serve.echo import prompt_scores
from pilgrim.serve.refusals import Refusal, blamed_on
from pilgrim.serve.replies import Exchange, Json, Reply, served, spelled, too_long
from pilgrim.serve.settings import Office
from pilgrim.serve.writing import Piece, Told, Writer
from pilgrim.text.tokenizer import StreamDecoder, Tokenizer

DEFAULT_TOKENS = 16  # as OpenAI has it


@dataclass(frozen=True)
class Prompt:
    """What is continued. The first `hidden` ids are ours, and never echoed."""

    ids: list[int]
    hidden: int
    text: str


async def complete(request: Request, office: Office) -> Response:
    """Raises Refusal."""
    return await served(request, office, AskedCompletion, _begin)


async def _begin(asked: AskedCompletion, model: Loaded) -> Exchange:
    most = DEFAULT_TOKENS if asked.max_tokens is None else asked.max_tokens
    if most == 0 and not asked.echo:
        raise Refusal(
            "max_tokens = 0 leaves nothing to answer but with echo; give 1 or more", param="max_tokens"
        )
    if asked.best_of is not None and asked.best_of != asked.choices:
        raise Refusal(
            f"best_of = {asked.best_of}: all replies are given, and none is chosen; leave it out",
            param="best_of",
            code="unsupported_parameter",
        )
    sampling, biases, stops = asked.sampling(most), asked.biases, asked.stops
    asked.wants_usage  # noqa: B018  refuses what contradicts itself
    model.driver.refuse_more_than(asked.choices * len(_several(asked.prompt)))
    prompts = await asyncio.to_thread(_prompts, asked, model, most)
    form = CompletionForm(model.tokenizer, asked.logprobs, await _echoes(asked, model, prompts))
    tokenizer = model.tokenizer
    ends = (tokenizer.eot_id, tokenizer.im_end_id)
    jobs = [
        Job(
            prompt.ids,
            sampling,
            Writer(tokenizer, stops, told_ends=ends if asked.echo else ()),
            () if asked.echo else ends,
            index,
            biases,
            asked.logprobs,
        )
        for index, prompt in enumerate(p for p in prompts for _ in range(asked.choices))
    ]
    return Exchange(
        asked,
        form,
        model.entry.id,
        prompt_tokens=sum(len(prompt.ids) for prompt in prompts),
        choices=len(jobs),
        ticket=model.driver.submit(jobs) if most else None,
    )


# Prompts ------------------------------------------------------------------------------------------


def _several(prompt: str | list[str] | list[int] | list[list[int]]) -> Sequence[str | list[int]]:
    """A list of prompts, whichever of the four shapes it has."""
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [[i for i in prompt if isinstance(i, int)]]
    return [each for each in prompt if not isinstance(each, int)]


def _prompts(asked: AskedCompletion, model: Loaded, most: int) -> list[Prompt]:
    """Raises Refusal for a prompt that is empty, has unknown ids, or leaves no room for a reply."""
    found = [_prompt(each, model) for each in _several(asked.prompt)]
    context = model.engine.config.context
    if not found:
        raise Refusal("prompt: is an empty list; give a text or token ids", param="prompt")
    for prompt in found:
        if len(prompt.ids) + (most > 0) > context:
            raise too_long(len(prompt.ids), context, "prompt")
    return found


def _prompt(given: str | list[int], model: Loaded) -> Prompt:
    tokenizer, context = model.tokenizer, model.engine.config.context
    if isinstance(given, str):
        if len(given) > context * model.longest_token:  # no need to count
            raise too_long(f"{len(given)} characters", context, "prompt")
        with blamed_on("prompt"):
            return Prompt([tokenizer.eot_id, *tokenizer.encode(given)], 1, given)
    if not given:
        raise Refusal("prompt: has no tokens; begin it with <|endoftext|>", param="prompt")
    if not 0 <= min(given) <= max(given) < tokenizer.vocab_size:
        raise Refusal(f"prompt: the model knows only the ids 0 to {tokenizer.vocab_size - 1}", param="prompt")
    return Prompt(given, 0, tokenizer.decode(given))


async def _echoes(asked: AskedCompletion, model: Loaded, prompts: Sequence[Prompt]) -> "list[Echo]":
    """What comes before each reply: with `echo` its prompt."""
    found = []
    for prompt in prompts:
        echo = Echo("", [])
        if asked.echo:
            scores: Sequence[TokenScores | None] = [None] * len(prompt.ids)
            if asked.logprobs is not None:
                work = partial(prompt_scores, model.engine, prompt.ids, asked.logprobs)
                try:
                    scores = await model.driver.between_steps(work)
                except PilgrimError as error:
                    raise Refusal(str(error), status=500) from error  # spoiled weights are no client's fault
            echo = Echo(prompt.text, _told(prompt, scores, model.tokenizer))
        found += [echo] * asked.choices
    return found


def _told(prompt: Prompt, scores: Sequence[TokenScores | None], tokenizer: Tokenizer) -> list[Told]:
    """Its tokens, each with its place in the prompt's text."""
    decoder, begin, told = StreamDecoder(tokenizer), 0, []
    pairs = zip(prompt.ids[prompt.hidden :], scores[prompt.hidden :], strict=True)
    for token_id, thought in pairs:
        told.append(Told(token_id, begin, thought))
        begin += len(decoder.feed(token_id))
    return told


# Shapes -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Echo:
    """What stands in front of a reply."""

    text: str
    tokens: list[Told]


class CompletionForm:
    """OpenAI's text completions."""

    kind = chunk_kind = "text_completion"

    def __init__(self, tokenizer: Tokenizer, logprobs: int | None, echoes: Sequence[Echo]) -> None:
        self._tokenizer, self._logprobs, self._echoes = tokenizer, logprobs, echoes

    def whole(self, index: int, reply: Reply) -> Json:
        echo = self._echoes[index]
        table = self._table(echo.tokens, 0, self._table(reply.tokens, len(echo.text)))
        return self._choice(index, echo.text + reply.text, table, reply.finish)

    def opening(self, index: int) -> Json | None:
        echo = self._echoes[index]
        if not echo.text:
            return None
        return self._choice(index, echo.text, self._table(echo.tokens, 0), None)

    def part(self, index: int, piece: Piece) -> Json:
        table = self._table(piece.tokens, len(self._echoes[index].text))
        return self._choice(index, piece.text, table, piece.finish)

    def _choice(self, index: int, text: str, table: Json | None, finish: str | None) -> Json:
        return {"index": index, "text": text, "logprobs": table, "finish_reason": finish}

    def _table(self, tokens: Sequence[Told], offset: int, behind: Json | None = None) -> Json | None:
        """OpenAI's four columns; `behind` is another table that follows."""
        if self._logprobs is None:
            return None
        table = {
            "tokens": [spelled(self._tokenizer, token.token_id) for token in tokens],
            "token_logprobs": [token.scores.log_prob if token.scores else None for token in tokens],
            "top_logprobs": [self._likeliest(token) for token in tokens],
            "text_offset": [offset + token.begin for token in tokens],
        }
        return {name: column + behind[name] for name, column in table.items()} if behind else table

    def _likeliest(self, token: Told) -> dict[str, float] | None:
        """Those asked for, and the token itself."""
        if token.scores is None:
            return None
        near = {spelled(self._tokenizer, i): value for i, value in token.scores.likeliest}
        return near | {spelled(self._tokenizer, token.token_id): token.scores.log_prob}
