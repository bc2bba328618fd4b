"""A recipe: every setting of a journey, one table a concern.

Each table's class lives with the code that reads it; here they are put together, and what is derived
from the one dial, `model.depth`, is filled in. The resolved recipe is saved in the run's folder, so that
a run shows every number it was made with; it can be used as a recipe itself.
"""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from pilgrim.core.config import Settings, apply_overrides, build, load_toml
from pilgrim.core.runtime import RuntimeSettings
from pilgrim.core.stages import TRAINED
from pilgrim.data import mixture as mixtures
from pilgrim.data.datasets import (
    NAMED,
    DatasetSettings,
    unknown,
    unmixable,
    without_rows,
    wrongly_named,
)
from pilgrim.data.mixture import Parts, PartSettings
from pilgrim.data.sources import DataSettings
from pilgrim.evals.core_tasks import TASKS
from pilgrim.evals.rewards.problems import Kind
from pilgrim.model.bigram import LARGEST_VOCABULARY
from pilgrim.model.config import ModelSettings
from pilgrim.model.count import parameters
from pilgrim.optim import scaling
from pilgrim.optim.groups import OptimSettings
from pilgrim.stages.rl_settings import RlSettings
from pilgrim.train.grow import GrowSettings, mean_tokens
from pilgrim.train.health import HealthSettings
from pilgrim.train.preference import PreferenceSettings
from pilgrim.train.settings import TrainSettings

T = TypeVar("T", bound=TrainSettings)
ReadAs = Literal["pairs"] | Kind  # what rows of a data set are to `[dpo]`, or to a task of `[rl]`

MIXED = ("midtrain", "sft")  # stages that train on a mixture
OF_DATA = {"text": "train", "conversations": "chat_train"}  # names of what [data] has, and its token sets
RESERVED = (*OF_DATA, *OF_DATA.values(), "val", "chat_val", "DONE")
CONVERSATION_SHARE = 0.5  # of midtraining's rows, where the recipe says nothing of it
MIDTRAIN_SHARE = 0.15  # of the pretraining steps, where the recipe names no number


class TokenizerSettings(Settings):
    """`[tokenizer]`."""

    vocab_size: int = Field(4096, ge=272, le=2**20, description="tokens, the special ones included")


class PretrainSettings(TrainSettings):
    """`[pretrain]`: language, from nothing."""

    begin: Literal["random", "bigram"] = Field(
        "random", description="first weights; bigram: embedding and head from counted pairs (model/bigram.py)"
    )


class MixedSettings(TrainSettings):
    """`[sft]`, and what `[midtrain]` has in common with it: training on a mixture of data sets."""

    mixture: dict[str, PartSettings] | None = Field(
        None, description="data sets with weights or epochs; left out: what [data] names"
    )

    def contradiction(self, stage: str) -> str | None:
        if self.mixture is not None:
            if what := mixtures.contradiction(self.mixture, f"{stage}.mixture"):
                return what
            if self.by_epochs and self.grow:
                return (
                    f"{stage}.mixture has epochs, which are counted in rows of one length, and {stage}.grow "
                    "changes that; write weights, or leave the other out"
                )
        return super().contradiction(stage)

    @property
    def by_epochs(self) -> bool:
        """Whether the mixture has an end, which can say how many steps there are."""
        return self.mixture is not None and mixtures.has_an_end(self.mixture)


class MidtrainSettings(MixedSettings):
    """`[midtrain]`: text, conversations and more together, while the learning rate falls."""

    conversation_share: float | None = Field(
        None, gt=0, lt=1, description="share of rows that are conversations, where there is no mixture; 0.5"
    )
    context: int | None = Field(
        None, ge=8, description="longer rows than in pretraining, from here on; left out: as model.context"
    )
    rope_theta: float | None = Field(
        None, gt=1, description="another base of the rotary positions, from here on; left out: as it was"
    )

    def contradiction(self, stage: str) -> str | None:
        if self.mixture is not None and self.conversation_share is not None:
            return (
                f"{stage}.conversation_share = {self.conversation_share} says what {stage}.mixture says; "
                f"leave it out, and write conversations = {{ weight = … }} there"
            )
        return super().contradiction(stage)


