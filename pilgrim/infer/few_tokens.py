"""A pass over a few tokens on a CPU, in one call of compiled code: what is in few_tokens.c.

A step of writing for one text is 170 operations of torch, views included, and most of its time is what Python
and torch do around them. So that step is written once more in C, for up to TOKENS tokens: a few texts, or one
with its guesses. The engine's own path (network.py) stays what it is held against. It is taken for everything
else, and by whoever has no C compiler. Compiling takes a second, once (core/native.py).

What is computed differs by rounding: here all that is handed on is fp32, there it is the engine's dtype.
"""

import ctypes
import warnings
from array import array
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pilgrim.core.errors import PilgrimError
from pilgrim.core.native import library
from pilgrim.infer.cache import PagedCache
from pilgrim.infer.paged_attention import Span
from pilgrim.infer.quantized import Int8Linear, Weights
from pilgrim.model.layers import Linear
from pilgrim.model.transformer import Transformer

# Of a pass. With more, torch's products of matrices catch up, with AMX sooner (journal, 2026-11-23).
TOKENS = 8
SOURCE = Path(__file__).with_suffix(".c")
BITS = {torch.float32: 32, torch.bfloat16: 16}


class Map(ctypes.Structure):
    """`struct map` of the source; so are the following."""

    _fields_ = [("weights", c_void_p), ("scales", c_void_p), ("inputs", c_int64), ("outputs", c_int64)]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, Map) for name in ("q", "k", "v", "out", "gate", "up", "down")),
        *((name, c_void_p) for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm", "keys", "values")),
        ("window", c_int64),
    ]


class NetworkOf(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("depth", "width", "heads", "kv_heads", "head_size", "mlp_width")),
        *((name, c_int64) for name in ("vocabulary", "slots", "block_tokens")),
        *((name, c_float) for name in ("eps", "softcap")),
        *((name, c_void_p) for name in ("embedding", "final_norm", "cos", "sin")),
        ("head", Map),
        ("layers", POINTER(Layer)),
    ]


class Tokens(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("count", "wanted")),
        *((name, c_void_p) for name in ("ids", "positions", "blocks", "asked")),
        *((name, c_int64) for name in ("blocks_each", "longest")),
    ]


class FewTokens:
    """A `Transformer`, whose weights are where they are, over a paged cache."""

    def __init__(self, model: Transformer, cache: PagedCache) -> None:
        """For what is `ready`; `cache` is in the model's dtype."""
        config = model.config
        self._code = _code(*_bits(model))
        self._model, self._cache = model, cache  # which hold the memory that is pointed to
        self._angles = [table.float().contiguous() for table in (model.cos_td, model.sin_td)]
        layers = (Layer * config.depth)(*(self._layer(number) for number in range(config.depth)))
        self._network = NetworkOf(
            *(config.depth, config.width, config.heads, config.kv_heads, config.head_size, config.mlp_width),
            *(config.vocab_size, cache.keys.shape[2], cache.block_tokens),
            *(config.norm_eps, config.softcap or 0.0),
            *(model.model.embed_tokens.weight.data_ptr(), model.model.norm.weight.data_ptr()),
            *(table.data_ptr() for table in self._angles),
            _map(model.lm_head),
            layers,
        )

    def scores(self, spans: Sequence[Span], ids: Sequence[int], wanted: Sequence[int]) -> Tensor:
        """Reads the spans' new tokens `ids`, and returns what follows the `wanted` ones of them: [n, v]."""
        places = [(span, place) for span in spans for place in range(span.start, span.end)]
        width = max(len(span.blocks) for span in spans)
        blocks = [block for span, _ in places for block in (*span.blocks, *[0] * (width - len(span.blocks)))]
        longest = 1 + max(place for _, place in places)
        numbers = [array("q", of) for of in (ids, [place for _, place in places], blocks, wanted)]
        tokens = Tokens(len(ids), len(wanted), *(of.buffer_info()[0] for of in numbers), width, longest)
        out = torch.empty(len(wanted), self._network.vocabulary, dtype=torch.float32)
        if not self._code.one_pass(self._network, tokens, out.data_ptr(), torch.get_num_threads()):
            raise MemoryError("no memory is left for a pass over a few tokens; close other programs")
        return out

    def _layer(self, number: int) -> Layer:
        block: Any = self._model.model.layers[number]
        attention, mlp, cache = block.self_attn, block.mlp, self._cache
        maps = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        norms = (block.input_layernorm, block.post_attention_layernorm, attention.q_norm, attention.k_norm)
        return Layer(
            *(_map(layer) for layer in (*maps, mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            *(norm.weight.data_ptr() for norm in norms),
            *(store[number].data_ptr() for store in (cache.keys, cache.values)),
            self._model.config.windows[number] or 0,
        )


def ready(dtype: torch.dtype, weights: Weights) -> bool:
    """Whether there is code for such a model, compiled now if need be. Warns if it can't be."""
    if dtype not in BITS or weights not in ("full", "int8"):
        return False
    try:
        _code(8 if weights == "int8" else BITS[dtype], BITS[dtype])
    except PilgrimError as error:
        warnings.warn(f"replies are written by torch alone, 2 to 4 times as slowly: {error}", stacklevel=3)
        return False
    return True


def _bits(model: Transformer) -> tuple[int, int]:
    """Of the weights, and of other numbers."""
    numbers = BITS[model.model.norm.weight.dtype]
    return (8 if isinstance(model.lm_head, Int8Linear) else numbers), numbers


def _map(layer: nn.Module) -> Map:
    if isinstance(layer, Int8Linear):
        outputs, inputs = layer.numbers.shape
        return Map(layer.numbers.data_ptr(), layer.scales.data_ptr(), inputs, outputs)
    assert isinstance(layer, Linear)
    outputs, inputs = layer.weight.shape
    return Map(layer.weight.data_ptr(), None, inputs, outputs)


def _code(weight_bits: int, number_bits: int) -> ctypes.CDLL:
    """Raises PilgrimError if it can't be compiled."""
    found = library(SOURCE, WEIGHT_BITS=weight_bits, NUMBER_BITS=number_bits)
    found.one_pass.argtypes = [POINTER(NetworkOf), POINTER(Tokens), c_void_p, c_int64]
    found.one_pass.restype = c_int
    return found
