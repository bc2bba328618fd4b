"""Stage 4: meet conversations, and whatever else a model shall know well.

Good text and the mixture's other data sets come together while the learning rate falls, so that the model
gets used to turns without forgetting how to write. Rows may be longer than in pretraining
(`midtrain.context`), and then stay so in what follows: no weight belongs to a place in a row, and the
length is a number in the checkpoint's description of the network.
"""

from typing import Any

from pilgrim.stages.journey import Journey
from pilgrim.stages.mixing import mixed
from pilgrim.stages.training import Plan, train_stage, weights_of


def run(journey: Journey) -> dict[str, Any]:
    """Go on from pretraining on a mixture."""
    return train_stage(journey, plan(journey))


def plan(journey: Journey) -> Plan:
    """What this stage trains on, and from which weights."""
    recipe = journey.recipe
    assert recipe.midtrain is not None
    begin = weights_of(journey, recipe.stage_before("midtrain"))
    return mixed(journey, "midtrain", recipe.midtrain, begin)
