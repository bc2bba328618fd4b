"""The processes of one run: who am I, and how do we agree?

torchrun starts one process for each device and tells each its number in the environment (RANK, WORLD_SIZE,
LOCAL_RANK). All of them walk through the same code. What they must not all do (write files, talk to the
person) is done by the first, rank 0; what they must agree on goes through torch.distributed: gloo between
CPUs, NCCL between NVIDIA's GPUs.

Without torchrun there is one process. It is rank 0 of 1, and none of this costs it anything.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            dist.barrier()

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each. In place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: T) -> T:
        """What rank 0 has passed, in every process. It travels as a pickle, between our own only."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]


ALONE = Processes()


def here() -> Processes:
    """What torchrun has said of this process; ALONE if it hasn't started it."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Processes(rank, count, local)


@contextmanager
def joined(device: torch.device, timeout_s: float) -> Iterator[Processes]:
    """While inside, the processes of the run can talk; a talk that takes longer than `timeout_s` fails."""
    processes = here()
    if processes.count == 1:
        yield processes
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        yield processes
    finally:
        dist.destroy_process_group()
