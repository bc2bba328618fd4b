"""Every attention backend against the formula: documents x windows x grouped queries x head sizes.

The backends of a CPU are compared here to the end. Those of a GPU are compared in the tests marked `gpu`.
Short of a GPU, what surrounds their kernels is: FlexAttention's forward pass has a CPU version; and torch's
varlen operator is given one below, written from its documentation, so that our side of it runs as a whole
compiled step (the real kernels are torch's and tested there).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch
from pilgrim.model.attention import packed_attention, reference_attention
from pilgrim.model.attention_choice import TIMED, activate, choose, trouble
from pilgrim.model.attention_kernels import Backend, prepare
from pilgrim.model.attention_spans import Windows, document_starts
from pilgrim.model.config import ModelConfig, ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.train.losses import token_losses

PACKINGS = {
    "one document": [[200], [200]],
    "odd lengths": [[1, 130, 40, 29], [170, 30]],
    "many small ones": [[7] * 28 + [4], [200]],
    "padding": [[121, -79], [-200]],
}
WINDOWS: dict[str, Windows] = {"no window": None, "one token": 1, "100": 100, "mixed": (None, 37, 128)}
HEADS = {"plain": (2, 2), "grouped": (4, 2), "one key head": (3, 1)}
shapes = [
    pytest.mark.parametrize("window", WINDOWS.values(), ids=list(WINDOWS)),
    pytest.mark.parametrize("heads", HEADS.values(), ids=list(HEADS)),
    pytest.mark.parametrize("head_size", [64, 128]),
]
# torch's compiler warns of torch's own old ways, and of what a card could do better.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def over_all_shapes(test: Any) -> Any:
    for shape in shapes:
        test = shape(test)
    return test


def numbered(packing: list[list[int]]) -> Tensor:
    """Documents of these lengths, row by row; what is negative is padding."""
    rows = [
        torch.cat([torch.full((abs(n),), -1 if n < 0 else i) for i, n in enumerate(lengths)])
        for lengths in packing
    ]
    return torch.stack(rows).int()


def heads_for(documents: Tensor, heads: tuple[int, int], head_size: int, dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and the output's gradient, in memory as projections leave them."""
    (b, t), (h, g) = documents.shape, heads
    draws = torch.Generator().manual_seed(1)
    made = [torch.randn(b, t, n, head_size, generator=draws) for n in (h, g, g, h)]
    return [x.to(documents.device, dtype).transpose(1, 2).requires_grad_() for x in made]


def forward_and_backward(mix: Any, inputs: list[Tensor], *more: Any) -> list[Tensor]:
    """The outputs of all layers, and the gradients of q, k and v summed over them."""
    q, k, v, d_out = inputs
    outs = mix(q, k, v, *more)
    grads = torch.autograd.grad(sum((out * d_out).sum() for out in outs), (q, k, v))
    return [torch.stack([out.detach() for out in outs]), *grads]


def compare(ours: list[Tensor], formula: list[Tensor], relative: float) -> None:
    """Output and gradients within `relative` of the largest value."""
    for name, x, y in zip(("out", "dq", "dk", "dv"), ours, formula, strict=True):
        # Where a query sees one key only, its gradient and the key's are nothing but rounding.
        error = float((x.float() - y.float()).abs().max()) / max(1.0, float(y.float().abs().max()))
        assert error <= relative, f"{name} is off by {error:.1e}"


def check(backend: Backend, window: Windows, heads: Any, head_size: int, device: str) -> None:
    """All packings, in bf16 on a GPU and fp32 on a CPU; what is compiled, is compiled for the first only."""
    dtype, tolerance = (torch.bfloat16, 2**-5) if device == "cuda" else (torch.float32, 2e-5)
    layers = range(1 if window is None or isinstance(window, int) else len(window))

    def mix(q: Tensor, k: Tensor, v: Tensor, documents: Tensor, layout: Any) -> list[Tensor]:
        attend = packed_attention(documents, dtype, window, backend, layout)
        return [attend(layer, q, k, v) for layer in layers]

    ours = torch.compile(mix, dynamic=False, fullgraph=True) if device == "cuda" else mix
    for number, packing in enumerate(PACKINGS.values()):
        documents = numbered(packing).to(device)
        inputs = heads_for(documents, heads, head_size, dtype)
        layout = prepare(documents, None, window, backend)
        exact = [x.detach().float().requires_grad_() for x in inputs]
        formula = reference_attention(documents, window)
        expected = forward_and_backward(lambda *qkv, f=formula: [f(i, *qkv) for i in layers], exact)
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            found = forward_and_backward(ours, inputs, documents, layout)
        compare(found, expected, tolerance)