class EvalSettings(Settings):
    """`[eval]`: what is asked again and again while the model grows up, and at the end."""

    prompts: tuple[str, ...] = Field(
        ("Once upon a time", "The little dog was", "Anna and Ben went to the", "One day, the sun"),
        description="openings that every evaluation continues",
    )
    questions: tuple[str, ...] = Field(
        ("Hello!", "What is your name?", "Tell me a story about a dog.", "How are you today?"),
        description="what every evaluation asks a model that has learned to chat",
    )
    sample_tokens: int = Field(80, ge=1, description="length of those samples")
    temperature: float = Field(0.7, ge=0, description="at which samples and replies are drawn")
    reply_tokens: int = Field(200, ge=1, description="a reply that is longer has not ended by itself")
    core: str = Field("assets:evals/core", description="folder of CORE's tasks (docs/evals.md)")
    watch: tuple[str, ...] = Field((), description="tasks of it that are asked while a stage trains")
    watch_items: int = Field(32, ge=1, description="items of each of them")
    watch_every: int = Field(1, ge=1, description="ask at every so many evaluations, and at a stage's end")
    watch_full: bool = Field(False, description="ask all items at a stage's end")

    @field_validator("watch")
    @classmethod
    def _watched_tasks_exist(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = [task.name for task in TASKS]
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                cure = f"did you mean {near[0]}?" if near else f"the tasks are {', '.join(known)}"
                raise ValueError(f"{name} is no task; {cure}")
        return names


class Recipe(Settings):
    """A journey from raw text to a chatbot. A table that is left out means its defaults; a missing
    `[midtrain]`, `[sft]`, `[dpo]` or `[rl]` means that the journey goes without that stage."""

    name: str = Field(description="the run's folder below runs/")
    seed: int = Field(1, ge=0, description="of all randomness")
    runtime: RuntimeSettings = RuntimeSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    datasets: dict[str, DatasetSettings] = Field({}, description="data sets, by name")
    model: ModelSettings = ModelSettings()
    optim: OptimSettings = OptimSettings()
    health: HealthSettings = HealthSettings()
    pretrain: PretrainSettings = PretrainSettings()
    midtrain: MidtrainSettings | None = None
    sft: MixedSettings | None = None
    dpo: PreferenceSettings | None = None
    rl: RlSettings | None = None
    eval: EvalSettings = EvalSettings()

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError("it names a folder; use letters, digits, _ - and . only, as in try-2")
        return name

    @model_validator(mode="after")
    def _bigrams_can_be_counted(self) -> "Recipe":
        cure = 'write pretrain.begin = "random"'
        if self.pretrain.begin == "bigram" and self.model.tied:
            raise ValueError(
                f'pretrain.begin = "bigram" needs tables of their own for embedding and head, '
                f"but model.tied = true; {cure}, or untie them"
            )
        if self.pretrain.begin == "bigram" and self.tokenizer.vocab_size > LARGEST_VOCABULARY:
            raise ValueError(
                f'pretrain.begin = "bigram" counts pairs of up to {LARGEST_VOCABULARY} tokens, '
                f"and tokenizer.vocab_size = {self.tokenizer.vocab_size} is more; {cure}"
            )
        return self

    @model_validator(mode="after")
    def _last_stages_have_steps(self) -> "Recipe":
        if self.sft is not None and self.sft.steps is None and not self.sft.by_epochs:
            raise ValueError(
                "sft.steps is missing: it depends on the conversations, not on model.depth; try 200"
            )
        if self.dpo is not None and self.dpo.steps is None:
            raise ValueError("dpo.steps is missing: it depends on the pairs, not on model.depth; try 100")
        return self

    @model_validator(mode="after")
    def _rl_has_steps(self) -> "Recipe":
        if self.rl is not None and self.rl.steps is None:
            raise ValueError("rl.steps is missing: it depends on the problems, not on model.depth; try 100")
        return self

    @model_validator(mode="after")
    def _datasets_are_known(self) -> "Recipe":
        for name, settings in self.datasets.items():
            if not re.fullmatch(r"[a-z0-9][\w-]*", name) or name in RESERVED:
                raise ValueError(
                    f"datasets.{name}: no data set can be named so; use small letters, digits, _ and -, and "
                    f"none of {', '.join(RESERVED)}"
                )
            if what := settings.contradiction(f"datasets.{name}"):
                raise ValueError(what)
        data = self.data
        for is_text, files in (
            (True, (*data.train, *data.val)),
            (False, (*data.conversations, *data.conversations_val)),
        ):
            for file in files:
                if file.startswith(NAMED) and (what := wrongly_named(file, self.datasets, is_text)):
                    raise ValueError(what)
        for stage in MIXED:
            for name in self.mixture_of(stage):
                if name not in self.datasets and name not in OF_DATA:
                    known = (*self.datasets, *OF_DATA)
                    raise ValueError(f"{stage}.mixture names {name}, but {unknown(name, known)}")
                if what := unmixable(name, self.datasets):
                    raise ValueError(f"{stage}.mixture names {name}, but {what}")
        for place, named, _ in self._rows_named():
            if what := without_rows(named, self.datasets):
                raise ValueError(f"{place} names {named}, but {what}")
        return self

    @model_validator(mode="after")
    def _context_only_grows(self) -> "Recipe":
        if self.midtrain and (longer := self.midtrain.context) and longer < self.model.context:
            raise ValueError(
                f"midtrain.context = {longer} is less than model.context = {self.model.context}; "
                "a model would lose what it has learned of long texts: write more, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _health_is_consistent(self) -> "Recipe":
        if what := self.health.contradiction():
            raise ValueError(what)
        return self

    @model_validator(mode="after")
    def _stages_are_consistent(self) -> "Recipe":
        for name in TRAINED:
            settings = self.training(name)
            if settings and (what := settings.contradiction(name)):
                raise ValueError(what)
            grow = (settings and settings.grow) or GrowSettings()
            for what, pairs, last in (
                ("context", grow.context, self.model_of(name).context),
                ("window", grow.window, self.model.window),
            ):
                values = [value for _, value in pairs or ()]
                if values and last is None:
                    raise ValueError(
                        f"{name}.grow.{what} = … {values} needs layers that have a window; "
                        f"write model.window = {values[-1]}"
                    )
                if values and (values[-1] != last or max(values) > values[-1]):
                    raise ValueError(
                        f"{name}.grow.{what} = … {values} must end with {self._says(name, what)} = {last}, "
                        f"and go no higher; write that as its last value"
                    )
        return self

    def training(self, stage: str) -> TrainSettings | None:
        """The settings of a stage that trains; None if the journey goes without it."""
        settings: TrainSettings | None = getattr(self, stage, None)
        return settings

    def stage_before(self, stage: str) -> str:
        """The trained stage whose weights `stage` begins with; for "evaluate" the last one."""
        before = TRAINED[: TRAINED.index(stage)] if stage in TRAINED else TRAINED
        return next(name for name in reversed(before) if self.training(name))

    def model_of(self, stage: str) -> ModelSettings:
        """The network as a stage trains it: midtraining may have made its context longer, for all to come."""
        if self.midtrain is None or TRAINED.index(stage) < TRAINED.index("midtrain"):
            return self.model
        longer = {"context": self.midtrain.context, "rope_theta": self.midtrain.rope_theta}
        return self.model.model_copy(update={name: value for name, value in longer.items() if value})

    def mixture_of(self, stage: str) -> Parts:
        """What a stage of MIXED trains on, by name; nothing if the journey goes without it."""
        settings: MixedSettings | None = getattr(self, stage)
        if settings is None:
            return {}
        if settings.mixture is not None:
            return settings.mixture
        if not isinstance(settings, MidtrainSettings):
            return {"conversations": PartSettings(weight=1.0)}
        share = settings.conversation_share or CONVERSATION_SHARE
        return {"text": PartSettings(weight=1 - share), "conversations": PartSettings(weight=share)}

    def token_sets(self) -> list[str]:
        """The names of all token sets that the stages learn from; those of validation are not among them."""
        mixed = (token_set_of(name) for stage in MIXED for name in self.mixture_of(stage))
        return list(dict.fromkeys(["train", *mixed]))

    def rows_read(self) -> dict[str, list[ReadAs]]:
        """The data sets whose rows are read as they are, by name, and as what."""
        found: dict[str, list[ReadAs]] = {}
        for _, named, kind in self._rows_named():
            kinds = found.setdefault(named.removeprefix(NAMED), [])
            kinds += [kind] if kind not in kinds else []
        return found

    def _rows_named(self) -> Iterator[tuple[str, str, ReadAs]]:
        """(which setting, "dataset:NAME", as what it is read) of those that `[dpo]` and `[rl]` name."""
        named: list[tuple[str, str | None, ReadAs]] = []
        if self.dpo:
            named += [("dpo.pairs", name, "pairs") for name in self.dpo.pairs]
            named += [("dpo.pairs_val", name, "pairs") for name in self.dpo.pairs_val]
        for task_name, task in self.rl.tasks.items() if self.rl else ():
            for key in ("prompts", "held_out"):
                named.append((f"rl.tasks.{task_name}.{key}", getattr(task, key), task.kind))
        return ((place, name, kind) for place, name, kind in named if name and name.startswith(NAMED))

    def _says(self, stage: str, what: str) -> str:
        """The setting that says which context or window a stage ends with."""
        longer = what == "context" and self.model_of(stage).context != self.model.context
        return f"midtrain.{what}" if longer else f"model.{what}"

    @property
    def chats(self) -> bool:
        """Whether a stage teaches conversations."""
        return any(self.training(stage) for stage in TRAINED[1:])

    def resolved(self) -> "Recipe":
        """The same recipe with everything derived written out."""
        model, config = self.model.resolved(), self.model.config(self.tokenizer.vocab_size)
        horizon = scaling.horizon_tokens(parameters(config).matrices + config.vocab_size * config.width)
        batch = scaling.batch_tokens(horizon, config.context)
        grow = self.pretrain.grow
        rows = self.pretrain.rows or (grow and grow.rows and grow.rows[-1][1]) or batch // config.context
        steps = self.pretrain.steps or max(1, round(horizon / mean_tokens(grow, rows, config.context)))
        rates = scaling.learning_rates(config.width)
        changes: dict[str, Any] = {
            "model": model,
            "optim": self.optim.with_rates(rates.matrix, rates.embedding, rates.head, rates.norm),
            "pretrain": _filled(self.pretrain, rows, steps),
            "midtrain": self.midtrain and self._midtrain(rows, steps),
            "sft": self.sft and _filled(self.sft, self._rows("sft", rows), 0),
            "dpo": self.dpo and self._dpo(rows),
            "rl": self.rl and _filled(self.rl, self._rows("rl", rows), 0),
        }
        return self.model_copy(update=changes)

    def _midtrain(self, rows: int, steps: int) -> MidtrainSettings:
        assert self.midtrain is not None
        settings = self.midtrain
        if settings.mixture is None and settings.conversation_share is None:
            settings = settings.model_copy(update={"conversation_share": CONVERSATION_SHARE})
        return _filled(settings, self._rows("midtrain", rows), max(1, round(MIDTRAIN_SHARE * steps)))

    def _dpo(self, rows: int) -> PreferenceSettings:
        assert self.dpo is not None
        beta = self.dpo.preference().beta
        return _filled(self.dpo, self._rows("dpo", rows), 0).model_copy(update={"beta": beta})

    def _rows(self, stage: str, rows: int) -> int:
        """As many as pretraining's, or fewer where they are longer: a step has as many tokens."""
        return max(1, rows * self.model.context // self.model_of(stage).context)


def _filled(settings: T, rows: int, steps: int) -> T:
    """The settings with rows and steps where they name none; steps that epochs decide stay open."""
    grown = settings.grow and settings.grow.rows
    decided = isinstance(settings, MixedSettings) and settings.by_epochs
    derived = {
        "rows": settings.rows or (grown[-1][1] if grown else rows),
        "steps": settings.steps or (None if decided else steps),
    }
    return settings.model_copy(update=derived)


def token_set_of(name: str) -> str:
    """The token set of a data set, or of what a mixture calls "text" and "conversations"."""
    return OF_DATA.get(name, name)


def load_recipe(file: Path, overrides: list[str]) -> Recipe:
    """Read, override, check and resolve a recipe. Raises SettingsError in one sentence."""
    tree = apply_overrides(load_toml(file), overrides)
    recipe = build(Recipe, tree, str(file)).resolved()
    # What was derived can contradict what was given: three steps, and a warmup of five.
    return build(Recipe, recipe.model_dump(exclude_none=True), f"{file}, with what is derived")
