"""What does saving cost? How long training stands still, how fast a checkpoint is written, how large it is.

    python benchmarks/checkpoint.py                           d4, d12 and d20, in a temporary folder
    python benchmarks/checkpoint.py d20 --folder /mnt/runs    on the disk that is to be measured
    python benchmarks/checkpoint.py d4 --step-s 0.9           for steps of 0.9 s

The tensors have a recipe's shapes: weights and optimizer state in fp32, on the GPU if there is one. Each save
copies them, which is all that training waits for ("stall"); then they are written, hashed and synced in the
background ("behind"), and the next save begins when that is done. The first stall is shown apart: the memory
for the copy is made there. "cpu" is the processor's time in both, which other work on the machine does not
stretch; the rest of the time behind is the disk's. d20 takes 9 GB of memory and of disk, and cleans up.

"share" is the stall over the time of the steps between two checkpoints. A step's time is --step-s, or an
assumption: the operations that the network needs (pilgrim/model/count.py) at 40% of the 209.5 TFLOPS that
NVIDIA promises of an RTX 5090 (bf16 with fp32 sums), for d12 and d20. An H100 is promised 4.7 times as many,
so there the same stall would be 4.7 times the share.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pilgrim.core import machine
from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.model.config import ModelConfig, ModelSettings
from pilgrim.model.count import flops_needed
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import kind_of

GPU_FLOPS = 0.4 * 209.5e12  # RTX 5090: NVIDIA RTX Blackwell GPU architecture, appendix A


@dataclass(frozen=True)
class Preset:
    """A recipe's network, and how often it saves."""

    depth: int
    vocab_size: int
    context: int
    rows: int
    checkpoint_every: int

    def config(self) -> ModelConfig:
        return ModelSettings(depth=self.depth, context=self.context).config(self.vocab_size)


PRESETS = {
    "d4": Preset(4, 4096, 512, 16, 100),  # as in benchmarks/train_step.py; checkpoint_every's default
    "d12": Preset(12, 32768, 2048, 256, 250),  # recipes/d12.toml
    "d20": Preset(20, 32768, 2048, 256, 250),  # recipes/d20.toml
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="*", metavar="PRESET", help="d4, d12, d20; left out: all")
    parser.add_argument("--folder", type=Path, help="where to write; left out: a temporary one")
    parser.add_argument("--saves", type=int, default=4, help="how many, the first included")
    parser.add_argument("--step-s", type=float, help="seconds of a training step")
    arguments = parser.parse_args()
    names = arguments.presets or list(PRESETS)
    if unknown := [name for name in names if name not in PRESETS]:
        parser.error(f"no such preset: {', '.join(unknown)}; there are {', '.join(PRESETS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine.summary())
    print("     size GB   first   stall     cpu  behind     cpu   GB/s  every  step s     share")
    for name in names:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(line(name, Path(folder), device, arguments.saves, arguments.step_s), flush=True)


def line(name: str, folder: Path, device: torch.device, saves: int, step_s: float | None) -> str:
    preset = PRESETS[name]
    tensors = dict(model_and_state(preset.config(), device))
    store = CheckpointStore(folder, keep_last=1)
    stalls_s, stalls_cpu_s, behind_s, behind_cpu_s = [], [], [], []
    for step in range(1, saves + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        store.begin(step, tensors, {"step": step})
        staged_s, staged_cpu_s = time.perf_counter(), time.process_time()
        store.wait()
        stalls_s.append(staged_s - began_s)
        stalls_cpu_s.append(staged_cpu_s - began_cpu_s)
        behind_s.append(time.perf_counter() - staged_s)
        behind_cpu_s.append(time.process_time() - staged_cpu_s)
    size = sum(file.stat().st_size for file in (folder / f"step_{saves:06d}").iterdir())
    stall_s, behind = statistics.median(stalls_s[1:]), statistics.median(behind_s)
    stall_cpu_s, behind_cpu = statistics.median(stalls_cpu_s[1:]), statistics.median(behind_cpu_s)
    if step_s is None and name != "d4":
        config = preset.config()
        step_s = flops_needed(config, config.context).training * preset.rows * preset.context / GPU_FLOPS
    share = "" if step_s is None else f"{step_s:7.2f} {stall_s / (preset.checkpoint_every * step_s):9.3%}"
    return (
        f"{name:4} {size / 1e9:7.2f} {stalls_s[0]:7.2f} {stall_s:7.2f} {stall_cpu_s:7.2f} {behind:7.2f} "
        f"{behind_cpu:7.2f} {size / 1e9 / behind:6.2f} {preset.checkpoint_every:6} {share}"
    )


def model_and_state(config: ModelConfig, device: torch.device) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Tensors of the shapes, names and number of those that training saves."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Transformer(config).weights().items()}
    model = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    yield "model", model
    state = {}
    for name, weight in model.items():
        for key in ("momentum",) if kind_of(name, weight) == "matrix" else ("mean", "square"):
            state[f"{name}/{key}"] = torch.randn_like(weight)
    yield "optimizer", state


if __name__ == "__main__":
    main()
