"""Slots and pieces of the cache; that none of it changes a result is tested in numerics."""

import importlib.util
import inspect
import os
import subprocess
import sys

import interpreted_kernel
import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from pilgrim.infer import paged_kernel
from pilgrim.infer.cache import PagedCache
from pilgrim.infer.cache_bits import CacheBits, Rounded, rounded, rounding
from pilgrim.infer.paged_attention import Span
from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelSettings

CONFIG = ModelSettings(depth=1, width=16, head_size=4, heads=4, kv_heads=2).config(vocab_size=300)


def qkv(n: int, seed: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(1, heads, n, 4, generator=draw) for heads in (4, 2, 2)]


@pytest.mark.parametrize("blocks", [[2, 3, 4], [4, 1, 3]], ids=["in place", "scattered"])
@pytest.mark.parametrize("parts", [[10], [4, 6], [3, 1, 1, 5], [1] * 10], ids=str)
def test_a_text_may_lie_in_any_blocks(blocks: list[int], parts: list[int]) -> None:
    cache = PagedCache(CONFIG, 6, 4, 6, torch.float32, torch.device("cpu"))
    for store in (cache.keys, cache.values):
        store.fill_(float("nan"))  # nothing may be read that was not written
    q, k, v = qkv(10, seed=1)
    mixed, start = [], 0
    for count in parts:
        positions, attend = cache.attend([Span(start, count, blocks)])
        new = slice(start, start + count)
        assert positions.tolist() == [list(range(start, start + count))]
        mixed.append(attend(0, q[:, :, new], k[:, :, new], v[:, :, new]))
        start += count
    torch.testing.assert_close(torch.cat(mixed, 2), causal_attention(0, q, k, v))


def test_texts_in_one_pass_do_not_see_each_other() -> None:
    cache = PagedCache(CONFIG, 6, 4, 6, torch.float32, torch.device("cpu"))
    q, k, v = qkv(9, seed=2)
    _, attend = cache.attend([Span(0, 3, [5]), Span(0, 6, [1, 3])])
    mixed = attend(0, q, k, v)
    for part in (slice(0, 3), slice(3, 9)):
        alone = causal_attention(0, q[:, :, part], k[:, :, part], v[:, :, part])
        torch.testing.assert_close(mixed[:, :, part], alone)


@pytest.mark.parametrize("bits", ["int8", "fp8"])
@pytest.mark.parametrize("blocks", [[2, 3, 4], [4, 1, 3]], ids=["in place", "scattered"])
def test_what_is_read_of_8_bits_is_rounded(blocks: list[int], bits: CacheBits) -> None:
    cache = PagedCache(CONFIG, 6, 4, 6, torch.float32, torch.device("cpu"), bits=bits)
    assert cache.scales is not None
    for scales in cache.scales:
        scales.fill_(float("nan"))  # nothing may be read that was not written
    q, k, v = qkv(10, seed=1)
    mixed = []
    for start, count in ((0, 4), (4, 1), (5, 5)):
        new = slice(start, start + count)
        _, attend = cache.attend([Span(start, count, blocks)])
        mixed.append(attend(0, q[:, :, new], k[:, :, new], v[:, :, new]))
    torch.testing.assert_close(torch.cat(mixed, 2), rounding(causal_attention, bits)(0, q, k, v))


@pytest.mark.parametrize("bits", ["int8", "fp8"])
def test_8_bits_are_half_of_16_and_the_scales(bits: CacheBits) -> None:
    halves, rounded = (
        PagedCache(CONFIG, 6, 4, 6, torch.bfloat16, torch.device("cpu"), bits=each) for each in ("full", bits)
    )
    d = CONFIG.head_size
    assert rounded.bytes == halves.bytes * (d + 2) // (2 * d)


