"""C code of ours: compiled once, kept, and a sentence where that can't be."""

from pathlib import Path

import pytest

from pilgrim.core.errors import PilgrimError
from pilgrim.core.native import library


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    library.cache_clear()
    return tmp_path / "caches" / "pilgrim" / "native"


def source(folder: Path, text: str) -> Path:
    file = folder / "code.c"
    file.write_text(text)
    return file


def test_it_is_compiled_once_for_each_thing_it_is_told(tmp_path: Path, own_cache: Path) -> None:
    file = source(tmp_path, "int answer(void) { return NUMBER; }")
    assert library(file, NUMBER=42).answer() == 42
    (kept,) = own_cache.iterdir()
    written = kept.stat().st_mtime_ns
    library.cache_clear()
    assert library(file, NUMBER=42).answer() == 42 and kept.stat().st_mtime_ns == written
    assert library(file, NUMBER=7).answer() == 7 and len(list(own_cache.iterdir())) == 2


def test_a_source_that_changed_is_compiled_anew(tmp_path: Path) -> None:
    assert library(source(tmp_path, "int answer(void) { return 1; }")).answer() == 1
    library.cache_clear()
    assert library(source(tmp_path, "int answer(void) { return 2; }")).answer() == 2


def test_what_is_wrong_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = source(tmp_path, "int answer(void) { return }")
    with pytest.raises(PilgrimError, match=r"can't compile code\.c: .*code\.c"):
        library(file)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(PilgrimError, match="no C compiler no-such-compiler; install gcc or clang"):
        library(file)


def test_a_kept_file_that_is_damaged_says_so(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = source(tmp_path, "int answer(void) { return 1; }")
    library(file)
    library.cache_clear()
    (kept,) = own_cache.iterdir()
    damaged = tmp_path / "others" / "pilgrim" / "native" / kept.name  # the first one is loaded already
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"not code")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "others"))
    with pytest.raises(PilgrimError, match=r"can't be loaded .*delete it"):
        library(file)
