"""A recipe: every setting of a journey, one table a concern.

Each table's class lives with the code that reads it; here they are put together, and what is derived
from the one dial, `model.depth`, is filled in. The resolved recipe is saved in the run's folder, so that
a run shows every number it was made with; it can be used as a recipe itself.
"""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from pilgrim.core.config import Settings, apply_overrides, build, load_toml
from pilgrim.core.runtime import RuntimeSettings
from pilgrim.core.stages import TRAINED
from pilgrim.data.sources import DataSettings
from pilgrim.evals.core_tasks import TASKS
from pilgrim.model.bigram import LARGEST_VOCABULARY
from pilgrim.model.config import ModelSettings
from pilgrim.model.count import parameters
from pilgrim.optim import scaling
from pilgrim.optim.groups import OptimSettings
from pilgrim.stages.rl_settings import RlSettings
from pilgrim.train.grow import GrowSettings, mean_tokens
from pilgrim.train.health import HealthSettings
from pilgrim.train.settings import TrainSettings

T = TypeVar("T", bound=TrainSettings)

MIDTRAIN_SHARE = 0.15  # of the pretraining steps, where the recipe names no number


class TokenizerSettings(Settings):
    """`[tokenizer]`."""

    vocab_size: int = Field(4096, ge=272, le=2**20, description="tokens, the special ones included")


class PretrainSettings(TrainSettings):
    """`[pretrain]`: language, from nothing."""

    begin: Literal["random", "bigram"] = Field(
        "random", description="first weights; bigram: embedding and head from counted pairs (model/bigram.py)"
    )


class MidtrainSettings(TrainSettings):
    """`[midtrain]`: text and conversations together, while the learning rate falls."""

    conversation_share: float = Field(0.5, gt=0, lt=1, description="share of rows that are conversations")


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
    `[midtrain]` or `[sft]` means that the journey goes without that stage."""

    name: str = Field(description="the run's folder below runs/")
    seed: int = Field(1, ge=0, description="of all randomness")
    runtime: RuntimeSettings = RuntimeSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    optim: OptimSettings = OptimSettings()
    health: HealthSettings = HealthSettings()
    pretrain: PretrainSettings = PretrainSettings()
    midtrain: MidtrainSettings | None = None
    sft: TrainSettings | None = None
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
    def _sft_has_steps(self) -> "Recipe":
        if self.sft is not None and self.sft.steps is None:
            raise ValueError(
                "sft.steps is missing: it depends on the conversations, not on model.depth; try 200"
            )
        return self

    @model_validator(mode="after")
    def _rl_has_steps(self) -> "Recipe":
        if self.rl is not None and self.rl.steps is None:
            raise ValueError("rl.steps is missing: it depends on the problems, not on model.depth; try 100")
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
                ("context", grow.context, self.model.context),
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
                        f"{name}.grow.{what} = … {values} must end with model.{what} = {last}, "
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
            "midtrain": self.midtrain and _filled(self.midtrain, rows, max(1, round(MIDTRAIN_SHARE * steps))),
            "sft": self.sft and _filled(self.sft, rows, 0),
            "rl": self.rl and _filled(self.rl, rows, 0),
        }
        return self.model_copy(update=changes)


def _filled(settings: T, rows: int, steps: int) -> T:
    """The settings with rows and steps where they name none."""
    grown = settings.grow and settings.grow.rows
    derived = {
        "rows": settings.rows or (grown[-1][1] if grown else rows),
        "steps": settings.steps or steps,
    }
    return settings.model_copy(update=derived)


def load_recipe(file: Path, overrides: list[str]) -> Recipe:
    """Read, override, check and resolve a recipe. Raises SettingsError in one sentence."""
    tree = apply_overrides(load_toml(file), overrides)
    recipe = build(Recipe, tree, str(file)).resolved()
    # What was derived can contradict what was given: three steps, and a warmup of five.
    return build(Recipe, recipe.model_dump(exclude_none=True), f"{file}, with what is derived")
