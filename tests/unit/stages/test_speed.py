"""Speed as a share of the machine's peak: the arithmetic, and what is kept of it in the run's folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pilgrim.core.files import read_json, write_json_atomic
from pilgrim.core.runtime import Runtime
from pilgrim.model.config import ModelSettings
from pilgrim.model.count import flops_needed
from pilgrim.stages.speed import measured_peak, shares_of_peak

CONFIG = ModelSettings(depth=1, width=64, context=64).config(300)
CPU = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)


def test_a_peak_is_measured_once_in_a_run_and_again_for_another_machine(tmp_path: Path) -> None:
    first = measured_peak(tmp_path, CPU)
    kept = read_json(tmp_path / "peak.json")
    assert kept["matmul_flops"] == first == measured_peak(tmp_path, CPU)
    write_json_atomic(tmp_path / "peak.json", {**kept, "on": {**kept["on"], "device": "another"}})
    measured_peak(tmp_path, CPU)
    assert read_json(tmp_path / "peak.json")["on"] == kept["on"]
    measured_peak(tmp_path, replace(CPU, dtype=torch.bfloat16))
    assert read_json(tmp_path / "peak.json")["on"]["dtype"] == "bf16"


def test_a_share_is_what_is_needed_over_what_is_possible(tmp_path: Path) -> None:
    shares = shares_of_peak(tmp_path, CONFIG, CPU)
    needed = flops_needed(CONFIG, 64).training
    at_the_peak = measured_peak(tmp_path, CPU) / needed  # tokens per second
    found = shares(at_the_peak / 4)
    assert found["mfu"] == pytest.approx(0.25)
    assert "mfu_spec" not in found, "no processor is in the table"
