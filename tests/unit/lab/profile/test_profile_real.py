"""Real traces on a CPU: everything is found, nothing is disturbed, and planted slowness is named first."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pilgrim.core import machine
from pilgrim.data.loader import Batch
from pilgrim.lab.profile.findings import LOSSES, Findings
from pilgrim.model.transformer import Transformer
from pilgrim.train.loop import Parts
from pilgrim.train.losses import Losses, token_losses


def loads_the_compiler(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that compiles: torch warns of its own code when it loads its compiler."""
    warning = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
    compiler = pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
    return warning(compiler(test))  # type: ignore[no-any-return]


MakeParts = Callable[..., Parts]
Profile = Callable[..., Findings]


def test_a_real_trace_has_everything(tiny: MakeParts, profile: Profile, tmp_path: Path) -> None:
    parts = tiny(tmp_path)
    found = profile(parts)
    assert [loss.name for loss in found.losses] == list(LOSSES)
    assert sum(loss.share for loss in found.losses) + found.mfu == pytest.approx(1, abs=1e-9)
    assert sum(phase.seconds for phase in found.phases) == pytest.approx(found.step_s)
    times = {phase.name: phase.seconds for phase in found.phases}
    assert min(times["data"], times["forward"], times["backward"], times["optimizer"]) > 0
    assert len(found.step_s_each) == 6 and found.tokens == 4 * 128

    layers = {layer.name: layer for layer in found.layers}
    attention = layers["model.layers.1.self_attn"]
    assert attention.forward_s > 0 and attention.backward_s and attention.backward_s > 0
    assert layers["model.embed_tokens"].backward_s is None

    products = [kernel for kernel in found.kernels if kernel.name.startswith("aten::mm")]
    assert all(kernel.flops and kernel.bytes for kernel in products)
    assert any(k.source and "pilgrim/model/layers.py" in k.source for k in products)
    assert any(k.source and "pilgrim/optim/muon.py" in k.source for k in found.kernels)

    parameters = sum(p.numel() * 4 for p in parts.model.parameters())
    assert found.memory.parameters == parameters
    assert found.memory.optimizer == sum(t.numel() * 4 for t in parts.optimizers.tensors().values())
    assert found.memory.activations > 0 and found.memory.micro_rows_that_fit > 2
    assert max(held for _, held in found.memory.curve) >= parameters * 2 + found.memory.optimizer
    assert not found.compilation.enabled

    assert [file.name for file in tmp_path.iterdir()] == ["trace.json.gz"]
    found.save(tmp_path / "profile.json")
    assert Findings.load(tmp_path / "profile.json") == found


def test_gradients_are_told_from_activations(tiny: MakeParts, profile: Profile, tmp_path: Path) -> None:
    """A loss that keeps nothing for backward: then the most is held when the gradients are complete."""

    def small(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        total = torch.stack([p.sum() for p in model.parameters()]).sum()
        return Losses(total, torch.zeros(batch.inputs_bt.shape))

    found = profile(tiny(tmp_path, losses=small))
    assert found.memory.gradients == found.memory.parameters


def test_a_sleep_in_the_loader_is_named_first(tiny: MakeParts, profile: Profile, tmp_path: Path) -> None:
    found = profile(tiny(tmp_path, before=lambda: time.sleep(0.1)))
    first = found.fixes[0]
    assert first.title == "Make batches ahead of time"
    assert first.gain > 0.3  # made ahead, so that the rest of the step hides a part of it


def test_a_storm_of_tiny_kernels_is_named_first(tiny: MakeParts, profile: Profile, tmp_path: Path) -> None:
    def stormy(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        losses = token_losses(model, batch, dtype)
        crumb = torch.zeros(8)
        for _ in range(1000):
            crumb = crumb + 1
        return Losses(losses.total + 0 * crumb.sum(), losses.each_bt)

    found = profile(tiny(tmp_path, losses=stormy))
    assert found.fixes[0].title == "Fuse small kernels"
    assert found.fixes[0].setting == "runtime.compile=on"
    losses = {loss.name: loss.share for loss in found.losses}
    assert max(losses, key=lambda name: losses[name]) == "launch_overhead"


@loads_the_compiler
def test_a_graph_break_is_named_first(tiny: MakeParts, profile: Profile, tmp_path: Path) -> None:
    """A break inside a loop: the compiler gives up on the whole function, and all of it runs step by step."""

    def broken(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        crumb = model.model.norm.weight[:8]
        for _ in range(500):
            crumb = crumb + 1
            torch._dynamo.graph_break()
        return Losses(crumb.sum(), torch.zeros(batch.inputs_bt.shape))

    found = profile(tiny(tmp_path, losses=torch.compile(broken, dynamic=False)), compiled=True)
    assert found.compilation.enabled
    first = found.fixes[0]
    assert first.title == "Mend 1 graph break"
    assert "test_profile_real.py" in first.why and "torch._dynamo.graph_break()" in first.why


@pytest.mark.slow
@pytest.mark.timeout(400)  # a C++ compiler at work
@loads_the_compiler
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, too
def test_compiled_kernels_have_bytes_and_sources(tiny: MakeParts, profile: Profile, tmp_path: Path) -> None:
    found = profile(
        tiny(tmp_path, losses=torch.compile(token_losses, dynamic=False), depth=1), compiled=True, warmup=1
    )
    assert found.compilation.graphs == 2 and not found.compilation.breaks
    fused = [kernel for kernel in found.kernels if kernel.name.startswith("cpp_fused")]
    assert fused and all(kernel.bytes for kernel in fused)
    assert any(kernel.source and "pilgrim/model/layers.py" in kernel.source for kernel in fused)
    products = [kernel for kernel in found.kernels if kernel.name.startswith("aten::mm")]
    assert any(kernel.source and "pilgrim/model/layers.py" in kernel.source for kernel in products)
