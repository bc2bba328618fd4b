"""Attention within the documents of packed rows, in C: the backend "documents" (document_attention.c).

For CPUs without a matrix unit, where a training step waits for arithmetic: it multiplies what documents need,
where torch's operations multiply whole rows (attention.py). The code is an operator of torch's, so that
torch.compile puts it into its graph as it is. Sums are in one order, whatever the number of threads.

Shapes: b rows, h heads, g key/value heads, t tokens, d head size.
"""

import ctypes
from ctypes import POINTER, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pilgrim.core.errors import PilgrimError
from pilgrim.core.native import library
from pilgrim.model.attention_spans import Attend, Windows, window_of

SOURCE = Path(__file__).with_suffix(".c")
BITS = {torch.float32: 32, torch.bfloat16: 16}


class Heads(ctypes.Structure):
    """`struct heads` of the source; so are the following."""

    _fields_ = [("numbers", c_void_p), *((name, c_int64) for name in ("row", "head", "token"))]


class Batch(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "heads", "kv_heads", "tokens", "size", "window")),
        ("documents", c_void_p),
        *((name, Heads) for name in ("q", "k", "v", "out")),
        ("log_sums", c_void_p),
    ]


class Gradients(ctypes.Structure):
    _fields_ = [(name, Heads) for name in ("out", "q", "k", "v")]


def document_attention(documents_bt: Tensor, windows: Windows) -> Attend:
    """For q [b, h, t, d] and k, v [b, g, t, d], all in bf16 or all in fp32."""
    numbers_bt = documents_bt.to(torch.int32).contiguous()

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = attention_within_documents(q, k, v, numbers_bt, window_of(windows, layer) or 0)[0]
        return out

    return attend


@torch.library.custom_op("pilgrim::attention_within_documents", mutates_args=())
def attention_within_documents(
    q: Tensor, k: Tensor, v: Tensor, documents_bt: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """The output [b, h, t, d], and of each query log(sum(exp(scores))), fp32 [b, h, t]. Window 0: none."""
    q, k, v = (_dense(x) for x in (q, k, v))
    out, log_sums_bht = _empty(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    _run(_batch(q, k, v, documents_bt, window, out, log_sums_bht), None, q.dtype)
    return out, log_sums_bht


@attention_within_documents.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, documents_bt: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return _empty(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("pilgrim::attention_within_documents_backward", mutates_args=())
def attention_within_documents_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents_bt: Tensor,
    window: int,
    out: Tensor,
    log_sums_bht: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    d_out, q, k, v, out = (_dense(x) for x in (d_out, q, k, v, out))
    gradients = [_empty(x) for x in (q, k, v)]
    batch = _batch(q, k, v, documents_bt, window, out, log_sums_bht.contiguous())
    _run(batch, Gradients(*(_heads(x) for x in (d_out, *gradients))), q.dtype)
    return gradients[0], gradients[1], gradients[2]


@attention_within_documents_backward.register_fake
def _(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q), _empty(k), _empty(v)


def _save(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, documents_bt, window = inputs
    ctx.save_for_backward(q, k, v, documents_bt, *output)  # type: ignore[arg-type]
    ctx.window = window  # type: ignore[attr-defined]


def _backward(
    ctx: torch.autograd.function.FunctionCtx, d_out: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    q, k, v, documents_bt, out, log_sums_bht = ctx.saved_tensors  # type: ignore[attr-defined]
    found = attention_within_documents_backward(d_out, q, k, v, documents_bt, ctx.window, out, log_sums_bht)  # type: ignore[attr-defined]
    return (*found, None, None)


attention_within_documents.register_autograd(_backward, setup_context=_save)


def trouble(dtype: torch.dtype) -> str | None:
    """Why there is no such code for numbers of `dtype`, compiled now if need be; None if there is."""
    if dtype not in BITS:
        return f"it computes in fp32 and bf16, and this run in {str(dtype).removeprefix('torch.')}"
    try:
        _code(dtype)
    except PilgrimError as error:
        return str(error)
    return None


def _run(batch: Batch, gradients: Gradients | None, dtype: torch.dtype) -> None:
    if not _code(dtype).attend(batch, gradients, torch.get_num_threads()):
        raise MemoryError("no memory is left for attention within documents; take fewer rows at a time")


def _batch(
    q: Tensor, k: Tensor, v: Tensor, documents_bt: Tensor, window: int, out: Tensor, log_sums_bht: Tensor
) -> Batch:
    b, h, t, d = q.shape
    heads = (_heads(x) for x in (q, k, v, out))
    return Batch(b, h, k.shape[1], t, d, window, documents_bt.data_ptr(), *heads, log_sums_bht.data_ptr())


def _heads(x_bhtd: Tensor) -> Heads:
    return Heads(x_bhtd.data_ptr(), *x_bhtd.stride()[:3])


def _dense(x_bhtd: Tensor) -> Tensor:
    """With a head's numbers behind each other, as the projections leave them."""
    return x_bhtd if x_bhtd.stride(3) == 1 else x_bhtd.contiguous()


def _empty(like_bhtd: Tensor) -> Tensor:
    """Room for [b, h, t, d] that lies as [b, t, h, d], as what comes before and after wants it."""
    b, h, t, d = like_bhtd.shape
    return like_bhtd.new_empty(b, t, h, d).transpose(1, 2)


@cache
def _code(dtype: torch.dtype) -> ctypes.CDLL:
    """Raises PilgrimError if it can't be compiled."""
    found = library(SOURCE, NUMBER_BITS=BITS[dtype])
    found.attend.argtypes = [POINTER(Batch), POINTER(Gradients), c_int64]
    found.attend.restype = c_int
    return found
