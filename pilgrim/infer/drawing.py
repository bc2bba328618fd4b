"""The tokens that follow a pass: each request's own dials, randomness and form, for all of them at once.

A request that guessed (lookup.py) has several places: one behind its last token, and one behind each guess,
drawn as if the guesses before it were right. Whether they are, is seen when all are drawn; so the host
waits for the device once, however many were guessed.

A request's form is code of whoever asked. If it fails, or leaves nothing to be drawn, that is the request's
`failure`; it draws whatever comes, which nobody will see, and the others draw as if nothing had happened.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pilgrim.core.errors import DataError, PilgrimError
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
        [_allowed(request, scores_bv.shape[1]) for request in requests],
    ).tolist()
    for row in [row for row, token_id in enumerate(ids) if token_id < 0]:
        if not scores_bv[row].isfinite().all():
            raise PilgrimError(
                "the model's scores are not finite, so its weights are spoiled; use an earlier checkpoint"
            )
        requests[row].failure = DataError("grammar and logit_bias: together they allow no token; change one")
        ids[row] = 0
    return ids


def _allowed(request: Request, vocabulary: int) -> Tensor | None:
    """Bool [v]: what its form allows; None if it has none, or one that has failed."""
    if request.grammar is None:
        return None
    try:
        allowed_v = may_follow(request.grammar, request.stop_ids)
        if allowed_v.shape != (vocabulary,) or allowed_v.dtype != torch.bool:
            raise ValueError(f"grammar: allowed() must be Bool [{vocabulary}], not {allowed_v}")
    except Exception as error:
        request.failure = error
        return None
    return allowed_v


def thoughts(scores_bv: Tensor, ids: Sequence[int], places: Sequence[Place]) -> list[TokenScores | None]:
    """What the model thought of the drawn tokens, for those who asked."""
    tops = [place.request.top_logprobs for place in places]
    return token_scores(scores_bv, ids, tops, [place.request.scores_at for place in places])


def _looks_back(sampling: Sampling) -> bool:
    """Whether its dials want to know what was written."""
    return sampling.repetition_penalty > 1 or sampling.dry_multiplier > 0
