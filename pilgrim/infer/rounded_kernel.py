"""Attention over a paged cache of 8 bits on an NVIDIA GPU: one kernel, which reads the bytes as they are.

FlashAttention reads halves, so for it a cache of 8 bits would first be made full numbers in memory, and
nothing would be gained. This kernel is its idea in the plainest form (Dao et al. 2022): keys come in pieces,
the softmax's sum and maximum so far are kept, and whenever the maximum grows, what was summed is shrunk. It
is written in Triton, which compiles such functions for the GPU; torch's builds with CUDA bring it along.

One program of the kernel does some rows of one text: a row is a query and one of the heads that share a key
head, so that even a reply's single query fills a matrix product. It goes through the keys that any of its
rows may see, finds each one's slot in the table of blocks, and

    scores = (q · key numbers) · key scales        a key's scale is the same for all d, so it can come later
    mixed += (shares · value scales) · value numbers

so that what tensor cores multiply are the stored numbers, which bf16 holds exactly; only queries and shares
are rounded, as in FlashAttention. A text's keys are not divided among several programs, and their pieces
begin at multiples of KEYS, so the sums of one text don't depend on who else is in the batch.

Shapes: b texts, n new tokens of all of them, h heads, g key/value heads, d head size, r rows, k keys at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pilgrim.infer.cache_bits import E4M3_IN_FP16, Rounded
from pilgrim.infer.paged_kernel import Layout

KEYS = 64  # at a time
FEW_ROWS, MANY_ROWS = 16, 64  # of a program: the fewest that tensor cores multiply, or some of a prompt
ENDLESS = 2**30  # a window that hides nothing
LOG2_E = 1.4426950408889634  # exp(x) = 2^(x · log2 e), and hardware has powers of 2


def mix(q: Tensor, keys: Rounded, values: Rounded, layout: Layout, window: int | None, block: int) -> Tensor:
    """Attention [1, h, n, d] of `q` over a layer's store, [slots, g, d] each, in blocks of `block` slots."""
    out_nhd: Tensor = attend_to_rounded(
        q[0].transpose(0, 1).contiguous(),
        keys.numbers,
        keys.scales,
        values.numbers,
        values.scales,
        layout.queries,
        layout.stored,
        layout.table,
        layout.longest_query,
        window or ENDLESS,
        block,
        keys.bits == "fp8",
    )
    return out_nhd.transpose(0, 1)[None]


