"""What a run computes with: device, number format, compilation, and named randomness.

`start` looks at the machine once, decides what "auto" means on it, and says in `Runtime.notes` what is
slower than it could be. The number format is bf16 (8 bits of exponent like fp32, 8 of precision) where
it is fast and known to be safe, else fp32. Which attention kernel is fastest depends on the network too,
so that is only passed on here (model/attention_choice.py).

Randomness is named. Nothing draws from torch's global state, where one extra draw shifts all that follow;
instead `runtime.generator("shuffle", epoch)` gives a generator whose seed is a hash of (run's seed, name,
parts). Two names are independent, and the same name gives the same numbers on every machine and after
every resume.
"""

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from pilgrim.core import gpu, machine, peaks
from pilgrim.core.config import Settings
from pilgrim.core.errors import SettingsError
from pilgrim.core.processes import ALONE, Processes, here, joined

GB = 1e9
LITTLE_MEMORY_BYTES = 2 * GB
LITTLE_DISK_BYTES = 2 * GB
Parallel = Literal["alone", "ddp", "zero", "fsdp"]  # docs/scaling.md
AFTER_WATCHDOG = 1.5  # a hung collective shall end by the watchdog, with stacks, and not by its own timeout
CUBLAS_VARIABLE, CUBLAS_DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
COMPILE_GAIN = "on a CPU, training takes about 1.3 times as long without it"  # measured: 4 layers, width 256


class RuntimeSettings(Settings):
    """The recipe's `[runtime]`: what to compute with. "auto" takes the best that this machine has."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="where to compute; auto: CUDA, else MPS, else the CPU"
    )
    dtype: Literal["auto", "bf16", "fp32"] = Field(
        default="auto", description="number format; auto: bf16 where it is fast and safe, else fp32"
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="auto", description="torch.compile for training; auto: where a working C++ compiler is found"
    )
    attention: Literal["auto", "varlen", "fa3", "fa4", "flex", "sdpa", "blocks", "documents", "reference"] = (
        Field(
            default="auto",
            description="how training computes attention; auto: the fastest that this machine has",
        )
    )
    fp8: Literal["off", "on"] = Field(
        default="off", description="train the blocks' linear layers in fp8: NVIDIA, capability 8.9 and later"
    )
    checkpoint_activations: bool = Field(
        default=False,
        description="keep only each block's input for backward, and run it again there: saves memory",
    )
    deterministic: bool = Field(
        default=False, description="the same bits in every run on one GPU, where that costs speed"
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of a process; left out: as many as torch chooses"
    )
    parallel: Literal["auto", "ddp", "zero", "fsdp"] = Field(
        default="auto",
        description="what several processes divide: ddp: the batch; zero: optimizer state too; "
        "fsdp: gradients and weights too; auto: zero",
    )
    hang_s: float = Field(
        default=600.0, gt=0, description="seconds without a step that end a process, as it must hang"
    )


@dataclass(frozen=True)
class Runtime:
    """What was decided. `notes` are sentences about what is slower than it could be, to be told once."""

    device: torch.device
    dtype: torch.dtype
    compile: bool
    seed: int
    notes: tuple[str, ...] = ()
    attention: Literal["auto", "varlen", "fa3", "fa4", "flex", "sdpa", "blocks", "documents", "reference"] = (
        "auto"
    )
    fp8: bool = False
    deterministic: bool = False
    processes: Processes = ALONE
    parallel: Parallel = "alone"

    def seed_for(self, name: str, *parts: int) -> int:
        """A 63-bit seed for the named purpose, the same on every machine."""
        key = json.dumps([self.seed, name, *parts]).encode("utf-8")
        return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1

    def generator(self, name: str, *parts: int) -> torch.Generator:
        """A fresh CPU generator for the named purpose, such as `generator("shuffle", epoch)`.

        On the CPU even where a GPU computes, so that the draws do not depend on the device.
        """
        return torch.Generator("cpu").manual_seed(self.seed_for(name, *parts))


def start(settings: RuntimeSettings, seed: int, processes: Processes = ALONE) -> Runtime:
    """Decides what to compute with, and sets torch's thread count if the settings give one.

    Where that is the CPU, the process keeps the memory that it frees (`machine.keep_freed_memory`). Of
    several processes on one machine each takes the GPU of its number. With `deterministic`, torch is told so
    for the whole process.

    Raises SettingsError when a device, number format or compiler is asked for that is not there.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    notes: list[str] = []
    if settings.deterministic:
        _be_deterministic()  # first: CUDA reads the environment when it starts
    device = _device(settings.device, notes)
    if device.type == "cpu":
        machine.keep_freed_memory()
    if device.type == "cuda" and processes.count > 1:
        device = _own_gpu(processes)
    dtype = _dtype(settings.dtype, device, notes)
    use_compile = _compile(settings.compile, device, notes)
    use_fp8 = _fp8(settings.fp8, device, dtype)
    parallel = _parallel(settings, processes)
    return Runtime(
        device,
        dtype,
        use_compile,
        seed,
        tuple(notes),
        settings.attention,
        use_fp8,
        settings.deterministic,
        processes,
        parallel,
    )


