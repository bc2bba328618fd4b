"""Which backend is taken, what is refused, and what is said about it."""

from dataclasses import replace
from typing import Any, NoReturn

import pytest
import torch

from pilgrim.core import machine
from pilgrim.core.errors import PilgrimError, SettingsError
from pilgrim.core.runtime import Runtime
from pilgrim.model import document_attention
from pilgrim.model.attention_choice import (
    BACKENDS,
    Choice,
    _repeat,
    choose,
    example_documents,
    fastest,
    measure_ms,
    refuse_impossible,
    trouble,
    untimed,
)
from pilgrim.model.config import ModelSettings

CONFIG = ModelSettings(depth=3, width=32, head_size=8, context=40, window=8, window_pattern="SL").config(31)
CPU = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
APPLE = replace(CPU, device=torch.device("mps"))
NVIDIA = replace(CPU, device=torch.device("cuda"), compile=True)  # fp32: what needs no look at the card


COMPILED, IN_BF16 = replace(CPU, compile=True), replace(CPU, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("runtime", "processor", "flags", "backend"),
    [
        (CPU, "x86_64", "avx2", "documents"),
        (COMPILED, "x86_64", "avx2", "documents"),
        (IN_BF16, "x86_64", "avx512_bf16", "documents"),
        (CPU, "x86_64", "avx512_bf16 amx_bf16", "documents"),  # AMX has no products in fp32
        (IN_BF16, "x86_64", "avx512_bf16 amx_bf16", "sdpa"),
        (replace(IN_BF16, compile=True), "x86_64", "avx512_bf16 amx_bf16", "blocks"),
        (CPU, "aarch64", "", "sdpa"),
        (COMPILED, "arm64", "", "blocks"),
        (APPLE, "arm64", "", "sdpa"),
    ],
)
def test_without_an_nvidia_gpu_a_rule_decides(
    monkeypatch: pytest.MonkeyPatch, runtime: Runtime, processor: str, flags: str, backend: Any
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"flags": flags})
    monkeypatch.setattr("platform.machine", lambda: processor)
    assert choose(runtime, CONFIG, rows=2) == Choice(backend)


def test_amx_that_torch_must_not_use_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda: {"flags": "avx512_bf16 amx_bf16"})
    for most, left in [("AVX512_CORE_BF16", ["AVX-512-BF16"]), ("avx512_core_amx", ["AVX-512-BF16", "AMX"])]:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", most)
        assert machine.bf16_instructions() == left


