"""Writing a step of a checkpoint: by all processes at once, behind training's back.

    before training goes on     who writes what; a copy of that in the host's memory ("staging")
    in a thread, meanwhile      torch.distributed.checkpoint plans and coordinates; every process writes,
                                hashes and fsyncs its files; the first then commits them

What is torch's: the copy (its stager keeps the memory for the next time, page-locked if there is a GPU),
the plan (of a tensor that is sharded over processes each writes its slice, and the slices must make up the
whole), and the agreement (an error in any process is raised in all). What is ours: the files' format, hashes
and names, and what "committed" means. `dcp.async_save` would do the same in a thread of its own, but one that
the interpreter waits for at its end, even if another process died and the save can never end.

The thread's messages go through a group of processes of its own (gloo): messages are told apart by their
order, and nothing orders those of a thread among those of training.
"""

import json
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future

from pilgrim.core.checkpoint_read import OFFSETS, SHARDING
from pilgrim.core.processes import Processes
from pilgrim.core.tensorfile import Fingerprint, write_tensors

Named = dict[str, Tensor]  # by stem and name, as "model/lm_head.weight"


class Background:
    """Saves one step after the other. `stage`, then `start`, then `join`."""

    def __init__(self, processes: Processes, group: dist.ProcessGroup | None) -> None:
        self._processes, self._group = processes, group
        gpu = torch.cuda.is_available()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=gpu,
            )
        )
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def stage(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> Named:
        """A copy of this process's share, which training can't change any more. This is what it waits for."""
        flat = {f"{stem}/{name}": t.detach() for stem, named in tensors.items() for name, t in named.items()}
        staged = self._stager.stage(share(flat, self._processes, self._group))
        assert isinstance(staged, dict)  # it is a future only with asynchronous staging
        return staged

    def start(self, staged: Named, writer: "StepWriter") -> None:
        """Write what was staged, in the background. In one process there is nobody to agree with."""
        alone = self._processes.count == 1
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)

        def work() -> None:
            try:
                save(staged, storage_writer=writer, process_group=self._group, no_dist=alone)
            except BaseException as error:
                self._error = error

        self._error = None
        # A daemon: what it has not committed when the program ends was never there, so it may end with it.
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> BaseException | None:
        """Wait for the save under way, if there is one; why it failed, in this or in another process.

        Reports a failure once. None also if `timeout_s` was not enough.
        """
        if self._thread is None:
            return None
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return None
        error, self._thread, self._error = self._error, None, None
        if isinstance(error, CheckpointException):  # torch's parcel of errors, by the number of the process
            return min(error.failures.items())[1][0]
        return error


def share(tensors: Named, processes: Processes, group: dist.ProcessGroup | None) -> Named:
    """Those of a process's tensors that it will write: each is written by one of those who have it.

    Copies of one tensor (weights, in data parallelism) go to whoever has the least so far, the largest first.
    A sharded tensor stays, as it is in every process a slice.
    """
    if processes.count == 1:
        return tensors
    whole = {name: t.nbytes for name, t in tensors.items() if not isinstance(t, DTensor)}
    everyone: list[dict[str, int]] = [{}] * processes.count
    dist.all_gather_object(everyone, whole, group)
    sizes = {name: size for held in everyone for name, size in held.items()}
    taken = [0] * processes.count
    mine = set(tensors) - set(whole)
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        writer = min(
            (rank for rank in range(processes.count) if name in everyone[rank]), key=taken.__getitem__
        )
        taken[writer] += sizes[name]
        if writer == processes.rank:
            mine.add(name)
    return {name: tensor for name, tensor in tensors.items() if name in mine}


class StepWriter(StorageWriter):
    """What torch.distributed.checkpoint calls, in this order: `prepare_global_plan` in the first process,
    `write_data` in all, and, if nobody failed, `finish` in the first.
    """

    def __init__(
        self,
        folder: Path,
        stems: Iterable[str],
        processes: Processes,
        prepare: Callable[[], None],
        commit: Callable[[dict[str, Fingerprint]], None],
    ) -> None:
        """`folder` is where the files go, made by `prepare`; `commit` is told which they are."""
        self._folder, self._stems, self._processes = folder, list(stems), processes
        self._prepare, self._commit = prepare, commit

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._prepare()
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's files, one for each stem."""
        results = []
        for stem in self._stems:
            items = [item for item in plan.items if item.index.fqn.startswith(f"{stem}/")]
            if not items and not self._processes.first:
                continue  # nothing of this is ours; the first writes a file even if there is nothing at all
            tensors = {}
            for item in items:
                data = planner.resolve_data(item)
                assert isinstance(data, Tensor)  # the planner knows bytes, too
                tensors[item.index.fqn.removeprefix(f"{stem}/")] = data
            file = self._folder / self._name(stem)
            made = write_tensors(file, tensors, _slices(stem, items))
            results.append(WriteResult(MetadataIndex(stem), made.size, (file.name, made)))
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self._commit(dict(result.storage_data for written in results for result in written))

    def _name(self, stem: str) -> str:
        rank, count = self._processes.rank, self._processes.count
        return f"{stem}.safetensors" if count == 1 else f"{stem}-{rank + 1:05d}-of-{count:05d}.safetensors"

    # The rest of torch's interface, in which there is nothing to do.

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        return True


def _slices(stem: str, items: list[WriteItem]) -> dict[str, str]:
    """For a file's header: where each of its tensors begins in the whole one; nothing if all are whole."""
    begins, sliced = {}, False
    for item in items:
        assert item.tensor_data is not None
        begins[item.index.fqn.removeprefix(f"{stem}/")] = {OFFSETS: list(item.tensor_data.chunk.offsets)}
        sliced = sliced or item.tensor_data.chunk.sizes != item.tensor_data.size
    return {SHARDING: json.dumps(begins)} if sliced else {}