@contextmanager
def started(settings: RuntimeSettings, seed: int) -> Iterator[Runtime]:
    """`start`, and while inside, the processes of the run can talk (core/processes.py)."""
    runtime = start(settings, seed, here())
    with joined(runtime.device, timeout_s=AFTER_WATCHDOG * settings.hang_s) as processes:
        yield replace(runtime, processes=processes)


def _own_gpu(processes: Processes) -> torch.device:
    gpus = torch.cuda.device_count()
    if processes.local_rank >= gpus:
        raise SettingsError(
            f"there are more processes on this machine than its {gpus} GPUs; start {gpus} "
            f'(pilgrim run --processes {gpus}), or write runtime.device = "cpu"'
        )
    device = torch.device("cuda", processes.local_rank)
    torch.cuda.set_device(device)
    return device


def _parallel(settings: RuntimeSettings, processes: Processes) -> Parallel:
    """How several processes divide the work; one process has nothing to divide."""
    if processes.count == 1:
        return "alone"
    if settings.parallel == "fsdp" and settings.fp8 == "on":
        raise SettingsError(
            'runtime.parallel = "fsdp" gathers weights in bf16, but runtime.fp8 = "on" wants them in fp32; '
            'write runtime.fp8 = "off", or runtime.parallel = "zero"'
        )
    return "zero" if settings.parallel == "auto" else settings.parallel


def _be_deterministic() -> None:
    """The same bits from the same numbers, each time; an operation that can't promise it raises.

    A GPU adds in the order in which its parts get done, unless told otherwise, and rounding depends on the
    order. A CPU adds in a fixed order anyway. What torch needs to be told:
    https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    before = os.environ.setdefault(CUBLAS_VARIABLE, ":4096:8")
    if before not in CUBLAS_DETERMINISTIC:
        raise SettingsError(
            f"runtime.deterministic = true, but {CUBLAS_VARIABLE}={before} is in the environment; unset it, "
            f"or set it to {' or '.join(CUBLAS_DETERMINISTIC)}"
        )
    import torch._inductor.config as inductor

    torch.use_deterministic_algorithms(True)
    inductor.deterministic = True  # it chooses by rule, not by timing (newer torch does this above)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # For finding uses of memory that nobody has written; it costs time, and the bits are the same without.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _device(asked: str, notes: list[str]) -> torch.device:
    trouble: dict[str, Callable[[], str | None]] = {"cuda": _cuda_trouble, "mps": _mps_trouble}
    if asked != "auto":
        if asked in trouble and (why := trouble[asked]()):
            raise SettingsError(f'runtime.device = "{asked}": {why}; write "auto" or "cpu"')
        return torch.device(asked)
    for name, find_trouble in trouble.items():
        why = find_trouble()
        if why is None:
            return torch.device(name)
        if name == "cuda" and (torch.cuda.is_available() or shutil.which("nvidia-smi")):  # there is a GPU
            notes.append(f"The GPU is not used: {why}. A CPU is tens of times slower.")
    return torch.device("cpu")


def _cuda_trouble() -> str | None:
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is built without CUDA"
    if said := machine.cuda_error():
        return gpu.driver_trouble(said, torch.version.cuda or f"ROCm {torch.version.hip}")
    return machine.gpu_trouble()


def _mps_trouble() -> str | None:
    return None if torch.backends.mps.is_available() else "this is no Mac with Apple's GPU"


def _dtype(asked: str, device: torch.device, notes: list[str]) -> torch.dtype:
    fast, slow_because = _bf16(device)
    if asked == "fp32" or (asked == "auto" and not fast):
        if asked == "auto":
            notes.append(
                f"Computing in fp32, as {slow_because}; where it is fast, bf16 trains twice as fast."
            )
        return torch.float32
    if not fast:
        if not _bf16_exists(device):
            raise SettingsError(f'runtime.dtype = "bf16": {slow_because}; write "fp32" or "auto"')
        notes.append(f'bf16 was asked for, but {slow_because}; runtime.dtype = "fp32" may be faster.')
    return torch.bfloat16


def _bf16(device: torch.device) -> tuple[bool, str]:
    """Whether bf16 is fast and safe there, and if not, why."""
    if device.type == "cuda" and torch.version.hip is None:
        why = gpu.no_bf16(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
        return why is None, why or ""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False), "this GPU has no bf16"
    if device.type == "mps":
        return False, 'bf16 training on an Apple GPU has not been verified (runtime.dtype = "bf16" tries it)'
    return bool(machine.bf16_instructions()), "this processor has neither AVX-512-BF16 nor AMX"


def _bf16_exists(device: torch.device) -> bool:
    """A CPU can always compute in bf16, if slowly; Apple's GPU can from macOS 14 on."""
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    return device.type == "cpu"


