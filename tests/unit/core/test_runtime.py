"""What "auto" means on this machine, what is refused, and randomness by name."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilgrim.core import machine
from pilgrim.core.errors import SettingsError
from pilgrim.core.runtime import Runtime, RuntimeSettings, facts, start

CPU = Runtime(torch.device("cpu"), torch.float32, False, seed=7)


def test_a_name_always_gives_the_same_numbers() -> None:
    assert CPU.seed_for("shuffle", 1) == 6744618194105418229  # runs must not change when the code does
    first, second = (torch.rand(5, generator=CPU.generator("shuffle", 1)) for _ in range(2))
    assert torch.equal(first, second)


@settings(deadline=None)
@given(
    a=st.tuples(st.integers(), st.text(), st.lists(st.integers())),
    b=st.tuples(st.integers(), st.text(), st.lists(st.integers())),
)
def test_another_seed_name_or_part_gives_other_numbers(
    a: tuple[int, str, list[int]], b: tuple[int, str, list[int]]
) -> None:
    seeds = [
        Runtime(CPU.device, CPU.dtype, False, seed).seed_for(name, *parts) for seed, name, parts in (a, b)
    ]
    assert (seeds[0] == seeds[1]) == (a == b)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_naming_randomness_leaves_the_global_state_alone() -> None:
    before = torch.get_rng_state()
    CPU.generator("init").seed()
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_takes_what_is_there() -> None:
    runtime = start(RuntimeSettings(), seed=7)
    there = [("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()), ("cpu", True)]
    assert runtime.device.type == next(name for name, is_there in there if is_there)
    assert runtime.seed == 7
    if runtime.device.type == "cpu":
        assert (runtime.dtype == torch.bfloat16) == bool(machine.bf16_instructions())
        assert any("fp32" in note for note in runtime.notes) == (runtime.dtype == torch.float32)


def test_what_is_asked_for_is_done() -> None:
    threads = torch.get_num_threads()
    settings = RuntimeSettings(device="cpu", dtype="fp32", compile="off", threads=1)
    try:
        runtime = start(settings, seed=7)
        assert (runtime.device.type, runtime.dtype, runtime.compile) == ("cpu", torch.float32, False)
        assert runtime.notes == (), "nothing to say about what was asked for"
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert start(RuntimeSettings(device="cpu", dtype="bf16", compile="off"), 7).dtype == torch.bfloat16


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a CUDA GPU")
def test_cuda_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match=r'runtime.device = "cuda": .*CUDA.*; write "auto" or "cpu"'):
        start(RuntimeSettings(device="cuda"), seed=7)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="says what happens without Apple's GPU")
def test_mps_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match=r'runtime.device = "mps": this is no Mac'):
        start(RuntimeSettings(device="mps"), seed=7)


@pytest.fixture
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with no compiler, whose processor knows no bf16."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(machine, "cpp_compiler", machine.cpp_compiler.__wrapped__)
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"model name": "Old One", "flags": "fpu sse2"})


@pytest.mark.usefixtures("bare_machine")
def test_a_bare_machine_computes_more_slowly_and_says_so() -> None:
    runtime = start(RuntimeSettings(device="cpu"), seed=7)
    assert (runtime.dtype, runtime.compile) == (torch.float32, False)
    dtype, compiling = runtime.notes
    assert "neither AVX-512-BF16 nor AMX" in dtype
    assert "torch.compile is off" in compiling
    [note] = start(RuntimeSettings(device="cpu", dtype="bf16", compile="off"), seed=7).notes
    assert "bf16 was asked for, but this processor has neither" in note
    with pytest.raises(SettingsError, match=r'runtime.compile = "on": no working C\+\+ compiler is found'):
        start(RuntimeSettings(device="cpu", compile="on"), seed=7)


@pytest.mark.usefixtures("bare_machine")
def test_what_is_slow_comes_with_advice() -> None:
    found = {fact.name: fact for fact in facts()}
    assert found["compiler"].verdict == "slow"
    assert found["processor"].value.startswith("Old One")
    for fact in found.values():
        assert (fact.verdict == "good") == (fact.advice is None)


def test_the_doctor_tells_all_there_is_to_know() -> None:
    names = {fact.name for fact in facts()}
    assert names >= {"python", "torch", "processor", "instructions", "memory", "disk", "gpu", "compiler"}
    assert names >= {"device", "dtype", "compile", "speed", "promised"}


@pytest.mark.parametrize("works", [True, False])
def test_a_compiler_counts_only_if_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    for name in ("g++", "my-c++"):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {int(not works or name == 'g++')}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    monkeypatch.setattr(machine, "COMPILERS", ("g++", "my-c++", "missing"))
    monkeypatch.setenv("CXX", "g++")
    assert machine.cpp_compiler.__wrapped__() == ("my-c++" if works else None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_computes_in_what_was_decided() -> None:
    runtime = start(RuntimeSettings(device="cuda"), seed=7)
    x = torch.ones(8, 8, device=runtime.device, dtype=runtime.dtype)
    assert (x @ x).sum().item() == 512
    assert machine.gpu() is not None


def test_fp8_is_refused_where_there_is_none() -> None:
    with pytest.raises(SettingsError, match=r'runtime.fp8 = "on": it needs an NVIDIA GPU; write "off"'):
        start(RuntimeSettings(device="cpu", fp8="on"), seed=7)


def test_what_is_not_decided_here_is_passed_on() -> None:
    runtime = start(RuntimeSettings(device="cpu", compile="off", attention="reference"), seed=7)
    assert runtime.attention == "reference" and not runtime.fp8


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks the GNU C library")
def test_freed_memory_is_kept_for_its_next_use() -> None:
    """In a process of its own, as it is for good: after some rounds, what is freed is all that is needed."""
    program = (
        "import resource, torch\n"
        "from pilgrim.core import machine\n"
        "assert machine.keep_freed_memory()\n"
        "def fetched():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    tensors = [torch.ones(16_000_000 // (1 + i % 5)) for i in range(12)]\n"  # 370 MB, as in a step
        "    del tensors\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "print(min([fetched() for _ in range(12)][4:]))\n"  # now and then one large tensor finds no gap
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000  # pages; without it, 15,000 to 40,000


DETERMINISTIC = (
    "import os, torch\n"
    "from pilgrim.core.runtime import RuntimeSettings, start\n"
    "assert start(RuntimeSettings(device='cpu', compile='off', deterministic=True), seed=1).deterministic\n"
    "import torch._inductor.config as inductor\n"
    "assert torch.are_deterministic_algorithms_enabled() and inductor.deterministic\n"
    "print(os.environ['CUBLAS_WORKSPACE_CONFIG'])\n"
)


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_torch_is_told_to_be_deterministic(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, as it is for good."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    command = [sys.executable, "-c", DETERMINISTIC]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == (given or ":4096:8")


def test_an_environment_that_is_not_deterministic_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(SettingsError, match="CUBLAS_WORKSPACE_CONFIG=:0:0 is in the environment; unset it"):
        start(RuntimeSettings(device="cpu", deterministic=True), seed=1)
    assert not torch.are_deterministic_algorithms_enabled()
