"""What tests of several rooms share: a stand-in for a full disk."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest


@contextmanager
def _limited(size: int) -> Iterator[None]:
    """Within the block, writing a file beyond `size` bytes fails, as it does on a full disk.

    A block and no fixture: the limit is the whole process's, so pytest's own report would fail by it too
    where its output goes to a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def no_file_beyond() -> Callable[[int], AbstractContextManager[None]]:
    return _limited
