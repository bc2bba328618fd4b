"""Training that went wrong: a loss that is no number any more."""

from pilgrim.core.errors import PilgrimError


class NonFiniteLoss(PilgrimError):
    """Training diverged; the last good checkpoint is kept."""
