"""Which attention backend a machine has, and which of them is fastest for a network.

On an NVIDIA GPU it depends on the card, its torch, the packages beside it, and the network's shape. So
whatever can run is timed once, forward and backward, on rows of the real shape; what fails or disagrees
with the plain formula is left out, and the fastest is taken. With `runtime.deterministic` nothing is left to
timing: the first of TIMED is taken that adds in a fixed order in backward, where most kernels let thread
blocks add to dQ as they get done.

On a CPU a rule decides, so that every run of a seed has the same bits: our C on x86 processors, but not in
bf16 with AMX, whose matrix unit only torch's products use. Then, and on other processors, it is our blocks
where the step is compiled, and else torch's fused kernel, as on Apple's GPU.

`runtime.attention` overrules all that.

    choice = choose(runtime, config, rows)
    choice.backend, choice.milliseconds, choice.note

The time is that of all layers together: windows make some of them cheaper.
"""

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import get_args

import torch
from torch import Tensor

from pilgrim.core import machine
from pilgrim.core.errors import SettingsError
from pilgrim.core.runtime import Runtime
from pilgrim.model import document_attention
from pilgrim.model.attention import packed_attention, reference_attention
from pilgrim.model.attention_kernels import FLASH, Backend, prepare
from pilgrim.model.attention_spans import different
from pilgrim.model.config import ModelConfig

BACKENDS: tuple[Backend, ...] = get_args(Backend)
FOR_CPUS: tuple[Backend, ...] = ("blocks", "documents")
TIMED: tuple[Backend, ...] = ("fa4", "fa3", "varlen", "flex")  # never a table of all pairs on a GPU
TOLERANCE = 2**-5  # of the largest value, against the formula in fp32: bf16 rounds at 2**-8, several times
TIMED_RUNS = 10
REPEATED = 5
MODULES = {"fa3": "flash_attn_interface", "fa4": "flash_attn.cute"}  # what torch imports for them
ARCHITECTURES = {"fa3": (9,), "fa4": (9, 10)}  # major compute capabilities that torch admits for them

# Versions that drop the request for a fixed order are in use, and do not say so: of FlashAttention 3 until
# Dao-AILab/flash-attention#1766 at least, of 4 on Hopper with grouped heads until #2510.
UNORDERED: tuple[Backend, ...] = ("fa3", "fa4")


@dataclass(frozen=True)
class Choice:
    """The backend, what was timed for it, and why others were left out."""

    backend: Backend
    milliseconds: dict[str, float] = field(default_factory=dict)  # of all layers, forward and backward
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """A sentence for whoever follows the run."""
        by_time = sorted(self.milliseconds.items(), key=lambda item: item[1])
        timed = ", ".join(f"{name} {ms:.1f} ms" for name, ms in by_time)
        because = "; ".join(f"{name} is left out: {why}" for name, why in self.left_out.items())
        if len(by_time) > 1:
            timed = f"the fastest of {timed}"
        fastest = f"Attention by {self.backend}" + (f", {timed} in all layers" if timed else "")
        return f"{fastest}; {because}." if because else f"{fastest}."


def trouble(backend: Backend, runtime: Runtime, config: ModelConfig) -> str | None:
    """Why this machine can't train that network with `backend`; None if it can."""
    device = runtime.device.type
    if runtime.deterministic and backend in UNORDERED:
        return "not all of its versions give the same bits twice, as runtime.deterministic = true wants"
    if device != "cuda":
        if backend in TIMED:
            return f"it needs an NVIDIA GPU, and this run computes on {device}"
        if backend in FOR_CPUS and device != "cpu":
            return "it is for CPUs"
        return document_attention.trouble(runtime.dtype) if backend == "documents" else None
    if backend == "documents":
        return "it is for CPUs"
    if backend in ("sdpa", "blocks"):
        return "with packed documents it needs a table of all pairs, which no GPU should have to hold"
    if backend == "flex":
        if not runtime.compile:
            return "it is fast only when compiled, and runtime.compile is off"
        return f"it needs heads of 16 or more, not {config.head_size}" if config.head_size < 16 else None
    return _flash_trouble(backend, runtime, config) if backend in FLASH else None


