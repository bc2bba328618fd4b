"""Checkpoints by several processes: what N have saved, M read; and what one meets, all are told."""

import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import CheckpointError, PilgrimError
from pilgrim.core.processes import Processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes, which only Linux does well")

Work = Callable[[Processes, Path], Any]


def whole(step: int = 0) -> dict[str, dict[str, Tensor]]:
    """What all processes together have: weights alike in all, slices, and state that one of them has."""
    draw = torch.Generator().manual_seed(step)
    model = {f"block.{i}": torch.randn(8 + i, 3, generator=draw).to(torch.bfloat16) for i in range(5)}
    model |= {"sliced": torch.randn(5, 4, generator=draw), "short": torch.randn(1, 2, generator=draw)}
    return {
        "model": model,
        "optimizer": {f"block.{i}/momentum": torch.randn(4, i, generator=draw) for i in range(5)},
    }


def part(processes: Processes, step: int = 0) -> dict[str, dict[str, Tensor]]:
    """One process's part of that."""
    tensors = whole(step)
    if processes.count > 1:
        mesh = init_device_mesh("cpu", (processes.count,))
        for name in ("sliced", "short"):
            tensors["model"][name] = distribute_tensor(tensors["model"][name], mesh, [Shard(0)])
    own = list(tensors["optimizer"].items())[processes.rank :: processes.count]
    return {**tensors, "optimizer": dict(own)}


def saved(processes: Processes, folder: Path, *steps: int) -> CheckpointStore:
    store = CheckpointStore(folder / "checkpoints", processes=processes)
    for step in steps:
        store.save(step, part(processes, step), {"step": step})
    return store


def assert_whole(found: dict[str, Any], step: int) -> None:
    for stem, named in whole(step).items():
        assert set(found[stem]) == set(named)
        for name, tensor in named.items():
            assert found[stem][name].dtype == tensor.dtype
            assert torch.equal(found[stem][name], tensor), name


# Starting processes -------------------------------------------------------------------------------


def one(rank: int, count: int, work: Work, folder: Path, answers: "Queue[tuple[int, Any]]") -> None:
    """A process. Its answer is what `work` returns, or the text of the PilgrimError that it raises."""
    processes = Processes(rank, count)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    try:
        answer = work(processes, folder)
    except PilgrimError as error:
        answer = str(error)
    answers.put((rank, answer))
    answers.close()
    answers.join_thread()
    os._exit(0)  # without goodbye to processes that may be dead


