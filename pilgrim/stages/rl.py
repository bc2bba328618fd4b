"""Stage 7: reinforcement learning. The model answers problems, a program grades, and what was good becomes
likelier.

The loss is in train/policy.py, the problems and their grading in evals/rewards, and how a round of replies
becomes batches in rl_rounds.py. Here they are put together, and held-out problems are asked at every
evaluation.
"""

import copy
from typing import Any

from pilgrim.core.runlog import RunLog
from pilgrim.core.runtime import Runtime
from pilgrim.evals.behaviour import Share
from pilgrim.model.transformer import Transformer
from pilgrim.stages.journey import Journey
from pilgrim.stages.rl_rounds import Rounds, Writer
from pilgrim.stages.rl_settings import RlSettings
from pilgrim.stages.rl_tasks import Posed, read_tasks, task_names
from pilgrim.stages.rows import rows_files
from pilgrim.stages.shards import run_tokenizer
from pilgrim.stages.training import Plan, train_stage, weights_of
from pilgrim.train.policy import policy_objective

HELD_OUT_SEED = 1  # the same draws at every evaluation: what changes is the model


def run(journey: Journey) -> dict[str, Any]:
    """Go on from the last stage before."""
    return train_stage(journey, plan(journey))


def plan(journey: Journey) -> Plan:
    """What this stage trains for, on which replies, and from which weights."""
    recipe, runtime = journey.recipe, journey.runtime
    settings = recipe.rl
    assert settings is not None
    tokenizer, _ = run_tokenizer(journey)
    tasks = read_tasks(settings, runtime, rows_files(journey, task_names(settings)))
    log = RunLog(journey.folder / "rl", journey.fence, runtime.processes.first)
    writer = Writer(settings, tokenizer, runtime, log, journey.console)
    rounds = Rounds(writer, tasks, journey.folder / "rl" / "rollouts", recipe.model_of("rl").context)
    first_weights = weights_of(journey, recipe.stage_before("rl"))

    def begin(model: Transformer) -> None:
        first_weights(model)
        rounds.model = model
        if settings.kl:
            rounds.reference = reference(model, runtime)

    return Plan(
        "rl",
        settings,
        lambda packed: rounds,
        begin,
        chat=True,
        objective=policy_objective(settings.clip_low, settings.clip_high, settings.kl, settings.temperature),
        ahead=False,
        compiled=runtime.device.type == "cuda",  # on a CPU most of the time is writing, and steps are few
        look=lambda model, step: held_out(writer, tasks, model, settings),
    )


def reference(model: Transformer, runtime: Runtime) -> Transformer:
    """The network as it is now, on the runtime's device, in the dtype that it computes in."""
    return copy.deepcopy(model).to(device=runtime.device, dtype=runtime.dtype).eval().requires_grad_(False)


def held_out(writer: Writer, tasks: list[Posed], model: Transformer, settings: RlSettings) -> dict[str, Any]:
    """Ask each task's held-out problems once, drawn as in training: {"held_out": {task: …}, "solved": …}.

    "solved" is the mean over tasks. A reply without a reward counts as not solved.
    """
    writer.load(model)
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        rollouts = writer.rollouts([(task, problem) for problem in task.held_out], 1, HELD_OUT_SEED, 0)
        rewards = [r.reward for r in rollouts if r.reward is not None]
        share = Share(sum(r.solved for r in rollouts), len(rollouts))
        found[task.name] = {
            **share.to_dict(),
            "reward": sum(rewards) / max(1, len(rewards)),
            "without_reward": len(rollouts) - len(rewards),
        }
    return {"held_out": found, "solved": sum(one["share"] for one in found.values()) / len(found)}