def _flash_trouble(backend: Backend, runtime: Runtime, config: ModelConfig) -> str | None:
    major, minor = torch.cuda.get_device_capability(runtime.device)
    if runtime.dtype != torch.bfloat16:
        return "FlashAttention computes in bf16, and this run in fp32"
    if config.head_size % 8 or config.head_size > 256:
        return f"FlashAttention needs heads of 8, 16, … 256, not {config.head_size}"
    if backend == "varlen":
        available = torch.backends.cuda.is_flash_attention_available()
        return None if available and major >= 8 else "this torch has no FlashAttention for this GPU"
    if major not in ARCHITECTURES[backend]:
        return f"it is not made for compute capability {major}.{minor}"
    if not _installed(MODULES[backend]):
        return f"the package with {MODULES[backend]} is not installed"
    return None


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, OSError):  # a parent package that is missing, or can't load its libraries
        return False


def refuse_impossible(runtime: Runtime, config: ModelConfig) -> None:
    """Raises SettingsError if `runtime.attention` names a backend that this machine or network can't have."""
    if runtime.attention == "auto":
        return
    assert runtime.attention in BACKENDS
    if why := trouble(runtime.attention, runtime, config):
        raise SettingsError(f'runtime.attention = "{runtime.attention}": {why}; write "auto"')


def choose(runtime: Runtime, config: ModelConfig, rows: int) -> Choice:
    """The backend for microbatches of `rows` rows, made ready to use. Raises as `refuse_impossible`."""
    refuse_impossible(runtime, config)
    if runtime.attention != "auto":
        return activated(Choice(runtime.attention))
    if runtime.device.type == "cpu":
        return on_a_cpu(runtime)
    if runtime.device.type != "cuda":
        return Choice("sdpa")
    # Nothing is said of the others: nobody expects FlashAttention 3 on another card than Hopper's.
    candidates = [backend for backend in TIMED if trouble(backend, runtime, config) is None]

    def measure(backend: Backend) -> float:
        activate(backend)
        return measure_ms(backend, runtime, config, rows)

    return activated(fastest(candidates, measure, first=runtime.deterministic))


def untimed(runtime: Runtime, config: ModelConfig) -> Backend | None:
    """What evaluation takes, which is too short to time anything; None is torch's fused kernel with a table.

    It is what was asked for; else on a CPU what training takes there, and on an NVIDIA GPU FlashAttention 2,
    or if that can't run FlexAttention.
    """
    if runtime.attention != "auto":
        return runtime.attention
    if runtime.device.type == "cpu":
        return on_a_cpu(runtime).backend
    if runtime.device.type == "cuda":
        able: tuple[Backend, ...] = ("varlen", "flex")
        return next((backend for backend in able if trouble(backend, runtime, config) is None), None)
    return None


def on_a_cpu(runtime: Runtime) -> Choice:
    """What a CPU computes by, for any network. The rule is as measured (journal, 2026-11-23, a faster step);
    nobody has measured on ARM, nor on Apple's processors.
    """
    by_torch: Backend = "blocks" if runtime.compile else "sdpa"
    amx = runtime.dtype == torch.bfloat16 and "AMX" in machine.bf16_instructions()
    if amx or platform.machine() != "x86_64":
        return Choice(by_torch)
    why = document_attention.trouble(runtime.dtype)
    return Choice(by_torch, left_out={"documents": why}) if why else Choice("documents")


def fastest(
    candidates: Sequence[Backend], measure: Callable[[Backend], float], first: bool = False
) -> Choice:
    """The candidate with the least milliseconds; whatever can't be measured is left out, with its reason.

    With `first`, the first one that can be measured.
    """
    milliseconds: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for backend in candidates:
        try:
            milliseconds[backend] = measure(backend)
        except Exception as error:
            # Kernels fail in many ways on a card that their makers never saw: a missing image, too little
            # shared memory, a compiler's error. Each is a reason to take another one, and to say so.
            left_out[backend] = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        if first and milliseconds:
            break
    if not milliseconds:
        cost = "nothing fast can run here, and the plain formula holds a table of all pairs in every layer"
        return Choice("reference", left_out={**left_out, "the rest": cost})
    best = min((b for b in candidates if b in milliseconds), key=milliseconds.__getitem__)
    return Choice(best, milliseconds, left_out)


