"""Tensors of which each process has a slice only (torch's DTensor), and what else there is to do with them.

Where weights don't fit into one memory (train/parallel.py), process k of n keeps the k-th part of the rows of
every weight, and the same part of all that belongs to it. Everything here also takes ordinary tensors, and
leaves them as they are; torch's module is only imported where there is something to slice.
"""

from typing import Any

from torch import Tensor


def is_sliced(tensor: Tensor) -> bool:
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What this process has of it: to be read, and written in place where no gradient is recorded."""
    found: Tensor = tensor.to_local() if is_sliced(tensor) else tensor  # type: ignore[attr-defined]
    return found


def whole(tensor: Tensor) -> Tensor:
    """All of it. All processes must call this."""
    found: Tensor = tensor.full_tensor() if is_sliced(tensor) else tensor  # type: ignore[attr-defined]
    return found


def slice_like(tensor: Tensor, like: Any) -> Tensor:
    """A slice of `tensor`, which has the rows of `like`, if that is sliced. All have the whole: nothing is
    sent.
    """
    if not is_sliced(like) or tensor.ndim == 0:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
