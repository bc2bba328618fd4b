"""The one-dial rules: what batch, learning rates and horizon follow from a model's size.

Starting points, not laws; each can be overridden in a recipe.

- Horizon: 12 tokens for each parameter that is multiplied (nanochat, 2026).
- Batch: it grows with the horizon, because gradients carry less noise per token early in a run than what
  large batches average away. The exponent goes through two measurements: 2,048 tokens were best for the
  pocket model's 3.4M tokens (journal, 2026-11-23), and 262,144 instead of 524,288 was the largest single
  win in autoresearch's five-minute runs of 0.5B tokens. nanochat's own rule, 2^19 tokens from depth 10 on,
  would leave a short run with five steps.
- Learning rates: those of embedding and head fall with width as 1/sqrt(width); Muon's does not, because an
  orthogonalized update has the same effect at every width. No rate follows the batch: the pocket model's
  best ones at 2,048 tokens are within a factor of two of nanochat's at 524,288.
"""

from dataclasses import dataclass

ANCHOR_WIDTH = 256
ANCHOR_BATCH_TOKENS = 2048
ANCHOR_HORIZON_TOKENS = 3.4e6
BATCH_EXPONENT = 0.9
TOKENS_PER_PARAMETER = 12


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates by kind of parameter."""

    matrix: float
    embedding: float
    head: float
    norm: float


# Found at the anchor by a sweep (journal, 2026-11-23).
ANCHOR_RATES = LearningRates(matrix=0.04, embedding=0.3, head=0.02, norm=0.02)


def horizon_tokens(matrix_and_head_parameters: int) -> int:
    """Training tokens that suit a model: 12 for each parameter that is multiplied."""
    return TOKENS_PER_PARAMETER * matrix_and_head_parameters


def batch_tokens(horizon: float, context: int) -> int:
    """Tokens per step for a run of `horizon` tokens: a power of two, and at least one row."""
    wanted = ANCHOR_BATCH_TOKENS * (horizon / ANCHOR_HORIZON_TOKENS) ** BATCH_EXPONENT
    power = 1 << max(0, round(wanted).bit_length() - 1)
    nearest: int = min((power, 2 * power), key=lambda p: abs(p - wanted))
    return max(context, nearest)


def learning_rates(width: int) -> LearningRates:
    """Peak learning rates for a model of this width."""
    by_width = (ANCHOR_WIDTH / width) ** 0.5
    rates = ANCHOR_RATES
    return LearningRates(rates.matrix, rates.embedding * by_width, rates.head * by_width, rates.norm)
