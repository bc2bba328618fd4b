"""What an operation costs, from the shapes of its inputs: floating-point operations, and bytes moved.

Only products of matrices are counted as operations, a multiplication and its addition as two, as in
model/count.py. Bytes are what must at least be moved: every input read once, every output written once,
nothing kept in a cache from before. Both are lower limits of the work, so both give upper limits of the
speed, and the tighter of the two says what an operation is bound by: its *roofline* (Williams, Waterman,
Patterson 2009).

A trace has the shapes of inputs only, so each family of operations has its rule for the output.
"""

from collections.abc import Iterator
from math import prod
from typing import Any

from pilgrim.lab.profile.trace import Op

Dims = tuple[int, ...]

ITEM_BYTES = {
    "double": 8,
    "long int": 8,
    "long": 8,
    "int64_t": 8,
    "float": 4,
    "int": 4,
    "c10::Half": 2,
    "c10::BFloat16": 2,
    "c10::Float8_e4m3fn": 1,
    "c10::Float8_e5m2": 1,
    "bool": 1,
    "unsigned char": 1,
    "signed char": 1,
}
# What looks things up touches only a part of its inputs, and which part is not in the trace.
LOOK_UPS = (
    "index",
    "index_put_",
    "_index_put_impl_",
    "gather",
    "scatter_",
    "scatter_add",
    "scatter_add_",
    "searchsorted",
    "topk",
    "sort",
    "embedding_dense_backward",
    "nll_loss_backward",
)
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "_scaled_mm", "_grouped_mm", "mv", "dot", "addmv")
ATTENTION = ("attention", "flash", "fmha")  # fused: two products forward, five backward
# What these read or write beside their inputs, in the size of the largest input. Other operations write an
# output as large as their largest input.
WRITES = {
    "sum": 0.0,
    "mean": 0.0,
    "amax": 0.0,
    "max": 0.0,
    "any": 0.0,
    "all": 0.0,
    "linalg_vector_norm": 0.0,
    "_foreach_norm": 0.0,
    "_local_scalar_dense": 0.0,
    "nll_loss_forward": 0.0,
    "fill_": 0.0,  # its one "input" is its output
    "zero_": 0.0,
    "copy_": 0.0,  # target and source are both among its inputs
    "_foreach_copy_": 0.0,
    "add_": 1.0,  # read and written
}


def flops(name: str, op: Op | None) -> float | None:
    """Operations of the products that it does; None if that can't be told from shapes."""
    if op is None:
        return None
    tensors = [dims for dims, _ in tensors_of(op)]
    kind = _kind(op.name)
    if kind in PRODUCTS:
        return _product_flops(kind, tensors)
    if any(word in kind.lower() for word in ATTENTION):
        return _attention_flops(kind, tensors)
    return None


def is_product(name: str, op: Op | None) -> bool:
    """Whether it multiplies matrices: by its operation, or by its kernel's name where there is none."""
    if op is not None and "::" in op.name:
        kind = _kind(op.name)
        if kind in PRODUCTS or any(word in kind.lower() for word in ATTENTION):
            return True
    words = ("gemm", "matmul", "cutlass", "xmma", "nvjet", "flash", "fmha", "triton_tem_", "flex_attention")
    return any(word in name.lower() for word in words)


def bytes_moved(op: Op | None) -> float | None:
    """Bytes that it must read and write; None where the trace has no shapes (compiled code on a CPU)."""
    if op is None or not op.dims:
        return None
    sizes = [prod(dims) * ITEM_BYTES.get(kind, 4) for dims, kind in tensors_of(op)]
    if not sizes:
        return 0.0
    kind = _kind(op.name)
    if kind in LOOK_UPS:
        return None
    if kind in ("embedding", "index_select"):  # one row for each index, read and written
        table, *rest = tensors_of(op)
        rows = prod(rest[-1][0]) if rest else 1
        return 2.0 * rows * prod(table[0][1:]) * ITEM_BYTES.get(table[1], 4)
    if op.name.startswith("triton_"):
        return float(sum(sizes))  # its outputs are among its arguments
    if kind in PRODUCTS:
        return float(sum(_product_bytes(kind, op)))
    if kind == "cat":
        return 2.0 * sum(sizes)
    return sum(sizes) + WRITES.get(kind, 0.0 if kind.endswith(".out") else 1.0) * max(sizes)


def tensors_of(op: Op) -> Iterator[tuple[Dims, str]]:
    """Shape and type of every tensor among its arguments; lists of tensors are opened."""
    for i, dims in enumerate(op.dims):
        kind = op.types[i] if i < len(op.types) else ""
        if dims and isinstance(dims[0], tuple):  # a list of tensors, whose types the trace does not tell
            yield from ((inner, _likely(op)) for inner in dims if inner)
        elif dims:
            yield dims, kind


def _likely(op: Op) -> str:
    return next((kind for kind in op.types if kind in ITEM_BYTES), "float")


def _kind(name: str) -> str:
    return name.rpartition("::")[2]


def _matrices(kind: str, tensors: list[Any]) -> tuple[Dims, Dims] | None:
    """The two factors. `addmm` and `baddbmm` have what they add first; mm's third is where it writes."""
    first = 1 if kind in ("addmm", "baddbmm", "addmv") else 0
    pair = tensors[first : first + 2]
    return (pair[0], pair[1]) if len(pair) == 2 else None


def _product_flops(kind: str, tensors: list[Any]) -> float | None:
    factors = _matrices(kind, tensors)
    if factors is None or kind == "_grouped_mm":
        return None
    a, b = factors
    columns = b[-1] if len(b) > 1 else 1
    return 2.0 * prod(a) * columns


def _product_bytes(kind: str, op: Op) -> Iterator[float]:
    found = list(tensors_of(op))
    factors = _matrices(kind, [dims for dims, _ in found])
    if factors is None:
        return
    (a, b), item = factors, ITEM_BYTES.get(found[0][1], 4)
    yield prod(a) * item
    yield prod(b) * item
    yield prod(a[:-1]) * (b[-1] if len(b) > 1 else 1) * item


def _attention_flops(kind: str, tensors: list[Any]) -> float | None:
    """Fused attention over [b, h, t, d]: scores and their mixture; backward does five products for two."""
    four = [dims for dims in tensors if len(dims) == 4]
    if len(four) < 3 or "varlen" in kind or "documents" in kind:
        return None  # documents of their own length: shapes don't tell which queries meet which keys
    backward = "backward" in kind
    q, k = (four[1], four[2]) if backward else (four[0], four[1])  # backward has the gradient first
    scores = 2.0 * prod(q) * k[2]
    return float(scores * (5 if backward else 2))
