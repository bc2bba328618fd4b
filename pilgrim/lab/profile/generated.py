"""What torch.compile wrote, read back: which line of ours each of its kernels comes from, and what it moves.

The compiler turns a function into a program that calls kernels one after the other. Some it wrote itself,
fusing many small operations; others are the machine's matrix products ("extern"). The program's text says
which tensors each kernel gets, and so how many bytes:

    buf3 = empty_strided_cpu((4, 512, 256), (131072, 256, 1), torch.bfloat16)
    # [Provenance debug handles] cpp_fused_add_mul_0:1
    cpp_fused_add_mul_0(primals_2, buf3)

With `trace.provenance_tracking_level` set, a list beside it says which lines of Python each call
comes from. Both come through torch's structured log, the one that the tool tlparse reads, also when compiled
code was found in the cache (compilation.py listens to it).
"""

import ast
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path

from pilgrim.lab.profile.trace import Task, Trace

DTYPE_BYTES = {
    "float64": 8,
    "int64": 8,
    "float32": 4,
    "int32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "bool": 1,
    "uint8": 1,
    "int8": 1,
}
NAME = r"[A-Za-z_]\w*"
EMPTY = re.compile(rf"({NAME}) = empty_strided_\w+\(\(([\d, ]*)\), \([\d, ]*\), torch\.(\w+)\)")
INPUT = re.compile(rf"({NAME}) = rand_strided\(\(([\d, ]*)\), .*dtype=torch\.(\w+)\)")
VIEW = re.compile(rf"reinterpret_tensor\(({NAME}), \(([\d, ]*)\)")
NAMED_VIEW = re.compile(rf"({NAME}) = {VIEW.pattern}")
RENAMED = re.compile(rf"({NAME}) = ({NAME}); del ")
HANDLE = re.compile(r"# \[Provenance debug handles\] (\S+)")
CALLED = re.compile(rf"\s+({NAME}(?:\.{NAME})*)\((.*)\)")
FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


@dataclass(frozen=True)
class Call:
    """A kernel that a compiled graph calls."""

    name: str  # "cpp_fused_add_mul_0", "triton_poi_fused_add_0", "extern_kernels.mm"
    bytes: float | None  # of the tensors it gets; None for extern kernels, whose shapes the trace has
    source: str | None  # "pilgrim/model/layers.py:28 in forward"


@dataclass(frozen=True)
class Graph:
    """The program of one compiled graph."""

    direction: str  # "forward", "backward" or "inference"
    number: str | None  # "graph_3": what its kernels' names begin with in a CPU's trace
    calls: tuple[Call, ...]

    @property
    def own(self) -> frozenset[str]:
        """The kernels that the compiler wrote for it."""
        return frozenset(call.name for call in self.calls if not call.name.startswith("extern_kernels."))


def read_graph(code: str) -> Graph:
    """Read the program's text. Sources are filled in by `with_sources`."""
    sizes: dict[str, tuple[int, int]] = {}  # numbers, and bytes of one
    for name, dims, dtype in INPUT.findall(code):
        sizes[name] = _numbers(dims), DTYPE_BYTES.get(dtype, 4)
    handle, calls = None, []
    direction = re.search(r"# AOT ID: \['\d+_(\w+)'\]", code)
    for line in _program(code):
        if made := EMPTY.search(line):
            sizes[made[1]] = _numbers(made[2]), DTYPE_BYTES.get(made[3], 4)
        elif view := NAMED_VIEW.search(line):
            sizes[view[1]] = _numbers(view[3]), sizes.get(view[2], (0, 4))[1]
        elif renamed := RENAMED.search(line):
            sizes[renamed[1]] = sizes.get(renamed[2], (0, 4))
        elif found := HANDLE.search(line):
            handle = found[1]
        elif (called := CALLED.match(line)) and _is_kernel(called[1]):
            name = called[1].removesuffix(".run")
            moved = None if name.startswith("extern_kernels.") else _bytes(called[2], sizes)
            calls.append(Call(name, moved, handle))  # the handle stands for the source until that is known
            handle = None
    number = re.search(r'"(graph_\d+)_cpp_fused', code)
    return Graph(direction[1] if direction else "inference", number and number[1], tuple(calls))


def with_sources(graph: Graph, stacks: dict[str, list[str]]) -> Graph:
    """The graph with each call's line of our code; `stacks` is the list that provenance tracking made."""
    return replace(
        graph,
        calls=tuple(
            replace(call, source=source_of(stacks.get(call.source or "", []))) for call in graph.calls
        ),
    )


