"""Attention within documents, in C: what test_attention_backends.py leaves open."""

import ctypes
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pilgrim.core.native import library
from pilgrim.model import document_attention
from pilgrim.model.attention import packed_attention, reference_attention
from pilgrim.model.attention_kernels import Backend

# Lengths around those of its vectors and blocks, and padding; 150 tokens a row.
ROWS = [[1, 15, 16, 17, 31, 32, 38], [33, 67, 48, -2], [150]]


@pytest.fixture(params=["threads=1", "threads=2", "threads=5"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(int(request.param.partition("=")[2]))
    yield
    torch.set_num_threads(before)


def documents() -> Tensor:
    rows = [
        torch.cat([torch.full((abs(n),), -1 if n < 0 else i) for i, n in enumerate(lengths)])
        for lengths in ROWS
    ]
    return torch.stack(rows).int()


def some_heads(dtype: torch.dtype, head_size: int = 20) -> list[Tensor]:
    """q, k, v and the output's gradient, of four heads in two groups."""
    draw = torch.Generator().manual_seed(1)
    made = [torch.randn(3, 150, heads, head_size, generator=draw) for heads in (4, 2, 2, 4)]
    return [x.to(dtype).transpose(1, 2) for x in made]


def found(backend: Backend, heads: list[Tensor], window: int | None = None) -> list[Tensor]:
    """Output, and the gradients of q, k and v."""
    q, k, v = (x.detach().requires_grad_() for x in heads[:3])
    out = packed_attention(documents(), q.dtype, window, backend)(0, q, k, v)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), heads[3])]


def error(ours: list[Tensor], exact: list[Tensor]) -> float:
    """The largest error, as a share of the largest number. (A query that sees one key has gradient 0.)"""
    pairs = zip(ours, exact, strict=True)
    return max(float((x.float() - y).abs().max() / y.abs().max().clamp(min=1)) for x, y in pairs)


@pytest.mark.parametrize("window", [None, 1, 20])
def test_in_bf16_it_is_as_exact_as_its_rounding(window: int | None) -> None:
    """Inside it is fp32: what it returns is rounded once, and backward reads an output rounded once."""
    heads = some_heads(torch.bfloat16)
    exact = found("reference", [x.float() for x in heads], window)
    assert error(found("documents", heads, window), exact) < 2**-8


def test_all_threads_together_find_the_same_bits(threads: None) -> None:
    ours = found("documents", some_heads(torch.float32))
    torch.set_num_threads(3)
    assert all(
        torch.equal(x, y) for x, y in zip(ours, found("documents", some_heads(torch.float32)), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_does_not_matter_how_tensors_lie_in_memory(dtype: torch.dtype) -> None:
    heads = some_heads(dtype)
    wide = [torch.cat([x, x], 3)[..., : x.shape[3]] for x in heads]  # with gaps between tokens
    backwards = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in heads]  # a head's numbers far apart
    expected = found("documents", heads)
    for other in ([x.contiguous() for x in heads], wide, backwards):
        assert all(torch.equal(x, y) for x, y in zip(found("documents", other), expected, strict=True))


@pytest.mark.parametrize("trouble", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1, 2], ids="qkv")
def test_what_is_not_finite_is_not_lost_and_stays_in_its_document(which: int, trouble: float) -> None:
    heads = some_heads(torch.float32)
    heads[which][1, 1, 40, 3] = trouble  # in the second row's second document, from 33 to 100
    whole = found("documents", some_heads(torch.float32))
    ours = found("documents", heads)
    assert not ours[0][1, :, 40].isfinite().all()
    for x, y in zip(ours, whole, strict=True):
        assert torch.equal(x[[0, 2]], y[[0, 2]])
        assert torch.equal(x[1, :, :33], y[1, :, :33]) and torch.equal(x[1, :, 100:], y[1, :, 100:])


def test_large_scores_do_not_overflow() -> None:
    heads = some_heads(torch.float32)
    heads[0] *= 300
    assert error(found("documents", heads), found("reference", heads)) < 1e-3


def test_no_gradient_is_made_where_none_is_wanted() -> None:
    q, k, v, _ = some_heads(torch.float32)
    out = packed_attention(documents(), q.dtype, None, "documents")(0, q, k, v)
    assert not out.requires_grad
    torch.testing.assert_close(out, reference_attention(documents(), None)(0, q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_processors_compute_it_too(
    narrower: None, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(document_attention, "_code", document_attention._code.__wrapped__)
    monkeypatch.setattr(document_attention, "library", library.__wrapped__)
    heads = some_heads(dtype)
    exact = found("reference", [x.float() for x in heads])
    assert error(found("documents", heads), exact) < (1e-5 if dtype == torch.float32 else 2**-8)


def test_what_python_fills_in_is_what_c_reads() -> None:
    """Only 8-byte fields, so that both lay them out alike."""
    heads = 4 * ctypes.sizeof(document_attention.Heads)
    assert ctypes.sizeof(document_attention.Heads) == 32
    assert ctypes.sizeof(document_attention.Batch) == 8 * 8 + heads
    assert ctypes.sizeof(document_attention.Gradients) == heads


def test_without_memory_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def attend(*_: object) -> int:
            return 0

    monkeypatch.setattr(document_attention, "_code", lambda dtype: Full)
    with pytest.raises(MemoryError, match="take fewer rows at a time"):
        found("documents", some_heads(torch.float32))
