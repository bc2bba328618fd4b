"""Blocks run again in backward give the gradients of blocks that keep everything, and keep less."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pilgrim.core import machine
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import token_losses
from pilgrim.train.step import accumulate, compiled_token_losses

EAGER = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
DEPTH, WIDTH, CONTEXT, VOCABULARY = 2, 32, 48, 60


def network(recompute: bool) -> Transformer:
    settings = ModelSettings(depth=DEPTH, width=WIDTH, head_size=16, context=CONTEXT)
    model = Transformer(settings.config(VOCABULARY))
    initialize(model, EAGER.generator("initialize"))
    dice = EAGER.generator("instead of zeros")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=dice) * 0.05)
    model.recompute = recompute
    return model


def batch() -> Batch:
    ids = torch.randint(VOCABULARY, (4, CONTEXT + 1), generator=EAGER.generator("ids"))
    documents = (torch.arange(CONTEXT) // 20).to(torch.int32).expand(4, -1).contiguous()
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), documents)


def gradients(recompute: bool, runtime: Runtime) -> tuple[float, dict[str, Tensor]]:
    model = network(recompute)
    result = accumulate(model, batch(), 2, compiled_token_losses(runtime), runtime)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(found) == len(list(model.parameters()))
    return float(result.loss), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_equal_to_the_bit(dtype: torch.dtype) -> None:
    runtime = replace(EAGER, dtype=dtype)
    (loss, kept), (again, recomputed) = gradients(False, runtime), gradients(True, runtime)
    assert loss == again
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within its compiler
@pytest.mark.skipif(machine.cpp_compiler() is None, reason="torch.compile needs a C++ compiler")
def test_compiled_too() -> None:
    """In fp32. Compiled bf16 rounds where its kernels end, and with recomputation they end elsewhere."""
    runtime = replace(EAGER, compile=True)
    (loss, kept), (again, recomputed) = gradients(False, runtime), gradients(True, runtime)
    assert loss == pytest.approx(again, rel=1e-6)
    for name, gradient in kept.items():
        difference = torch.linalg.vector_norm(recomputed[name] - gradient)
        assert difference <= 1e-6 * torch.linalg.vector_norm(gradient), name


def test_a_block_keeps_only_its_input() -> None:
    """What is kept between forward and backward grows by a row of width numbers a token for each block."""

    def kept_bytes(recompute: bool) -> int:
        model, storages = network(recompute), {}
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def keep(x: Tensor) -> Tensor:
            storages[x.untyped_storage().data_ptr()] = x
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = token_losses(model, batch(), torch.float32).total
        sizes = {at: x.untyped_storage().nbytes() for at, x in storages.items() if at not in parameters}
        loss.backward()
        return sum(sizes.values())

    tokens = batch().inputs_bt.numel()
    everything, inputs = kept_bytes(False), kept_bytes(True)
    assert everything - inputs > DEPTH * 8 * tokens * WIDTH * 4  # at least eight times as much for a block
    assert inputs < everything / 3


def test_a_cache_is_not_filled_twice() -> None:
    """Generation has nothing to go backward through, so its blocks run once."""
    sampling = Sampling(temperature=0, max_tokens=8, seed=1)
    replies = [
        Engine(network(recompute), EAGER).generate([[1, 2, 3]], sampling, stop_ids=())
        for recompute in (False, True)
    ]
    assert replies[0][0].ids == replies[1][0].ids
