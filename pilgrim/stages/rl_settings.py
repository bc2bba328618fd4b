"""`[rl]` of a recipe: which problems are posed, how they are answered, and how one learns from that.

[rl]
steps = 60
prompts = 16                    # in a round, each answered …
replies = 8                     # … so many times

[rl.tasks.counting]             # any name
kind = "counting"               # how replies are graded: pilgrim/evals/rewards/problems.py
prompts = "assets:rl/counting.jsonl.zst"
tools = true

[rl.tasks.mine]                 # your own
prompts = "file.jsonl"          # rows with a "prompt", and whatever your function wants to know
reward = "reward.py"            # def reward(prompt, reply, row) -> float
"""

from typing import Literal

from pydantic import Field, model_validator

from pilgrim.core.config import Settings
from pilgrim.evals.rewards.problems import Kind
from pilgrim.optim import schedule
from pilgrim.train.settings import TrainSettings


class RlTask(Settings):
    """`[rl.tasks.NAME]`."""

    kind: Kind = Field("own", description="how replies are graded")
    prompts: str = Field(description="JSONL file of problems")
    reward: str | None = Field(
        None, description="Python file with reward(prompt, reply, row), for the kind own"
    )
    held_out: str | None = Field(
        None, description="file of problems for evaluations; left out: a share of prompts is set aside"
    )
    held_out_share: float = Field(
        0.1, gt=0, lt=1, description="that share, chosen by a hash of what is asked"
    )
    tools: bool = Field(False, description="whether replies may call the calculator")
    weight: float = Field(1.0, gt=0, description="share of prompts, relative to other tasks")

    @model_validator(mode="after")
    def _own_has_a_function(self) -> "RlTask":
        if self.kind == "own" and self.reward is None:
            raise ValueError(
                'a task of the kind "own" needs a reward; name a Python file as reward = "reward.py", '
                'or another kind, such as kind = "spelling"'
            )
        if self.kind != "own" and self.reward is not None:
            raise ValueError(
                f'reward = "{self.reward}" is for the kind "own", and "{self.kind}" grades by itself; '
                "leave one of the two out"
            )
        return self


class RlSettings(TrainSettings):
    """`[rl]`: rewards for what the model says. `rows` are those that go through the network at once, at most;
    a step has as many as its replies fill."""

    tasks: dict[str, RlTask] = Field(default_factory=dict, description="what is asked")
    prompts: int = Field(16, ge=1, description="prompts of a round")
    replies: int = Field(8, ge=2, description="replies to each of them")
    updates: int = Field(
        1, ge=1, description="steps that learn from a round, each from a part of its prompts"
    )
    passes: int = Field(1, ge=1, description="how often all of a round is learned from")
    tries: int = Field(
        1, ge=1, description="times as many prompts at most, to replace those whose replies are all as good"
    )
    temperature: float = Field(1.0, gt=0, le=10, description="at which replies are drawn, and learned")
    reply_tokens: int = Field(256, ge=1, description="longest reply, tools' answers and its end included")
    calls: int = Field(4, ge=0, description="tool calls in a reply that are answered")
    at_once: int = Field(64, ge=1, description="replies that one process writes together")
    divide_by_std: bool = Field(
        False, description="divide advantages by their group's deviation, as GRPO does"
    )
    clip_low: float = Field(
        0.2, gt=0, lt=1, description="a token's probability may fall by so much in a round"
    )
    clip_high: float = Field(0.28, gt=0, description="and rise by so much")
    kl: float = Field(0.0, ge=0, description="pull towards the model that the stage began with; 0: none")
    cut_off: Literal["graded", "left_out"] = Field(
        "graded", description="replies that reach reply_tokens: graded as they are, or not learned from"
    )
    held_out_prompts: int = Field(200, ge=1, description="held-out prompts of each task in an evaluation")
    reward_s: float = Field(5.0, gt=0, description="seconds that a reward function may take for a reply")
    decay: float = Field(
        1.0, ge=0, le=1, description="share of the run over which learning rates fall; 0: constant"
    )
    decay_shape: schedule.Shape = Field("cosine", description="how they fall")
    final_lr: float = Field(0.0, ge=0, le=1, description="what they fall to, as a share of the peak")
    warmup: int = Field(0, ge=0, description="steps over which the learning rates rise")

    def contradiction(self, stage: str) -> str | None:
        if not self.tasks:
            return f"{stage}.tasks names nothing to ask; write a table [{stage}.tasks.NAME] with its prompts"
        if self.grow:
            return (
                f"{stage}.grow: a step has as many rows as its replies fill, so none can grow; leave it out"
            )
        if self.updates > self.prompts:
            return (
                f"{stage}.updates = {self.updates} parts can't be made of {stage}.prompts = {self.prompts}; "
                f"write updates = {self.prompts}, or fewer"
            )
        return super().contradiction(stage)
