"""Prices of operations, against torch's own counter and against counting by hand."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pilgrim.lab.profile.costs import bytes_moved, flops, is_product
from pilgrim.lab.profile.trace import Op, parse_trace

from .conftest import Story

MM = ("aten::mm", lambda a, b: a @ b, (6, 4), (4, 8))
BMM = ("aten::bmm", lambda a, b: a @ b, (3, 6, 4), (3, 4, 8))


def told_op(story: Callable[[], Story], name: str, *dims: object, kind: str = "float") -> Op:
    found = parse_trace(story().mark("step", 0, 1).op(name, 0, 1, *dims, kind=kind).events).tasks[0].op
    assert found is not None
    return found


@pytest.mark.parametrize(("name", "product", "a", "b"), [MM, BMM])
def test_products_cost_what_torch_counts(
    story: Callable[[], Story],
    name: str,
    product: Callable[..., object],
    a: tuple[int, ...],
    b: tuple[int, ...],
) -> None:
    with FlopCounterMode(display=False) as counter:
        product(torch.ones(a), torch.ones(b))
    op = told_op(story, name, list(a), list(b))
    assert flops(name, op) == counter.get_total_flops()
    assert is_product(name, op)


def test_fused_attention_costs_what_torch_counts(story: Callable[[], Story]) -> None:
    q = torch.ones(2, 3, 16, 8)
    with FlopCounterMode(display=False) as counter:
        (q @ q.mT).softmax(-1) @ q
    name = "aten::_scaled_dot_product_flash_attention"
    assert flops(name, told_op(story, name, *[list(q.shape)] * 3)) == counter.get_total_flops()
    backward = told_op(story, f"{name}_backward", *[list(q.shape)] * 4)
    assert flops(name, backward) == counter.get_total_flops() * 5 / 2


def test_bytes(story: Callable[[], Story]) -> None:
    def moved(name: str, *dims: object, kind: str = "float") -> float | None:
        return bytes_moved(told_op(story, name, *dims, kind=kind))

    assert moved("aten::mm", [6, 4], [4, 8]) == 4 * (24 + 32 + 48)
    assert moved("aten::addmm", [8], [6, 4], [4, 8]) == 4 * (24 + 32 + 48)
    assert moved("aten::add", [10, 10], [10, 10]) == 1200
    assert moved("aten::sum", [10, 10], kind="c10::BFloat16") == 200
    assert moved("aten::copy_", [10], [10]) == 80
    assert moved("aten::cat", [[10, 2], [10, 3]]) == 2 * 4 * 50
    assert moved("aten::embedding", [1000, 16], [5]) == 2 * 5 * 16 * 4
    assert moved("aten::gather", [10, 10], [3]) is None  # which rows are read, no trace tells
    assert moved("graph_0_cpp_fused_add_0") is None


def test_what_is_a_product() -> None:
    assert is_product("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", None)
    assert is_product("void flash_fwd_kernel<...>", None)
    assert not is_product("triton_poi_fused_add_mul_0", None)
