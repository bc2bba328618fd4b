"""Graph breaks and recompilations, with their causes, as torch really tells them."""

import re

import pytest
import torch

from pilgrim.lab.profile.compilation import break_cause, listening

# torch's own, when it loads its compiler
loads_the_compiler = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@loads_the_compiler
def test_a_break_and_a_recompilation_are_told_with_their_places() -> None:
    def work(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        torch._dynamo.graph_break()
        return y + 1

    compiled = torch.compile(work, dynamic=False, backend="aot_eager")
    with listening() as log:
        compiled(torch.ones(4))
        log.steady = True
        compiled(torch.ones(5))
    assert len(log.breaks) == 1
    assert re.search(
        r"test_profile_compilation.py:\d+: Call to `torch._dynamo.graph_break\(\)`", log.breaks[0]
    )
    assert any(
        "size mismatch at index 0. expected 4, actual 5 (after warming up)" in r for r in log.recompilations
    )
    assert log.late == len(log.recompilations) >= 1
    assert log.compilation(True, 1.5).breaks == tuple(log.breaks)


@loads_the_compiler
def test_nothing_is_heard_outside() -> None:
    with listening() as log:
        pass
    torch.compile(lambda x: x + 1, backend="aot_eager")(torch.ones(3))
    assert not log.graphs and not log.breaks


@loads_the_compiler
def test_a_cause_in_another_form_is_told_whole() -> None:
    assert break_cause("something new") == "something new"
