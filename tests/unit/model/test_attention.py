"""Packing documents into one row changes nothing for any of them, and the fused kernel is the formula."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pilgrim.model.attention import (
    causal_attention,
    document_mask,
    packed_attention,
    reference_attention,
)
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer

PADDING = -1


def network(**shape: int) -> Transformer:
    """Random weights everywhere: the usual initialization would make every block the identity."""
    model = Transformer(
        ModelSettings.model_validate({"depth": 2, "width": 32, "head_size": 8, **shape}).config(37)
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 0.1) + (p.ndim == 1))
    return model


def numbered(*lengths: int, padding: int = 0) -> Tensor:
    """Documents 0, 1, … of these lengths in one row, then padding."""
    numbers = [n for n, length in enumerate(lengths) for _ in range(length)] + [PADDING] * padding
    return torch.tensor([numbers], dtype=torch.int32)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ids_for(documents: Tensor, seed: int = 5) -> Tensor:
    return torch.randint(37, documents.shape, generator=torch.Generator().manual_seed(seed))


def close(ours: Tensor, theirs: Tensor, relative: float = 1e-5) -> None:
    """Within `relative` of the largest value."""
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error <= relative, f"off by {error:.2e}"


def test_the_mask_of_a_small_row() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1, -1, -1]]))
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]
    assert mask.shape == (1, 1, 5, 5)
    assert mask[0, 0].int().tolist() == expected


def test_rows_do_not_share_documents() -> None:
    mask = document_mask(torch.tensor([[0, 0, 1], [0, 1, 1]]))
    assert mask[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert mask[1, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


@pytest.mark.parametrize("lengths", [(24,), (1, 23), (7, 9, 8), (1,) * 24, (12, 5)])
@pytest.mark.parametrize("shape", [{}, {"kv_heads": 2}, {"kv_heads": 1, "head_size": 16, "heads": 3}])
def test_a_packed_document_is_as_if_it_were_alone(lengths: tuple[int, ...], shape: dict[str, int]) -> None:
    """Its hidden states, and the sum of the documents' gradients."""
    model, documents = network(**shape), numbered(*lengths, padding=24 - sum(lengths))
    ids, at = ids_for(documents), 0
    weighting = draw(24, 32, seed=9)

    def gradients(loss: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss.backward()
        return [p.grad.clone() for p in model.model.parameters() if p.grad is not None]

    packed = model(ids, packed_attention(documents, torch.float32))[0]
    together = gradients((packed * weighting)[: sum(lengths)].sum())
    apart = [torch.zeros_like(g) for g in together]
    for length in lengths:
        alone = model(ids[:, at : at + length], causal_attention)[0]
        close(packed[at : at + length], alone, 2e-5)
        for total, gradient in zip(
            apart, gradients((alone * weighting[at : at + length]).sum()), strict=True
        ):
            total += gradient
        at += length
    assert len(together) == len(list(model.model.parameters()))
    close(torch.cat([g.flatten() for g in together]), torch.cat([g.flatten() for g in apart]), 2e-5)


def test_positions_that_begin_anew_give_the_same() -> None:
    """RoPE sees only differences, so rows need not restart their positions for each document."""
    model, documents = network(), numbered(9, 11, 4)
    ids, attend = ids_for(documents), packed_attention(documents, torch.float32)
    anew = torch.cat([torch.arange(n) for n in (9, 11, 4)])[None]
    close(model(ids, attend), model(ids, attend, positions_bt=anew), 2e-5)


def test_nothing_leaks_from_one_document_to_another() -> None:
    """To the bit: other words in the second document change nothing in the first and third."""
    model, documents = network(kv_heads=2), numbered(8, 8, 6, padding=2)
    attend, ids = packed_attention(documents, torch.float32), ids_for(documents)
    others = torch.where(documents == 1, (ids + 1) % 37, ids)
    before, after = model(ids, attend), model(others, attend)
    assert torch.equal(before[documents != 1], after[documents != 1])
    assert not torch.equal(before[documents == 1], after[documents == 1])


def test_no_gradient_flows_across_the_border_or_back_in_time() -> None:
    documents = numbered(4, 4, padding=4)
    q, k, v = (draw(1, 2, 12, 8, seed=s).requires_grad_() for s in (1, 2, 3))
    out = packed_attention(documents, torch.float32)(0, q, k, v)
    out[0, :, 5].sum().backward()
    for x, seen in ((q, [5]), (k, [4, 5]), (v, [4, 5])):
        assert x.grad is not None
        assert x.grad[0].abs().sum((0, 2)).nonzero().flatten().tolist() == seen


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    padding=st.integers(0, 5),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    half=st.sampled_from([1, 2, 5, 8, 16, 32]),
)
def test_the_fused_kernel_is_the_formula(
    lengths: list[int], padding: int, kv_heads: int, group: int, half: int
) -> None:
    documents = numbered(*lengths, padding=padding).repeat(2, 1)
    documents[1] = documents[1].flip(0)  # another order of documents in the second row
    t = documents.shape[1]
    outs, grads = [], []
    for attend in (packed_attention(documents, torch.float32), reference_attention(documents)):
        q = draw(2, kv_heads * group, t, 2 * half, seed=1).requires_grad_()
        k, v = (draw(2, kv_heads, t, 2 * half, seed=s).requires_grad_() for s in (2, 3))
        out = attend(0, q, k, v)
        (out * draw(*out.shape, seed=4)).sum().backward()
        outs.append(out.detach())
        grads.append([x.grad for x in (q, k, v)])
    close(outs[0], outs[1])
    for ours, theirs in zip(*grads, strict=True):
        assert ours is not None and theirs is not None
        assert (ours - theirs).abs().max() <= 2e-5 * max(1.0, float(theirs.abs().max()))


def test_in_bf16_the_fused_kernel_is_as_near_as_bf16_allows() -> None:
    documents = numbered(5, 17, 2)
    q, k, v = (draw(1, h, 24, 16, seed=h).bfloat16() for h in (4, 2, 2))
    ours = packed_attention(documents, torch.bfloat16)(0, q, k, v)
    assert ours.dtype == torch.bfloat16
    close(ours.float(), reference_attention(documents)(0, q, k, v).float(), 2**-7)


def test_plain_causal_attention_is_a_row_with_one_document() -> None:
    q, k, v = (draw(2, h, 20, 8, seed=h) for h in (6, 3, 3))
    documents = torch.zeros(2, 20, dtype=torch.int32)
    close(causal_attention(0, q, k, v), packed_attention(documents, torch.float32)(0, q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_is_harmless(dtype: torch.dtype) -> None:
    """A row that is all padding and rows that are partly so: no NaN, forward or backward."""
    model = network()
    documents = torch.full((3, 16), PADDING, dtype=torch.int32)
    documents[1, :5], documents[2, :15] = 0, 0
    ids = ids_for(documents)
    hidden = model(ids, packed_attention(documents, dtype), dtype=dtype)
    assert hidden.isfinite().all()
    hidden.float()[documents == 0].sum().backward()
    for p in model.model.parameters():
        assert p.grad is not None and p.grad.isfinite().all()


def test_padding_sees_only_padding() -> None:
    documents = numbered(3, padding=3)
    q, k, v = (draw(1, 1, 6, 8, seed=s) for s in (1, 2, 3))
    out = packed_attention(documents, torch.float32)(0, q, k, v)
    alone = causal_attention(0, q[:, :, 3:], k[:, :, 3:], v[:, :, 3:])
    close(out[:, :, 3:], alone)
