"""A trace, read: from the file that Perfetto shows to tasks with a time, a phase and a price.

torch's profiler (Kineto) writes Chrome's trace format: a list of events with a name, a category, a beginning
and a duration. Those that matter here:

    user_annotation                     record_function("pilgrim.forward"): our phases and steps
    cpu_op                              an operation that the host called, nested as the calls were
    kernel, gpu_memcpy, gpu_memset      what the GPU then did, later, on one of its streams
    cuda_runtime, cuda_driver           the host's calls that launch kernels, or wait for them
    [memory]                            bytes taken (positive) and given back (negative), with their address

A launch and its kernel carry the same `correlation`; a kernel and the operation that asked for it the same
`External id`. So every kernel has an operation with the shapes of its inputs, from which its price in
floating-point operations and bytes is computed (costs.py).

On a CPU there are no kernels. What stands for them are the innermost operations that really compute: not the
views, not the allocations, and not the wrappers around other operations. Talk between processes ("gloo:…")
goes on in threads of its own.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.lab.profile.intervals import Span, length, minus, overlap, union

PHASES = ("data", "forward", "backward", "optimizer", "sync")
DEVICE_KINDS = {"kernel", "gpu_memcpy", "gpu_memset"}
HOST_CALLS = {"cuda_runtime", "cuda_driver"}
COMPILED = ("graph_", "cpp_fused", "triton_")  # kernels that torch.compile wrote
CALLED_GRAPH = "## Call CompiledFxGraph"  # around the kernels of a compiled graph

# Operations that move no numbers: views, allocations, and wrappers whose work is in their children.
VIEWS = """
view _unsafe_view reshape _reshape_alias t transpose permute expand expand_as unsqueeze squeeze slice select
narrow as_strided as_strided_ unbind split split_with_sizes chunk unflatten flatten detach detach_ alias
view_as numpy_T mT adjoint movedim swapaxes broadcast_to unfold diagonal conj _conj
resolve_conj resolve_neg lift lift_fresh
"""
ALLOCATIONS = """
empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize_ set_ is_pinned record_stream
result_type is_nonzero item requires_grad_
"""
WRAPPERS = """
to _to_copy type_as contiguous matmul linear zeros ones zeros_like ones_like full full_like new_zeros new_ones
new_full stack clone pin_memory arange einsum pad softmax log_softmax outer hstack vstack
scaled_dot_product_attention
"""
HELP = frozenset({"aten::fill_", "aten::zero_", "aten::copy_"})  # what kernels call to prepare their output
BOOKKEEPING = frozenset(f"aten::{name}" for name in f"{VIEWS} {ALLOCATIONS} {WRAPPERS}".split())


@dataclass(frozen=True, eq=False)
class Op:
    """An operation that the host called. `children` are those it called in turn."""

    name: str
    begin_us: float
    end_us: float
    thread: int
    dims: tuple[Any, ...]  # shapes of its arguments; () for what is no tensor; nested for lists of them
    types: tuple[str, ...]
    recomputed: bool  # a forward operation that is done in backward
    graph: int | None  # the number of the call of a compiled graph it is in
    caller: "Op | None" = field(default=None, repr=False)
    children: list["Op"] = field(default_factory=list, repr=False)


@dataclass(frozen=True, eq=False)
class Task:
    """Something that keeps the device busy: a kernel, or on a CPU an operation that computes."""

    name: str
    begin_us: float
    end_us: float
    busy_us: float  # of it, not counting what runs inside it on a CPU
    phase: str  # in which the host called it; "other" outside all
    op: Op | None  # what the host called
    communication: bool = False

    @property
    def recomputed(self) -> bool:
        return self.op is not None and self.op.recomputed


@dataclass(frozen=True)
class MemoryEvent:
    time_us: float
    address: int
    bytes: int  # negative: given back
    allocated: int  # after it, in all, as torch's allocator counts; on a CPU only since the trace began
    reserved: int  # by the allocator from the driver; 0 on a CPU


@dataclass(frozen=True)
class Trace:
    """A profiled stretch of steps. Times are microseconds on the trace's own clock."""

    window: Span  # from the beginning of the first step until all its work was done
    steps: tuple[Span, ...]
    phases: dict[str, list[Span]]  # by name: when the host was in it
    tasks: tuple[Task, ...]  # in the order in which they began
    waits: list[Span]  # when a host call waited for the device
    on_device: bool  # whether there is a device beside the host
    memory: tuple[MemoryEvent, ...]

    def phase_at(self, time_us: float) -> str:
        return next(
            (p for p, spans in self.phases.items() if any(b <= time_us < e for b, e in spans)), "other"
        )


