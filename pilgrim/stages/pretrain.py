"""Stage 3: learn language, from nothing, by predicting the next token of every document."""

from typing import Any

from pilgrim.core.errors import SettingsError
from pilgrim.data.shards import bigram_counts
from pilgrim.model.bigram import LARGEST_VOCABULARY, begin_as_bigram
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.stages.journey import Journey
from pilgrim.stages.shards import token_set
from pilgrim.stages.training import train_stage


def run(journey: Journey) -> dict[str, Any]:
    """Train on the documents, from random weights or from what counting knows."""
    settings = journey.recipe.pretrain

    def begin(model: Transformer) -> None:
        initialize(model, journey.runtime.generator("initialize"))
        if settings.begin == "bigram":
            _begin_as_bigram(journey, model)

    return train_stage(journey, "pretrain", settings, lambda packed: packed("train"), begin, chat=False)


def _begin_as_bigram(journey: Journey, model: Transformer) -> None:
    """Raises SettingsError if the model is tied, or the vocabulary too large for a table of its pairs."""
    config = model.config
    cure = 'write pretrain.begin = "random"'
    if config.tied:
        raise SettingsError(f'pretrain.begin = "bigram" needs model.tied = false; {cure}, or untie it')
    if config.vocab_size > LARGEST_VOCABULARY:
        raise SettingsError(
            f'pretrain.begin = "bigram" counts pairs of up to {LARGEST_VOCABULARY} tokens, '
            f"and tokenizer.vocab_size = {config.vocab_size} is more; {cure}"
        )
    counts_vv = bigram_counts(token_set(journey, "train"), end_id=0)
    begin_as_bigram(model, counts_vv, journey.runtime.generator("bigram rotation"))
