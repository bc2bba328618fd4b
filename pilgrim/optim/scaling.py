"""The one-dial rules: what batch, learning rates and horizon follow from a model's size.

Starting points, not laws. The batch grows with the horizon D as D^0.383 (nanochat's fit over d12 to
d26, 2026), anchored here at the pocket model, where small batches were measured to be best (journal,
2026-11-23): nanochat's own 2^19 tokens would leave a short run with five steps. The learning rates of
embedding and head fall with width as 1/sqrt(width); Muon's does not, because an orthogonalized update
has the same effect at every width. All grow with the square root of the batch.
"""

from dataclasses import dataclass

ANCHOR_WIDTH = 256
ANCHOR_BATCH_TOKENS = 4096
ANCHOR_HORIZON_TOKENS = 2.5e6
TOKENS_PER_PARAMETER = 12  # nanochat's compute-optimal ratio for matrices and head


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates by kind of parameter."""

    matrix: float
    embedding: float
    head: float
    norm: float


# Found at the anchor by a sweep (journal, 2026-11-23).
ANCHOR_RATES = LearningRates(matrix=0.02, embedding=0.3, head=0.008, norm=0.01)


def horizon_tokens(matrix_and_head_parameters: int) -> int:
    """Training tokens that suit a model: 12 for each parameter that is multiplied."""
    return TOKENS_PER_PARAMETER * matrix_and_head_parameters


def batch_tokens(horizon: float, context: int) -> int:
    """Tokens per step for a run of `horizon` tokens: a power of two, and at least one row."""
    wanted = ANCHOR_BATCH_TOKENS * (horizon / ANCHOR_HORIZON_TOKENS) ** 0.383
    power = 1 << max(0, round(wanted).bit_length() - 1)
    nearest: int = min((power, 2 * power), key=lambda p: abs(p - wanted))
    return max(context, nearest)


def learning_rates(width: int, batch: int) -> LearningRates:
    """Peak learning rates for a model of this width and steps of `batch` tokens."""
    by_batch = (batch / ANCHOR_BATCH_TOKENS) ** 0.5
    by_width = (ANCHOR_WIDTH / width) ** 0.5
    return LearningRates(
        matrix=ANCHOR_RATES.matrix * by_batch,
        embedding=ANCHOR_RATES.embedding * by_batch * by_width,
        head=ANCHOR_RATES.head * by_batch * by_width,
        norm=ANCHOR_RATES.norm * by_batch,
    )
