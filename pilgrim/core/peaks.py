"""How fast this machine can multiply and copy at best: measured here, and as its maker promises.

A training step is judged by its share of what the hardware could do in the same time, the "model FLOPs
utilization" (MFU; Chowdhery et al. 2022, PaLM, appendix B). That needs a peak to divide by, and there are
two.

- *Measured*: the fastest large matrix product that this machine does today, in this number format. It knows
  about a laptop that is hot, a card whose power is capped and a container with two cores. Nothing that
  a network does will beat it by much, so what is missing to it is ours to mend.
- *Spec*: what the maker's paper promises, for comparing with other people's figures. Cards rarely reach it:
  under full load, power forces the clock below the one that the figure assumes.

Makers print several figures for one card, and the largest is never ours. All figures here are *dense*:
"with sparsity" doubles them by assuming that half of all weights are zero. And all are for products that
are *summed in fp32*, as torch does; GeForce cards since Ampere do that at half the speed of summing in fp16.

Copying is measured for the other limit: work that does little with each number, such as norms and
optimizers, can't be faster than memory delivers. A byte copied is read once and written once, so it counts
twice.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

CPU_SIDES = (1024, 2048)  # of square matrices
GPU_SIDES = (4096, 8192)  # 8192³ fills each GPU of the table for 20 waves or more
CPU_COPY_BYTES, GPU_COPY_BYTES = 2**28, 2**30  # larger than the caches of all but the largest servers
PATIENCE_S = 0.4  # for each size: the best of what fits into that, and of FEWEST at least
FEWEST, MOST = 2, 50
DTYPE_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Peaks:
    """What was measured: FLOP/s of matrix products in one number format; bytes/s read and written."""

    matmul_flops: float
    copy_bytes_per_s: float


@dataclass(frozen=True)
class Spec:
    """What the maker promises: dense FLOP/s by number format with sums in fp32, and bytes/s of memory.

    A format that is missing from `flops` is one that the hardware lacks or the maker gives no figure for.
    """

    name: str
    flops: dict[str, float]  # by "bf16", "fp16", "tf32", "fp32" and "fp8"
    bytes_per_s: float
    source: str

    def peak(self, dtype: torch.dtype) -> float | None:
        """FLOP/s in that number format, None if the maker gives none."""
        return self.flops.get(DTYPE_NAMES[dtype])


# Measuring -----------------------------------------------------------------------------------------


def measure(device: torch.device, dtype: torch.dtype) -> Peaks:
    """The best large matrix product and the best large copy that this device does now.

    Takes two seconds on a CPU and about one on a GPU.
    """
    found = Peaks(matmul_flops(device, dtype), _copy_bytes_per_s(device))
    _give_back(device)
    return found


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best large matrix product: half of `measure`, in less than a second."""
    sides = CPU_SIDES if device.type == "cpu" else GPU_SIDES
    best = max(_matmul_flops(side, device, dtype) for side in sides)
    _give_back(device)
    return best


@cache
def measured(device: torch.device, dtype: torch.dtype) -> Peaks:
    """`measure`, once in a process."""
    return measure(device, dtype)


def _matmul_flops(side: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the best product of two square matrices.

    Their entries are random, as a network's are: a GPU draws less power on zeros, and so multiplies them
    faster (He 2024, "Strangely, Matrix Multiplications on GPUs Run Faster When Given 'Predictable' Data!").
    """
    draws = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, device=device, generator=draws).to(dtype) for _ in range(2))
    return 2 * side**3 / _best_s(lambda: torch.nn.functional.linear(a, b), device)


def _copy_bytes_per_s(device: torch.device) -> float:
    size = CPU_COPY_BYTES if device.type == "cpu" else GPU_COPY_BYTES
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best_s(lambda: target.copy_(source), device)


def _give_back(device: torch.device) -> None:
    """Some GB of a GPU that torch would keep for later, in pieces that fit nothing else."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _best_s(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of many calls, after one that warms up."""
    _timed_s(work, device)
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < PATIENCE_S and len(times) < MOST):
        times.append(_timed_s(work, device))
    return min(times)