def test_evaluation_on_a_gpu_needs_no_table_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention 2 where the card has it, else FlexAttention."""
    config = ModelSettings().config(31)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert untimed(NVIDIA, config) == "flex"  # NVIDIA is in fp32, which FlashAttention doesn't compute in
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert untimed(replace(NVIDIA, dtype=torch.bfloat16), config) == "varlen"
    assert untimed(APPLE, config) is None


@pytest.mark.parametrize("attention", ["auto", "reference"])
def test_evaluation_on_a_cpu_takes_what_training_takes(attention: Any) -> None:
    runtime = replace(CPU, attention=attention)
    assert untimed(runtime, CONFIG) == choose(runtime, CONFIG, rows=2).backend


def test_without_a_c_compiler_torch_s_own_is_taken_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(document_attention, "_code", missing)
    choice = choose(COMPILED, CONFIG, rows=2)
    assert choice == Choice("blocks", left_out={"documents": "there is no C compiler cc"})
    assert choice.note == "Attention by blocks; documents is left out: there is no C compiler cc."


def missing(dtype: torch.dtype) -> NoReturn:
    raise PilgrimError("there is no C compiler cc")


@pytest.mark.parametrize("backend", ["sdpa", "blocks", "documents", "reference"])
def test_what_a_cpu_can_do_may_be_asked_for(backend: Any) -> None:
    assert choose(replace(CPU, attention=backend), CONFIG, rows=2).backend == backend


@pytest.mark.parametrize(
    ("runtime", "backend", "why"),
    [
        (CPU, "varlen", "needs an NVIDIA GPU, and this run computes on cpu"),
        (CPU, "fa3", "needs an NVIDIA GPU"),
        (CPU, "flex", "needs an NVIDIA GPU"),
        (APPLE, "blocks", "for CPUs"),
        (APPLE, "documents", "for CPUs"),
        (NVIDIA, "documents", "for CPUs"),
        (
            replace(CPU, dtype=torch.float64),
            "documents",
            "it computes in fp32 and bf16, and this run in float64",
        ),
        (NVIDIA, "sdpa", "table of all pairs"),
        (NVIDIA, "blocks", "table of all pairs"),
        (replace(NVIDIA, compile=False), "flex", "runtime.compile is off"),
        (replace(NVIDIA, deterministic=True), "fa3", "not all of its versions give the same bits"),
        (NVIDIA, "flex", "heads of 16 or more, not 8"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(runtime: Runtime, backend: Any, why: str) -> None:
    with pytest.raises(SettingsError) as refused:
        refuse_impossible(replace(runtime, attention=backend), CONFIG)
    assert f'runtime.attention = "{backend}"' in str(refused.value)
    assert why in str(refused.value) and 'write "auto"' in str(refused.value)


def test_flex_needs_nothing_but_a_compiler_and_usual_heads() -> None:
    assert trouble("flex", NVIDIA, ModelSettings().config(31)) is None


def test_the_fastest_is_taken_and_failures_are_told() -> None:
    times = {"fa3": 2.5, "varlen": 1.25}

    def measure(backend: str) -> float:
        if backend not in times:
            raise RuntimeError("out of resource: shared memory\nRequired: 131074")
        return times[backend]

    choice = fastest(["fa3", "varlen", "flex"], measure)
    assert choice == Choice("varlen", times, {"flex": "out of resource: shared memory"})
    assert choice.note == (
        "Attention by varlen, the fastest of varlen 1.2 ms, fa3 2.5 ms in all layers; "
        "flex is left out: out of resource: shared memory."
    )


def test_where_the_bits_must_stay_the_same_nothing_is_left_to_timing() -> None:
    asked = []

    def measure(backend: str) -> float:
        asked.append(backend)
        if backend == "varlen":
            raise RuntimeError("its gradients differ from one time to the next")
        return 3.0

    choice = fastest(["varlen", "flex", "reference"], measure, first=True)
    assert choice == Choice(
        "flex", {"flex": 3.0}, {"varlen": "its gradients differ from one time to the next"}
    )
    assert asked == ["varlen", "flex"]
    assert choice.note.startswith("Attention by flex, flex 3.0 ms in all layers; varlen is left out: ")


def test_bits_that_differ_are_found() -> None:
    measured = replace(CPU, deterministic=True)
    assert 0 < measure_ms("sdpa", measured, CONFIG, rows=2) < 1e4
    numbers = iter(range(9))
    with pytest.raises(RuntimeError, match="differ from one time to the next"):
        _repeat(lambda: (torch.zeros(2), torch.full((2,), float(next(numbers) > 3))))


def test_if_nothing_runs_the_formula_remains_and_its_cost_is_told() -> None:
    choice = fastest([], lambda backend: 0.0)
    assert choice.backend == "reference"
    assert "table of all pairs" in choice.note


@pytest.mark.parametrize("backend", ["sdpa", "blocks", "documents", "reference"])
def test_timing_measures_what_agrees_with_the_formula(backend: Any) -> None:
    assert 0 < measure_ms(backend, CPU, CONFIG, rows=2) < 1e4


def test_timed_rows_are_packed_like_real_ones() -> None:
    documents = example_documents(2, 2048)
    lengths = torch.unique_consecutive(documents[0], return_counts=True)[1]
    assert documents.shape == (2, 2048) and documents[0, -1] == -1
    assert len(lengths) == 6 and lengths.max() > 50 * lengths.min()


def test_every_setting_is_a_backend() -> None:
    fields = Runtime.__annotations__["attention"].__args__
    assert set(fields) == {"auto", *BACKENDS}
