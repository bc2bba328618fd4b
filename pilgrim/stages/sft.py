"""Stage 5: supervised fine-tuning. Only what the assistant says, and that it stops, is trained."""

from typing import Any

from pilgrim.stages.journey import Journey
from pilgrim.stages.training import train_stage, weights_of


def run(journey: Journey) -> dict[str, Any]:
    """Go on from midtraining, or from pretraining where the recipe has no midtraining."""
    recipe = journey.recipe
    assert recipe.sft is not None
    before = "midtrain" if recipe.midtrain else "pretrain"
    begin = weights_of(journey, before)
    return train_stage(journey, "sft", recipe.sft, lambda packed: packed("chat_train"), begin, chat=True)
