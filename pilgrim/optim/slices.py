"""Muon where each process has a slice of every matrix: some rows of it (train/parallel.py).

Nearly everything Muon does, it does entry by entry or row by row, so slices do as well as wholes. Not so the
orthogonalization, whose products need whole matrices. Of a stack of n matrices of one shape,

    process 0     rows 0 … of matrices 0 … n         process 0     all rows of matrices 0 …
    process 1     the next rows of all of them  -->  process 1     all rows of the next matrices
    …                                                …

one exchange, in the number format of the products, turns the left into the right: the work is divided, too.
After it a second exchange brings back the rows.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class RowSlices:
    """How matrices like `like` (a DTensor) are sliced. All processes must call its methods."""

    def __init__(self, like: Any) -> None:
        self.shape = like.shape  # of the whole matrix
        self._mesh = like.device_mesh

    def whole(self, slices_nrc: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        """What `work` makes of a stack of whole matrices, sliced again as the stack of slices was."""
        from torch.distributed.tensor import DTensor, Shard

        rows, columns = self.shape
        shape = torch.Size([len(slices_nrc), rows, columns])
        stride = rows * columns, columns, 1

        def rearranged(local: Tensor, before: Shard, after: Shard) -> Tensor:
            stack = DTensor.from_local(local, self._mesh, [before], shape=shape, stride=stride)
            out: Tensor = stack.redistribute(placements=[after]).to_local()
            return out

        by_rows, by_matrices = Shard(1), Shard(0)
        done = work(rearranged(slices_nrc, by_rows, by_matrices)).contiguous()
        return rearranged(done, by_matrices, by_rows)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over processes, in place."""
        dist.all_reduce(values, group=self._mesh.get_group())
        return values
