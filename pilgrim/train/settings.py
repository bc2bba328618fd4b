"""What a recipe says about a stage that trains: how long, how much at once, at which rates."""

import math

from pydantic import Field

from pilgrim.core.config import Settings
from pilgrim.model.lora import LoraSettings
from pilgrim.optim import schedule
from pilgrim.train.distillation import TeacherSettings
from pilgrim.train.grow import GrowSettings

TAUGHT = ("pretrain", "midtrain", "sft")  # stages that learn the next token, so that a teacher can help


class TrainSettings(Settings):
    """What every stage that trains has: `[pretrain]`, `[midtrain]`, `[sft]`, `[dpo]`, `[rl]`."""

    steps: int | None = Field(None, ge=1, description="updates of the weights")
    rows: int | None = Field(None, ge=1, description="rows per step, over all microbatches")
    micro_rows: int | None = Field(
        None, ge=1, description="rows per microbatch; left out: measured on a GPU, else up to 16,384 tokens"
    )
    eval_every: int = Field(100, ge=1, description="steps between evaluations; one is made at the end too")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints")
    lr_scale: float = Field(1.0, gt=0, description="times the peak learning rates of [optim]")
    warmup: int = Field(5, ge=0, description="steps over which the learning rates rise")
    decay: float = Field(0.65, ge=0, le=1, description="share of the run over which they fall again")
    final_lr: float = Field(0.05, ge=0, le=1, description="what they fall to, as a share of the peak")
    decay_shape: schedule.Shape = Field("linear", description="how they fall")
    grow: GrowSettings | None = Field(None, description="shorter rows and smaller batches in the beginning")
    lora: LoraSettings | None = Field(
        None, description="train small adapters instead of the weights (model/lora.py)"
    )
    teacher: TeacherSettings | None = Field(
        None, description="learn from what another model foresees, too (train/distillation.py)"
    )

    @property
    def rate_scale(self) -> float:
        """What peak rates are multiplied with. Adapters have a rate of their own, which is meant as it is."""
        return 1.0 if self.lora else self.lr_scale

    def contradiction(self, stage: str) -> str | None:
        """What can't be true together, in one sentence that names the stage; None if nothing is wrong."""
        if self.grow and (what := self.grow.contradiction(f"{stage}.grow")):
            return what
        if self.lora and stage == "pretrain":
            return (
                "pretrain.lora adapts a trained network, and pretraining begins with none; "
                "write it in a later stage, as [sft.lora]"
            )
        if self.teacher and stage not in TAUGHT:
            return f"{stage}.teacher: a teacher foresees tokens, and {stage} is about replies; leave it out"
        grown = [rows for _, rows in (self.grow and self.grow.rows) or ()]
        if self.rows and grown and grown[-1] != self.rows:
            return (
                f"{stage}.grow.rows ends with {grown[-1]}, but {stage}.rows = {self.rows}; "
                f"leave {stage}.rows out, or make the two the same"
            )
        for rows in [*grown, self.rows]:
            if rows and self.micro_rows and rows % self.micro_rows:
                return (
                    f"{stage}.micro_rows = {self.micro_rows} must divide {stage}.rows = {rows}; "
                    f"try {math.gcd(rows, self.micro_rows)}"
                )
        if self.steps and self.warmup >= self.steps:
            return (
                f"{stage}.warmup = {self.warmup} must be less than {stage}.steps = {self.steps}; "
                f"try {self.steps // 10}"
            )
        return None
