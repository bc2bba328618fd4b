"""From a recipe's mixtures to rows: which token sets a stage learns from, in which order, for how many steps.

A mixture names data sets (`[datasets.NAME]`), and under two names of their own what `[data]` has: "text" is
its documents, "conversations" its conversations. Each is a token set of the shards stage.
"""

import math
from collections.abc import Callable

from pilgrim.core.errors import SettingsError
from pilgrim.data.loader import PackedRows
from pilgrim.data.mixture import Dealt, Drawn, Mixture, Order, Parts, Tagged, has_an_end
from pilgrim.model.transformer import Transformer
from pilgrim.stages.journey import Journey
from pilgrim.stages.recipe import token_set_of
from pilgrim.stages.settings import MixedSettings
from pilgrim.stages.shards import run_tokenizer, token_set
from pilgrim.stages.training import Plan
from pilgrim.train.by_source import by_source


def mixed(
    journey: Journey, stage: str, settings: MixedSettings, begin: Callable[[Transformer], None]
) -> Plan:
    """The plan of a stage that trains on the recipe's mixture, with losses told by source.

    Steps are counted where none are named. Raises SettingsError if other settings contradict their number.
    """
    mixture = journey.recipe.mixture_of(stage)
    order = _order(journey, stage, mixture)

    def rows(packed: Callable[[str], PackedRows]) -> Mixture:
        sets = map(token_set_of, mixture)
        return Mixture({name: Tagged(packed(name), n) for n, name in enumerate(sets, start=1)}, order)

    counted = _with_steps(stage, settings, order)
    return Plan(stage, counted, rows, begin, chat=True, objective=by_source(tuple(mixture)))


def _order(journey: Journey, stage: str, mixture: Parts) -> Order:
    if not has_an_end(mixture):
        return Drawn(tuple(part.weight or 0.0 for part in mixture.values()), journey.runtime)
    tokenizer, _ = run_tokenizer(journey)
    context, counts = journey.recipe.model_of(stage).context, []
    for name, part in mixture.items():
        assert part.epochs is not None
        packed = PackedRows(
            token_set(journey, token_set_of(name)), context, tokenizer.eot_id, journey.runtime
        )
        counts.append(packed.count(part.epochs))
    return Dealt(tuple(counts), journey.runtime)


def _with_steps(stage: str, settings: MixedSettings, order: Order) -> MixedSettings:
    if settings.steps is not None:
        return settings
    assert settings.rows is not None
    counted = settings.model_copy(update={"steps": math.ceil(order.size / settings.rows)})
    if what := counted.contradiction(stage):
        raise SettingsError(f"{what} (the epochs of {stage}.mixture are {order.size:,} rows)")
    return counted
