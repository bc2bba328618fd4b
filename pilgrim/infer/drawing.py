"""The tokens that follow a pass: each request's own dials, randomness and form, for all of them at once.

A request that guessed (lookup.py) has several places: one behind its last token, and one behind each guess,
drawn as if the guesses before it were right. Whether they are, is seen when all are drawn; so the host
waits for the device once, however many were guessed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pilgrim.core.errors import PilgrimError
from pilgrim.infer.grammar import may_follow
from pilgrim.infer.sampling import Sampling, TokenScores, choose, token_scores
from pilgrim.infer.scheduler import Request


class Place(NamedTuple):
    """Where a token is drawn: behind a request's tokens and so many of its guesses."""

    request: Request
    guesses: int

    @property
    def reply(self) -> list[int]:
        """What was written, if the guesses are right."""
        return [*self.request.ids, *self.request.guess[: self.guesses]]


def places_of(request: Request) -> list[Place]:
    """All of a request's."""
    return [Place(request, guesses) for guesses in range(len(request.guess) + 1)]


@torch.inference_mode()
def draw(scores_bv: Tensor, places: Sequence[Place]) -> list[int]:
    """The next token at each place; here, and only here, the host waits for the device.

    Raises PilgrimError if the scores are not finite.
    """
    requests = [place.request for place in places]
    ids: list[int] = choose(
        scores_bv,
        [place.reply if _looks_back(place.request.sampling) else () for place in places],
        [request.sampling for request in requests],
        [place.request.draws[place.request.written + place.guesses] for place in places],
        [request.logit_bias for request in requests],
        [may_follow(r.grammar, r.stop_ids) if r.grammar else None for r in requests],
    ).tolist()
    if min(ids) < 0:
        raise PilgrimError(
            "the model's scores are not finite, so its weights are spoiled; use an earlier checkpoint"
        )
    return ids


def thoughts(scores_bv: Tensor, ids: Sequence[int], places: Sequence[Place]) -> list[TokenScores | None]:
    """What the model thought of the drawn tokens, for those who asked."""
    tops = [place.request.top_logprobs for place in places]
    return token_scores(scores_bv, ids, tops, [place.request.scores_at for place in places])


def _looks_back(sampling: Sampling) -> bool:
    """Whether its dials want to know what was written."""
    return sampling.repetition_penalty > 1 or sampling.dry_multiplier > 0
