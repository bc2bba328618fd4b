"""The table of kernels: what is put together, and what is said about it."""

from collections import Counter
from collections.abc import Callable

import pytest

from pilgrim.lab.profile.eager import Sources
from pilgrim.lab.profile.generated import Call
from pilgrim.lab.profile.kernels import fused_parts, kernels, split_operations
from pilgrim.lab.profile.trace import parse_trace
from pilgrim.lab.profile.waterfall import Limits, priced

from .conftest import Story

LIMITS = Limits(flops=1e12, bytes_per_s=1e9)


def test_products_are_told_apart_by_shape(story: Callable[[], Story]) -> None:
    told = story().mark("step", 0, 10).mark("forward", 0, 10)
    for at in range(2):
        told.op("aten::mm", at, at + 1, [64, 32], [32, 16]).op("aten::mm", at + 4, at + 4.5, [8, 8], [8, 8])
    trace = parse_trace(told.events)
    line = "pilgrim/model/layers.py:22 in Linear.forward"
    lines = Sources(
        {("aten::mm", ((64, 32), (32, 16))): Counter({line: 2}), ("aten::mm", ((8, 8),)): Counter("x")}
    )
    first, second = kernels(priced(trace, LIMITS), 2, {}, lines)
    assert first.name == "aten::mm 64×32 · 32×16" and second.name == "aten::mm 8×8 · 8×8"
    assert (first.seconds, first.launches, first.flops) == (0.001, 1.0, 2 * 64 * 32 * 16)
    assert first.bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert first.source == line and second.source is None
    assert first.meaning == "a product of matrices. A linear map of the layers, or casting its weights"


def test_an_operation_is_known_by_its_callers_too(story: Callable[[], Story]) -> None:
    told = (
        story()
        .mark("step", 0, 10)
        .op("aten::stack", 0, 5, [[2, 2], [2, 2]])
        .op("aten::cat", 0, 5, [[1, 2, 2]])
    )
    lines = Sources({("aten::stack", ((2, 2), (2, 2))): Counter(["pilgrim/optim/muon.py:9 in step"])})
    (found,) = kernels(priced(parse_trace(told.events), LIMITS), 1, {}, lines)
    assert found.source == "pilgrim/optim/muon.py:9 in step"
    assert found.meaning == "joins tensors into one. Muon's update of the matrices"


def test_compiled_kernels_have_the_compilers_line(story: Callable[[], Story]) -> None:
    name = "graph_2_cpp_fused__to_copy_add_rsqrt_0"
    trace = parse_trace(story().mark("step", 0, 1).mark("forward", 0, 1).op(name, 0, 1).events)
    call = Call(name, 4000.0, "pilgrim/model/layers.py:45 in RMSNorm.forward")
    (found,) = kernels(
        priced(trace, LIMITS, {trace.tasks[0]: 4000.0}), 1, {trace.tasks[0]: call}, Sources({})
    )
    assert found.name == "cpp_fused__to_copy_add_rsqrt_0" and found.bytes == 4000
    parts = "changing the number format, adding, dividing by a root"
    assert found.meaning == f"one loop, written by the compiler, for: {parts}. A norm"


@pytest.mark.parametrize(
    ("text", "operations"),
    [
        ("_to_copy__unsafe_view_add", ["_to_copy", "_unsafe_view", "add"]),
        ("silu_silu_backward_view", ["silu", "silu_backward", "view"]),
        ("linalg_vector_norm_mul", ["linalg_vector_norm", "mul"]),
        ("unheardof_mul", ["unheardof", "mul"]),
    ],
)
def test_names_of_fused_kernels_are_taken_apart(text: str, operations: list[str]) -> None:
    assert split_operations(text) == operations


def test_triton_kernels_are_taken_apart_too() -> None:
    assert fused_parts("triton_red_fused_mean_mul_pow_rsqrt_3") == [
        "means",
        "multiplying number by number",
        "squaring",
        "dividing by a root",
    ]
    assert fused_parts("gemm") == []
