"""Memory over a step, by kind, and how many rows of a microbatch would fit.

The trace tells when how many bytes were taken and given back, and at which address, but not what for. That
follows from what is known besides:

    parameters, optimizer   exact: their tensors are there all the time
    gradients               blocks at the addresses that the parameters' gradients have after backward
    activations             whatever else is taken in forward and backward: what backward will need, and
    scratch other                   the rest: batches, the optimizer's scratch, a cache of keys and values

Activations grow with the rows of a microbatch; nothing else does. So from the largest amount of them that was
held at one time follows how many rows would fill the memory.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pilgrim.lab.profile.findings import Memory
from pilgrim.lab.profile.trace import MemoryEvent, Trace

POINTS = 300  # of the curve
MARGIN = 0.08  # of the capacity that is left alone: the allocator's gaps, other programs
KINDS = ("gradients", "activations", "other")


@dataclass(frozen=True)
class Known:
    """Bytes that are known without the trace, and how the step was cut."""

    parameters: int
    optimizer: int
    other: int  # held all the time, for something else: a cache of keys and values
    capacity: int  # of the device
    micro_rows: int
    gradients: Sequence[frozenset[int]]  # addresses after backward, for each step
    grows: int = 0  # of `other`: what grows with the rows, too


def memory(trace: Trace, known: Known) -> Memory:
    """Memory over the last profiled step."""
    begin, end = trace.steps[-1][0], trace.window[1]
    first = trace.memory[0] if trace.memory else None
    fixed = known.parameters + known.optimizer
    other = known.other
    if trace.on_device and first:  # what the allocator held when the trace began, and nobody has told of
        other = max(other, first.allocated - first.bytes - fixed)
    held = dict.fromkeys(KINDS, 0)
    peak, at_peak, reserved, most_activations, most_gradients = -1, dict(held), None, 0, 0
    curve: list[tuple[float, int]] = []
    for event, kind, size in _changes(trace, known):
        held[kind] += size
        if event.time_us < begin:
            continue
        total = fixed + other + sum(held.values())
        curve.append(((event.time_us - begin) / 1e6, total))
        most_activations = max(most_activations, held["activations"])
        most_gradients = max(most_gradients, held["gradients"])
        if total > peak:
            peak, at_peak = total, dict(held)
            reserved = event.reserved - event.allocated if trace.on_device else None
    grows = most_activations + known.grows
    room = known.capacity * (1 - MARGIN) - fixed - most_gradients - (other - known.grows)
    return Memory(
        parameters=known.parameters,
        gradients=at_peak["gradients"],
        optimizer=known.optimizer,
        activations=at_peak["activations"],
        other=other + at_peak["other"],
        fragmentation=reserved,
        capacity=known.capacity,
        curve=tuple(_thinned(curve, (end - begin) / 1e6)) or ((0.0, fixed + other),),
        micro_rows=known.micro_rows,
        micro_rows_that_fit=max(0, int(room * known.micro_rows / grows)) if grows else known.micro_rows,
    )


def _changes(trace: Trace, known: Known) -> Iterator[tuple[MemoryEvent, str, int]]:
    """Every taking and giving back, with the kind of what it is about. Blocks from before the trace are left
    out."""
    gradients = _gradient_blocks(trace, known)
    blocks: dict[int, tuple[str, int]] = {}
    for i, event in enumerate(trace.memory):
        if event.bytes > 0:
            kind = "gradients" if i in gradients else _kind(trace.phase_at(event.time_us))
            blocks[event.address] = kind, event.bytes
            yield event, kind, event.bytes
        elif event.address in blocks:
            kind, size = blocks.pop(event.address)
            yield event, kind, -size


def _kind(phase: str) -> str:
    return "activations" if phase in ("forward", "backward") else "other"


def _gradient_blocks(trace: Trace, known: Known) -> set[int]:
    """Which takings (by their index) are gradients: those whose block lies at a gradient's address when
    backward ends. An address is used many times in a step, so the last taking of it before that counts."""
    begins = [begin for begin, _ in trace.steps]
    taken: dict[int, dict[int, int]] = defaultdict(dict)  # step -> address -> index of its last taking
    for i, event in enumerate(trace.memory):
        step = bisect_right(begins, event.time_us) - 1
        if event.bytes > 0 and step >= 0 and trace.phase_at(event.time_us) in ("forward", "backward"):
            taken[step][event.address] = i
    return {
        index
        for step, addresses in enumerate(known.gradients)
        for address, index in taken[step].items()
        if address in addresses
    }


def _thinned(curve: list[tuple[float, int]], seconds: float) -> Iterator[tuple[float, int]]:
    """At most POINTS points; of each stretch of time the one that holds most, so that peaks stay."""
    highest: dict[int, tuple[float, int]] = {}
    for time_s, held in curve:
        stretch = min(POINTS - 1, int(time_s / max(seconds, 1e-12) * POINTS))
        if stretch not in highest or held > highest[stretch][1]:
            highest[stretch] = time_s, held
    return (highest[stretch] for stretch in sorted(highest))
