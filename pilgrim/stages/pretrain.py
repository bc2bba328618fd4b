"""Stage 3: learn language, from nothing, by predicting the next token of every document."""

from typing import Any

from pilgrim.stages.journey import Journey
from pilgrim.stages.training import train_stage


def run(journey: Journey) -> dict[str, Any]:
    """Train from random weights on the documents."""
    return train_stage(
        journey,
        "pretrain",
        journey.recipe.pretrain,
        lambda packed: packed("train"),
        start_from=None,
        chat=False,
    )