def read_trace(file: Path) -> Trace:
    """Read what `torch.profiler.profile.export_chrome_trace` wrote, zipped or not.

    Raises DataError if it is no trace of ours: one with "pilgrim.step" in it.
    """
    return parse_trace(read_events(file), str(file))


def read_events(file: Path) -> list[dict[str, Any]]:
    """The events of a trace's file, zipped or not."""
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as stream:
        events: list[dict[str, Any]] = json.load(stream)["traceEvents"]
    return events


def parse_trace(events: Sequence[dict[str, Any]], place: str = "the trace") -> Trace:
    """The same from the events themselves."""
    timed = [e for e in events if e.get("ph") == "X"]
    marks = [e for e in timed if e.get("cat") == "user_annotation"]
    steps = [e for e in marks if e["name"] == "pilgrim.step"]
    if not steps:
        raise DataError(f"{place} holds no step (pilgrim.step); make it with pilgrim profile")
    phases = {p: union(_span(e) for e in marks if e["name"] == f"pilgrim.{p}") for p in PHASES}
    device = [e for e in timed if e.get("cat") in DEVICE_KINDS]
    calls = [e for e in timed if e.get("cat") in HOST_CALLS]
    ends = [_span(e)[1] for e in (*steps, *device)] + [end for _, end in phases["sync"]]
    window = min(_span(e)[0] for e in steps), max(ends)
    roots, by_id = _nest([e for e in timed if e.get("cat") in ("cpu_op", "user_annotation")], phases)
    trace = Trace(
        window,
        tuple(_span(e) for e in steps),
        phases,
        (),
        union(_span(e) for e in calls if "Synchronize" in e["name"]),
        bool(device),
        tuple(_memory(events, bool(device))),
    )
    found = _kernels(trace, device, calls, by_id) if device else _working(trace, roots, int(steps[0]["tid"]))
    tasks = sorted(
        (t for t in found if window[0] <= t.begin_us < t.end_us <= window[1]), key=lambda t: t.begin_us
    )
    return Trace(**{**trace.__dict__, "tasks": tuple(tasks)})


def _span(event: dict[str, Any]) -> Span:
    return float(event["ts"]), float(event["ts"]) + float(event["dur"])


def _nest(events: list[dict[str, Any]], phases: dict[str, list[Span]]) -> tuple[list[Op], dict[int, Op]]:
    """The tree of calls of every thread, and the operations by `External id`."""
    roots: list[Op] = []
    by_id: dict[int, Op] = {}
    graphs = 0
    open_calls: list[Op] = []
    for event in sorted(events, key=lambda e: (e["tid"], e["ts"], -e["dur"])):
        (begin, end), args = _span(event), event.get("args", {})
        while open_calls and (open_calls[-1].thread != event["tid"] or open_calls[-1].end_us <= begin):
            open_calls.pop()
        above = open_calls[-1] if open_calls else None
        graph = above.graph if above else None
        if event["name"].startswith(CALLED_GRAPH):
            graph, graphs = graphs, graphs + 1
        op = Op(
            event["name"],
            begin,
            min(end, above.end_us) if above else end,  # rounded, a call can seem to outlast its caller
            event["tid"],
            _tuples(args.get("Input Dims", ())),
            tuple(args.get("Input type", ())),
            (above.recomputed if above else False) or _recomputes(event, phases),
            graph,
            above,
        )
        (above.children if above else roots).append(op)
        open_calls.append(op)
        if event["cat"] == "cpu_op":
            by_id[args.get("External id", -1)] = op
    return roots, by_id


