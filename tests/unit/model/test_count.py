"""The arithmetic of `count` against real networks, torch's own counter, and real optimizers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pilgrim.model.attention import Attend, document_mask, packed_attention, reference_attention
from pilgrim.model.config import ModelConfig, ModelSettings
from pilgrim.model.count import (
    Flops,
    flops_conventional,
    flops_needed,
    kv_cache_bytes,
    optimizer_bytes,
    parameters,
    weight_bytes,
)
from pilgrim.model.init import initialize
from pilgrim.model.lora import LoraSettings, adapt, numbers
from pilgrim.model.transformer import Transformer
from pilgrim.optim.adamw import AdamW
from pilgrim.optim.muon import Muon

B, T = 2, 24
SHAPES = {
    "plain": ModelSettings(depth=2, width=32, head_size=16),
    "grouped": ModelSettings(depth=1, width=32, head_size=8, heads=4, kv_heads=2, mlp_width=80),
    "tied": ModelSettings(depth=3, width=24, head_size=8, tied=True),
    "wide heads": ModelSettings(depth=2, width=40, head_size=16, heads=6, kv_heads=3, mlp_width=56),
    "one for all": ModelSettings(depth=2, width=64, head_size=16, kv_heads=1, tied=True),
    "windows": ModelSettings(depth=5, width=32, head_size=8, window=4, window_pattern="SL"),
}
pytestmark = pytest.mark.parametrize("config", [s.config(51) for s in SHAPES.values()], ids=list(SHAPES))


def network(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    initialize(model, torch.Generator().manual_seed(1))
    return model


def counted(config: ModelConfig, attention: Callable[[Tensor], Attend], counter: FlopCounterMode) -> Flops:
    """Per token, by torch's counter watching a real forward and a real backward pass."""
    return counted_of(network(config), attention, counter)


def counted_of(model: Transformer, attention: Callable[[Tensor], Attend], counter: FlopCounterMode) -> Flops:
    config = model.config
    ids = torch.randint(config.vocab_size, (B, T), generator=torch.Generator().manual_seed(2))
    with counter:
        loss = model.logits(model(ids, attention(torch.zeros_like(ids)))).logsumexp(-1).sum()
        forward = counter.get_total_flops()
        loss.backward()
    training = counter.get_total_flops()
    assert forward % (B * T) == training % (B * T) == 0
    return Flops(forward // (B * T), training // (B * T))


def test_parameters_are_those_of_the_network(config: ModelConfig) -> None:
    model, count = network(config), parameters(config)
    assert count.total == sum(p.numel() for p in model.parameters())

    def named(*parts: str) -> int:
        return sum(p.numel() for name, p in model.named_parameters() if any(part in name for part in parts))

    assert count.embedding == named("embed_tokens")
    assert count.head == named("lm_head")
    assert count.attention == named("q_proj", "k_proj", "v_proj", "o_proj")
    assert count.mlp == named("mlp.")
    assert count.norms == named("norm")


def dense(config: ModelConfig) -> Flops:
    """Of attention with a mask, which hides what is outside of a window without saving anything."""
    return flops_conventional(config.model_copy(update={"window": None}), T)


def matrices(config: ModelConfig) -> int:
    return flops_conventional(config, 0).forward


def test_conventional_flops_are_those_of_attention_with_a_mask(config: ModelConfig) -> None:
    """The formula written out, and torch's unfused kernel."""
    assert counted(config, reference_attention, FlopCounterMode(display=False)) == dense(config)
    with sdpa_kernel(SDPBackend.MATH):
        counter = FlopCounterMode(display=False)
        assert counted(config, lambda d: packed_attention(d, torch.float32), counter) == dense(config)


def test_adapters_save_the_products_that_make_gradients(config: ModelConfig) -> None:
    """But for the first layer's q, k and v: their input is the embedding, which needs no gradient either."""
    model = network(config)
    adapt(model, LoraSettings(rank=2), torch.Generator().manual_seed(3))
    found = counted_of(model, reference_attention, FlopCounterMode(display=False))
    all_scores = dense(config).forward - matrices(config)
    needed = flops_needed(config, 1, numbers(model))
    scores = flops_needed(config, 1).forward - matrices(config)  # of a token that sees itself
    assert found.forward == needed.forward - scores + all_scores
    read = (
        2 * config.width * config.head_size * (config.heads + 2 * config.kv_heads) + 3 * 2 * config.width * 2
    )
    assert found.training == needed.training + 3 * (all_scores - scores) - read


def test_needed_flops_count_every_allowed_pair_once(config: ModelConfig) -> None:
    """Computed one query at a time, each with its own past only, and summed over a document."""
    n = 7
    one_key = flops_conventional(config, 1).forward - matrices(config)
    total = n * matrices(config)
    for window in config.windows:
        total += sum(one_key // config.depth * min(i + 1, window or n) for i in range(n))
    needed = flops_needed(config, n)
    assert needed.forward == total // n
    assert needed.training == 3 * needed.forward


def test_needed_flops_are_the_pairs_that_the_mask_allows(config: ModelConfig) -> None:
    one_pair = 4 * config.heads * config.head_size
    document = torch.zeros(1, T, dtype=torch.int32)
    pairs = sum(int(document_mask(document, window).sum()) for window in config.windows)
    assert flops_needed(config, T).forward == matrices(config) + one_pair * pairs // T


def test_conventional_flops_are_dense_within_the_window(config: ModelConfig) -> None:
    one_pair = 4 * config.heads * config.head_size
    keys = sum(T if window is None else min(window, T) for window in config.windows)
    conventional = flops_conventional(config, T)
    forward = matrices(config) + one_pair * keys
    assert conventional == Flops(forward, 3 * forward)
    assert flops_needed(config, T).forward < conventional.forward
    # 6 operations a parameter in a matrix, 12 a layer, width and key: the papers' formula.
    if config.window is None and config.heads * config.head_size == config.width:
        n = parameters(config).matrices + config.vocab_size * config.width
        assert conventional.training == 6 * n + 12 * config.depth * config.width * T


def test_bytes_of_weights(config: ModelConfig) -> None:
    model = network(config)
    assert weight_bytes(config, torch.float32) == sum(p.nbytes for p in model.parameters())
    model = model.to(torch.bfloat16)
    assert weight_bytes(config, torch.bfloat16) == sum(p.nbytes for p in model.parameters())


def test_bytes_of_optimizer_state(config: ModelConfig) -> None:
    model = network(config)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    matrices = [p for name, p in model.named_parameters() if "_proj" in name]
    rest = [p for name, p in model.named_parameters() if "_proj" not in name]
    optimizers = [Muon(matrices, dtype=torch.float32), AdamW(rest)]
    for optimizer in optimizers:
        optimizer.step()
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    assert optimizer_bytes(config) == sum(x.nbytes for state in states for x in state.values())


def test_bytes_of_the_kv_cache(config: ModelConfig) -> None:
    kept = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept.extend([k, v])
        return q

    network(config)(torch.zeros(1, T, dtype=torch.long), attend)
    assert kv_cache_bytes(config, torch.float32) * T == sum(x.nbytes for x in kept)
    assert kv_cache_bytes(config, torch.bfloat16) * T == sum(x.bfloat16().nbytes for x in kept)
