"""The one scorer: how likely does the model find this continuation?

A row's score is the sum of the log-probabilities of its scored ids, in nats; divided by their number it is
the mean by which options are compared. `greedy` tells whether each of them was the likeliest, that is,
whether the model would have written exactly this.

One row at a time that would be a pass over the whole prompt for each option. Three things make it faster, and
change nothing but the last digits:

- Options of a question begin alike: examples, question, and then they differ. What all of a question's rows
  begin with is its *trunk*. The trunk is read once, and its keys and values wait in a KV cache; each option's
  *branch* is read after it, and the next one overwrites it.
- Trunks and rows of similar length are read together, padded at the right, where no token looks.
- Logits are computed only where something is scored: a few places of each row, not all of them.

Rows without enough in common are read whole. Equal rows of a question are read once, so that their scores are
equal to the bit, and the first of them wins as it should.

Shapes: b rows, t tokens, w width, n scored places, v tokens in the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.evals.prompts import Row, common
from pilgrim.infer.engine import Engine

TOKENS_PER_PASS = 8192  # read together, padding included
WORTH_SHARING = 16  # fewer ids than this are sooner read again than kept
LOGITS_AT_ONCE = 2**26  # numbers: 256 MB in fp32


@dataclass(frozen=True)
class Score:
    """What a row's continuation is worth."""

    log_prob: float  # nats, summed over `tokens`
    tokens: int
    greedy: bool

    @property
    def mean(self) -> float:
        """Nats a token: what options are compared by."""
        return self.log_prob / self.tokens


@dataclass(frozen=True)
class Family:
    """Different rows with the same first `trunk` ids, and where their scores belong."""

    rows: list[Row]
    trunk: int
    places: list[list[tuple[int, int]]]  # for each row: (question, option), several if options are equal

    @property
    def branch(self) -> int:
        """Ids of the longest branch."""
        return max(len(row.ids) for row in self.rows) - self.trunk


def pick(scores: Sequence[Score]) -> int:
    """The option with the highest mean log-probability; the first of several."""
    return max(range(len(scores)), key=lambda option: scores[option].mean)


def score(
    engine: Engine,
    questions: Sequence[Sequence[Row]],
    tokens_per_pass: int = TOKENS_PER_PASS,
) -> list[list[Score]]:
    """A score for each row of each question, in their order.

    The result does not depend on `tokens_per_pass` or on what else is scored (in fp32 to 1e-5; in bf16 a
    batch of another shape may round differently). Raises DataError for ids that the model does not know,
    PilgrimError if its weights are spoiled.
    """
    _check(engine, questions)
    found: dict[tuple[int, int], Score] = {}
    families = [f for number, rows in enumerate(questions) for f in _families(number, rows)]
    for batch in _batches(families, tokens_per_pass):
        for family, row, value in _read(engine, batch):
            found |= dict.fromkeys(family.places[row], value)
    return [[found[number, option] for option in range(len(rows))] for number, rows in enumerate(questions)]


def _check(engine: Engine, questions: Sequence[Sequence[Row]]) -> None:
    vocabulary, context = engine.config.vocab_size, engine.config.context
    for row in (row for rows in questions for row in rows):
        if not 0 <= min(row.ids) <= max(row.ids) < vocabulary:
            raise DataError(f"the model knows only the ids 0 to {vocabulary - 1}; use its run's tokenizer")
        if not 1 <= row.start < len(row.ids) <= context:
            raise ValueError(f"{len(row.ids)} ids scored from {row.start}, in a context of {context}")


# What is read together ----------------------------------------------------------------------------


def _families(number: int, rows: Sequence[Row]) -> Iterator[Family]:
    """A question's rows by what they begin with."""
    places: dict[Row, list[tuple[int, int]]] = {}
    for option, row in enumerate(rows):
        places.setdefault(row, []).append((number, option))
    alike: dict[tuple[int, ...], list[Row]] = {}
    for row in places:
        alike.setdefault(row.ids[:WORTH_SHARING], []).append(row)
    for members in alike.values():
        # The last id before the continuation is read with the branch, because its scores are needed.
        trunk = min(common(row.ids for row in members), min(row.start for row in members) - 1)
        if len(members) > 1 and trunk >= WORTH_SHARING:
            yield Family(members, trunk, [places[row] for row in members])
        else:
            yield from (Family([row], 0, [places[row]]) for row in members)


