"""Files of tensors written by hand are what the safetensors library takes them for."""

import errno
import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pilgrim.core.tensorfile import DTYPES, write_bytes, write_tensors

Limit = Callable[[int], AbstractContextManager[None]]


def every_kind() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 2, (3, 5), generator=draw)
    tensors = {str(dtype): numbers.to(dtype) for dtype in DTYPES}
    return tensors | {
        "transposed": torch.randn(8, 4, generator=draw).t(),
        "every other": torch.randn(10, generator=draw)[::2],
        "scalar": torch.tensor(0.1),
        "nothing": torch.zeros(0, 3),
        "ä/ö": torch.ones(3, dtype=torch.uint8),
    }


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    tensors = every_kind()
    made = write_tensors(tmp_path / "a.safetensors", tensors, {"note": '{"a": 1}'})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"note": '{"a": 1}'}
    data = (tmp_path / "a.safetensors").read_bytes()
    assert (made.size, made.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_the_library_would_have_written_the_same_bytes(tmp_path: Path) -> None:
    """Of one kind of numbers; it has an order of its own for kinds of the same width."""
    tensors = {name: torch.full((n,), n * 0.5) for n, name in enumerate(("b", "a", "long.name", "c"), 1)}
    write_tensors(tmp_path / "ours.safetensors", tensors, {})
    save_file(tensors, tmp_path / "theirs.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_nothing_is_a_file_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "none.safetensors", {}, {})
    assert load_file(tmp_path / "none.safetensors") == {}


def test_what_the_system_refuses_is_raised_as_it_says_it(tmp_path: Path, no_file_beyond: Limit) -> None:
    with no_file_beyond(10_000), pytest.raises(OSError) as error:
        write_tensors(tmp_path / "large.safetensors", {"a": torch.zeros(1_000_000)}, {})
    assert error.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        write_bytes(tmp_path / "no folder" / "a", b"")