def together(count: int, work: Work, folder: Path) -> list[Any]:
    """Every process's answer, by rank; None of one that died."""
    context = multiprocessing.get_context("forkserver")
    # What a first sharded tensor would import, once for all
    context.set_forkserver_preload(
        ["pilgrim.core.checkpoint_write", "torch._dynamo.variables.torch_function"]
    )
    answers = context.Queue()
    started = [
        context.Process(target=one, args=(rank, count, work, folder, answers)) for rank in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    (folder / "rendezvous").unlink(missing_ok=True)
    assert all(process.exitcode in (0, -signal.SIGKILL) for process in started)
    given = dict(answers.get() for process in started if process.exitcode == 0)
    return [given.get(rank) for rank in range(count)]


# N and M ------------------------------------------------------------------------------------------


def save_and_load(processes: Processes, folder: Path) -> list[str]:
    store = saved(processes, folder, 1, 2)
    found = store.load_latest(pytest.fail)
    assert found is not None
    assert_whole(dict(found.tensors), 2)
    return sorted(file.name for file in found.folder.iterdir())


def load_what_others_saved(processes: Processes, folder: Path) -> bool:
    found = CheckpointStore(folder / "checkpoints", processes=processes).load_latest(pytest.fail)
    assert found is not None
    assert_whole(dict(found.tensors), 2)
    return True


def test_what_some_processes_save_any_number_reads(tmp_path: Path) -> None:
    files = together(3, save_and_load, tmp_path)
    assert files[0] == files[1] == files[2]
    assert files[0] == [
        "manifest.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        *(f"optimizer-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
        "state.json",
    ]
    sizes = [f.stat().st_size for f in (tmp_path / "checkpoints" / "step_000002").glob("model-*")]
    assert max(sizes) < 2 * min(sizes), "weights that all have are written by all, each a part"
    found = CheckpointStore(tmp_path / "checkpoints").load_latest(pytest.fail)
    assert found is not None
    assert_whole(dict(found.tensors), 2)
    assert found.tensors["model"].shape("sliced") == (5, 4)
    assert together(2, load_what_others_saved, tmp_path) == [True, True]


def test_torch_reads_the_same_files(tmp_path: Path) -> None:
    """The slow twin of our reader is torch's own, for files of this kind."""
    together(2, save_and_load, tmp_path)
    model = {name: torch.zeros_like(tensor) for name, tensor in whole(2)["model"].items()}
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (tmp_path / "checkpoints" / "step_000002").glob("model-*"):
        (folder / file.name).hardlink_to(file)
    with pytest.warns(UserWarning, match=r"torch\.distributed is disabled"):
        load(model, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    assert_whole({**whole(2), "model": model}, 2)


def one_process_saves_what_many_go_on_from(processes: Processes, folder: Path) -> bool:
    found = CheckpointStore(folder / "checkpoints", processes=processes).load(7)
    assert_whole(dict(found.tensors), 7)
    return True


def test_one_process_saves_and_two_read(tmp_path: Path) -> None:
    saved(Processes(), tmp_path, 7)
    assert together(2, one_process_saves_what_many_go_on_from, tmp_path) == [True, True]


# What one meets, all are told ---------------------------------------------------------------------


def second_may_write_little(processes: Processes, folder: Path) -> list[str]:
    store = saved(processes, folder, 1)
    if processes.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    store.begin(2, part(processes, 2), {"step": 2})
    told = []
    for attempt in (store.wait, lambda: store.begin(3, part(processes, 3), {}), store.wait):
        try:
            attempt()
            told.append("")
        except PilgrimError as error:
            told.append(str(error))
    return told


def test_a_disk_that_refuses_one_process_stops_all_with_one_sentence(tmp_path: Path) -> None:
    first, second = together(2, second_may_write_little, tmp_path)
    assert first == second
    assert first[0].startswith(f"step 2 could not be saved in {tmp_path / 'checkpoints'}: the file grew over")
    assert f"the last good step, 1, is kept in {tmp_path / 'checkpoints' / 'step_000001'}" in first[0]
    assert first[1] == "" and first[2].startswith("step 3 could not be saved")
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["LATEST", "step_000001"]


def second_dies_in_a_save(processes: Processes, folder: Path) -> str:
    store = saved(processes, folder, 1)
    if processes.rank == 1:
        sys.addaudithook(die_when_a_file_of_tensors_is_opened)
    store.begin(2, part(processes, 2), {"step": 2})
    with pytest.raises(RuntimeError) as error:  # gloo's: the connection is gone
        store.wait()
    return type(error.value).__name__


def die_when_a_file_of_tensors_is_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(".safetensors"):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_in_a_save_leaves_the_step_before(tmp_path: Path) -> None:
    first, second = together(2, second_dies_in_a_save, tmp_path)
    assert first is not None and second is None
    found = CheckpointStore(tmp_path / "checkpoints").load_latest(pytest.fail)
    assert found is not None
    assert_whole(dict(found.tensors), 1)


def load_what_is_damaged(processes: Processes, folder: Path) -> tuple[int, list[str]]:
    told: list[str] = []
    found = CheckpointStore(folder / "checkpoints", processes=processes).load_latest(told.append)
    assert found is not None
    assert_whole(dict(found.tensors), found.step)
    return found.step, told


def test_all_fall_back_to_the_same_step(tmp_path: Path) -> None:
    """A file is verified by one process; which one doesn't matter."""
    together(2, save_and_load, tmp_path)
    newest = tmp_path / "checkpoints" / "step_000002"
    for file in sorted(newest.iterdir()):
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 4]))
        first, second = together(2, load_what_is_damaged, tmp_path)
        assert first == second
        assert first[0] == 1 and "step_000002" in first[1][0]
        file.write_bytes(data)
        if file.name.startswith("model-00001"):
            break  # the manifest, and one file of tensors
    (newest / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        CheckpointStore(tmp_path / "checkpoints").load(2)
