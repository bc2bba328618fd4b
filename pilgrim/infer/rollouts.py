"""Rollouts: replies with all that reinforcement learning wants to know about how they were written.

Of each token: did the model draw it, or was it forced (a tool's answer)? How likely did the model find it
when it drew it? A policy gradient needs both. What was forced is no decision, so nothing is learned from it.
And how likely a token *was* is what its probability under newer weights is compared with.

Likely under what? Under what it was drawn from: the model's scores divided by the sampling temperature,
softmax. Filters such as top-p are left out of rollouts, because they give tokens a probability of 0 that
training would divide by. The stop token is a decision like any other, so it is part of a rollout, though not
of a reply.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.scheduler import Request
from pilgrim.infer.tools import END_OF_CALL, END_OF_RESPONSE, RESPONSE, ToolUse


@dataclass(frozen=True)
class Written:
    """A reply: equally long lists with an entry for each token, the stop token included."""

    ids: list[int]
    drawn: list[bool]  # by the model; else it was forced
    logprobs: list[float]  # nats, at the sampling temperature; 0 where forced
    ended: bool  # by its stop token; else it was cut off


def write(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Collection[int],
    indices: Sequence[int],
    tools: ToolUse | None = None,
    most_calls: int = 4,
) -> list[Written]:
    """A rollout for each prompt. `sampling` may have a temperature above 0, a seed and a limit, and no
    filters.

    `indices` tell the draws of one seed apart, so a rollout depends on nothing else that is written with it.
    """
    if sampling.temperature == 0 or sampling != _plain(sampling):
        raise ValueError("rollouts are drawn at a temperature above 0, and without filters or penalties")
    follow = partial(_answer, tools, most_calls) if tools else None
    requests = [
        engine.submit(
            prompt, sampling, stop_ids, index, top_logprobs=0, scores_at=sampling.temperature, follow=follow
        )
        for prompt, index in zip(prompts, indices, strict=True)
    ]
    thoughts: dict[Request, list[float | None]] = {request: [] for request in requests}
    try:
        while not engine.idle:
            for event in engine.step():
                event.request.complain()
                thoughts[event.request].append(event.scores.log_prob if event.scores else None)
    finally:
        for request in requests:
            engine.cancel(request)
    return [_written(request, thoughts[request]) for request in requests]


def _plain(sampling: Sampling) -> Sampling:
    return Sampling(temperature=sampling.temperature, max_tokens=sampling.max_tokens, seed=sampling.seed)


def _written(request: Request, thoughts: Sequence[float | None]) -> Written:
    ids = request.ids if request.stopped_by is None else [*request.ids, request.stopped_by]
    assert len(ids) == len(thoughts)
    return Written(
        ids,
        [thought is not None for thought in thoughts],
        [thought or 0.0 for thought in thoughts],
        request.stopped_by is not None,
    )


def _answer(tools: ToolUse, most_calls: int, ids: Sequence[int]) -> list[int]:
    """The tool's answer; a model that calls too often gets none, but hears of an empty one."""
    if ids[-1] == END_OF_CALL and ids.count(END_OF_CALL) > most_calls:
        return [RESPONSE, END_OF_RESPONSE]
    return tools.answer(ids)
