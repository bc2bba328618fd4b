"""Programs of compiled graphs, read back, and their calls found again in a trace."""

from collections.abc import Callable

import pytest
import torch

from pilgrim.core import machine
from pilgrim.lab.profile.compilation import listening
from pilgrim.lab.profile.generated import Call, calls_of, our_line, program_name, read_graph, with_sources
from pilgrim.lab.profile.trace import parse_trace

from .conftest import Story

PROGRAM = """
# AOT ID: ['3_backward']
cpp_fused_add_mul_0 = async_compile.cpp_pybinding(['const float*'], r'''
    record("graph_3_cpp_fused_add_mul_0", nullptr);
''')
def call(self, args):
    primals_1, primals_2 = args
    args.clear()
    buf0 = empty_strided_cpu((2, 8), (8, 1), torch.bfloat16)
    # [Provenance debug handles] extern_kernels.mm:1
    extern_kernels.mm(primals_1, reinterpret_tensor(primals_2, (4, 8), (8, 1), 0), out=buf0)
    buf1 = buf0; del buf0  # reuse
    # [Provenance debug handles] cpp_fused_add_mul_0:2
    cpp_fused_add_mul_0(buf1, primals_1)
    # [Provenance debug handles] extern_kernels.mm:3
    extern_kernels.mm(buf1, primals_2, out=buf2)
    return (buf1, )

def benchmark_compiled_module(times=10, repeat=10):
    primals_1 = rand_strided((2, 4), (4, 1), device='cpu', dtype=torch.float32)
    primals_2 = rand_strided((4, 8), (8, 1), device='cpu', dtype=torch.float32)
"""
STACKS = {
    "extern_kernels.mm:1": [
        '  File "/x/pilgrim/a.py", line 3, in one\n',
        '  File "/x/torch/b.py", line 9, in it\n',
    ],
    "cpp_fused_add_mul_0:2": ['  File "/x/pilgrim/c.py", line 5, in two\n'],
}


def test_a_program_is_read() -> None:
    graph = with_sources(read_graph(PROGRAM), STACKS)
    assert (graph.direction, graph.number) == ("backward", "graph_3")
    assert graph.calls == (
        Call("extern_kernels.mm", None, "pilgrim/a.py:3 in one"),
        Call("cpp_fused_add_mul_0", 16 * 2 + 8 * 4, "pilgrim/c.py:5 in two"),
        Call("extern_kernels.mm", None, None),
    )
    assert graph.own == {"cpp_fused_add_mul_0"}


def test_tasks_find_their_calls(story: Callable[[], Story]) -> None:
    """By the number of the graph, since other graphs may have kernels of the same name; products by their
    order."""
    other = read_graph(PROGRAM.replace("graph_3", "graph_4"))
    graph = with_sources(read_graph(PROGRAM), STACKS)
    told = story().mark("step", 0, 10).mark("backward", 0, 10).op("## Call CompiledFxGraph fabc ##", 0, 5)
    told.op("aten::mm", 0, 1, [2, 4], [4, 8]).op("graph_3_cpp_fused_add_mul_0", 1, 2).op(
        "aten::mm", 2, 3, [2, 8]
    )
    told.op("aten::mm", 6, 7, [9, 9], [9, 9])  # outside the graph
    trace = parse_trace(told.events)
    found = calls_of(trace, [other, graph])
    assert [program_name(task) for task in found] == [
        "extern_kernels.mm",
        "cpp_fused_add_mul_0",
        "extern_kernels.mm",
    ]
    assert [call.source for call in found.values()] == [
        "pilgrim/a.py:3 in one",
        "pilgrim/c.py:5 in two",
        None,
    ]


def test_lines_of_ours() -> None:
    stack = '  File "/a/pilgrim/model/x.py", line 12, in forward\n  File "/b/torch/y.py", line 1, in mm\n'
    assert our_line(stack) == "pilgrim/model/x.py:12 in forward"
    assert our_line('File "/b/torch/y.py", line 1, in mm') is None
    assert (
        our_line(f'File "{__file__}", line 1, in x')
        == "tests/unit/lab/profile/test_profile_generated.py:1 in x"
    )


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when it loads its compiler
@pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
def test_what_torch_compiles_now_is_read_too() -> None:
    """Names and forms in its programs are torch's own business: this notices if they change."""

    def work(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return ((x @ w).exp() * 2).sum()

    x, w = torch.ones(24, 40), torch.ones(40, 56, requires_grad=True)
    with listening() as log:
        torch.compile(work, dynamic=False)(x, w).backward()
    assert [graph.direction for graph in log.graphs] == ["forward", "backward"]
    forward = {call.name: call for call in log.graphs[0].calls}
    fused = next(call for name, call in forward.items() if name.startswith("cpp_fused"))
    assert (
        forward["extern_kernels.mm"].source
        and "test_profile_generated.py" in forward["extern_kernels.mm"].source
    )
    assert fused.bytes and fused.bytes >= 24 * 56 * 4
    assert not log.breaks and not log.recompilations
