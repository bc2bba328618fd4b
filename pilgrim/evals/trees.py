"""Rows that begin alike are read as a tree: what they share once, then all their ends, in a single pass.

    rows of a question      tree                          as a row of the batch
    a b c d e               trunk   a b c                 a b c . | d e f g h
    a b c f                 branches   d e / f / g h              (trunk, padded | branches, padded)
    a b c g h

Every token has the position of its own row, and may look at the trunk and at its own branch up to itself. So
it sees exactly what it would see if its row were read alone, and comes out the same. The trunk is plain
causal attention, for which fused kernels exist; only the branches, a few tokens, need a mask. Of the last
block only what is scored is computed (`wanted_bn` of model/transformer.py).

A row that shares nothing is a tree without branches. Trees of similar size are read together, padded at the
right of trunk and of branches, where no real token looks.

Shapes: b trees, t tokens of a tree with padding (trunk s, then branches), n wanted places, w width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.evals.prompts import Row, common
from pilgrim.infer.engine import Engine
from pilgrim.model.attention_spans import Attend

WORTH_SHARING = 16  # fewer ids than this are sooner read again than masked
TRUNK, PADDING = -1, -2  # in place of a branch's number


@dataclass(frozen=True)
class Tree:
    """Different rows with the same first `trunk` ids, and where their scores belong."""

    rows: list[Row]
    trunk: int  # of a single row: all of it
    places: list[list[tuple[int, int]]]  # for each row: (question, option), several if options are equal

    @property
    def branches(self) -> list[tuple[int, ...]]:
        """What comes after the trunk, row by row."""
        return [row.ids[self.trunk :] for row in self.rows] if len(self.rows) > 1 else []

    @property
    def size(self) -> tuple[int, int]:
        """Ids of the trunk, and of all branches."""
        return self.trunk, sum(map(len, self.branches))


def trees(number: int, rows: Sequence[Row]) -> Iterator[Tree]:
    """The rows of question `number` by what they begin with. Equal rows are read once."""
    places: dict[Row, list[tuple[int, int]]] = {}
    for option, row in enumerate(rows):
        places.setdefault(row, []).append((number, option))
    alike: dict[tuple[int, ...], list[Row]] = {}
    for row in places:
        alike.setdefault(row.ids[:WORTH_SHARING], []).append(row)
    for members in alike.values():
        # The last id before the continuation is read with the branch, because its scores are needed.
        trunk = min(common(row.ids for row in members), min(row.start for row in members) - 1)
        if len(members) > 1 and trunk >= WORTH_SHARING:
            yield Tree(members, trunk, [places[row] for row in members])
        else:
            yield from (Tree([row], len(row.ids), [places[row]]) for row in members)


def batches(found: Sequence[Tree], tokens_per_pass: int) -> Iterator[list[Tree]]:
    """Trees of similar sizes, as many as fit; those without branches apart from the others."""
    batch: list[Tree] = []
    longest = [0, 0]
    for tree in sorted(found, key=lambda tree: (tree.size[1] > 0, tree.size)):
        sizes = [max(pair) for pair in zip(longest, tree.size, strict=True)]
        full = (len(batch) + 1) * sum(sizes) > tokens_per_pass
        if batch and (full or bool(batch[0].branches) != bool(tree.branches)):
            yield batch
            batch, sizes = [], list(tree.size)
        batch.append(tree)
        longest = sizes
    if batch:
        yield batch


def read(engine: Engine, batch: Sequence[Tree]) -> Tensor:
    """Hidden states [scored ids of all rows, w], in the order of trees, their rows, and ids in these.

    Each is that of the token before the scored one, as it is there that the model says what comes next.
    """
    stem = max(tree.trunk for tree in batch)
    total = stem + max(tree.size[1] for tree in batch)
    laid_out = [_laid_out(tree, stem, total) for tree in batch]
    ids, positions, branches, wanted = zip(*laid_out, strict=True)
    most = max(map(len, wanted))
    padded = [[*places, *[0] * (most - len(places))] for places in wanted]
    ids_bt, positions_bt, branches_bt, wanted_bn = (
        torch.tensor(table, device=engine.device) for table in (ids, positions, branches, padded)
    )
    attend = _attention(engine, stem, positions_bt, branches_bt, wanted_bn)
    hidden_bnw = engine.hidden_at(ids_bt, positions_bt, attend, wanted_bn)
    return torch.cat([row[: len(places)] for row, places in zip(hidden_bnw, wanted, strict=True)])


Table = list[int]


def _laid_out(tree: Tree, stem: int, total: int) -> tuple[Table, Table, Table, Table]:
    """Of a tree: ids, their positions, the branch of each, all padded to `total`; and the places wanted."""
    ids, positions, branches = [0] * total, [0] * total, [PADDING] * total
    wanted: list[int] = []
    trunk, first = tree.trunk, stem
    ids[:trunk], positions[:trunk] = tree.rows[0].ids[:trunk], range(trunk)
    branches[:trunk] = [TRUNK] * trunk
    if not tree.branches:
        wanted += range(tree.rows[0].start - 1, trunk - 1)
    for number, branch in enumerate(tree.branches):
        end = first + len(branch)
        ids[first:end], positions[first:end] = branch, range(trunk, trunk + len(branch))
        branches[first:end] = [number] * len(branch)
        wanted += range(first + tree.rows[number].start - 1 - trunk, end - 1)
        first = end
    return ids, positions, branches, wanted


def _attention(
    engine: Engine, stem: int, positions_bt: Tensor, branches_bt: Tensor, wanted_bn: Tensor
) -> Attend:
    """Who may look at whom: itself and what precedes it in its row, as far as the layer's window reaches."""
    windows, last = engine.config.windows, engine.config.depth - 1
    total = positions_bt.shape[1]

    def bias(places_bq: Tensor, keys: int, window: int | None) -> Tensor:
        """What to add to the scores [b, 1, q, keys] of the queries at these places."""
        branch_bq1 = branches_bt.gather(1, places_bq)[..., None]
        position_bq1 = positions_bt.gather(1, places_bq)[..., None]
        branch_b1k, position_b1k = branches_bt[:, None, :keys], positions_bt[:, None, :keys]
        seen = ((branch_b1k == TRUNK) | (branch_b1k == branch_bq1)) & (position_b1k <= position_bq1)
        if window is not None:
            seen &= position_b1k > position_bq1 - window
        # Padding looks at itself, as a token that looks at nothing is NaN.
        seen |= torch.arange(keys, device=engine.device) == places_bq[..., None]
        zero = torch.zeros((), dtype=engine.dtype, device=engine.device)
        return zero.masked_fill(~seen, float("-inf"))[:, None]

    places_bt = torch.arange(total, device=engine.device).expand(len(positions_bt), -1)
    needed = set(windows)
    trunk_bias = {w: None if w is None else bias(places_bt[:, :stem], stem, w) for w in needed}
    branch_bias = {w: bias(places_bt[:, stem:], total, w) for w in needed if stem < total}
    wanted_bias = bias(wanted_bn, total, windows[last])

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped, window = q.shape[1] != k.shape[1], windows[layer]
        if layer == last:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=wanted_bias, enable_gqa=grouped)
        mask = trunk_bias[window]
        trunk = F.scaled_dot_product_attention(
            q[:, :, :stem],
            k[:, :, :stem],
            v[:, :, :stem],
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=grouped,
        )
        if stem == total:
            return trunk
        ends = F.scaled_dot_product_attention(
            q[:, :, stem:], k, v, attn_mask=branch_bias[window], enable_gqa=grouped
        )
        return torch.cat([trunk, ends], 2)

    return attend
