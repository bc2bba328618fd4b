"""The waterfall: synthetic traces whose answers can be worked out by hand, and the sum for any trace."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pilgrim.core.errors import DataError
from pilgrim.lab.profile.findings import LOSSES
from pilgrim.lab.profile.trace import Trace, parse_trace
from pilgrim.lab.profile.waterfall import Limits, phases, priced, waterfall, without_profiler

from .conftest import Story

LIMITS = Limits(flops=1e9, bytes_per_s=1e6)  # a product of 1e6 operations takes 1 ms; 1 KB is moved in 1 ms


def shares(trace: Trace, flops: float = 0.0, step_s: float | None = None) -> dict[str, float]:
    """Losses that are not zero, rounded."""
    traced_s = (trace.window[1] - trace.window[0]) / len(trace.steps) / 1e6
    found = waterfall(trace, priced(trace, LIMITS), LIMITS, flops, step_s or traced_s)
    assert sum(loss.share for loss in found.losses) + found.achieved == pytest.approx(1)
    return {loss.name: round(loss.share, 4) for loss in found.losses if loss.share > 1e-9}


def nodes(number: int, forward_thread: int) -> dict[str, Any]:
    """How autograd numbers an operation of which it records a gradient, and the node that computes it."""
    return {"Sequence number": number, "Fwd thread id": forward_thread}


def on_a_gpu(story: Callable[[], Story]) -> Story:
    """Ten milliseconds: 1 waiting for data, 1 for the host, 5 multiplying (2 at the peak), 2 moving bytes, 1
    idle."""
    return (
        story()
        .mark("step", 0, 10)
        .mark("data", 0, 1)
        .mark("forward", 1, 4)
        .op("aten::mm", 1, 2, [1000, 100], [100, 10])
        .kernel("gemm", 2, 7, called=1.5)
        .op("aten::add", 2, 3, [250, 1])  # 250 fp32 read, 250 written: 2 KB
        .kernel("elementwise", 7, 9, called=2.5)
        .mark("sync", 9, 10)
    )


def test_a_gpu_by_hand(story: Callable[[], Story]) -> None:
    """The product needs 2 ms for its operations and 404 for its bytes, which are more than it took."""
    told = on_a_gpu(story)
    assert shares(parse_trace(told.events), flops=2e6) == {
        "data_wait": 0.1,
        "launch_overhead": 0.1,
        "idle": 0.1,
        "memory_bound": 0.5,
    }


def test_products_that_bytes_do_not_limit(story: Callable[[], Story]) -> None:
    """Of 5 ms of multiplying, 2 are explained: the model needs 1.5 of them, the optimizer the rest."""
    trace = parse_trace(on_a_gpu(story).events)
    limits = Limits(1e9, 1e9)
    found = waterfall(trace, priced(trace, limits), limits, 1.5e6, 0.01)
    losses = {loss.name: round(loss.share, 3) for loss in found.losses}
    assert losses["extra_products"] == 0.05
    assert losses["matmul_inefficiency"] == 0.3
    assert losses["elementwise_inefficiency"] == 0.2
    assert found.achieved == pytest.approx(0.15)


def test_communication_counts_where_nothing_hides_it(story: Callable[[], Story]) -> None:
    told = (
        story()
        .mark("step", 0, 10)
        .op("c10d::allreduce_", 0, 1, [9])
        .kernel("ncclDevKernel", 2, 10, called=0.5)
    )
    told.op("aten::add", 0, 1, [9]).kernel("elementwise", 0, 6, called=0.5)
    assert shares(parse_trace(told.events))["exposed_communication"] == 0.4


def test_streams_that_overlap_are_counted_once(story: Callable[[], Story]) -> None:
    told = story().mark("step", 0, 10).mark("forward", 0, 10)
    told.op("aten::add", 0, 1, [2500]).kernel("a", 0, 8, called=0.1).kernel("b", 4, 10, called=0.2)
    assert shares(parse_trace(told.events)) == {"memory_bound": 1.0}


def test_a_wait_of_the_host_is_idle_and_no_launch_overhead(story: Callable[[], Story]) -> None:
    told = story().mark("step", 0, 10).mark("forward", 0, 10).op("aten::add", 0, 1, [2500])
    told.kernel("a", 0, 4, called=0.1).wait(4, 7).kernel("b", 9, 10, called=8)
    assert shares(parse_trace(told.events)) == {"idle": 0.3, "launch_overhead": 0.2, "memory_bound": 0.5}


def test_a_cpu_by_hand(story: Callable[[], Story]) -> None:
    """The loader's own work is waiting for data; the time around operations is overhead."""
    told = story().mark("step", 0, 10).mark("data", 0, 2).op("aten::cat", 0.5, 1.5, [10_000])
    told.mark("forward", 2, 9).op("aten::linear", 3, 8, [10, 10]).op("aten::t", 3, 3.5, [10, 10])
    told.op("aten::mm", 4, 8, [1000, 100], [100, 10])
    limits = Limits(1e9, 1e12)
    trace = parse_trace(told.events)
    found = waterfall(trace, priced(trace, limits), limits, 2e6, 0.01)
    assert {loss.name: round(loss.share, 4) for loss in found.losses if loss.share > 1e-9} == {
        "data_wait": 0.2,
        "idle": 0.1,
        "launch_overhead": 0.3,
        "matmul_inefficiency": 0.2,
    }
    assert found.achieved == pytest.approx(0.2)