def read_stacks(text: str) -> dict[str, list[str]]:
    stacks: dict[str, list[str]] = json.loads(text)
    return stacks


def source_of(stacks: list[str]) -> str | None:
    """The innermost line of ours in most of the stacks: "pilgrim/model/layers.py:28 in forward"."""
    lines = [place for stack in stacks if (place := our_line(stack))]
    return max(lines, key=lines.count) if lines else None


def our_line(stack: str) -> str | None:
    """The innermost frame of a traceback's text that is in this package, else the innermost outside torch:
    "pilgrim/model/layers.py:28 in Linear.forward"."""
    frames = FRAME.findall(stack)
    ours = [f for f in frames if "/pilgrim/" in f[0]] or [f for f in frames if "/torch/" not in f[0]]
    if not ours:
        return None
    file, line, function = ours[-1]
    _, package, below = file.rpartition("/pilgrim/")
    shown = package.lstrip("/") + below if package else file.removeprefix(f"{Path.cwd()}/")
    return f"{shown}:{line} in {_class_at(file, int(line))}{function}"


def _class_at(file: str, line: int) -> str:
    """ "Linear." if the line is in that class: a traceback names functions only, and many are `forward`."""
    around = [name for name, begin, end in _classes(file) if begin <= line <= end]
    return f"{around[-1]}." if around else ""


@cache
def _classes(file: str) -> list[tuple[str, int, int]]:
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):  # a function that was typed in, or generated
        return []
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    return [(node.name, node.lineno, node.end_lineno or node.lineno) for node in classes]


def _program(code: str) -> list[str]:
    """The lines of the function that calls the kernels."""
    lines = code.splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"\s*def call\(", line)]
    if not starts:
        return []
    body = []
    for line in lines[starts[0] + 1 :]:
        if re.match(r"\s*return ", line):
            break
        body.append(line)
    return body


def _is_kernel(name: str) -> bool:
    return name.startswith(("extern_kernels.", "cpp_fused", "triton_"))


def _bytes(arguments: str, sizes: dict[str, tuple[int, int]]) -> float:
    total = 0
    for base, dims in VIEW.findall(arguments):
        total += _numbers(dims) * sizes.get(base, (0, 4))[1]
    rest = re.sub(r"reinterpret_tensor\([^()]*\([^()]*\)[^()]*\([^()]*\)[^()]*\)", "", arguments)
    for name in re.findall(rf"\b{NAME}\b", rest):
        numbers, item = sizes.get(name, (0, 0))
        total += numbers * item
    return float(total)


def _numbers(dims: str) -> int:
    return prod(int(n) for n in dims.split(",") if n.strip())


def calls_of(trace: Trace, graphs: Sequence[Graph]) -> dict[Task, Call]:
    """For each task of a compiled graph, the call in the graph's program.

    A graph is recognized by the kernels that were written for it. The n-th product of a call of the graph is
    the n-th in its program.
    """
    found: dict[Task, Call] = {}
    by_call: dict[int, list[Task]] = defaultdict(list)
    for task in sorted(trace.tasks, key=lambda t: t.op.begin_us if t.op else t.begin_us):
        if task.op and task.op.graph is not None:
            by_call[task.op.graph].append(task)
    for tasks in by_call.values():
        names = [program_name(task) for task in tasks]
        own = {name for name in names if not name.startswith("extern_kernels.")}
        number = next((m[1] for t in tasks if (m := re.match(r"(graph_\d+)_", t.name))), None)
        same_number = [g for g in _preferred(graphs, tasks[0].phase) if number is None or g.number == number]
        graph = next((g for g in same_number if own and own == g.own), None)
        for name, task in zip(names, tasks, strict=True) if graph else ():
            same = [call for call in graph.calls if call.name == name]  # type: ignore[union-attr]
            nth = sum(n == name for n in names[: tasks.index(task)])
            if nth < len(same):
                found[task] = same[nth]
    return found


def _preferred(graphs: Sequence[Graph], phase: str) -> list[Graph]:
    """Those made for this direction first: forward and backward may have kernels of the same names."""
    return sorted(graphs, key=lambda graph: graph.direction != phase)


def program_name(task: Task) -> str:
    """The name that the program calls the kernel by: "cpp_fused_add_0" for graph_0_cpp_fused_add_0."""
    name = task.op.name if task.op else task.name
    if name.startswith("aten::"):
        return "extern_kernels." + name.removeprefix("aten::")
    return re.sub(r"^graph_\d+_", "", name)