def _recomputes(event: dict[str, Any], phases: dict[str, list[Span]]) -> bool:
    """Whether a checkpointed forward runs again: an operation in backward of which a gradient is recorded.

    Backward's own operations run with gradients off, so they have no sequence number of their own; the
    autograd engine's nodes have the one of the forward operation, and name the thread that ran it.
    """
    args = event.get("args", {})
    records = args.get("Sequence number", -1) >= 0 and not args.get("Fwd thread id")
    inside = any(begin <= event["ts"] < end for begin, end in phases["backward"])
    return inside and records and event["name"].startswith("aten::")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _working(trace: Trace, roots: list[Op], main: int) -> Iterator[Task]:
    """On a CPU: the operations of the main thread that compute, wherever they are in the tree of calls, and
    what other threads say to other processes.
    """
    for root in roots:
        if root.thread == main:
            yield from _working_below(trace, root)
        elif _communicates(root.name):
            busy_us, phase = root.end_us - root.begin_us, trace.phase_at(root.begin_us)
            yield Task(root.name, root.begin_us, root.end_us, busy_us, phase, root, communication=True)


def _working_below(trace: Trace, op: Op) -> Iterator[Task]:
    """The tasks in `op`, itself included. What works by calling others is none, but for help."""
    found = [task for child in op.children for task in _working_below(trace, child)]
    yield from found
    if _computes(op.name) and all(task.name in HELP for task in found):
        inside = overlap(((c.begin_us, c.end_us) for c in op.children), [(op.begin_us, op.end_us)])
        own_us = op.end_us - op.begin_us - length(inside)
        phase = trace.phase_at(op.begin_us)
        yield Task(op.name, op.begin_us, op.end_us, own_us, phase, op, _communicates(op.name))


def _computes(name: str) -> bool:
    if "autograd::" in name or name.startswith("FSDP::") or name in BOOKKEEPING:
        return False
    return name.startswith(COMPILED) or ("::" in name and " " not in name)


def _communicates(name: str) -> bool:
    return "nccl" in name.lower() or name.startswith(("c10d::", "gloo:", "_c10d_functional::"))


def _kernels(
    trace: Trace, device: list[dict[str, Any]], calls: list[dict[str, Any]], by_id: dict[int, Op]
) -> Iterator[Task]:
    """On a GPU: its kernels and copies, each with the operation and the phase that launched it."""
    launched = {e["args"].get("correlation"): e["ts"] for e in calls}
    for event in device:
        (begin, end), args = _span(event), event["args"]
        op = by_id.get(args.get("External id", -1))
        at = launched.get(args.get("correlation"), op.begin_us if op else begin)
        yield Task(
            event["name"], begin, end, end - begin, trace.phase_at(at), op, _communicates(event["name"])
        )


def _memory(events: Sequence[dict[str, Any]], on_device: bool) -> Iterator[MemoryEvent]:
    """What was taken and given back, on the device or, where there is none, on the host."""
    for event in events:
        if event.get("name") != "[memory]":
            continue
        args = event["args"]
        if (args["Device Type"] != 0) == on_device:
            yield MemoryEvent(
                float(event["ts"]),
                args["Addr"],
                args["Bytes"],
                args["Total Allocated"],
                args["Total Reserved"],
            )


def idle(trace: Trace) -> list[Span]:
    """When nothing computes and nothing communicates, within the window."""
    return minus([trace.window], ((task.begin_us, task.end_us) for task in trace.tasks))
