"""A compiled stage: everything is compiled before the first step, whole, and never again."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pilgrim.core import machine
from pilgrim.core.compiling import compiled, keep_compiled, processor
from pilgrim.core.console import Console
from pilgrim.core.runlog import RunLog, read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import PackedRows, one_pass
from pilgrim.data.prefetch import Prefetch
from pilgrim.data.shards import TokenSet
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.train.fit import MicroBatch
from pilgrim.train.grow import GrowSettings, grown_batches
from pilgrim.train.loop import Loop, Parts
from pilgrim.train.settings import TrainSettings
from pilgrim.train.step import compiled_token_losses
from pilgrim.train.validation import validate

needs_compiler = pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a compiler")
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within its compiler

RATES = OptimSettings(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.01, norm_lr=0.01)
SETTINGS = TrainSettings(
    steps=16, rows=4, micro_rows=2, eval_every=5, checkpoint_every=8, warmup=3,
    grow=GrowSettings(context=((0.0, 16), (0.5, 32))),
)  # fmt: skip


@pytest.fixture
def stance() -> Iterator[Callable[[], None]]:
    """Call it, and from then on to the end of the test a recompilation is an error."""
    yield lambda: torch.compiler.set_stance("fail_on_recompile")
    torch.compiler.set_stance("default")


def parts_in(folder: Path, runtime: Runtime, before_evaluating: Callable[[], None]) -> Parts:
    """A stage on random documents; the first evaluation comes right after compiling."""
    shape = ModelSettings(depth=1, width=16, head_size=8, context=32)
    model = Transformer(shape.config(31)).to(runtime.device)
    initialize(model, runtime.generator("initialize"))
    dice = np.random.default_rng(1)
    starts = np.cumsum([0, *dice.integers(5, 60, 40)]).astype(np.int64)
    ids = dice.integers(1, 31, starts[-1]).astype(np.uint16)
    tokens = TokenSet("train", ids, starts, None, {"bytes": int(starts[-1])})
    losses = compiled_token_losses(runtime)

    def evaluate(step: int) -> dict[str, float]:
        before_evaluating()
        found = validate(model, one_pass(tokens, 32, 0, 2), [1] * 31, losses, runtime)
        return {"bpb": found.bpb}

    return Parts(
        model, Optimizers(model, RATES, runtime.dtype, runtime.compile), RATES,
        PackedRows(tokens, 16, 0, runtime), losses, MicroBatch(SETTINGS.micro_rows), evaluate,
        runtime, SETTINGS, folder, RunLog(folder), Console(quiet=True),
    )  # fmt: skip


@quiet
@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_the_start_nothing_is_compiled(tmp_path: Path, stance: Callable[[], None]) -> None:
    """Steps of both lengths of rows, changing rates, validation with a last batch that is not full, and a
    resumed second half: compiled once, and equal to what is not compiled.
    """
    torch._dynamo.utils.counters.clear()
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=True, seed=1)
    parts = parts_in(tmp_path / "compiled", runtime, stance)
    Loop(parts).run()
    assert not torch._dynamo.utils.counters["graph_break"]
    events = {row["kind"]: row for row in read_rows(parts.folder / "events.jsonl")}
    assert events["compiled"]["elapsed_s"] > 0

    torch.compiler.set_stance("default")
    eager = parts_in(tmp_path / "eager", replace(runtime, compile=False), lambda: None)
    Loop(eager).run()
    losses = [
        [row["loss"] for row in read_rows(folder / "metrics.jsonl")]
        for folder in (parts.folder, eager.folder)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert "compiled" not in {row["kind"] for row in read_rows(eager.folder / "events.jsonl")}


@quiet
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_a_step_waits_for_nothing(tmp_path: Path) -> None:
    """torch raises for a call that would wait for the GPU: looking at a number, copying to it unpinned."""
    runtime = Runtime(torch.device("cuda"), torch.float32, compile=True, seed=1)
    parts = parts_in(tmp_path, runtime, lambda: None)
    loop = Loop(parts)
    with Prefetch(grown_batches(parts.rows, loop.phases, 0, None), runtime.device) as stream:
        for _ in range(3):
            loop.step(next(stream)[0])
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(4):
                loop.step(next(stream)[0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(loop._look()) == 2


@quiet
@needs_compiler
def test_code_that_would_be_compiled_in_pieces_is_refused() -> None:
    def looks(x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x * 2

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(looks)(torch.ones(3))


def test_what_is_compiled_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert keep_compiled() == tmp_path / "pilgrim" / "torchinductor" / processor()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    assert keep_compiled() == tmp_path / "mine"


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="needs AVX2")
def test_code_for_other_instructions_is_kept_elsewhere() -> None:
    # As of another machine with the same home folder: its code would compute half of the numbers.
    told = "from pilgrim.core.compiling import processor; print(processor())"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    other = subprocess.run([sys.executable, "-c", told], env=environment, capture_output=True, text=True)
    assert len(other.stdout.strip()) == len(processor())
    assert other.stdout.strip() != processor()


def test_where_the_cache_can_not_be_written_torch_has_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert keep_compiled().parent == tmp_path
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