@pytest.mark.parametrize("bits", ["full", "int8", "fp8"])
@pytest.mark.parametrize("window", [None, 3])
def test_the_kernels_layout_says_the_same_as_the_plans(window: int | None, bits: CacheBits) -> None:
    """The formula, computed from what the kernel is told, against torch's fused kernel."""
    windowed = (
        CONFIG if window is None else CONFIG.model_copy(update={"window": window, "window_pattern": "S"})
    )
    stores = [
        PagedCache(windowed, 6, 4, 3, torch.float32, torch.device("cpu"), kernel, bits)
        for kernel in (None, paged_kernel.reference)
    ]
    for seed, spans in enumerate(
        [
            [Span(0, 5, [3, 4]), Span(0, 3, [0])],
            [Span(5, 1, [3, 4]), Span(3, 1, [0])],
            [Span(6, 3, [3, 4, 1]), Span(4, 1, [0, 5]), Span(0, 2, [2])],
        ]
    ):
        q, k, v = qkv(sum(span.new for span in spans), seed)
        fused, formula = (store.attend(spans)[1](0, q, k, v) for store in stores)
        torch.testing.assert_close(fused, formula)


def test_the_kernel_has_the_parameters_that_it_is_called_with() -> None:
    inspect.signature(varlen_attn).bind(
        *[None] * 7, window_size=(-1, 0), enable_gqa=True, seqused_k=None, block_table=None, num_splits=1
    )
    assert paged_kernel.trouble(torch.device("cpu"), torch.bfloat16, 64) == "it needs an NVIDIA GPU"


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)], ids=str)
@pytest.mark.parametrize("size", [64, 128])
def test_the_kernel_computes_the_formula(window: int | None, heads: tuple[int, int], size: int) -> None:
    device = torch.device("cuda")
    if not torch.cuda.is_available() or (why := paged_kernel.trouble(device, torch.bfloat16, size)):
        pytest.skip("no CUDA" if not torch.cuda.is_available() else str(why))
    h, g = heads
    draw = torch.Generator(device).manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, device=device).bfloat16()

    keys, values = normal(12 * 256, g, size), normal(12 * 256, g, size)
    for spans in (
        [Span(0, 300, [5, 2]), Span(700, 1, [9, 1, 4]), Span(256, 40, [0, 7])],  # a prompt, a reply, a chunk
        [Span(20, 1, [3]), Span(511, 1, [8, 6]), Span(512, 1, [11, 10, 1])],  # replies only
    ):
        q = normal(1, sum(span.new for span in spans), h, size).transpose(1, 2)
        layout = paged_kernel.layout_of(spans, device)
        fast = paged_kernel.mix(q, keys, values, layout, window, 256)
        slow = paged_kernel.reference(q, keys, values, layout, window, 256)
        torch.testing.assert_close(fast.float(), slow.float(), rtol=2e-2, atol=2e-2)


def test_the_kernel_for_8_bits_interpreted_computes_the_formula() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed, which comes with torch's builds for CUDA")
    told = subprocess.run(
        [sys.executable, interpreted_kernel.__file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout == f"{len(interpreted_kernel.CASES)} cases agree\n"


@pytest.mark.gpu
@pytest.mark.parametrize("bits", ["int8", "fp8"])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("heads", [(4, 4), (8, 2)], ids=str)
@pytest.mark.parametrize("size", [64, 128])
def test_the_kernel_for_8_bits_computes_the_formula(
    bits: CacheBits, window: int | None, heads: tuple[int, int], size: int
) -> None:
    device = torch.device("cuda")
    if not torch.cuda.is_available() or (why := paged_kernel.trouble(device, torch.bfloat16, size, bits)):
        pytest.skip("no CUDA" if not torch.cuda.is_available() else str(why))
    h, g = heads
    draw = torch.Generator(device).manual_seed(1)
    keys, values = (
        Rounded(
            *rounded(torch.randn(12 * 256, g, size, generator=draw, device=device), bits), bits, torch.float32
        )
        for _ in range(2)
    )
    for spans in (
        [Span(0, 300, [5, 2]), Span(700, 1, [9, 1, 4]), Span(256, 40, [0, 7])],  # a prompt, a reply, a chunk
        [Span(20, 1, [3]), Span(511, 1, [8, 6]), Span(512, 1, [11, 10, 1])],  # replies only
    ):
        n = sum(span.new for span in spans)
        q = torch.randn(1, n, h, size, generator=draw, device=device).bfloat16().transpose(1, 2)
        layout = paged_kernel.layout_of(spans, device)
        fast = paged_kernel.mix_rounded(q, keys, values, layout, window, 256)
        slow = paged_kernel.reference(q, keys, values, layout, window, 256)
        torch.testing.assert_close(fast.float(), slow.float(), rtol=2e-2, atol=2e-2)
