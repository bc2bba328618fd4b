"""Compiled by blocks, as for several processes, against what is not compiled."""

import pytest
import torch

from pilgrim.core import machine
from pilgrim.core.processes import Processes
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import token_losses
from pilgrim.train.parallel import plain_copy
from pilgrim.train.step import TokenLosses, accumulate, losses_by_block


def network() -> Transformer:
    shape = ModelSettings(depth=2, width=32, head_size=16, context=32, window=8, window_pattern="SL")
    model = Transformer(shape.config(64))
    initialize(model, torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def gradients(
    model: Transformer, losses: TokenLosses, runtime: Runtime, recompute: bool
) -> dict[str, torch.Tensor]:
    model.recompute = recompute
    model.zero_grad(set_to_none=True)
    ids = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(2))
    documents = (torch.arange(32) // 20).int().expand(4, -1).contiguous()
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), documents)
    accumulate(model, batch, 2, losses, runtime)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# dynamo asks a block's input for its .grad, with a filter of its own that errors for warnings go past
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within its compiler
def test_blocks_are_the_network() -> None:
    """Gradients, with and without running blocks again; and a copy for sampling is of the same weights."""
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=True, seed=1)
    plain, by_blocks = network(), network()
    losses = losses_by_block(by_blocks, runtime)
    for recompute in (False, True):
        expected = gradients(plain, token_losses, runtime, recompute)
        found = gradients(by_blocks, losses, runtime, recompute)
        assert expected.keys() == found.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    several = Runtime(torch.device("cpu"), torch.float32, True, 1, processes=Processes(0, 2), parallel="ddp")
    with torch.no_grad():
        next(by_blocks.model.layers.parameters()).mul_(2)
    copy = plain_copy(by_blocks, several)
    assert all(torch.equal(copy.weights()[name], weight) for name, weight in by_blocks.weights().items())
    assert "forward" not in vars(copy.model.layers[0])
