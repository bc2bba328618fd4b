"""Other things to train for than the next token: likelihoods with gradients of their own, and sums to log."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.core.compiling import compiled
from pilgrim.core.processes import Processes
from pilgrim.core.runlog import read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch, PackedRows, stack
from pilgrim.data.prefetch import InTurn
from pilgrim.data.shards import TokenSet
from pilgrim.model.layers import softcapped
from pilgrim.model.transformer import Transformer
from pilgrim.train.loop import Loop, Parts
from pilgrim.train.losses import Losses, linear_logprobs, next_token_losses, token_losses
from pilgrim.train.objective import Objective, with_sums
from pilgrim.train.parallel import losses_of
from pilgrim.train.step import accumulate

TOKENS, WIDTH, VOCABULARY = 1500, 8, 30  # more tokens than one chunk


def numbers(softcap: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head, targets of which some are IGNORED, and a factor of each token."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, requires_grad=True)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    targets[::7] = IGNORED
    return hidden, head, targets, torch.randn(TOKENS, generator=generator)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within its compiler
@pytest.mark.parametrize(("softcap", "compile"), [(None, False), (3.0, False), (3.0, True)])
def test_log_probabilities_are_those_of_log_softmax(softcap: float | None, compile: bool) -> None:
    hidden, head, targets, factor = numbers(softcap)
    ours = compiled(linear_logprobs) if compile else linear_logprobs
    logprobs, entropies = ours(hidden, head, targets, softcap)
    found = torch.autograd.grad((logprobs * factor).sum(), (hidden, head))

    plain = softcapped(F.linear(hidden, head), softcap).log_softmax(-1)
    counts = targets != IGNORED
    expected = plain.gather(1, targets.clamp(min=0)[:, None])[:, 0] * counts
    torch.testing.assert_close(logprobs, expected)
    torch.testing.assert_close(entropies, -(plain.exp() * plain).sum(-1).detach() * counts)
    assert not entropies.requires_grad
    torch.testing.assert_close(found, torch.autograd.grad((expected * factor).sum(), (hidden, head)))


def with_extra(
    token_set: Callable[..., TokenSet], random_documents: Callable[..., list[list[int]]], runtime: Runtime
) -> Batch:
    """Eight rows in which each place says what it is: its row and place."""
    tokens = token_set(random_documents([*range(2, 40)], 3))
    rows = []
    for number, (row, _) in enumerate(islice(PackedRows(tokens, 16, 0, runtime).rows(None), 8)):
        name = 100.0 * (number + 1) + torch.arange(16)
        rows.append(replace(row, extra={"name": name[None], "pair": torch.stack([name, -name], -1)[None]}))
    return stack(rows)


def test_further_numbers_go_where_their_places_go(
    token_set: Callable[..., TokenSet], random_documents: Callable[..., list[list[int]]], runtime: Runtime
) -> None:
    batch = with_extra(token_set, random_documents, runtime)
    assert batch.extra["name"].shape == (8, 16) and batch.extra["pair"].shape == (8, 16, 2)
    micros = list(batch.micro(3))
    torch.testing.assert_close(torch.cat([m.extra["name"] for m in micros]), batch.extra["name"])
    shares = [batch.share(Processes(rank, 3)) for rank in range(3)]  # the last one is filled up
    joined = torch.cat([share.extra["pair"] for share in shares])
    torch.testing.assert_close(joined[:8], batch.extra["pair"])
    assert not joined[8:].any() and len(joined) == 9
    assert batch.nothing().extra["pair"].shape == (8, 16, 2) and not batch.nothing().extra["name"].any()
    assert batch.to(torch.device("cpu")).extra is batch.extra


def by_row_parity(batch: Batch, losses: Losses) -> Tensor:
    """Nats and trained tokens of places whose name is odd, and of those whose name is even."""
    odd = batch.extra["name"] % 2 == 1
    counts = batch.targets_bt != IGNORED
    parts = (losses.each_bt * odd, losses.each_bt * ~odd, counts & odd, counts & ~odd)
    return torch.stack([part.sum().float() for part in parts])


@pytest.mark.parametrize("micro_rows", [1, 3, 8])
def test_sums_are_those_of_the_whole_batch(
    micro_rows: int,
    token_set: Callable[..., TokenSet],
    random_documents: Callable[..., list[list[int]]],
    new_model: Callable[..., Transformer],
    runtime: Runtime,
) -> None:
    batch, model = with_extra(token_set, random_documents, runtime), new_model()
    losses = with_sums(token_losses, Objective(next_token_losses, sums=by_row_parity))
    found = accumulate(model, batch, micro_rows, losses, runtime)
    assert found.sums_k is not None
    torch.testing.assert_close(found.sums_k, by_row_parity(batch, token_losses(model, batch, torch.float32)))
    odd, even, odd_tokens, even_tokens = found.sums_k.tolist()
    assert (odd + even) / (odd_tokens + even_tokens) == pytest.approx(float(found.loss), rel=1e-5)


def twice(hidden_btw: Tensor, head_vw: Tensor, batch: Batch, softcap: float | None) -> Losses:
    """Another thing to train for: twice the usual loss, which it logs, too."""
    usual = next_token_losses(hidden_btw, head_vw, batch, softcap)
    return Losses(2 * usual.total, usual.each_bt, usual.each_bt.detach().sum()[None])


def test_the_loop_divides_and_logs_as_the_objective_says(make_parts: Callable[..., Parts]) -> None:
    def measures(sums: Sequence[float]) -> dict[str, Any]:
        return {"nats": sums[0]}

    def train(name: str, **changes: Any) -> list[dict[str, Any]]:
        parts = replace(make_parts(name), **changes)
        Loop(parts).run()
        return read_rows(parts.folder / "metrics.jsonl")

    parts = make_parts("usual")  # whose losses are by torch's fused kernel, so the other ones must be, too
    losses, measured = losses_of(parts.model, parts.runtime, "sdpa", twice)
    assert measured(parts.model, stack([next(parts.rows.rows(None))[0]]), torch.float32).sums_k is None
    usual = train("usual")
    # Twice the loss, divided by twice the tokens, in turn rather than ahead: the same walk, to the bit.
    objective = Objective(twice, lambda batch: 2 * batch.trained_tokens, measures=measures)
    other = train("other", losses=losses, objective=objective, ahead=False)
    assert len(usual) == len(other) > 0
    for a, b in zip(usual, other, strict=True):
        assert b.pop("nats") > 0
        assert a == b


def test_in_turn_makes_a_batch_when_it_is_asked_for() -> None:
    made = []

    def stream() -> Any:
        for number in range(3):
            made.append(number)
            yield number, {"row": number}

    with InTurn(stream(), torch.device("cpu")) as batches:
        assert made == []
        assert next(batches)[1] == {"row": 0} and made == [0]
        assert [position["row"] for _, position in batches] == [1, 2]
    assert batches.waited_s > 0


def test_a_block_is_compiled_once_whatever_heads_there_are(
    new_model: Callable[..., Transformer], runtime: Runtime, tmp_path: Path
) -> None:
    model = new_model()
    several = replace(runtime, compile=True, processes=Processes(0, 2), parallel="ddp")
    losses_of(model, several, None, twice)
    before = [vars(block)["forward"] for block in model.model.layers]
    losses_of(model, several, None)
    assert before == [vars(block)["forward"] for block in model.model.layers]
