"""Gradient accumulation changes nothing, however unevenly the trained tokens lie."""

import math
from collections.abc import Callable
from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch, PackedRows, build_row, stack
from pilgrim.data.packing import Piece
from pilgrim.data.shards import TokenSet
from pilgrim.model.attention import causal_attention
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.train.losses import plain_token_losses, token_losses
from pilgrim.train.step import accumulate

CONTEXT, END, ROWS = 16, 0, 8

NewModel = Callable[..., Transformer]
Documents = Callable[[list[int], int], list[list[int]]]


@pytest.fixture(scope="module")
def texts(token_set: Callable[..., TokenSet], random_documents: Documents, runtime: Runtime) -> Batch:
    """Eight rows of documents of all lengths."""
    tokens = token_set(random_documents([*range(2, 40)], 3))
    return stack([row for row, _ in islice(PackedRows(tokens, CONTEXT, END, runtime).rows(None), ROWS)])


@pytest.fixture(scope="module")
def uneven(token_set: Callable[..., TokenSet], random_documents: Documents) -> Batch:
    """Eight rows of conversations, of which some have one trained token, some nearly all, some none.

    The loader makes none of the last kind, but several processes fill their shares with rows of padding.
    """
    lengths = [CONTEXT] * ROWS
    trained = [1, 15, 0, 2, 15, 0, 0, 7]
    masks = [[False] * (length - n) + [True] * n for length, n in zip(lengths, trained, strict=True)]
    tokens = token_set(random_documents(lengths, 4), masks)
    batch = stack([build_row(tokens, [Piece(d, 0, CONTEXT)], CONTEXT, END) for d in range(ROWS)])
    per_row = (batch.targets_bt != IGNORED).sum(dim=1).tolist()
    assert per_row == trained
    return batch


@pytest.fixture(params=["texts", "uneven"])
def batch(request: pytest.FixtureRequest) -> Batch:
    found: Batch = request.getfixturevalue(request.param)
    return found


def gradients(
    model: Transformer, batch: Batch, micro_rows: int, runtime: Runtime
) -> tuple[float, float, dict[str, Tensor]]:
    model.zero_grad(set_to_none=True)
    result = accumulate(model, batch, micro_rows, token_losses, runtime)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return float(result.loss), float(result.gradient_norm), found


@pytest.mark.parametrize("micro_rows", [1, 2, 4, 8])
def test_microbatches_of_any_size_give_the_same(
    new_model: NewModel, batch: Batch, runtime: Runtime, micro_rows: int
) -> None:
    model = new_model()
    loss, norm, whole = gradients(model, batch, ROWS, runtime)
    micro_loss, micro_norm, parts = gradients(model, batch, micro_rows, runtime)
    assert micro_loss == pytest.approx(loss, rel=1e-6)
    assert micro_norm == pytest.approx(norm, rel=1e-6)
    assert parts.keys() == whole.keys() == dict(model.named_parameters()).keys()
    for name, gradient in whole.items():
        difference = torch.linalg.vector_norm(parts[name] - gradient)
        assert difference <= 1e-6 * torch.linalg.vector_norm(gradient), name


def test_the_loss_is_the_mean_over_trained_tokens(
    new_model: NewModel, batch: Batch, runtime: Runtime
) -> None:
    """Compared with torch's own mean over the batch in one piece; a mean of means would be another number."""
    model = new_model()
    loss, norm, found = gradients(model, batch, 2, runtime)
    model.zero_grad(set_to_none=True)
    nats = plain_token_losses(model, batch, torch.float32)
    counted = batch.targets_bt != IGNORED
    mean = nats[counted].mean()
    mean.backward()
    assert loss == pytest.approx(float(mean.detach()), rel=1e-6)
    squares = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    assert norm == pytest.approx(math.sqrt(squares), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_losses_are_torchs(new_model: NewModel, texts: Batch) -> None:
    """One document by itself, with torch's cross-entropy over all its logits."""
    model = new_model()
    nats = token_losses(model, texts, torch.float32).each_bt
    assert nats.shape == texts.targets_bt.shape
    assert not nats[texts.targets_bt == IGNORED].any()
    documents, length = texts.documents_bt[0], int((texts.documents_bt[0] == 0).sum())
    assert documents[:length].eq(0).all()
    alone = Batch(*(x[:1, :length] for x in (texts.inputs_bt, texts.targets_bt, texts.documents_bt)))
    logits = model.logits(model(alone.inputs_bt, causal_attention))
    expected = F.cross_entropy(logits[0], alone.targets_bt[0], ignore_index=IGNORED, reduction="none")
    torch.testing.assert_close(nats[0, :length], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("softcap", [0.003, 0.02])  # the tiny network's scores are about 0.01
def test_bounded_scores_and_their_gradients_are_those_of_the_slow_twin(
    new_model: NewModel, texts: Batch, softcap: float
) -> None:
    found, plain = new_model(softcap=softcap), new_model(softcap=softcap)
    losses = token_losses(found, texts, torch.float32)
    expected = plain_token_losses(plain, texts, torch.float32)
    torch.testing.assert_close(losses.each_bt, expected, rtol=1e-5, atol=1e-6)
    losses.total.backward()
    expected.sum().backward()
    for ours, theirs in zip(found.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    unbounded = token_losses(new_model(), texts, torch.float32)
    assert not torch.equal(unbounded.each_bt, losses.each_bt)


@pytest.mark.parametrize("micro_rows", [1, 8])
def test_a_batch_in_which_nothing_is_trained(
    new_model: NewModel, texts: Batch, runtime: Runtime, micro_rows: int
) -> None:
    """Loss and gradient are 0, not 0 / 0, and the optimizers survive it."""
    nothing = Batch(texts.inputs_bt, torch.full_like(texts.targets_bt, IGNORED), texts.documents_bt)
    model = new_model()
    before = {name: weight.clone() for name, weight in model.weights().items()}
    loss, norm, found = gradients(model, nothing, micro_rows, runtime)
    assert (loss, norm) == (0.0, 0.0)
    assert not any(gradient.any() for gradient in found.values())
    rates = OptimSettings(matrix_lr=0.02, embedding_lr=0.1, head_lr=0.01, norm_lr=0.01)
    Optimizers(model, rates, runtime.dtype, compile=False).step(1.0, 0.9)
    for name, weight in model.weights().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


def test_rows_of_padding_alone_give_no_nan(new_model: NewModel, texts: Batch, runtime: Runtime) -> None:
    """No token may attend to padding, so a row of padding has nothing at all to attend to."""
    empty = Batch(
        torch.zeros_like(texts.inputs_bt),
        torch.full_like(texts.targets_bt, IGNORED),
        torch.full_like(texts.documents_bt, -1),
    )
    both = stack([texts, empty])
    model = new_model()
    loss, _, alone = gradients(model, texts, ROWS, runtime)
    padded_loss, _, padded = gradients(model, both, ROWS, runtime)
    assert padded_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in padded.items():
        assert gradient.isfinite().all(), name
        torch.testing.assert_close(gradient, alone[name], rtol=1e-4, atol=1e-7)