def _fp8(asked: str, device: torch.device, dtype: torch.dtype) -> bool:
    if asked == "off":
        return False
    if why := _fp8_trouble(device, dtype):
        raise SettingsError(f'runtime.fp8 = "on": {why}; write "off"')
    return True


def _fp8_trouble(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cuda" or torch.version.hip is not None:
        return "it needs an NVIDIA GPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):  # Ada, Hopper, Blackwell have fp8
        return f"this GPU's compute capability is {capability[0]}.{capability[1]}, and fp8 needs 8.9"
    if dtype != torch.bfloat16:
        return 'it goes with runtime.dtype = "bf16"'
    return None


def _compile(asked: str, device: torch.device, notes: list[str]) -> bool:
    if asked == "off":
        return False
    if asked == "auto" and sys.platform == "darwin":
        notes.append(f"torch.compile is off, as it has not been verified on macOS; {COMPILE_GAIN}.")
        return False
    if why := _compile_trouble(device):
        if asked == "on":
            raise SettingsError(f'runtime.compile = "on": {why}; mend that, or write "auto"')
        cost = COMPILE_GAIN if device.type == "cpu" else "training takes longer and more memory without it"
        notes.append(f"torch.compile is off, as {why}; {cost}.")
        return False
    if device.type == "cpu" and (compiler := machine.cpp_compiler()):
        os.environ["CXX"] = compiler  # torch itself would take g++ or a broken $CXX, and not look further
    return True


def _compile_trouble(device: torch.device) -> str | None:
    has_triton = importlib.util.find_spec("triton") is not None
    return compile_trouble(device.type, has_triton, machine.cpp_compiler() is not None, torch.__file__)


def compile_trouble(device: str, has_triton: bool, has_compiler: bool, torch_file: str) -> str | None:
    """What keeps torch.compile from working: a clause with the cure, or None."""
    if device == "cuda" and not has_triton:
        return (
            "triton is not installed, in which torch.compile writes code for GPUs "
            "(pip install triton; PyTorch's builds with CUDA for Linux bring it along)"
        )
    if not has_compiler:
        return f"no working C++ compiler is found ({_install_compiler()})"
    if device == "cpu" and " " in torch_file:
        return f"torch lies in a path with a space ({torch_file}), which it does not quote for the compiler"
    return None


def _install_compiler() -> str:
    if sys.platform == "darwin":
        return "xcode-select --install"
    return "Debian and Ubuntu: apt install g++ python3-dev"


# For `pilgrim doctor` -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """One thing about this machine. `advice` says what to do about what is slow or bad."""

    name: str
    value: str
    verdict: Literal["good", "slow", "bad"] = "good"
    advice: str | None = None


def facts() -> list[Fact]:
    """What this machine has and what "auto" makes of it."""
    runtime = start(RuntimeSettings(), seed=0)
    return [
        _python_fact(),
        Fact("torch", torch.__version__),
        _cores_fact(),
        _instructions_fact(runtime),
        _memory_fact(),
        _disk_fact(),
        _gpu_fact(),
        _compiler_fact(),
        Fact("device", runtime.device.type),
        _dtype_fact(runtime),
        _compile_fact(runtime),
        *_speed_facts(runtime),
    ]


def _python_fact() -> Fact:
    return Fact("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _cores_fact() -> Fact:
    cores, threads = machine.cores(), torch.get_num_threads()
    value = f"{machine.processor_name()}, {cores} core{'s' if cores > 1 else ''}, {threads} threads"
    if threads > cores:
        advice = f"torch starts more threads than there are cores; set runtime.threads = {cores}"
        return Fact("processor", value, "slow", advice)
    return Fact("processor", value)


def _instructions_fact(runtime: Runtime) -> Fact:
    found = machine.bf16_instructions()
    if found or runtime.device.type != "cpu":
        return Fact("instructions", ", ".join(found) or "neither AVX-512-BF16 nor AMX (the GPU computes)")
    advice = "bf16 needs a processor with AVX-512-BF16 or AMX, or a GPU; pocket recipes run in fp32 meanwhile"
    return Fact("instructions", "neither AVX-512-BF16 nor AMX", "slow", advice)


def _memory_fact() -> Fact:
    total, free = machine.memory_bytes()
    if free is None:
        return Fact("memory", f"{total / GB:.1f} GB")
    value = f"{total / GB:.1f} GB, {free / GB:.1f} GB free"
    if free < LITTLE_MEMORY_BYTES:
        return Fact("memory", value, "bad", "close other programs; the pocket recipe wants 2 GB free")
    return Fact("memory", value)


def _disk_fact() -> Fact:
    free = machine.disk_free_bytes(Path.cwd())
    if free < LITTLE_DISK_BYTES:
        return Fact("disk", f"{free / GB:.1f} GB free here", "bad", "make room, or set another runs folder")
    return Fact("disk", f"{free / GB:.1f} GB free here")


def _gpu_fact() -> Fact:
    found = machine.gpu()
    if found is None:
        if shutil.which("nvidia-smi"):
            advice = "torch can't use it: install a torch built for CUDA and a recent NVIDIA driver"
            return Fact("gpu", f"NVIDIA's tools are here, but {_cuda_trouble()}", "slow", advice)
        return Fact("gpu", "none", "slow", "a pocket model needs none; larger recipes do")
    if "capability" not in found:
        return Fact("gpu", found["name"])
    value = f"{found['name']}, {found['memory_bytes'] / GB:.0f} GB, capability {found['capability']}"
    if why := machine.gpu_trouble():
        return Fact("gpu", value, "bad", f"torch can't compute on it: {why}")
    if why := gpu.crowded(machine.gpu_occupancy()):
        return Fact("gpu", value, "slow", why)
    return Fact("gpu", value)


def _compiler_fact() -> Fact:
    if found := machine.cpp_compiler():
        return Fact("compiler", found)
    return Fact("compiler", "no working C++ compiler", "slow", f"install one ({_install_compiler()})")


def _dtype_fact(runtime: Runtime) -> Fact:
    if runtime.dtype == torch.bfloat16:
        return Fact("dtype", "bf16")
    return Fact(
        "dtype", "fp32", "slow", f"{_bf16(runtime.device)[1]}; where bf16 is fast, it trains twice as fast"
    )


def _compile_fact(runtime: Runtime) -> Fact:
    if runtime.compile:
        return Fact("compile", "on")
    why = _compile_trouble(runtime.device) or 'not verified on macOS; runtime.compile = "on" tries it'
    return Fact("compile", "off", "slow", why)


def _speed_facts(runtime: Runtime) -> list[Fact]:
    """What the machine does at best, and what its maker promises (peaks.py)."""
    found = peaks.measured(runtime.device, runtime.dtype)
    form = peaks.DTYPE_NAMES[runtime.dtype]
    value = (
        f"{found.matmul_flops / 1e12:.3g} TFLOP/s in {form}, copies {found.copy_bytes_per_s / GB:.3g} GB/s "
        "(measured now)"
    )
    return [Fact("speed", value), Fact("promised", _promise(runtime, form))]


def _promise(runtime: Runtime, form: str) -> str:
    spec = peaks.spec_of(machine.device_name(runtime.device))
    if spec is None:
        return "not in our table (docs/hardware.md)"
    memory = f"{spec.bytes_per_s / GB:,.0f} GB/s"
    if (promised := spec.peak(runtime.dtype)) is None:
        return f"no figure for {form}; {memory} ({spec.source})"
    return f"{promised / 1e12:,.1f} TFLOP/s in {form}, {memory} ({spec.source})"
