"""Who may look at whom in a packed row, written down in as little room as it needs.

A token sees itself and what came before it, within its document, and with a sliding window only the last
`window` tokens of that, itself among them. A document is an unbroken stretch of its row, so what a query
sees is an unbroken stretch too: from its *first key* to itself.

    documents   0 0 0 0 1 1 1          window 2
    position    0 1 2 3 4 5 6
    first key   0 0 0 0 4 4 4          0 0 1 2 4 4 5

One number for every query says it all, and it never falls along a row. From it follow, by arithmetic alone,
the forms that attention kernels want: a table of every pair (`document_mask`, dense: for CPUs and as the
truth in tests), where each document begins (`document_starts`, for kernels that take many sequences behind
each other), and which *blocks* of 128 queries and 128 keys have to be looked at (`visible_blocks`). A GPU
only gets the latter two: for 16 rows of 2,048 tokens the dense table has 67 million entries, the others a
few thousand.

Shapes: b rows, t tokens, d documents; q and k blocks of queries and of keys.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# (layer index, q_bhtd, k_bgtd, v_bgtd) -> out_bhtd
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
# One window for all layers or one for each, in tokens; None sees everything before it.
Windows = int | None | Sequence[int | None]

SPARSE_BLOCK = 128  # what FlexAttention uses by default


def window_of(windows: Windows, layer: int) -> int | None:
    """The window of one layer."""
    return windows if windows is None or isinstance(windows, int) else windows[layer]


def different(windows: Windows) -> list[int | None]:
    """Every window that occurs, once."""
    return [windows] if windows is None or isinstance(windows, int) else list(dict.fromkeys(windows))


def document_mask(documents_bt: Tensor, window: int | None = None) -> Tensor:
    """Which tokens may look at which: bool [b, 1, t, t], True where query i may see key j.

    `documents_bt` numbers the document of every token in a packed row; a token sees itself and what
    came before it in its own document, so packing changes nothing for a document.
    """
    t = documents_bt.shape[1]
    same = documents_bt[:, :, None] == documents_bt[:, None, :]
    near = torch.ones(t, t, dtype=torch.bool, device=documents_bt.device).tril()
    if window is not None:
        near = near.triu(1 - window)
    return (same & near)[:, None]


def first_keys(documents_bt: Tensor, window: int | None = None) -> Tensor:
    """The first key that each query may see: int32 [b, t]. It sees all keys from there to itself."""
    positions_t = torch.arange(documents_bt.shape[1], device=documents_bt.device, dtype=torch.int32)
    first_bt = torch.where(_begins(documents_bt), positions_t, 0).cummax(dim=1).values
    return first_bt if window is None else torch.maximum(first_bt, positions_t - (window - 1))


def document_starts(documents_bt: Tensor) -> Tensor:
    """Where the documents of each row begin: int32 [b, d], rows with fewer filled up with t.

    Padding counts as a document. d is that of the row with most documents, so it depends on the numbers in
    `documents_bt`: on a GPU this would wait for it, and is therefore done on the CPU (data/loader.py).
    """
    b, t = documents_bt.shape
    begins_bt = _begins(documents_bt)
    # At least 2 wide, as torch.compile takes a size of 1 for a constant and would compile again.
    most = max(2, int(begins_bt.sum(1).max()))
    starts_bd = torch.full((b, most), t, dtype=torch.int32, device=documents_bt.device)
    rows_n, positions_n = begins_bt.nonzero(as_tuple=True)
    number_bt = begins_bt.cumsum(1) - 1
    starts_bd[rows_n, number_bt[rows_n, positions_n]] = positions_n.int()
    return starts_bd


def cumulative_starts(starts_bd: Tensor, t: int) -> Tensor:
    """The same for all rows behind each other: int32 [b · d + 1], from 0 to b · t.

    Entry i is where sequence i begins and sequence i - 1 ends. A row's filling points at the beginning of
    the next row: documents of no tokens, which a kernel passes over.
    """
    b = starts_bd.shape[0]
    row_b1 = torch.arange(b, device=starts_bd.device, dtype=torch.int32)[:, None]
    end_1 = torch.full((1,), b * t, dtype=torch.int32, device=starts_bd.device)
    return torch.cat([(starts_bd + row_b1 * t).flatten(), end_1])


class Blocks(NamedTuple):
    """FlexAttention's sparse mask: for every block of queries the blocks of keys to visit, and vice versa.

    "Full" blocks hold allowed pairs only, so nothing has to be asked; in the others every pair is compared
    with `first_bt`. Counts are int32 [b, 1, blocks], indices int32 [b, 1, blocks, blocks], of which the
    first `count` matter.
    """

    first_bt: Tensor
    kv_num_blocks: Tensor
    kv_indices: Tensor
    full_kv_num_blocks: Tensor
    full_kv_indices: Tensor
    q_num_blocks: Tensor
    q_indices: Tensor
    full_q_num_blocks: Tensor
    full_q_indices: Tensor


def block_lists(documents_bt: Tensor, window: int | None, size: int = SPARSE_BLOCK) -> Blocks:
    """The blocks to visit forward (keys for a block of queries) and backward (queries for keys)."""
    first_bt = first_keys(documents_bt, window)
    partial_bqk, full_bqk = visible_blocks(first_bt, size)
    lists: list[Tensor] = []
    for dense in (partial_bqk, full_bqk, partial_bqk.mT, full_bqk.mT):
        lists += _listed(dense[:, None])
    return Blocks(first_bt, *lists)


def visible_blocks(first_bt: Tensor, size: int = SPARSE_BLOCK) -> tuple[Tensor, Tensor]:
    """Blocks of which some, and blocks of which all pairs are allowed: two bool [b, q, k].

    First keys don't fall along a row. So the first query of a block sees farthest back and decides whether
    anything of an earlier block of keys is seen; its last query decides whether all of it is.
    """
    t = first_bt.shape[1]
    block = torch.arange(-(-t // size), device=first_bt.device)
    begin, end = block * size, (block * size + size - 1).clamp(max=t - 1)
    earlier_qk = block < block[:, None]
    some_bqk = earlier_qk & (first_bt[:, begin, None] <= end)
    full_bqk = earlier_qk & (first_bt[:, end, None] <= begin)
    return (some_bqk & ~full_bqk) | (block == block[:, None]), full_bqk


def _listed(dense: Tensor) -> tuple[Tensor, Tensor]:
    """How many entries of each row are True, and their indices before all others."""
    order = torch.argsort(dense.int(), dim=-1, descending=True, stable=True)
    return dense.sum(-1, dtype=torch.int32), order.int()


def _begins(documents_bt: Tensor) -> Tensor:
    """True where a token is the first of its document in its row."""
    first_b1 = torch.ones_like(documents_bt[:, :1], dtype=torch.bool)
    return torch.cat([first_b1, documents_bt[:, 1:] != documents_bt[:, :-1]], dim=1)