def _batches(families: Sequence[Family], tokens_per_pass: int) -> Iterator[list[Family]]:
    """Families of similar lengths, as many as fit; those without a trunk apart from the others.

    Within a batch, those with the most branches come first.
    """
    batch: list[Family] = []
    for family in sorted(families, key=lambda f: (f.trunk, f.branch)):
        longest = max(f.branch for f in [*batch, family]) + family.trunk
        full = (len(batch) + 1) * longest > tokens_per_pass
        if batch and (full or (batch[0].trunk == 0) != (family.trunk == 0)):
            yield sorted(batch, key=lambda f: -len(f.rows))
            batch = []
        batch.append(family)
    if batch:
        yield sorted(batch, key=lambda f: -len(f.rows))


# Reading ------------------------------------------------------------------------------------------


def _read(engine: Engine, batch: Sequence[Family]) -> Iterator[tuple[Family, int, Score]]:
    """The scores of a batch: (family, row in it, score)."""
    if batch[0].trunk == 0:
        hidden_btw = engine.hidden_alone([family.rows[0].ids for family in batch])
        scores = _scores(engine, hidden_btw, [family.rows[0] for family in batch], [0] * len(batch))
        yield from ((family, 0, value) for family, value in zip(batch, scores, strict=True))
        return
    trunks = [family.trunk for family in batch]
    cache = engine.cache(len(batch), max(trunks) + max(family.branch for family in batch))
    engine.hidden(cache, 0, [family.rows[0].ids[: family.trunk] for family in batch])
    for branch in range(len(batch[0].rows)):
        still = [family for family in batch if branch < len(family.rows)]  # the first ones: see _batches
        rows = [family.rows[branch] for family in still]
        cache.lengths = list(trunks)  # the branch before is forgotten
        tokens = [row.ids[trunk:] for row, trunk in zip(rows, trunks, strict=False)]
        scores = _scores(engine, engine.hidden(cache, 0, tokens), rows, trunks)
        yield from ((family, branch, value) for family, value in zip(still, scores, strict=True))


@torch.inference_mode()
def _scores(engine: Engine, hidden_btw: Tensor, rows: Sequence[Row], first: Sequence[int]) -> list[Score]:
    """The scores of rows whose hidden states begin at their id number `first[i]`."""
    counts = [len(row.ids) - row.start for row in rows]
    # What is at place i scores id i + 1.
    where = [(i, at - 1 - first[i]) for i, row in enumerate(rows) for at in range(row.start, len(row.ids))]
    at_n2 = torch.tensor(where, device=hidden_btw.device)
    goal_n = torch.tensor([i for row in rows for i in row.ids[row.start :]], device=hidden_btw.device)
    hidden_nw = hidden_btw[at_n2[:, 0], at_n2[:, 1]]
    step = max(1, LOGITS_AT_ONCE // engine.config.vocab_size)
    parts = [
        _token_scores(engine, hidden_nw[at : at + step], goal_n[at : at + step])
        for at in range(0, len(goal_n), step)
    ]
    nats_n = torch.cat([part[0] for part in parts]).double()
    if not nats_n.isfinite().all():
        raise PilgrimError(
            "the model's scores are not finite, so its weights are spoiled; use an earlier checkpoint"
        )
    likeliest = torch.cat([part[1] for part in parts]).split(counts)
    return [
        Score(float(nats.sum()), len(nats), bool(hits.all()))
        for nats, hits in zip(nats_n.split(counts), likeliest, strict=True)
    ]


def _token_scores(engine: Engine, hidden_nw: Tensor, goal_n: Tensor) -> tuple[Tensor, Tensor]:
    """Of each goal id: its log-probability, and whether it is the likeliest; both [n], on the CPU."""
    logits_nv = engine.model.logits(hidden_nw).float()
    goal_n1 = goal_n[:, None]
    log_probs_n = logits_nv.gather(1, goal_n1)[:, 0] - logits_nv.logsumexp(1)
    return log_probs_n.cpu(), (logits_nv.argmax(1) == goal_n).cpu()
