"""A pass in C against the same pass by torch, its slow twin."""

import copy
import random

import pytest
import torch

from pilgrim.core.native import library
from pilgrim.core.runtime import Runtime
from pilgrim.infer import few_tokens
from pilgrim.infer.cache import PagedCache
from pilgrim.infer.engine import Engine
from pilgrim.infer.few_tokens import FewTokens
from pilgrim.infer.network import Network
from pilgrim.infer.paged_attention import Span
from pilgrim.infer.quantized import Weights, quantized
from pilgrim.infer.sampling import Sampling
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer

BLOCK, BLOCKS, LANE = 4, 48, 12  # a text has up to 12 blocks of 4 tokens
VOCABULARY = 93  # no multiple of what is computed side by side
SHAPES = {
    "grouped": ModelSettings(depth=2, width=64, head_size=32, heads=4, kv_heads=2, context=48),
    "windows": ModelSettings(
        depth=3, width=48, head_size=16, heads=3, kv_heads=1, context=48, window=7, window_pattern="SSL"
    ),
    "odd sizes, tied, capped": ModelSettings(
        depth=2, width=40, head_size=12, heads=2, kv_heads=2, context=48, tied=True, softcap=5.0
    ),
    "wide heads": ModelSettings(depth=1, width=32, head_size=96, heads=2, kv_heads=1, context=48),
}


def some_model(name: str, dtype: torch.dtype, vocabulary: int = VOCABULARY) -> Transformer:
    model = Transformer(SHAPES[name].config(vocabulary))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw) * weight.shape[-1] ** -0.5 * 2)
    return model.to(dtype).eval()


def some_spans(dice: random.Random) -> list[Span]:
    """Up to four texts with up to eight new tokens in all, in blocks that lie anywhere."""
    places, left = dice.sample(range(BLOCKS), BLOCKS), few_tokens.TOKENS
    spans: list[Span] = []
    while left and len(spans) < 4 and (not spans or dice.random() < 0.7):
        new = dice.randint(1, left)
        start = dice.randint(0, LANE * BLOCK - new)
        spans.append(Span(start, new, [places.pop() for _ in range(-(-(start + new) // BLOCK))]))
        left -= new
    return spans


@torch.inference_mode()
def by_both(model: Transformer, threads: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores by torch and in C, where both find the same in the cache and leave something in it."""
    dice, dtype = random.Random(seed), model.model.norm.weight.dtype
    caches = [PagedCache(model.config, BLOCKS, BLOCK, LANE, dtype, torch.device("cpu")) for _ in range(2)]
    draw = torch.Generator().manual_seed(seed)
    for theirs, ours in zip(*((cache.keys, cache.values) for cache in caches), strict=True):
        theirs.copy_(torch.randn(theirs.shape, generator=draw))
        ours.copy_(theirs)
    spans = some_spans(dice)
    ids = [dice.randrange(VOCABULARY) for span in spans for _ in range(span.new)]
    wanted = sorted(dice.sample(range(len(ids)), dice.randint(0, len(ids))))
    network = Network(model)
    positions_1n, attend = caches[0].attend(spans)
    hidden_nw = network.hidden(torch.tensor(ids), positions_1n[0], attend)
    slow = network.scores(hidden_nw[wanted]).float()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        fast = FewTokens(model, caches[1]).scores(spans, ids, wanted)
    finally:
        torch.set_num_threads(before)
    rounding = 1e-4 if dtype == torch.float32 else 0.05
    assert (caches[0].keys - caches[1].keys).abs().max() < rounding * caches[0].keys.abs().max()
    assert (caches[0].values - caches[1].values).abs().max() < rounding * caches[0].values.abs().max()
    return slow, fast


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", SHAPES)
def test_it_computes_what_torch_does(name: str, threads: int) -> None:
    model = some_model(name, torch.float32)
    for seed in range(12):
        slow, fast = by_both(model, threads, seed)
        assert fast.shape == slow.shape and torch.allclose(slow, fast, atol=2e-4)


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_it_does_on_narrower_processors(narrower: None, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    monkeypatch.setattr(few_tokens, "library", library.__wrapped__)
    model = some_model("grouped", torch.float32 if bits == 32 else torch.bfloat16, vocabulary=96)
    if bits == 8:
        model = quantized(model, "int8")
    for seed in range(3):
        slow, fast = by_both(model, 2, seed)
        assert (slow - fast).abs().mean() < (1e-5 if bits == 32 else 0.02) * slow.abs().mean()


@pytest.mark.parametrize("weights", ["full", "int8"])
@pytest.mark.parametrize("name", ["grouped", "windows"])
def test_with_fewer_bits_it_is_within_their_rounding(name: str, weights: Weights) -> None:
    """torch rounds every step to bf16, and the code only what is kept: it must be the nearer one to fp32."""
    model = quantized(some_model(name, torch.bfloat16, vocabulary=96), weights)  # 96: as int8 wants it
    apart, scale = [], []
    for seed in range(12):
        slow, fast = by_both(copy.deepcopy(model), 1, seed)
        apart += (slow - fast).abs().flatten().tolist()
        scale += slow.abs().flatten().tolist()
    assert sum(apart) < 0.02 * sum(scale)


def test_a_token_s_scores_do_not_depend_on_how_many_share_the_pass() -> None:
    """The same sums in the same order, so to the bit; torch doesn't promise that."""
    model = some_model("grouped", torch.bfloat16)
    cache = PagedCache(model.config, BLOCKS, BLOCK, LANE, torch.bfloat16, torch.device("cpu"))
    few = FewTokens(model, cache)
    spans = [Span(0, 1, [text]) for text in range(few_tokens.TOKENS)]
    ids = list(range(few_tokens.TOKENS))
    together = few.scores(spans, ids, ids)
    for text in ids:
        assert torch.equal(few.scores([spans[text]], [text], [0])[0], together[text])


def test_without_a_compiler_torch_writes_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    library.cache_clear()
    model, runtime = (
        some_model("grouped", torch.float32),
        Runtime(torch.device("cpu"), torch.float32, False, 1),
    )
    greedy = Sampling(temperature=0, max_tokens=20)
    with pytest.warns(UserWarning, match="by torch alone.*no C compiler no-such-compiler"):
        slow = Engine(model, runtime, record=True).generate([[1, 2, 3]], greedy, ())
    monkeypatch.undo()
    assert Engine(model, runtime, record=True).generate([[1, 2, 3]], greedy, ()) == slow
