"""What this machine is: processor, memory, disk, GPU, compiler. Looks, and changes nothing.

Linux tells all of it through /proc, macOS through `sysctl`. `runtime` decides by these answers what will
be used; a run's provenance keeps them.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pilgrim.core import gpu as judge

COMPILERS = ("g++", "clang++")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
CUDA_CONTEXT_BYTES = 600_000_000  # what CUDA and its libraries take for themselves, about
QUERY_HOLDERS = ("--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits")
BF16_INSTRUCTIONS = {
    "avx512_bf16": "AVX-512-BF16",
    "amx_bf16": "AMX",
}  # /proc/cpuinfo's name -> the known one


def processor_name() -> str:
    """The processor's model, as its maker calls it."""
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    return _cpuinfo().get("model name") or platform.machine()


def cores() -> int:
    """Cores this process may use: those it is pinned to, and no more than a container's quota."""
    if sys.platform == "darwin":
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(allowed, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no control group, or "max": no quota
        return allowed


def bf16_instructions() -> list[str]:
    """Those of AVX-512-BF16 and AMX that processor and kernel offer; with either, bf16 is fast on the CPU.

    The kernel's list is asked rather than the processor: AMX needs the kernel's consent. And oneDNN, which
    multiplies for torch, leaves AMX alone if ONEDNN_MAX_CPU_ISA in the environment names a lesser set.
    """
    flags = _cpuinfo().get("flags", "").split()
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL").upper()
    found = [name for flag, name in BF16_INSTRUCTIONS.items() if flag in flags]
    return [name for name in found if name != "AMX" or "AMX" in most or most in ("ALL", "DEFAULT")]


def memory_bytes() -> tuple[int, int | None]:
    """Memory in all and still free, in bytes; macOS does not say what is free in a comparable way."""
    if sys.platform == "darwin":
        return int(_sysctl("hw.memsize") or 0), None
    fields = _colon_fields(Path("/proc/meminfo"))
    total, free = (int(fields[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    return total, free


def gpu() -> dict[str, Any] | None:
    """Name, memory in bytes and compute capability of the CUDA GPU, or just the name of Apple's."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        capability = f"{found.major}.{found.minor}"
        return {"name": found.name, "memory_bytes": found.total_memory, "capability": capability}
    if torch.backends.mps.is_available():
        return {"name": f"{processor_name()} (MPS)"}
    return None


def device_name(device: torch.device) -> str:
    """What torch computes on, by its maker's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


@cache
def cuda_error() -> str | None:
    """What torch says when it can't begin to use CUDA; None if it can, or is built without."""
    if torch.version.cuda is None and torch.version.hip is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they say what is told here in a sentence
        if torch.cuda.is_available():
            return None
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return str(error)
    return "No CUDA GPUs are available"


@cache
def gpu_trouble() -> str | None:
    """Why CUDA can't compute although a GPU is there (torch built for other GPUs, say); None if it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of GPUs that it has no code for
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    if why := judge.unsupported(name, capability, torch.cuda.get_arch_list()):
        return why
    try:
        torch.zeros(1, device="cuda").add_(1).item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def gpu_occupancy() -> judge.Occupancy:
    """Whose the memory of the CUDA GPU is. Starts CUDA in this process, which takes some memory itself."""
    free, total = torch.cuda.mem_get_info()
    ours = torch.cuda.memory_reserved() + CUDA_CONTEXT_BYTES
    return judge.Occupancy(torch.cuda.get_device_name(), total, free, ours, _holders())


def _holders() -> tuple[judge.Holder, ...]:
    """The processes on the GPU, as nvidia-smi tells them; none if it can't."""
    uuid = str(torch.cuda.get_device_properties(0).uuid).removeprefix("GPU-")
    command = ["nvidia-smi", f"--id=GPU-{uuid}", *QUERY_HOLDERS]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return judge.holders_from(told, os.getpid())


@cache
def cpp_compiler() -> str | None:
    """A C++ compiler that can build what torch.compile writes: `$CXX`, g++ or clang++, or None.

    It is tried out on a program with the headers that generated code includes: a compiler without
    Python's headers (no python3-dev) is common, and of no use here.
    """
    source = "#include <Python.h>\n#include <cmath>\n"
    flags = ["-x", "c++", "-std=c++20", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]
    else:
        source += "#include <omp.h>\n"
        flags.append("-fopenmp")
    source += "double root(double x) { return std::sqrt(x); }\n"
    with tempfile.TemporaryDirectory() as folder:
        for compiler in filter(None, (os.environ.get("CXX"), *COMPILERS)):
            command = [compiler, *flags, "-o", f"{folder}/probe.so", "-"]
            try:
                subprocess.run(command, input=source, text=True, capture_output=True, check=True, timeout=60)
            except (OSError, subprocess.SubprocessError):
                continue
            return compiler
    return None


def keep_freed_memory() -> bool:
    """Ask the C library to keep what this process frees, for its next use; False where it can't be asked.

    A training step frees hundreds of megabytes and wants them again at once. glibc hands large blocks back to
    the system each time, which then fetches and clears them page by page: a tenth of a step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:  # not glibc
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def summary() -> dict[str, Any]:
    """The hardware for a run's provenance."""
    return {
        "processor": processor_name(),
        "cores": cores(),
        "bf16_instructions": bf16_instructions(),
        "memory_bytes": memory_bytes()[0],
        "gpu": gpu(),
        "platform": platform.platform(),
        "host": platform.machine(),
    }


def disk_free_bytes(folder: Path) -> int:
    """Room left on the folder's disk."""
    return shutil.disk_usage(folder).free


@cache
def _cpuinfo() -> dict[str, str]:
    return _colon_fields(Path("/proc/cpuinfo"))


def _colon_fields(file: Path) -> dict[str, str]:
    """`name : value` lines, the first of each name; empty where there is no such file (macOS)."""
    fields: dict[str, str] = {}
    if file.exists():
        for line in file.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields


def _sysctl(name: str) -> str | None:
    try:
        return subprocess.run(
            ["sysctl", "-n", name], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