@pytest.mark.parametrize("backend", ["sdpa", "blocks", "documents"])
@over_all_shapes
def test_a_cpu_s_backends_are_the_formula(
    backend: Backend, window: Windows, heads: tuple[int, int], head_size: int
) -> None:
    check(backend, window, heads, head_size, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("backend", TIMED)
@over_all_shapes
def test_a_gpu_s_backends_are_the_formula(
    backend: Backend, window: Windows, heads: tuple[int, int], head_size: int
) -> None:
    runtime = Runtime(torch.device("cuda"), torch.bfloat16, compile=True, seed=1)
    if why := trouble(backend, runtime, shape(window=None)):
        pytest.skip(f"{backend}: {why}")
    activate(backend)
    check(backend, window, heads, head_size, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_s_choice_is_made_and_windows_save_time() -> None:
    """At a length where attention weighs: the same backend with windows in three layers of four is faster."""
    runtime = Runtime(torch.device("cuda"), torch.bfloat16, compile=True, seed=1)
    full = ModelSettings(depth=4, width=768, context=4096)
    found = choose(runtime, full.config(64), rows=4)
    windowed = choose(runtime, full.model_copy(update={"window": 512}).config(64), rows=4)
    print(found.note, windowed.note)
    assert found.backend in TIMED and windowed.backend in TIMED
    assert windowed.milliseconds[windowed.backend] < found.milliseconds[found.backend]


@pytest.mark.parametrize("window", [None, (100, None)], ids=["no window", "mixed"])
def test_flex_attention_asks_for_the_same_pairs(window: Windows) -> None:
    """Its forward pass, compiled for a CPU; other documents later must not compile it anew."""
    layers = 1 if window is None else 2

    def attend(q: Tensor, k: Tensor, v: Tensor, documents: Tensor, layout: Any) -> list[Tensor]:
        mix = packed_attention(documents, torch.float32, window, "flex", layout)
        return [mix(layer, q, k, v) for layer in range(layers)]

    compiled = torch.compile(attend, dynamic=False, fullgraph=True)
    for number, name in enumerate(("odd lengths", "many small ones", "padding")):
        documents = numbered(PACKINGS[name])
        q, k, v, _ = (x.detach() for x in heads_for(documents, (4, 2), 64, torch.float32))
        layout = prepare(documents, None, window, "flex")
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=number > 0):
            ours = compiled(q, k, v, documents, layout)
        for layer, out in enumerate(ours):
            expected = reference_attention(documents, window)(layer, q, k, v)
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


# A CPU version of torch's varlen operator ---------------------------------------------------------


def weights_by_formula(q_hnd: Tensor, k_hnd: Tensor, cumulative: Tensor, left: int) -> Tensor:
    """As documented: sequence i spans cumulative[i] to [i + 1]; a query sees `left` keys before itself."""
    at = torch.arange(q_hnd.shape[1])
    sequence = torch.bucketize(at, cumulative[1:], right=True)
    allowed = (at <= at[:, None]) & (sequence == sequence[:, None])
    if left >= 0:
        allowed &= at >= at[:, None] - left
    scores: Tensor = q_hnd @ k_hnd.mT * q_hnd.shape[2] ** -0.5
    return scores.masked_fill(~allowed, float("-inf")).softmax(-1)


def spread(x_ngd: Tensor, heads: int) -> Tensor:
    """Heads first, and every key head as often as there are query heads to it."""
    return x_ngd.repeat_interleave(heads // x_ngd.shape[1], 1).transpose(0, 1)


@pytest.fixture(scope="module")
def varlen_on_a_cpu() -> Iterator[None]:
    """For operators that torch implements on CUDA only. Registered for the length of this file's tests."""
    import torch.nn.attention.varlen

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        causal: bool = False,
        scale: float | None = None,
        window: Sequence[int] = (-1, -1),
        gqa: bool = False,
        *_: Any,
    ) -> Any:
        assert torch.equal(cu_q, cu_k) and max_q >= cu_q.diff().max() and max_k == max_q
        assert window[1] == 0 and causal == (window[0] == -1) and scale is None
        assert gqa == (q.shape[1] != k.shape[1])
        weights = weights_by_formula(q.transpose(0, 1), spread(k, q.shape[1]), cu_q, window[0])
        out = (weights @ spread(v, q.shape[1])).transpose(0, 1)
        return out.contiguous(), q.new_zeros(q.shape[1], q.shape[0]), torch.zeros(2, dtype=torch.uint64)

    def backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Any:
        # By hand: autograd has its turn above these operators, not within.
        cumulative, window, heads = rest[2], rest[9], q.shape[1]
        q_hnd, k_hnd, v_hnd = spread(q, heads), spread(k, heads), spread(v, heads)
        weights, d_hnd = weights_by_formula(q_hnd, k_hnd, cumulative, window[0]), spread(d_out, heads)
        d_weights = d_hnd @ v_hnd.mT
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * q.shape[2] ** -0.5
        d_k, d_v = (
            x_hnd.transpose(0, 1).unflatten(1, (k.shape[1], -1)).sum(2)
            for x_hnd in (d_scores.mT @ q_hnd, weights.mT @ d_hnd)
        )
        return (d_scores @ k_hnd).transpose(0, 1).contiguous(), d_k, d_v

    library = torch.library.Library("torch_attn", "IMPL")
    library.impl("_varlen_attn", forward, "CPU", allow_override=True)
    library.impl("_varlen_attn_backward", backward, "CPU", allow_override=True)
    yield
    library._destroy()


@over_all_shapes
def test_varlen_is_asked_for_the_same_pairs(
    window: Windows,
    heads: tuple[int, int],
    head_size: int,
    varlen_on_a_cpu: None,
) -> None:
    check("varlen", window, heads, head_size, "cpu")


def shape(**changes: Any) -> ModelConfig:
    return ModelSettings.model_validate(
        {"depth": 3, "width": 64, "head_size": 16, "kv_heads": 2, "context": 200, **changes}
    ).config(61)


def network(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draws) * p.shape[-1] ** -0.5 + (p.ndim == 1))
    return model