def _timed_s(work: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given; a CPU is done when a call returns."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# What makers promise -------------------------------------------------------------------------------

GA102 = "NVIDIA Ampere GA102 GPU architecture whitepaper v2.1"
ADA = "NVIDIA Ada GPU architecture whitepaper v2"
ADA_PRO = "NVIDIA Ada Lovelace professional GPU architecture whitepaper"
RTX_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper v1.1"
RTX_PRO = "NVIDIA RTX PRO Blackwell GPU architecture whitepaper v1.0"
TURING = "NVIDIA Turing GPU architecture whitepaper; T4 datasheet"
A100 = "NVIDIA A100 Tensor Core GPU architecture whitepaper; A100 80GB datasheet"
H100 = "NVIDIA H100 Tensor Core GPU architecture whitepaper v1.04"
HALF = "half of the figures with sparsity in NVIDIA's datasheet"
APPLE = "Apple's announcement, for the chip with all its GPU cores"
APPLE_MEMORY = "Apple's announcement, which gives the memory's speed only"


def _spec(name: str, tflops: dict[str, float], gb_per_s: float, source: str) -> Spec:
    return Spec(name, {kind: value * 1e12 for kind, value in tflops.items()}, gb_per_s * 1e9, source)


def _tflops(fp32: float, tf32: float, half: float, fp8: float | None = None) -> dict[str, float]:
    """bf16 and fp16 are equally fast on each card that has both."""
    found = {"bf16": half, "fp16": half, "tf32": tf32, "fp32": fp32}
    return found if fp8 is None else found | {"fp8": fp8}


# fmt: off
# Names as torch tells them, less "NVIDIA", "GeForce", "Tesla". TFLOP/s: fp32, tf32, halves, fp8. Then GB/s.
SPECS = tuple(_spec(*row) for row in (
    ("RTX 3090", _tflops(35.6, 35.6, 71.0), 936, GA102),
    ("RTX 4080", _tflops(48.7, 48.7, 97.5, 194.9), 716.8, ADA),
    ("RTX 4090", _tflops(82.6, 82.6, 165.2, 330.3), 1008, ADA),
    ("RTX 5070 Ti", _tflops(43.9, 43.9, 87.9, 175.8), 896, RTX_BLACKWELL),
    ("RTX 5080", _tflops(56.3, 56.3, 112.6, 225.1), 960, RTX_BLACKWELL),
    ("RTX 5090", _tflops(104.8, 104.8, 209.5, 419.0), 1792, RTX_BLACKWELL),
    ("RTX A6000", _tflops(38.7, 77.4, 154.8), 768, GA102),
    ("RTX 6000 Ada Generation", _tflops(91.1, 182.1, 364.2, 728.5), 960, ADA_PRO),
    ("RTX PRO 6000 Blackwell Workstation Edition", _tflops(126.0, 251.9, 503.8, 1007.6), 1792, RTX_PRO),
    ("RTX PRO 6000 Blackwell Max-Q Workstation Edition", _tflops(109.7, 219.5, 438.9, 877.9), 1792, RTX_PRO),
    ("T4", {"fp16": 65.0, "fp32": 8.1}, 320, TURING),  # has no bf16
    ("A10", _tflops(31.2, 62.5, 125.0), 600, HALF),
    ("L4", _tflops(30.3, 60.0, 121.0, 242.5), 300, HALF),
    ("L40S", _tflops(91.6, 183.0, 362.1, 733.0), 864, HALF),
    ("A100-SXM4-40GB", _tflops(19.5, 156.0, 312.0), 1555, A100),
    ("A100-PCIE-40GB", _tflops(19.5, 156.0, 312.0), 1555, A100),
    ("A100-SXM4-80GB", _tflops(19.5, 156.0, 312.0), 2039, A100),
    ("A100 80GB PCIe", _tflops(19.5, 156.0, 312.0), 1935, A100),
    ("H100 80GB HBM3", _tflops(66.9, 494.7, 989.4, 1978.9), 3352, H100),  # SXM
    ("H100 PCIe", _tflops(51.2, 378.0, 756.0, 1513.0), 2039, H100),
    ("H100 NVL", _tflops(60.0, 417.5, 835.5, 1670.5), 3900, HALF),
    ("H200", _tflops(67.0, 494.5, 989.5, 1979.0), 4800, HALF),  # SXM
    ("H200 NVL", _tflops(60.0, 417.5, 835.5, 1670.5), 4800, HALF),
    ("B200", _tflops(75.0, 1100.0, 2250.0, 4500.0), 7700, HALF),
    ("Apple M1", {"fp32": 2.6}, 68, APPLE),
    ("Apple M1 Pro", {"fp32": 5.2}, 200, APPLE),
    ("Apple M1 Max", {"fp32": 10.4}, 400, APPLE),
    ("Apple M1 Ultra", {}, 800, APPLE_MEMORY),
    ("Apple M2", {"fp32": 3.6}, 100, APPLE),
    ("Apple M2 Pro", {}, 200, APPLE_MEMORY),
    ("Apple M2 Max", {}, 400, APPLE_MEMORY),
    ("Apple M2 Ultra", {}, 800, APPLE_MEMORY),
    ("Apple M3", {}, 100, APPLE_MEMORY),
    ("Apple M3 Pro", {}, 150, APPLE_MEMORY),
    ("Apple M3 Max", {}, 400, APPLE_MEMORY),
    ("Apple M3 Ultra", {}, 819, APPLE_MEMORY),
    ("Apple M4", {}, 120, APPLE_MEMORY),
    ("Apple M4 Pro", {}, 273, APPLE_MEMORY),
    ("Apple M4 Max", {}, 546, APPLE_MEMORY),
))
# fmt: on


def spec_of(device_name: str) -> Spec | None:
    """What the maker promises for the device of that name, as torch tells it; None if it is not in our table.

    Only whole names match: an "RTX 4090 Laptop GPU", a "GH200" and a slice of an H100 are other devices
    than those they remind of.
    """
    return _BY_NAME.get(_key(device_name))


def _key(device_name: str) -> str:
    return re.sub(r"\b(nvidia|geforce|tesla)\b", "", device_name.lower()).strip()


_BY_NAME = {_key(spec.name): spec for spec in SPECS}
