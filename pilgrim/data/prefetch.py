"""The next batches, made while the device is at work on this one.

A thread walks through a stream of (batch, position) a little ahead of the loop, and the loop takes what is
ready. What the loop gets is what it would have got without the thread: in the same order, each batch with
the position that belongs to it. So nothing about a checkpoint changes, and batches that were made ahead and
never handed out are simply forgotten. An exception in the stream comes out where its batch would have come,
with the traceback of the thread.

For a GPU the thread also puts the batch into pinned memory, which the system never moves. From there
`Batch.to` copies asynchronously: the call returns at once, and the copy waits its turn in the GPU's queue
behind the kernels of the step before. (From ordinary memory a copy makes the program wait for it.)
"""

import time
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Semaphore, Thread
from types import TracebackType

import torch

from pilgrim.data.loader import Batch, Position

AHEAD = 2  # batches ready at most: one may take long (a window is packed) while the other is handed out

Step = tuple[Batch, Position]


class InTurn:
    """The same without a thread, for batches that must not be made ahead: those that follow from the weights.

    `waited_s` is the time that it took to make them.
    """

    def __init__(self, stream: Iterator[Step], device: torch.device) -> None:
        self.waited_s = 0.0
        self._stream = stream

    def __enter__(self) -> "InTurn":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is to be ended."""

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        began_s = time.perf_counter()
        found = next(self._stream)
        self.waited_s += time.perf_counter() - began_s
        return found


class Prefetch:
    """An iterator over `stream`, a thread ahead of the caller. Use it in a `with`, which ends the thread.

    `waited_s` is the time that the caller has spent waiting for batches, all in all.
    """

    def __init__(self, stream: Iterator[Step], device: torch.device) -> None:
        self.waited_s = 0.0
        self._stream, self._pin = stream, device.type == "cuda"
        self._ready: SimpleQueue[Step | BaseException] = SimpleQueue()
        self._room = Semaphore(AHEAD)
        self._closed = False
        self._thread = Thread(target=self._work, name="pilgrim prefetch", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._room.release()  # wakes the thread, if it waits for room
        self._thread.join()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        began_s = time.perf_counter()
        found = self._ready.get()
        self.waited_s += time.perf_counter() - began_s
        if isinstance(found, BaseException):
            self._ready.put(found)  # whoever asks once more gets the same answer
            raise found
        self._room.release()
        return found

    def _work(self) -> None:
        try:
            self._room.acquire()
            while not self._closed:
                batch, position = next(self._stream)
                self._ready.put((batch.pinned() if self._pin else batch, position))
                self._room.acquire()
        except BaseException as error:  # StopIteration too: the end of the stream is the caller's end
            self._ready.put(error)