def batch_of(name: str) -> Batch:
    documents = numbered(PACKINGS[name])
    draws = torch.Generator().manual_seed(3)
    ids, targets = (torch.randint(61, documents.shape, generator=draws) for _ in range(2))
    targets[documents < 0] = IGNORED
    return Batch(ids, targets, documents, document_starts(documents))


def step(losses: Any, model: Transformer, batch: Batch) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    found = losses(model, batch, torch.float32)
    found.total.backward()
    return [found.each_bt.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("window", [None, 37], ids=["no window", "windows"])
@pytest.mark.parametrize("backend", ["varlen", "blocks", "documents"])
def test_a_compiled_step_is_one_graph_for_any_number_of_documents(
    backend: Backend, window: int | None, varlen_on_a_cpu: None
) -> None:
    """Traced as for training, and run operator by operator: compiling C++ would take a minute."""
    model = network(shape(window=window, window_pattern=window and "SL"))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(token_losses, dynamic=False, fullgraph=True, backend=counter)

    def losses(model: Transformer, batch: Batch, dtype: torch.dtype) -> Any:
        layout = prepare(batch.documents_bt, batch.starts_bd, model.windows, backend)
        return compiled(model, batch, dtype, backend, layout)

    for name in ("odd lengths", "many small ones", "padding"):
        batch = batch_of(name)
        ours, plain = step(losses, model, batch), step(token_losses, model, batch)
        for x, y in zip(ours, plain, strict=True):
            assert (x - y).abs().max() <= 2e-5 * max(1.0, float(y.abs().max()))
    assert counter.frame_count == 1