def activated(choice: Choice) -> Choice:
    """The same choice, after torch was told which FlashAttention to call."""
    activate(choice.backend)
    return choice


def activate(backend: Backend) -> None:
    """Tell torch which FlashAttention is behind its operators, for the whole process."""
    from torch.nn import attention

    wanted = backend.upper() if backend in MODULES else None
    if wanted == attention.current_flash_attention_impl():
        return
    if wanted is None:
        attention.restore_flash_attention_impl()
    else:
        attention.activate_flash_attention_impl(wanted)


def measure_ms(backend: Backend, runtime: Runtime, config: ModelConfig, rows: int) -> float:
    """Forward and backward through the attention of all layers, in milliseconds: a median.

    Raises RuntimeError if the result is not that of the plain formula.
    """
    documents_bt = example_documents(rows, config.context).to(runtime.device)
    layout = prepare(documents_bt, None, config.windows, backend)
    q, k, v, d_out = _example_heads(runtime, config, rows)
    total_ms = 0.0
    for window in different(config.windows):

        def mix(q: Tensor, k: Tensor, v: Tensor, window: int | None = window) -> Tensor:
            return packed_attention(documents_bt, runtime.dtype, window, backend, layout)(0, q, k, v)

        attend = torch.compile(mix, dynamic=False) if runtime.compile else mix
        _agree(attend, (q, k, v), documents_bt, window)

        def once(attend: Callable[..., Tensor] = attend) -> tuple[Tensor, ...]:
            return torch.autograd.grad(attend(q, k, v), (q, k, v), d_out)

        if runtime.deterministic:
            _repeat(once)
        total_ms += config.windows.count(window) * _median_ms(once, runtime.device)
    return total_ms


def example_documents(rows: int, t: int) -> Tensor:
    """Rows like those of real text: documents of very unequal lengths, and a little padding. int32 [b, t]."""
    shares = torch.tensor([0.55, 0.7, 0.75, 0.95, 0.99])  # of the row, where the next document begins
    position_t = torch.arange(t) / t
    number_t = torch.searchsorted(shares, position_t, right=True).int()
    return torch.where(number_t == len(shares), -1, number_t).repeat(rows, 1)


def _example_heads(runtime: Runtime, config: ModelConfig, rows: int) -> list[Tensor]:
    """q, k, v and a gradient for the output, laid out in memory as the network's projections leave them."""
    generator = torch.Generator(runtime.device).manual_seed(0)
    drawn = []
    for heads in (config.heads, config.kv_heads, config.kv_heads, config.heads):
        shape = rows, config.context, heads, config.head_size
        x = torch.randn(shape, generator=generator, device=runtime.device, dtype=runtime.dtype)
        drawn.append(x.transpose(1, 2).requires_grad_())
    return drawn


def _agree(
    attend: Callable[..., Tensor], qkv: tuple[Tensor, ...], documents_bt: Tensor, window: int | None
) -> None:
    """One row against the formula, which would take too much room for all of them."""
    expected = reference_attention(documents_bt[:1], window)(0, *(x[:1].detach() for x in qkv)).float()
    error = float((attend(*qkv)[:1].detach().float() - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:  # not a number, too
        raise RuntimeError(f"its result differs from the formula's by {error:.1%}")


def _repeat(work: Callable[[], tuple[Tensor, ...]]) -> None:
    """Whoever promises the same bits gives them again."""
    first = work()
    for _ in range(REPEATED):
        if not all(torch.equal(a, b) for a, b in zip(first, work(), strict=True)):
            raise RuntimeError("its gradients differ from one time to the next")


def _median_ms(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(3 + TIMED_RUNS):  # the first ones compile and warm up
        _wait(device)
        begin_s = time.perf_counter()
        work()
        _wait(device)
        times.append(1e3 * (time.perf_counter() - begin_s))
    return sorted(times[3:])[math.floor(TIMED_RUNS / 2)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
