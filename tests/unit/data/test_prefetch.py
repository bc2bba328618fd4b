"""The thread changes nothing: the same batches, the same positions, the same errors in the same place."""

import threading
import traceback
from collections.abc import Iterator

import pytest
import torch

from pilgrim.data.loader import Batch, Position
from pilgrim.data.prefetch import AHEAD, Prefetch

CPU = torch.device("cpu")


def batch(n: int) -> Batch:
    ids = torch.full((1, 4), n)
    return Batch(ids, ids, torch.zeros_like(ids))


def stream(end: int, made: list[int] | None = None) -> Iterator[tuple[Batch, Position]]:
    for n in range(end):
        if made is not None:
            made.append(n)
        yield batch(n), {"row": n + 1}


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_batches_come_in_order_with_their_own_positions() -> None:
    with Prefetch(stream(50), CPU) as found:
        pairs = list(found)
        assert list(found) == []  # and the end stays the end
    assert [int(b.inputs_bt[0, 0]) for b, _ in pairs] == list(range(50))
    assert [position["row"] for _, position in pairs] == list(range(1, 51))
    assert found.waited_s > 0


def test_it_runs_ahead_but_not_far() -> None:
    """When the consumer has taken n, no more than n + AHEAD were begun."""
    made: list[int] = []
    with Prefetch(stream(1000, made), CPU) as found:
        for n in range(1, 100):
            next(found)
            assert len(made) <= n + AHEAD


def test_an_error_comes_where_its_batch_would_have_come_with_its_traceback() -> None:
    def broken() -> Iterator[tuple[Batch, Position]]:
        yield from stream(3)
        raise ZeroDivisionError("the fourth")

    with Prefetch(broken(), CPU) as found:
        for _ in range(3):
            next(found)
        with pytest.raises(ZeroDivisionError, match="the fourth") as error:
            next(found)
    assert "broken" in [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]


def test_the_thread_ends_with_the_with() -> None:
    """After an early end, after an error of the caller's, and while it waits for room."""
    with Prefetch(stream(1000), CPU) as found:
        next(found)
        assert "pilgrim prefetch" in threads()
    assert "pilgrim prefetch" not in threads()
    with pytest.raises(KeyError), Prefetch(stream(1000), CPU):
        raise KeyError
    assert "pilgrim prefetch" not in threads()


def test_the_time_waited_is_the_streams_not_the_callers() -> None:
    """A stream that is held back until the caller asks is waited for; one that is ready is not."""
    asked = threading.Event()

    def held() -> Iterator[tuple[Batch, Position]]:
        asked.wait()
        yield from stream(1)

    with Prefetch(held(), CPU) as found:
        threading.Timer(0.05, asked.set).start()
        next(found)
        assert found.waited_s > 0.02


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_batches_are_pinned_and_copied_whole() -> None:
    cuda = torch.device("cuda")
    with Prefetch(stream(20), cuda) as found:
        for n, (pinned, _) in enumerate(found):
            assert all(x.is_pinned() for x in (pinned.inputs_bt, pinned.targets_bt, pinned.documents_bt))
            (micro,) = pinned.micro(1)
            assert micro.inputs_bt.is_pinned()  # a part of pinned memory is pinned
            assert torch.equal(micro.to(cuda).inputs_bt.cpu(), batch(n).inputs_bt)
