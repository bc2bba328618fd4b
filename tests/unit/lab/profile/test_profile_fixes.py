"""Rules, each on evidence where it has something to say, and where it hasn't."""

from dataclasses import replace
from pathlib import Path

import pytest

from pilgrim.lab.profile.findings import LOSSES, Compilation, Fix, Memory
from pilgrim.lab.profile.fixes import RULES, Evidence, fixes
from pilgrim.lab.profile.trace import Task
from pilgrim.lab.profile.waterfall import Priced
from pilgrim.stages.recipe import load_recipe

ROOT = Path(__file__).parents[4]
ROOMY = Memory(0, 0, 0, 100, 0, None, 10**9, ((0.0, 0),), micro_rows=4, micro_rows_that_fit=64)
COMPILED = Compilation(True, 2, (), (), 1.0)


def evidence(losses: dict[str, float] | None = None, **changes: object) -> Evidence:
    """A training step with nothing wrong, but for what is given."""
    found = Evidence(
        stage="pretrain",
        rows=4,
        stage_steps=100,
        threads=2,
        cores=2,
        losses=dict.fromkeys(LOSSES, 0.0) | (losses or {}),
        phases={"data": 0.0, "forward": 0.4, "backward": 0.55, "optimizer": 0.05, "sync": 0.0, "other": 0.0},
        tasks=(),
        steps=1,
        memory=ROOMY,
        compilation=COMPILED,
        can_compile=True,
        late_compilations=0,
        waits=0.0,
        on_device=False,
        faster_dtype=None,
        checkpointing=None,
    )
    return replace(found, **changes)  # type: ignore[arg-type]


def kernel(product: bool, took_us: float, move_us: float = 0.0, multiply_us: float = 0.0) -> Priced:
    task = Task("k", 0.0, took_us, took_us, "forward", None)
    flops = multiply_us * 1e3 if product else None
    return Priced(task, took_us, product, flops, None, "memory", multiply_us, move_us)


def only(found: Evidence) -> Fix:
    first, *more = fixes(found)
    assert not more, more
    return first


def test_nothing_wrong_nothing_said() -> None:
    assert fixes(evidence()) == ()


def test_the_loader() -> None:
    fix = only(evidence({"data_wait": 0.2}, threads=4, cores=4))
    assert (fix.gain, fix.setting) == (0.2, "runtime.threads=3")


def test_a_wait_of_less_than_half_a_percent_is_noise() -> None:
    assert fixes(evidence({"data_wait": 0.004})) == ()


def test_breaks_cost_what_stands_between_graphs() -> None:
    broken = Compilation(True, 3, ("x.py:1: print (…)",), (), 1.0)
    fix = only(evidence({"launch_overhead": 0.4}, compilation=broken))
    assert fix.gain == pytest.approx(0.4 * 0.95)
    assert "x.py:1: print" in fix.why


def test_late_compilations_are_told_with_their_cause() -> None:
    again = Compilation(True, 3, (), ("x.py:1: size mismatch",), 1.0)
    fix = only(evidence({"launch_overhead": 0.3}, compilation=again, late_compilations=2))
    assert fix.gain == 0.3 and "2 compilations" in fix.why and "size mismatch" in fix.why


def test_fusing_saves_launches_and_traffic() -> None:
    """Twelve operations in two stretches between products: what is left of launches and traffic."""
    tasks = [
        *[kernel(False, 5, move_us=5)] * 6,
        kernel(True, 40, multiply_us=40),
        *[kernel(False, 5, move_us=5)] * 6,
    ]
    eager = evidence(
        {"launch_overhead": 0.5, "memory_bound": 0.3},
        tasks=tasks,
        compilation=Compilation(False, 0, (), (), 0.0),
    )
    fix = only(eager)
    assert fix.setting == "runtime.compile=on" and fix.title == "Fuse small kernels"
    launches, traffic = 0.5 * (1 - 3 / 13), 0.5 * (60 / 100) * (1 - 2 / 12)
    assert fix.gain == pytest.approx(launches + traffic)
    moved = evidence({"memory_bound": 0.6}, tasks=tasks, compilation=eager.compilation)
    assert only(moved).title == "Fuse what is bound by memory"
    assert fixes(replace(moved, can_compile=False)) == ()


