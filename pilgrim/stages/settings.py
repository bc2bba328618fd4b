"""The tables of a recipe that no room below owns, as only stages read them; recipe.py puts all together."""

import difflib
from typing import Literal

from pydantic import Field, field_validator

from pilgrim.core.config import Settings
from pilgrim.data import mixture as mixtures
from pilgrim.data.mixture import PartSettings
from pilgrim.evals.core_tasks import TASKS
from pilgrim.train.settings import TrainSettings


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