# As an operation of torch, so that torch.compile needn't look inside.
@torch.library.custom_op("pilgrim::attend_to_rounded", mutates_args=())
def attend_to_rounded(
    q_nhd: Tensor,
    keys: Tensor,
    key_scales: Tensor,
    values: Tensor,
    value_scales: Tensor,
    queries: Tensor,
    stored: Tensor,
    table: Tensor,
    longest_query: int,
    reach: int,
    block: int,
    fp8: bool,
) -> Tensor:
    """Attention [n, h, d]; the tensors are those of `Rounded` and `Layout`."""
    _, heads, size = q_nhd.shape
    key_heads = keys.shape[1]
    rows = longest_query * (heads // key_heads)
    at_once = FEW_ROWS if rows <= FEW_ROWS else MANY_ROWS
    out_nhd = torch.empty_like(q_nhd)
    grid = (len(stored), key_heads, triton.cdiv(rows, at_once))
    # A number of e4m3 is read as one of fp16, which is smaller (cache_bits.py).
    factor = E4M3_IN_FP16 if fp8 else 1.0
    _attend[grid](
        q_nhd,
        keys,
        key_scales,
        values,
        value_scales,
        out_nhd,
        queries,
        stored,
        table,
        table.shape[1],
        reach,
        block,
        factor * size**-0.5 * LOG2_E,
        factor,
        HEADS=heads,
        KEY_HEADS=key_heads,
        SIZE=size,
        WIDTH=max(16, triton.next_power_of_2(size)),
        ROWS=at_once,
        KEYS=KEYS,
        FP8=fp8,
    )
    return out_nhd


@attend_to_rounded.register_fake
def _shape(q_nhd: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q_nhd)


@triton.jit
def _attend(
    q,
    keys,
    key_scales,
    values,
    value_scales,
    out,
    queries,
    stored,
    table,
    table_width,
    reach,
    block,
    score_factor,
    value_factor,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,  # SIZE, filled up to a power of 2
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    FP8: tl.constexpr,
):
    text, key_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    GROUP: tl.constexpr = HEADS // KEY_HEADS
    first = tl.load(queries + text)
    count = tl.load(queries + text + 1) - first
    before = tl.load(stored + text) - count  # tokens that come before the first query

    row_r = part * ROWS + tl.arange(0, ROWS)
    query_r, head_r = row_r // GROUP, key_head * GROUP + row_r % GROUP
    position_r = before + query_r
    d = tl.arange(0, WIDTH)
    place_rd = ((first + query_r) * HEADS + head_r).to(tl.int64)[:, None] * SIZE + d[None, :]
    inside_rd = (query_r < count)[:, None] & (d < SIZE)[None, :]
    q_rd = tl.load(q + place_rd, mask=inside_rd, other=0.0)

    # The keys that the first of the rows begins to see, up to that at the last one's own place.
    nearest = before + part * ROWS // GROUP
    end = before + tl.minimum((part * ROWS + ROWS - 1) // GROUP + 1, count)
    begin = tl.maximum(nearest - reach + 1, 0) // KEYS * KEYS

    largest_r = tl.full([ROWS], -1e30, tl.float32)  # finite: rows that have seen nothing yet stay at 0
    total_r = tl.zeros([ROWS], tl.float32)
    mixed_rd = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(begin, end, KEYS):
        position_k = start + tl.arange(0, KEYS)
        there_k = position_k < end
        block_k = tl.load(table + text * table_width + position_k // block, mask=there_k, other=0)
        slot_k = (block_k.to(tl.int64) * block + position_k % block) * KEY_HEADS + key_head
        inside_kd = there_k[:, None] & (d < SIZE)[None, :]
        place_kd = slot_k[:, None] * SIZE + d[None, :]

        key_kd = tl.load(keys + place_kd, mask=inside_kd, other=0)
        value_kd = tl.load(values + place_kd, mask=inside_kd, other=0)
        if FP8:  # as fp16's bits; -0x4001 is all but the second one, which the sign has filled, too
            key_kd = ((key_kd.to(tl.int16) << 7) & -0x4001).to(tl.float16, bitcast=True)
            value_kd = ((value_kd.to(tl.int16) << 7) & -0x4001).to(tl.float16, bitcast=True)
        key_scale_k = tl.load(key_scales + slot_k, mask=there_k, other=0.0).to(tl.float32)
        value_scale_k = tl.load(value_scales + slot_k, mask=there_k, other=0.0).to(tl.float32)

        score_rk = tl.dot(q_rd, tl.trans(key_kd.to(q_rd.dtype)))
        score_rk = score_rk * (key_scale_k * score_factor)[None, :]
        ahead_rk = position_k[None, :] > position_r[:, None]
        behind_rk = position_k[None, :] <= position_r[:, None] - reach
        score_rk = tl.where(ahead_rk | behind_rk, float("-inf"), score_rk)

        larger_r = tl.maximum(largest_r, tl.max(score_rk, 1))
        share_rk = tl.exp2(score_rk - larger_r[:, None])
        shrink_r = tl.exp2(largest_r - larger_r)
        total_r = total_r * shrink_r + tl.sum(share_rk, 1)
        weight_rk = (share_rk * (value_scale_k * value_factor)[None, :]).to(q_rd.dtype)
        mixed_rd = mixed_rd * shrink_r[:, None] + tl.dot(weight_rk, value_kd.to(q_rd.dtype))
        largest_r = larger_r

    total_r = tl.where(query_r < count, total_r, 1.0)
    tl.store(out + place_rd, (mixed_rd / total_r[:, None]).to(q_rd.dtype), mask=inside_rd)
