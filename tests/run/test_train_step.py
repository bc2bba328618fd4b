"""The benchmark of a training step runs, and tells what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "benchmarks/train_step.py", "--quick", "--no-baseline", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_quick_step_is_measured_against_the_peak() -> None:
    done = benchmark("--preset", "d12", "model.width=128", "tokenizer.vocab_size=512")
    assert done.returncode == 0, done.stderr
    assert "best matrix product" in done.stdout
    [line] = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("pilgrim")]
    milliseconds, mfu = float(line[1].replace(",", "")), float(line[4].rstrip("%"))
    assert milliseconds > 0 and 0 < mfu < 100
    assert "matrix products" in done.stdout, "and says where the time goes"


@pytest.mark.slow
def test_each_switch_gets_a_line() -> None:
    done = benchmark("--switches", "runtime.device=cpu")
    assert done.returncode == 0, done.stderr
    told = {line.split()[0]: line for line in done.stdout.splitlines() if "=" in line.split()[0]}
    assert told.keys() >= {"runtime.dtype=fp32", "runtime.compile=off", "runtime.compile=on"}
    assert told["runtime.dtype=fp32"].endswith("x") or "the same as it is" in told["runtime.dtype=fp32"]


def test_what_is_no_setting_is_told_in_a_sentence() -> None:
    done = benchmark("runtime.colour=red")
    assert done.returncode == 1
    assert "runtime.colour is not a setting" in done.stderr and "Traceback" not in done.stderr