def test_forwards_that_run_again_in_backward(story: Callable[[], Story]) -> None:
    """They record gradients; backward's own operations don't."""
    told = story().mark("step", 0, 10).mark("forward", 0, 3).op("aten::add", 0, 3, [750], **nodes(4, 0))
    told.mark("backward", 3, 10).op("aten::add", 3, 5, [500], **nodes(9, 0))
    told.op(
        "autograd::engine::evaluate_function: AddBackward0",
        5,
        10,
        **nodes(4, 1),
    )
    told.op("aten::mul", 5, 10, [1250])
    assert shares(parse_trace(told.events)) == {"recomputation": 0.2, "memory_bound": 0.8}


def test_kernels_that_are_nothing_but_launches(story: Callable[[], Story]) -> None:
    told = story().mark("step", 0, 1).mark("forward", 0, 1)
    for i in range(100):
        told.op("aten::mul", i / 100, i / 100 + 0.008, [1], kind="bool")
    limits = Limits(1e9, 1e9)
    trace = parse_trace(told.events)
    found = waterfall(trace, priced(trace, limits), limits, 0, 1e-3)
    assert {loss.name for loss in found.losses if loss.share > 1e-9} == {"launch_overhead"}


def test_phases_sum_to_the_step(story: Callable[[], Story]) -> None:
    told = on_a_gpu(story)
    trace = parse_trace(told.events)
    found = {p.name: round(p.seconds, 5) for p in phases(trace, priced(trace, LIMITS), 0.02)}
    # Of ten: the device works 7 for forward and waits 1 for it, 1 for data and 1 for the end.
    assert found == {
        "data": 0.002,
        "forward": 0.016,
        "backward": 0,
        "optimizer": 0,
        "sync": 0.002,
        "other": 0,
    }


def test_the_profilers_own_cost_comes_off_where_it_arises() -> None:
    parts = {"launch_overhead": 10.0, "idle": 4.0, "data_wait": 0.0, "products": 86.0}
    assert without_profiler(parts, 96.0) == {**parts, "launch_overhead": 6.0}
    # Half of the overhead and of the idle time at most; the rest of it from everything.
    rest = without_profiler(parts, 46.5)
    assert sum(rest.values()) == pytest.approx(46.5)
    assert rest["products"] == pytest.approx(43.0) and rest["launch_overhead"] == pytest.approx(2.5)


def test_what_is_no_trace_of_ours() -> None:
    with pytest.raises(DataError, match=r"holds no step \(pilgrim.step\); make it with pilgrim profile"):
        parse_trace([], "x.json")


times = st.tuples(st.floats(0, 20), st.floats(0.001, 8))
names = st.sampled_from(["aten::mm", "aten::add", "aten::view", "aten::cat", "graph_0_cpp_fused_add_0"])
kernels = st.sampled_from(["gemm", "elementwise", "ncclDevKernel_AllReduce", "Memcpy HtoD"])


@settings(max_examples=60, deadline=None)
@example(  # an operation that begins before the data phase, and lasts into it
    steps=1,
    marks=[("data", (0.5, 2.0)), ("forward", (0.0, 1.0))],
    ops=[("aten::mm", (0.0, 2.0))],
    device=[],
    flops=0.0,
    speed=1.0,
)
@given(
    steps=st.integers(1, 3),
    marks=st.lists(st.tuples(st.sampled_from(["data", "forward", "backward", "optimizer", "sync"]), times)),
    ops=st.lists(st.tuples(names, times)),
    device=st.lists(st.tuples(kernels, times, st.floats(0, 20))),
    flops=st.floats(0, 1e12),
    speed=st.floats(0.5, 2),
)
def test_it_sums_to_one_whatever_the_trace(
    steps: int,
    marks: list[tuple[str, tuple[float, float]]],
    ops: list[tuple[str, tuple[float, float]]],
    device: list[tuple[str, tuple[float, float], float]],
    flops: float,
    speed: float,
) -> None:
    told = Story()
    for step in range(steps):
        told.mark("step", step * 8, step * 8 + 7)
    for name, (begin, took) in marks:
        told.mark(name, begin, begin + took)
    shapes: list[Any] = [[64, 32], [32, 16]]
    for name, (begin, took) in ops:
        told.op(name, begin, begin + took, *shapes)
    for name, (begin, took), called in device:
        told.op("aten::add", called, called + 0.01, [5]).kernel(name, begin, begin + took, called)
    trace = parse_trace(told.events)
    traced_s = (trace.window[1] - trace.window[0]) / steps / 1e6
    tasks = priced(trace, LIMITS)
    found = waterfall(trace, tasks, LIMITS, flops, traced_s * speed)
    assert [loss.name for loss in found.losses] == list(LOSSES)
    assert all(-1e-9 <= loss.share <= 1 + 1e-9 for loss in found.losses)
    assert found.achieved >= -1e-9
    assert sum(loss.share for loss in found.losses) + found.achieved == pytest.approx(1, abs=1e-12)
    assert sum(phase.seconds for phase in phases(trace, tasks, 1.0)) == pytest.approx(1)
