"""Processes that meet, part, and meet again, as the suites of one `pilgrim eval` do."""

import multiprocessing
import os
import sys
from multiprocessing.queues import Queue

import pytest
import torch
from kill import free_port

from pilgrim.core.errors import PilgrimError
from pilgrim.core.processes import here, joined

MEETINGS = 5

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes, which only Linux does well")


def meet(rank: int, port: int, told: "Queue[list[list[int]]]") -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    heard = []
    for meeting in range(MEETINGS):
        with joined(torch.device("cpu"), timeout_s=60) as processes:
            heard.append(processes.gathered(10 * meeting + rank))
    told.put(heard)


def test_processes_that_have_parted_can_meet_again() -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pilgrim.core.processes"])
    port = free_port()
    told: Queue[list[list[int]]] = context.Queue()
    group = [context.Process(target=meet, args=(rank, port, told)) for rank in range(2)]
    for process in group:
        process.start()
    try:
        heard = [told.get(timeout=60) for _ in group]
    finally:
        for process in group:
            process.kill()
            process.join()
    assert heard == [[[10 * meeting, 10 * meeting + 1] for meeting in range(MEETINGS)]] * 2


def test_half_of_what_torchrun_says_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(PilgrimError, match="LOCAL_RANK, the number of this process's GPU, is not; start"):
        here()
