"""The one scorer: how likely does the model find this continuation?

A row's score is the sum of the log-probabilities of its scored ids, in nats; divided by their number it is
the mean by which options are compared. `greedy` tells whether each of them was the likeliest, that is,
whether the model would have written exactly this.

One row at a time that would be a pass over the whole prompt for each option. Four things make it faster, and
change nothing but the last digits:

- Options of a question begin alike: examples, question, and then they differ. What they share is read once,
  and all options after it in the same pass (trees.py).
- Prompts of similar length are read together, padded at the right, where no token looks.
- Of the last block, only what is scored is computed.
- Logits are computed only where something is scored: a few places of each row, not all of them.

Equal rows of a question are read once, so that their scores are equal to the bit, and the first of them wins
as it should.

Shapes: n scored places, w width, v tokens in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.evals.prompts import Row
from pilgrim.evals.trees import batches, read, trees
from pilgrim.infer.engine import Engine

# Read together at most, padding included. What a CPU works on should stay in its cache: with 8192 tokens of
# width 256 scoring took a fifth longer (L2 of 2 MB). A GPU wants more work at a time.
TOKENS_PER_PASS = 8192
TOKENS_IN_CACHE = 1024
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
    if engine.device.type == "cpu":
        tokens_per_pass = min(tokens_per_pass, TOKENS_IN_CACHE)
    found: dict[tuple[int, int], Score] = {}
    grown = [tree for number, rows in enumerate(questions) for tree in trees(number, rows)]
    for batch in batches(grown, tokens_per_pass):
        rows = [row for tree in batch for row in tree.rows]
        places = [at for tree in batch for at in tree.places]
        for at, value in zip(places, _scores(engine, read(engine, batch), rows), strict=True):
            found |= dict.fromkeys(at, value)
    return [[found[number, option] for option in range(len(rows))] for number, rows in enumerate(questions)]


def _check(engine: Engine, questions: Sequence[Sequence[Row]]) -> None:
    vocabulary, context = engine.config.vocab_size, engine.config.context
    for row in (row for rows in questions for row in rows):
        if not 0 <= min(row.ids) <= max(row.ids) < vocabulary:
            raise DataError(f"the model knows only the ids 0 to {vocabulary - 1}; use its run's tokenizer")
        if not 1 <= row.start < len(row.ids) <= context:
            raise ValueError(f"{len(row.ids)} ids scored from {row.start}, in a context of {context}")


@torch.inference_mode()
def _scores(engine: Engine, hidden_nw: Tensor, rows: Sequence[Row]) -> list[Score]:
    """The scores of rows, of which `hidden_nw` has the places before all scored ids, one after the other."""
    counts = [len(row.ids) - row.start for row in rows]
    goal_n = torch.tensor([i for row in rows for i in row.ids[row.start :]], device=hidden_nw.device)
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