def test_microbatches_grow_as_far_as_memory_and_rows_allow() -> None:
    few = evidence(
        {"launch_overhead": 0.4}, rows=12, memory=replace(ROOMY, micro_rows=2, micro_rows_that_fit=7)
    )
    fix = only(few)
    assert fix.setting == "pretrain.micro_rows=6"
    assert fix.gain == pytest.approx(0.4 * (1 - 2 / 6))
    assert fixes(replace(few, memory=replace(few.memory, micro_rows_that_fit=2))) == ()


def test_products_that_are_small() -> None:
    """The largest reaches 50% of the peak, the small ones 10%: they could be five times as fast."""
    tasks = [kernel(True, 40, multiply_us=20), *[kernel(True, 10, multiply_us=1)] * 6]
    fix = only(evidence({"matmul_inefficiency": 0.6}, tasks=tasks))
    lost, left = 20 + 6 * 9, 20 + 6 * 1
    assert fix.gain == pytest.approx(0.6 * (lost - left) / lost / 2)
    assert fix.setting == "pretrain.rows=8 pretrain.steps=50"


def test_a_slow_number_format() -> None:
    fix = only(evidence({"matmul_inefficiency": 0.3, "memory_bound": 0.3}, faster_dtype=4.0))
    assert fix.setting == "runtime.dtype=bf16"
    assert fix.gain == pytest.approx((0.4 + 0.3) * 3 / 4)


def test_cores_without_work() -> None:
    fix = only(evidence({"launch_overhead": 0.2}, threads=1, cores=4))
    assert fix.setting == "runtime.threads=4" and fix.gain == pytest.approx(0.8 * 3 / 4)


def test_communication_optimizer_recomputation_and_waiting() -> None:
    assert only(evidence({"exposed_communication": 0.2})).gain == 0.1
    phases = {"forward": 0.3, "backward": 0.4, "optimizer": 0.3}
    assert only(evidence(phases=phases)).gain == 0.15
    switch = "runtime.checkpoint=off"
    assert only(evidence({"recomputation": 0.25}, checkpointing=switch)).setting == switch
    assert only(evidence({"idle": 0.2}, waits=3.0, on_device=True)).gain == 0.2


def test_writing_is_never_told_to_change_training() -> None:
    writing = evidence({"memory_bound": 0.4, "launch_overhead": 0.2}, stage="generate", can_compile=False)
    fix = only(replace(writing, memory=replace(ROOMY, micro_rows=4)))
    assert fix.setting == "Engine(model, runtime, rows=8)" and fix.gain == pytest.approx(0.3)


EVERYTHING_WRONG = evidence(
    {name: 0.1 for name in LOSSES},
    phases={"forward": 0.3, "backward": 0.4, "optimizer": 0.3},
    tasks=[
        *[kernel(False, 5, move_us=5)] * 6,
        kernel(True, 40, multiply_us=20),
        kernel(True, 40, multiply_us=4),
    ],
    rows=8,
    threads=1,
    late_compilations=1,
    waits=2.0,
    faster_dtype=2.0,
    checkpointing="runtime.dtype=auto",
)


def all_fixes() -> list[Fix]:
    broken = replace(EVERYTHING_WRONG, compilation=Compilation(True, 2, ("x",), ("y",), 0.0), on_device=True)
    eager = replace(EVERYTHING_WRONG, compilation=Compilation(False, 0, (), (), 0.0))
    full = replace(EVERYTHING_WRONG, rows=4)
    writing = replace(EVERYTHING_WRONG, stage="generate")
    return [fix for e in (broken, eager, full, writing) for rule in RULES if (fix := rule(e))]


def test_three_at_most_best_first_and_one_for_a_setting() -> None:
    found = fixes(EVERYTHING_WRONG)
    assert len(found) == 3
    assert [fix.gain for fix in found] == sorted((fix.gain for fix in found), reverse=True)
    assert len({fix.setting for fix in found}) == 3


def test_every_rule_speaks_of_what_exists() -> None:
    """Settings are known to the recipe; links lead to a heading."""
    told = all_fixes()
    assert len({fix.title for fix in told}) >= len(RULES)
    headings = {
        "#" + line.removeprefix("## ").lower().replace(" ", "-")
        for line in (ROOT / "docs/speed.md").read_text().splitlines()
        if line.startswith("## ")
    }
    for fix in told:
        page, mark, anchor = fix.docs.partition("#")
        assert page == "docs/speed.md" and mark + anchor in headings, fix.docs
        settings = [word for word in fix.setting.split() if "=" in word and "." in word.partition("=")[0]]
        load_recipe(ROOT / "recipes/pocket.toml", ["pretrain.rows=8", *settings])
