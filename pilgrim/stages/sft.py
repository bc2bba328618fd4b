"""Stage 5: supervised fine-tuning. Only what the assistant says, and that it stops, is trained."""

from typing import Any

from pilgrim.stages.journey import Journey
from pilgrim.stages.mixing import mixed
from pilgrim.stages.training import Plan, train_stage, weights_of


def run(journey: Journey) -> dict[str, Any]:
    """Go on from midtraining, or from pretraining where the recipe has no midtraining."""
    return train_stage(journey, plan(journey))


def plan(journey: Journey) -> Plan:
    """What this stage trains on, and from which weights."""
    recipe = journey.recipe
    assert recipe.sft is not None
    begin = weights_of(journey, recipe.stage_before("sft"))
    if recipe.sft.mixture is None:
        return Plan("sft", recipe.sft, lambda packed: packed("chat_train"), begin, chat=True)
    return mixed(journey, "sft", recipe.sft, begin)
