"""A look without the compiler: how long each layer takes, and which line asks for which operation.

A compiled graph has neither layers nor lines of Python: kernels are fused across them. So a few extra steps
are made without torch.compile, after everything else was measured. They are slower and fuse nothing, so their
times say how the layers compare with each other, not what they take in the compiled step.

Layers are timed by hooks around them, which wait for the device. Lines are found by standing between torch
and its kernels (a dispatch mode) and looking up the stack whenever an operation passes. In backward the stack
ends in `loss.backward()`; there, the stack of the forward operation counts, which autograd keeps in anomaly
mode.
"""

import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from pilgrim.lab.profile.findings import Layer
from pilgrim.lab.profile.generated import our_line
from pilgrim.lab.profile.trace import Op, read_events
from pilgrim.model.transformer import Block

LAYER = "pilgrim.layer."
REST = {True: "head, loss, and between the layers", False: "between the layers"}  # by whether it trains


# Layers --------------------------------------------------------------------------------------------


def layers(model: nn.Module, step: Callable[[], None], synchronize: Callable[[], None]) -> tuple[Layer, ...]:
    """Seconds of every layer in one step; what passes through no module is told as one more."""
    with ExitStack() as hooks, profile(activities=[ProfilerActivity.CPU]) as profiler:
        for name, module in parts_of(model):
            hooks.enter_context(_timed(name, module, synchronize))
        step()
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "layers.json"
        profiler.export_chrome_trace(str(file))
        return layers_of(read_events(file))


def layers_of(events: list[dict[str, Any]]) -> tuple[Layer, ...]:
    """The same from a trace's events."""
    seconds: dict[str, dict[str, float]] = {"forward": defaultdict(float), "backward": defaultdict(float)}
    whole = dict.fromkeys(seconds, 0.0)
    for event in events:
        name, took = event.get("name", ""), event.get("dur", 0.0) / 1e6
        if event.get("cat") != "user_annotation":
            continue
        if name.startswith(LAYER):
            direction, _, layer = name.removeprefix(LAYER).partition(".")
            seconds[direction][layer] += took
        elif name in ("pilgrim.forward", "pilgrim.backward"):
            whole[name.removeprefix("pilgrim.")] += took
    found = [Layer(n, s, seconds["backward"].get(n)) for n, s in seconds["forward"].items()]
    rest = {way: max(0.0, whole[way] - sum(seconds[way].values())) for way in seconds}
    trains = whole["backward"] > 0
    return (*found, Layer(REST[trains], rest["forward"], rest["backward"] if trains else None))


def parts_of(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of each block, and what is beside the blocks."""
    for child_name, child in module.named_children():
        path = f"{name}.{child_name}" if name else child_name
        if any(isinstance(inner, Block) for inner in child.modules()):
            yield from parts_of(child, path)
        else:
            yield path, child


@contextmanager
def _timed(name: str, module: nn.Module, synchronize: Callable[[], None]) -> Iterator[None]:
    """Hooks that open a record when the layer begins and close it when it has ended, forward and backward."""
    running: dict[str, record_function] = {}

    def begin(way: str) -> None:
        synchronize()
        running[way] = record_function(f"{LAYER}{way}.{name}")
        running[way].__enter__()

    def end(way: str) -> None:
        synchronize()
        running.pop(way).__exit__(None, None, None)

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        begin("forward")

    def after(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        end("forward")

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    if not isinstance(module, nn.Embedding):  # its input is no number: nothing is propagated through it
        handles += [
            module.register_full_backward_pre_hook(lambda *_: begin("backward")),
            module.register_full_backward_hook(lambda *_: end("backward")),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# Lines ---------------------------------------------------------------------------------------------


class Sources:
    """The line of ours behind each operation."""

    def __init__(self, lines: Mapping[tuple[str, tuple[Any, ...]], Counter[str]]) -> None:
        """`lines`: how often which line asked for an operation of this name with tensors of these shapes."""
        self._exact = {key: max(asked, key=lambda line: asked[line]) for key, asked in lines.items()}
        named: dict[str, set[str]] = defaultdict(set)
        for (name, _), line in self._exact.items():
            named[name].add(line)
        self._unmistakable = {name: found.pop() for name, found in named.items() if len(found) == 1}

    def of(self, op: Op) -> str | None:
        """The line behind an operation of a trace, by its name and shapes or those of its callers (stack
        calls cat); else by the name alone, if only one line asks for such."""
        calls = [op]
        while (caller := calls[-1].caller) is not None:
            calls.append(caller)
        exact = (self._exact.get((call.name, shapes(call.dims))) for call in calls)
        named = (self._unmistakable.get(call.name) for call in calls)
        return next(filter(None, (*exact, *named)), None)


def sources(step: Callable[[], None]) -> Sources:
    """Make a step, and watch where its operations are asked for."""
    with warnings.catch_warnings(), Watcher() as watcher:
        warnings.simplefilter("ignore", UserWarning)  # that anomaly mode is slow
        with torch.autograd.set_detect_anomaly(True, check_nan=False):
            step()
    return Sources(watcher.lines)


class Watcher(TorchDispatchMode):
    """Notes where each operation was asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: dict[tuple[str, tuple[Any, ...]], Counter[str]] = defaultdict(Counter)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if line := asked_here():
            self.lines[func._schema.name, shapes(args)][line] += 1
        return func(*args, **(kwargs or {}))


def shapes(args: Any) -> tuple[Any, ...]:
    """The shapes of all tensors among the arguments, in their order; those of numbers are left out.

    Takes arguments themselves, or what a trace has of them.
    """
    found: list[Any] = []
    for arg in args:
        if isinstance(arg, Tensor):
            found += [tuple(arg.shape)] if arg.ndim else []
        elif isinstance(arg, list | tuple) and arg:
            if all(isinstance(n, int) for n in arg):
                found += [] if isinstance(arg, list) else [tuple(arg)]  # a list of numbers is no shape
            else:
                found += shapes(arg)
    return tuple(found)


def asked_here() -> str | None:
    """The innermost line of ours on the stack, or on that of the forward operation behind this one."""
    node = torch._C._current_autograd_node()
    if node is not None:
        kept: dict[str, list[str]] = node.metadata  # type: ignore[assignment]
        return _line_of_stack("".join(kept.get("traceback_", [])))
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/pilgrim/" in name and "/lab/profile/" not in name:
            return _line_of_stack(f'File "{name}", line {frame.f_lineno}, in {frame.f_code.co_name}')
        frame = frame.f_back
    return None


_line_of_stack = cache(our_line)  # a loop asks from the same place again and again
