"""From replies with rewards to batches: what is kept of a round, and how it is learned from.

A round is a number of questions, each answered several times. It is written to a file before anything is
learned from it, a row of JSON for each reply: to be read by a person, and by a run that was stopped between
two steps on the same round. So batches are always made from such rows, whether they come from memory or from
the file.

A batch packs prompt and reply like any other document (data/packing.py). Trained are the tokens that the
model has drawn itself; the prompt and tools' answers are only read.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pilgrim.data.loader import IGNORED, Batch, stack
from pilgrim.data.packing import Piece, pack
from pilgrim.train.policy import EXTRA, advantages


@dataclass(frozen=True)
class Rollout:
    """One reply. The fields are those of its row; lists have an entry for each token of the reply."""

    task: str
    line: int  # of the prompt in its file
    group: int  # replies to one prompt have the same
    prompt: str
    reply: str
    reward: float | None  # None: there is none, and `why` says so
    solved: bool
    ended: bool
    calls: int
    why: str
    prompt_ids: list[int]
    ids: list[int]  # the stop token included
    drawn: list[bool]
    logprobs: list[float]  # when it was drawn, at the sampling temperature
    reference: list[float]  # the reference model's; empty if there is none


def groups_of(rollouts: Sequence[Rollout]) -> list[list[Rollout]]:
    """The replies to each prompt, in order."""
    found: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        found.setdefault(rollout.group, []).append(rollout)
    return list(found.values())


def learned_from(rollouts: Sequence[Rollout], divide_by_std: bool) -> list[list[tuple[Rollout, float]]]:
    """The groups in which rewards differ, as replies with their advantages; replies without a reward left
    out."""
    found = []
    for group in groups_of(rollouts):
        values = advantages([rollout.reward for rollout in group], divide_by_std)
        if any(values):
            pairs = zip(group, values, strict=True)
            found.append([(rollout, value) for rollout, value in pairs if rollout.reward is not None])
    return found


def batch_of(some: Sequence[tuple[Rollout, float]], context: int, end_id: int) -> Batch:
    """Replies with their advantages, packed into as many rows as they need; one of padding if there are
    none."""
    # The last token of a reply is only a target, so it takes no place.
    sizes = [len(rollout.prompt_ids) + len(rollout.ids) - 1 for rollout, _ in some]
    rows = pack([Piece(number, 0, size) for number, size in enumerate(sizes)], context)
    return stack([_row([some[piece.document] for piece in row], context, end_id) for row in rows or [[]]])


def _row(some: Sequence[tuple[Rollout, float]], context: int, end_id: int) -> Batch:
    inputs = torch.full((context,), end_id, dtype=torch.int64)
    targets = torch.full((context,), IGNORED, dtype=torch.int64)
    documents = torch.full((context,), -1, dtype=torch.int32)
    extra = {name: torch.zeros(context) for name in EXTRA}
    at = 0
    for number, (rollout, advantage) in enumerate(some):
        ids, before = rollout.prompt_ids + rollout.ids, len(rollout.prompt_ids)
        end, first = at + len(ids) - 1, at + before - 1  # at `first` the first token of the reply is foretold
        inputs[at:end] = torch.tensor(ids[:-1])
        documents[at:end] = number
        drawn = torch.tensor(rollout.drawn)
        targets[first:end] = torch.where(drawn, torch.tensor(rollout.ids), IGNORED)
        extra["advantage"][first:end] = advantage * drawn
        extra["rollout"][first:end] = torch.tensor(rollout.logprobs) * drawn
        if rollout.reference:
            extra["reference"][first:end] = torch.tensor(rollout.reference) * drawn
        at = end
    return Batch(
        inputs[None], targets[None], documents[None], extra={name: x[None] for name, x in extra.items()}
    )


def told(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What a round looks like, for the rows of its steps.

    The standard error of the mean reward counts prompts, not replies: those to one prompt are not
    independent.
    """
    groups = groups_of(rollouts)
    rewards = [r.reward for r in rollouts if r.reward is not None]
    means = [
        statistics.fmean(known)
        for group in groups
        if (known := [r.reward for r in group if r.reward is not None])
    ]
    flat = [not any(advantages([r.reward for r in group], False)) for group in groups]

    def share(values: Sequence[bool]) -> float:
        return sum(values) / len(values)

    return {
        "reward": statistics.fmean(rewards),
        "reward_error": statistics.stdev(means) / math.sqrt(len(means)) if len(means) > 1 else 0.0,
        "solved": share([r.solved for r in rollouts]),
        "reply_tokens": statistics.fmean(sum(r.drawn) for r in rollouts),
        "calls": statistics.fmean(r.calls for r in rollouts),
        "cut_off": share([not r.ended for r in rollouts]),
        "groups_dropped": share(flat),
        "without_reward": share([r.reward is None for r in rollouts]),
    }


def from_row(row: Mapping[str, Any]) -> Rollout:
    """A rollout from its row of JSON."""
    return Rollout(**row)
