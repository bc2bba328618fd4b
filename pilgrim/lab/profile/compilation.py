"""What torch.compile did, from its own log: graphs, breaks in them, compilations done again, and why.

torch.compile looks at a function as Python runs it and takes down its tensor operations as a graph. Two
things spoil that. Where it meets something it can't take down, it ends the graph, lets Python do that one
thing, and begins another: a *graph break*, across which nothing is fused. And compiled code holds only for
what it was compiled for (shapes, numbers, modes); called with something else, it is compiled once more: a
*recompilation*, which takes seconds in the middle of a run.

torch tells all of that in its structured log, "torch.__trace", which the tool tlparse reads from a file.
Here a handler listens to it directly. Its entries are a small dictionary (`metadata`) and a text (`payload`).
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pilgrim.lab.profile.findings import Compilation
from pilgrim.lab.profile.generated import Graph, our_line, read_graph, read_stacks, with_sources

LOG = "torch.__trace"
STACKS = "inductor_provenance_tracking_kernel_stack_traces"


class CompileLog(logging.Handler):
    """Collects what is compiled while it listens."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.graphs: list[Graph] = []
        self.breaks: list[str] = []
        self.recompilations: list[str] = []
        self.steady = False  # set when warming up is over: nothing should be compiled from then on
        self.late = 0  # compilations since
        self._code: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        metadata: dict[str, Any] = getattr(record, "metadata", None) or {}
        payload: str = getattr(record, "payload", None) or ""
        name = (metadata.get("artifact") or {}).get("name")
        if "inductor_output_code" in metadata:
            self.graphs.append(read_graph(payload))
        elif name == STACKS and self.graphs and payload:
            self.graphs[-1] = with_sources(self.graphs[-1], read_stacks(payload))
        elif name == "dynamo_graph_break_reason":
            self._note(self.breaks, break_cause(payload))
        elif "compilation_metrics" in metadata:
            self._compiled(metadata["compilation_metrics"])

    def _compiled(self, metrics: dict[str, Any]) -> None:
        self.late += self.steady
        if reason := metrics.get("recompile_reason"):
            place = our_line(
                f'File "{metrics["co_filename"]}", line {metrics["co_firstlineno"]}, in {metrics["co_name"]}'
            )
            why = reason.splitlines()[0].partition(": ")[2] or reason.splitlines()[0]
            why = re.sub(r"\s*#.*", "", why).strip()
            self._note(self.recompilations, f"{place}: {why}{' (after warming up)' if self.steady else ''}")

    def _note(self, where: list[str], sentence: str) -> None:
        if sentence not in where:
            where.append(sentence)

    def compilation(self, enabled: bool, seconds: float) -> Compilation:
        return Compilation(enabled, len(self.graphs), tuple(self.breaks), tuple(self.recompilations), seconds)


def break_cause(payload: str) -> str:
    """One line of the log's page about a graph break: "place: what it met (what that means)"."""
    place = re.search(r"Graph break in user code at (.+):(\d+)", payload)
    reason = payload.partition("Graph Break Reason:")[2].strip() or payload.strip()
    paragraphs = [line.strip() for line in reason.splitlines() if line.strip()]
    explained = next((p.partition(":")[2].strip() for p in paragraphs if p.startswith("Explanation:")), None)
    # The first line is the general kind of trouble, the one before the explanation what it met here.
    before = [
        p for p in paragraphs[: 1 + next((i for i, p in enumerate(paragraphs) if "Explanation:" in p), 1)]
    ]
    what = next((p for p in reversed(before) if not p.startswith("Explanation:")), "unknown")
    where = our_line(f'File "{place[1]}", line {place[2]}, in it').removesuffix(" in it") if place else None  # type: ignore[union-attr]
    sentence = f"{what} ({explained})" if explained else what
    return f"{where}: {sentence}" if where else sentence


@contextmanager
def listening() -> Iterator[CompileLog]:
    """Within the block, what is compiled is noted, and written such that a profiler can see into it.

    `cpp.enable_kernel_profile`: compiled kernels for a CPU show up in a trace, as those for a GPU always do.
    `trace.provenance_tracking_level`: which line of Python a kernel comes from. What was compiled before, and
    is kept on disk, would tell the lines of that time, so it is not used: profiling compiles anew.
    """
    import torch._functorch.config as functorch
    import torch._inductor.config as inductor

    log, logger = CompileLog(), logging.getLogger(LOG)
    logger.addHandler(log)
    try:
        with (
            inductor.patch(
                {
                    "cpp.enable_kernel_profile": True,
                    "trace.provenance_tracking_level": 2,
                    "fx_graph_cache": False,
                }
            ),
            functorch.patch(enable_autograd_cache=False),
        ):
            yield log
    finally:
        logger.removeHandler(log)


def without_compiling() -> Any:
    """Within the block, compiled functions run as they are written, operation by operation."""
    return torch.compiler.set_stance("force_eager")
