"""The memory that training takes: the estimate against what autograd really keeps."""

from typing import Any

import pytest
import torch

from pilgrim.data.loader import Batch
from pilgrim.model.config import ModelConfig, ModelSettings
from pilgrim.model.count import parameters
from pilgrim.model.init import initialize
from pilgrim.model.memory import LOSS_CHUNK, TrainingBytes, rows_that_fit, training_bytes
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import CHUNK, token_losses

BF16, FP32 = torch.bfloat16, torch.float32


def shape(**settings: Any) -> ModelConfig:
    return ModelSettings.model_validate({"depth": 2, "width": 256, "context": 256, **settings}).config(512)


def kept_bytes(config: ModelConfig, rows: int, compiled: bool) -> int:
    """What a forward pass keeps for backward, weights aside, each storage once; in bf16."""
    torch.compiler.reset()
    model = Transformer(config)
    initialize(model, torch.Generator().manual_seed(0))
    ids = torch.zeros(rows, config.context, dtype=torch.int64)
    batch = Batch(ids, ids, ids.to(torch.int32))
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: list[torch.Tensor] = []  # so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    losses = torch.compile(token_losses, dynamic=False) if compiled else token_losses
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses(model, batch, BF16)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
    return sum(storage.nbytes() for at, storage in storages.items() if at not in own)


def per_token_and_layer(compiled: bool, **settings: Any) -> tuple[float, float]:
    """(measured, estimated) bytes that one layer more keeps for each token, copies of its weights aside."""
    shallow, deep = shape(depth=1, **settings), shape(depth=2, **settings)
    tokens = 2 * deep.context
    measured = kept_bytes(deep, 2, compiled) - kept_bytes(shallow, 2, compiled)
    small, large = (training_bytes(config, 2, BF16, compiled) for config in (shallow, deep))
    copies = (large.weights - small.weights) / 3  # 2 of 6 bytes: bf16 beside fp32
    return (measured - copies) / tokens, (large.activations - small.activations) / tokens


@pytest.mark.parametrize("settings", [{}, {"kv_heads": 1}, {"mlp_width": 1536}])
def test_the_estimate_is_what_autograd_keeps(settings: dict[str, Any]) -> None:
    measured, estimated = per_token_and_layer(compiled=False, **settings)
    assert estimated == pytest.approx(measured, rel=0.12)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, in its compiler
def test_the_estimate_is_what_the_compiled_network_keeps() -> None:
    """Less the weights of attention, which only a CPU keeps: heads times keys, in bf16."""
    config = shape()
    measured, estimated = per_token_and_layer(compiled=True)
    weights = config.heads * config.context * 2
    assert estimated == pytest.approx(measured - weights, rel=0.1)


def test_a_row_more_costs_the_same_each_time() -> None:
    one, two, three = (training_bytes(shape(), rows, BF16).total for rows in (1, 2, 3))
    assert two - one == three - two == training_bytes(shape(), 1, BF16).activations


def test_a_number_format_of_twice_the_size_keeps_twice_as_much() -> None:
    bf16, fp32 = training_bytes(shape(), 4, BF16), training_bytes(shape(), 4, FP32)
    assert fp32.activations == 2 * bf16.activations
    assert fp32.weights < bf16.weights, "without a second copy of the matrices"
    assert (fp32.gradients, fp32.optimizer) == (bf16.gradients, bf16.optimizer)


def test_what_saves_memory_is_counted() -> None:
    plain, saving = training_bytes(shape(), 4, BF16), training_bytes(shape(), 4, BF16, recompute=True)
    assert saving.activations < plain.activations and saving.fixed == plain.fixed
    assert training_bytes(shape(), 4, BF16, state_bytes=1).optimizer == round(plain.optimizer / 4)


@pytest.mark.parametrize("rows", [1, 7, 100])
def test_the_rows_that_fit_fit_and_one_more_does_not(rows: int) -> None:
    memory = training_bytes(shape(), rows, BF16).total
    assert rows_that_fit(shape(), memory, BF16) == rows
    assert rows_that_fit(shape(), memory - 1, BF16) == rows - 1
    assert rows_that_fit(shape(), 0, BF16) == 0


def test_the_loss_is_chunked_as_estimated() -> None:
    assert LOSS_CHUNK == CHUNK


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("rows", [1, 4])
def test_the_estimate_is_what_a_gpu_allocates(rows: int) -> None:
    config = ModelSettings(depth=12, context=2048).config(32_768)
    model = Transformer(config).to("cuda")
    initialize(model, torch.Generator().manual_seed(0))
    ids = torch.zeros(rows, config.context, dtype=torch.int64, device="cuda")
    losses = torch.compile(token_losses, dynamic=False)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        losses(model, Batch(ids, ids, ids.to(torch.int32)), BF16).total.backward()
    estimate = training_bytes(config, rows, BF16)
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimate.total - estimate.optimizer, rel=0.25)


def test_what_several_processes_divide() -> None:
    config = shape(depth=12, width=768, head_size=64)

    def needed(parallel: Any, processes: int = 1) -> TrainingBytes:
        return training_bytes(config, 1, BF16, parallel=parallel, processes=processes)

    alone, ddp, zero, fsdp = needed("alone"), needed("ddp", 8), needed("zero", 8), needed("fsdp", 8)
    assert alone == ddp
    assert zero.optimizer == fsdp.optimizer == round(alone.optimizer / 8)
    assert (zero.weights, zero.gradients) == (alone.weights, alone.gradients)
    assert fsdp.weights < alone.weights / 3 and fsdp.gradients < alone.gradients / 3
    assert fsdp.activations == alone.activations
    slices = 4 * parameters(config).total
    assert needed("fsdp", 4).weights - fsdp.weights == slices // 4 - slices // 8
