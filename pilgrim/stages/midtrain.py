"""Stage 4: meet conversations. Text and dialogue are mixed while the learning rate falls, so that the
model gets used to turns without forgetting how to write."""

from typing import Any

from pilgrim.data.mixture import Mixture
from pilgrim.stages.journey import Journey
from pilgrim.stages.training import Plan, train_stage, weights_of


def run(journey: Journey) -> dict[str, Any]:
    """Go on from pretraining on a mixture of documents and conversations."""
    return train_stage(journey, plan(journey))


def plan(journey: Journey) -> Plan:
    """What this stage trains on, and from which weights."""
    settings = journey.recipe.midtrain
    assert settings is not None
    weights = {"train": 1 - settings.conversation_share, "chat_train": settings.conversation_share}
    return Plan(
        "midtrain",
        settings,
        lambda packed: Mixture({name: packed(name) for name in weights}, weights, journey.runtime),
        weights_of(journey, "pretrain"),
        chat=True,
    )
