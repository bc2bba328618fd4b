"""How fast training is, as a share of what the machine could multiply in the same time (MFU).

Counted is what the network needs (model/count.py), taking each row for one document: not what is computed a
second time to save memory, not masked scores, not padding. So a step can't look faster by doing more than
it must. Divided by the peak that was measured here, that is `mfu`; by what the maker promises, `mfu_spec`,
which is missing where the maker or our table says nothing (core/peaks.py).

Several processes together are compared with as many peaks.

The peak is measured once in a run, in less than a second, and kept in the run's folder: a resumed run is
judged like it was before, unless it goes on with another machine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pilgrim.core import machine, peaks
from pilgrim.core.files import read_json, write_json_atomic
from pilgrim.core.runtime import Runtime
from pilgrim.model.config import ModelConfig
from pilgrim.model.count import flops_needed

Shares = Callable[[float], dict[str, float]]  # tokens per second -> mfu, and mfu_spec where there is one


def shares_of_peak(run: Path, config: ModelConfig, runtime: Runtime, adapters: int = 0) -> Shares:
    """What turns tokens per second into shares of the peaks, for a network of that shape.

    `adapters`: how many numbers its adapters have, if only they are trained.
    """
    flops_per_token = flops_needed(config, config.context, adapters).training
    divisors = {"mfu": measured_peak(run, runtime)}
    spec = peaks.spec_of(machine.device_name(runtime.device))
    if spec and (promised := spec.peak(runtime.dtype)):
        divisors["mfu_spec"] = promised

    def shares(tokens_per_s: float) -> dict[str, float]:
        each = tokens_per_s / runtime.processes.count
        return {name: each * flops_per_token / peak for name, peak in divisors.items()}

    return shares


def measured_peak(run: Path, runtime: Runtime) -> float:
    """FLOP/s of the best matrix product, from the run's peak.json or measured now."""
    file, on = run / "peak.json", _on(runtime)
    if file.exists() and (known := read_json(file))["on"] == on:
        return float(known["matmul_flops"])
    found = peaks.matmul_flops(runtime.device, runtime.dtype)
    write_json_atomic(file, {"on": on, "matmul_flops": found})
    return found


def _on(runtime: Runtime) -> dict[str, Any]:
    """What a measured peak belongs to."""
    return {
        "device": machine.device_name(runtime.device),
        "dtype": peaks.DTYPE_NAMES[runtime.dtype],
        "threads": torch.get_num_threads() if runtime.device.type == "cpu" else None,
    }
