"""What can keep a CUDA GPU from training, told in a sentence before hours are lost.

Four things go wrong with GPUs, and each first shows as an error from deep inside torch, or as a run that
is quietly slow. A driver knows CUDA up to some version, and torch is built for one. A GPU has a *compute
capability*, 8.9 or 12.0, and torch holds machine code ("sm_89") for some. torch.compile writes its kernels
with Triton. And memory can be held by somebody else.

`machine` looks the facts up; here they are judged, by functions that need no GPU. Each returns a clause
that says what is the matter and what to do, or None if nothing is. `runtime` makes an error or a note of it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

GB = 1e9
BF16_SINCE = (8, 0)
MUCH = 0.1  # share of the memory that others may hold without being mentioned: a desktop, say
OTHER_TORCH = "install one that is (docs/hardware.md, “Which PyTorch gets installed”)"

# What torch says when it can't begin to use CUDA (c10/cuda/CUDAFunctions.cpp), and what to do about it.
DRIVER_TROUBLES = (
    ("Found no NVIDIA driver", "no NVIDIA driver is found; install one, if there is an NVIDIA GPU"),
    (
        "No CUDA GPUs are available",
        "the driver shows no GPU to this process; look at nvidia-smi and at CUDA_VISIBLE_DEVICES",
    ),
    (
        "Error 803",  # cudaErrorSystemDriverMismatch
        "the NVIDIA driver in the kernel and its library are of different versions, as after an update; "
        "restart the machine",
    ),
    (
        "Error 804",  # cudaErrorCompatNotSupportedOnDevice
        "this GPU can't use a CUDA newer than its driver; update the driver, or install a torch built for "
        "an older CUDA",
    ),
    (
        "CUDA unknown error",
        "the NVIDIA driver does not answer, as after a suspend or a change of CUDA_VISIBLE_DEVICES in a "
        "running program; start anew, or restart the machine",
    ),
)


def driver_trouble(said: str, built_for: str) -> str:
    """What torch's error at the start of CUDA means. `built_for`: this torch's CUDA version, "13.0"."""
    if found := re.search(r"too old \(found version (\d+)\)", said):
        version = int(found[1])  # 12080 is 12.8
        knows = f"{version // 1000}.{version % 1000 // 10}"
        return (
            f"the NVIDIA driver knows CUDA up to {knows}, and this torch is built for CUDA {built_for}; "
            f"update the driver, or install a torch built for CUDA {knows} or older"
        )
    for mark, meaning in DRIVER_TROUBLES:
        if mark in said:
            return meaning
    return f"CUDA does not start ({said.splitlines()[0]}); see whether nvidia-smi works"


def unsupported(name: str, capability: tuple[int, int], archs: Sequence[str]) -> str | None:
    """Whether this torch holds code for the GPU. `archs` are torch.cuda.get_arch_list(): "sm_80", …"""
    known = [arch for arch in archs if arch.startswith(("sm_", "compute_"))]
    if not known or any(runs_on(arch, capability) for arch in known):
        return None  # AMD's builds name their GPUs otherwise
    built = sorted({_capability(arch) for arch in known})
    listed = ", ".join(f"{major}.{minor}" for major, minor in built)
    have = f"{name} has compute capability {capability[0]}.{capability[1]}"
    if capability < built[0]:
        return (
            f"{have}, which is too old for this torch (built for {listed}); an older torch may still know it"
        )
    return f"{have}, and this torch is not built for it (but for {listed}); {OTHER_TORCH}"


def runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code of that kind runs on a GPU of that compute capability.

    Machine code ("sm_86") runs on its major version from its minor one on; intermediate code
    ("compute_86") is translated for everything later; an "a" at the end binds to exactly that GPU
    (CUDA C++ Programming Guide, "Compute Capabilities").
    """
    if arch.endswith("a"):
        return _capability(arch) == capability
    if arch.startswith("compute_"):
        return _capability(arch) <= capability
    return _capability(arch)[0] == capability[0] and _capability(arch) <= capability


def _capability(arch: str) -> tuple[int, int]:
    """sm_120 is 12.0, and so are sm_120a and sm_120f."""
    number = int("".join(filter(str.isdigit, arch)))
    return number // 10, number % 10


def no_bf16(name: str, capability: tuple[int, int]) -> str | None:
    """Whether the GPU is too old for bf16."""
    if capability >= BF16_SINCE:
        return None
    return (
        f"{name} has compute capability {capability[0]}.{capability[1]}, "
        f"and bf16 begins with {BF16_SINCE[0]}.{BF16_SINCE[1]} (RTX 30, A100)"
    )


@dataclass(frozen=True)
class Holder:
    """Another process that holds memory on the GPU."""

    pid: int
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Occupancy:
    """Whose memory the GPU's memory is. `ours_bytes`: what this process holds of it."""

    name: str
    total_bytes: int
    free_bytes: int
    ours_bytes: int
    holders: tuple[Holder, ...] = ()  # as far as the driver tells them; none inside a container

    @property
    def others_bytes(self) -> int:
        return max(0, self.total_bytes - self.free_bytes - self.ours_bytes)


def crowded(gpu: Occupancy) -> str | None:
    """Whether others hold much of the GPU's memory."""
    if gpu.others_bytes <= MUCH * gpu.total_bytes:
        return None
    return (
        f"other processes hold {gpu.others_bytes / GB:.1f} of the {gpu.total_bytes / GB:.1f} GB of {gpu.name}"
        f"{_named(gpu.holders)}, and two that compute share its time; end them, wait for them, "
        "or choose another GPU with CUDA_VISIBLE_DEVICES"
    )


def _named(holders: Sequence[Holder]) -> str:
    if not holders:
        return ""
    largest = sorted(holders, key=lambda holder: -holder.memory_bytes)[:3]
    return f" ({', '.join(f'{h.name}, process {h.pid}: {h.memory_bytes / GB:.1f} GB' for h in largest)})"


def holders_from(csv: str, own_pid: int) -> tuple[Holder, ...]:
    """What nvidia-smi tells of the processes on a GPU: lines of pid, process_name and used_memory as CSV.

    Memory is in MiB, or a word in brackets where the driver doesn't tell; names may hold commas.
    """
    found = []
    for line in csv.splitlines():
        parts = re.fullmatch(r"(\d+), (.*), (\d+)", line.strip())
        if parts and int(parts[1]) != own_pid:
            found.append(Holder(int(parts[1]), parts[2].rsplit("/", 1)[-1], int(parts[3]) * 2**20))
    return tuple(found)
