"""The processes of one run: who am I, and how do we agree?

torchrun starts one process for each device and tells each its number in the environment (RANK, WORLD_SIZE,
LOCAL_RANK). All of them walk through the same code. What they must not all do (write files, talk to the
person) is done by the first, rank 0; what they must agree on goes through torch.distributed.

There are two ways to talk. Gradients and losses go from device to device, through NCCL between NVIDIA's
GPUs and gloo between CPUs; who waits there longer than a few minutes waits for something that is broken.
Everything else (who is asked to stop, what rank 0 has decided) goes between CPUs, in a group of its own.
There one may have to wait for hours, while rank 0 turns a large text into tokens.

Without torchrun there is one process. It is rank 0 of 1, and none of this costs it anything.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from pilgrim.core.errors import PilgrimError, ToldElsewhere

T = TypeVar("T")

DEVICE_TIMEOUT_S = 600.0  # the longest that training itself may wait for another process
PATIENCE_S = 24 * 3600.0  # the longest that anybody waits for rank 0's work


@dataclass(frozen=True)
class Processes:
    """This process among those of the run. Every method that talks must be called by all, in one order."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on this machine: the number of its GPU
    patient: Any = field(default=None, repr=False, compare=False)  # the group that may wait for hours

    @property
    def first(self) -> bool:
        """Whether this one writes and speaks for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            dist.barrier(self.patient)

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each; in place, and from device to device."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def least(self, value: int) -> int:
        """The smallest of all processes' values."""
        return min(self.gathered(value))

    def gathered(self, value: T) -> list[T]:
        """Every process's value, by rank, in every process. They travel as pickles, between our own only."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.patient)
        return found

    def from_first(self, value: T) -> T:
        """What rank 0 has passed, in every process."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.patient)
        return box[0]

    def by_first(self, work: Callable[[], T]) -> T:
        """Rank 0 works and the others wait, as long as it takes; what it returns is returned in all.

        What it raises ends all: rank 0 with just that, the others with ToldElsewhere.
        """
        if self.count == 1:
            return work()
        result: Any = None
        raised: BaseException | None = None
        if self.first:
            try:
                result = work()
            except BaseException as error:
                raised = error
        result, failed = self.from_first((result, raised is not None))
        if raised is not None:
            raise raised
        if failed:
            raise ToldElsewhere("rank 0 has failed, and says why")
        found: T = result
        return found

    def most_soon(self, mine: int) -> Callable[[], int]:
        """Ask for the largest of all processes' values, without waiting: it is there when called for."""
        if self.count == 1:
            return lambda: mine
        largest = torch.tensor(mine)
        talk = dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.patient, async_op=True)

        def answer() -> int:
            talk.wait()
            return int(largest)

        return answer

    # Work that is divided ---------------------------------------------------------------------------

    def share(self, n: int) -> int:
        """How many of `n` equal things one process gets at most."""
        return -(-n // self.count)

    def dealt(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`, dealt like cards."""
        return items[self.rank :: self.count]

    def collected(self, parts: Sequence[T]) -> list[T]:
        """What every process has made of the items that were `dealt` to it, in the items' order, in all."""
        hands = self.gathered(list(parts))
        found = [hand[i] for i in range(len(hands[0])) for hand in hands if i < len(hand)]
        return found


ALONE = Processes()
_joined: Processes | None = None
_meetings = itertools.count()  # how often these processes have met


def here() -> Processes:
    """What torchrun has said of this process; ALONE if it hasn't started it.

    Raises PilgrimError if only a part of that was said, as some schedulers do.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    if "LOCAL_RANK" not in os.environ:
        raise PilgrimError(
            "RANK and WORLD_SIZE are set, but LOCAL_RANK, the number of this process's GPU, is not; "
            "start the processes with torchrun, or set it"
        )
    rank, count, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Processes(rank, count, local)


@contextmanager
def joined(device: torch.device, timeout_s: float = DEVICE_TIMEOUT_S) -> Iterator[Processes]:
    """While inside, the processes of the run can talk; between devices for at most `timeout_s` at a time.

    An error that several processes meet alike is told by one of them; from the others' contexts comes
    ToldElsewhere. After an error nothing is taken down in order, since the others may never come to help: the
    process is to end, and its connections with it. Within another such context, this one does nothing.
    """
    global _joined  # as torch's own group is
    found = here()
    if found.count == 1 or dist.is_initialized():
        yield _joined or found
        return
    on_gpu = device.type == "cuda"
    # Names of their own each time: at addresses that the last meeting left, nobody answers any more.
    store = PrefixStore(f"meeting {next(_meetings)}", _common_store())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=timeout_s),
        store=store,
        rank=found.rank,
        world_size=found.count,
        device_id=device if on_gpu else None,
    )
    patient = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE_S))
    _joined = Processes(found.rank, found.count, found.local_rank, patient)
    try:
        yield _joined
    except ToldElsewhere:
        raise
    except PilgrimError as error:
        if _somebody_says(store, str(error)):
            raise ToldElsewhere(str(error)) from error
        raise
    _joined = None
    dist.destroy_process_group()


@cache
def _common_store() -> Any:
    """Where processes leave word for each other, as long as they live: who keeps it can't open it twice."""
    store, _, _ = next(iter(rendezvous("env://")))
    return store


def _somebody_says(store: Any, sentence: str) -> bool:
    """Whether another process tells this sentence already. Asks the store, which waits for nobody."""
    try:
        return int(store.add(f"pilgrim/error/{sentence}", 1)) > 1
    except RuntimeError:  # the store is gone, with the process that kept it
        return False
