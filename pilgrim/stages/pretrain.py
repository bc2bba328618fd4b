"""Stage 3: learn language, from nothing, by predicting the next token of every document."""

from typing import Any

from pilgrim.data.shards import bigram_counts
from pilgrim.model.bigram import begin_as_bigram
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.stages.journey import Journey
from pilgrim.stages.shards import token_set
from pilgrim.stages.training import Plan, train_stage


def run(journey: Journey) -> dict[str, Any]:
    """Train on the documents, from random weights or from what counting knows."""
    return train_stage(journey, plan(journey))


def plan(journey: Journey) -> Plan:
    """What this stage trains on, and from which weights."""
    settings = journey.recipe.pretrain

    def begin(model: Transformer) -> None:
        initialize(model, journey.runtime.generator("initialize"))
        if settings.begin == "bigram":
            counts_vv = bigram_counts(token_set(journey, "train"), end_id=0)
            begin_as_bigram(model, counts_vv, journey.runtime.generator("bigram rotation"))

    return Plan("pretrain", settings, lambda packed: packed("train"), begin, chat=False)
