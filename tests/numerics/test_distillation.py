"""Learning from a teacher's scores, beside the plain way: all of both distributions, and torch's own
gradients."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import IGNORED, Batch
from pilgrim.model.attention import packed_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.layers import softcapped
from pilgrim.model.transformer import Transformer
from pilgrim.train.by_source import by_source
from pilgrim.train.distillation import (
    IDS,
    LOGPROBS,
    TeacherSettings,
    distillation_losses,
    distilled,
    foreseen,
)
from pilgrim.train.losses import next_token_losses, token_losses
from pilgrim.train.objective import NEXT_TOKEN, with_sums
from pilgrim.train.step import compiled_token_losses
from pilgrim.train.teacher import Teacher, taught

ROWS, CONTEXT, WIDTH, VOCABULARY = 3, 400, 8, 30  # more tokens than one chunk

Function = TypeVar("Function", bound=Callable[..., object])
Numbers = tuple[Tensor, Tensor, Tensor, Tensor]  # hidden states, head, targets, the teacher's scores


@pytest.fixture
def numbers() -> Numbers:
    dice = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, CONTEXT, WIDTH, generator=dice, requires_grad=True)
    head = torch.randn(VOCABULARY, WIDTH, generator=dice, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (ROWS, CONTEXT), generator=dice)
    targets[:, ::7] = IGNORED
    return hidden, head, targets, 2 * torch.randn(ROWS, CONTEXT, VOCABULARY, generator=dice)


def told(targets: Tensor, teacher: Tensor, top_k: int, temperature: float) -> Batch:
    """A batch with the teacher's word, made in the plainest way."""
    logprobs = (teacher / temperature).log_softmax(-1)
    best = logprobs.topk(top_k)
    named = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, best.indices, True)
    lump = logprobs.exp().masked_fill(named, 0).sum(-1, keepdim=True).clamp(min=1e-30).log()
    extra = {IDS: best.indices, LOGPROBS: torch.cat([best.values, lump], -1)}
    return Batch(targets, targets, torch.zeros_like(targets), extra=extra)


@pytest.mark.parametrize(
    ("softcap", "temperature", "weight"), [(None, 1.0, 0.5), (3.0, 2.5, 0.3), (None, 2.0, 1.0)]
)
def test_with_all_tokens_named_it_is_the_full_divergence(
    numbers: Numbers, softcap: float | None, temperature: float, weight: float
) -> None:
    hidden, head, targets, teacher = numbers
    batch = told(targets, teacher, VOCABULARY - 1, temperature)  # then the lump is one token
    found = distillation_losses(hidden, head, batch, softcap, weight, temperature)

    scores = softcapped(F.linear(hidden, head), softcap)
    counts = targets != IGNORED
    entropy = F.cross_entropy(scores.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
    student, teacher = (scores / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * counts
    plain = (1 - weight) * entropy.sum() + weight * temperature**2 * divergence.sum()
    torch.testing.assert_close(found.total, plain)
    torch.testing.assert_close(found.each_bt, entropy.detach())
    assert not found.each_bt.requires_grad and found.sums_k is not None
    torch.testing.assert_close(
        found.sums_k, torch.stack([divergence.sum(), entropy.sum(), counts.sum()]).detach()
    )
    expected = torch.autograd.grad(plain, (hidden, head))
    torch.testing.assert_close(torch.autograd.grad(found.total, (hidden, head)), expected)


@pytest.mark.parametrize("top_k", [1, 4, 20])
def test_the_others_count_as_one_lump(numbers: Numbers, top_k: int) -> None:
    hidden, head, targets, teacher = numbers
    batch = told(targets, teacher, top_k, 1.5)
    found = distillation_losses(hidden, head, batch, None, weight=1.0, temperature=1.5)

    student = (F.linear(hidden, head) / 1.5).softmax(-1)
    named = student.gather(-1, batch.extra[IDS])
    lumped = torch.cat([named, 1 - named.sum(-1, keepdim=True)], -1).log()
    each = F.kl_div(lumped, batch.extra[LOGPROBS], reduction="none", log_target=True).sum(-1)
    plain = 1.5**2 * (each * (targets != IGNORED)).sum()
    torch.testing.assert_close(found.total, plain, rtol=1e-4, atol=1e-4)
    expected = torch.autograd.grad(plain, (hidden, head))
    torch.testing.assert_close(
        torch.autograd.grad(found.total, (hidden, head)), expected, rtol=1e-4, atol=1e-4
    )


def test_lumping_never_says_more_than_all_of_it(numbers: Numbers) -> None:
    hidden, head, targets, teacher = numbers
    sums = []
    for top_k in (1, 3, 10, VOCABULARY - 1):
        found = distillation_losses(hidden, head, told(targets, teacher, top_k, 1.0), None, 1.0, 1.0)
        sums.append(float(found.total.detach()))
    assert sums == sorted(sums) and sums[0] > 0


def test_a_teacher_that_is_the_student_has_nothing_to_teach(numbers: Numbers) -> None:
    hidden, head, targets, _ = numbers
    scores = F.linear(hidden, head).detach()
    found = distillation_losses(hidden, head, told(targets, scores, 5, 2.0), None, 1.0, 2.0)
    assert abs(float(found.total.detach())) < 1e-3
    for gradient in torch.autograd.grad(found.total, (hidden, head)):
        assert gradient.abs().max() < 1e-4


def test_a_small_share_keeps_its_gradient(numbers: Numbers) -> None:
    """All but the whole probability in the named tokens: what is left would vanish in 1 less their sum."""
    hidden, head, targets, _ = numbers
    with torch.no_grad():
        head[:5] += (
            100 * hidden[0, 1] / hidden[0, 1].norm() ** 2
        )  # scores of five tokens far above the others
    one = hidden[:1, 1:2]
    batch = told(targets[:1, 1:2], 5 * F.linear(one, head).detach(), 5, 1.0)
    found = distillation_losses(one, head, batch, None, 1.0, 1.0)
    assert torch.isfinite(found.total)
    for gradient in torch.autograd.grad(found.total, (hidden, head)):
        assert torch.isfinite(gradient).all()


@pytest.fixture(scope="module")
def network() -> Callable[..., Transformer]:
    def make(seed: int, **changes: int) -> Transformer:
        settings = ModelSettings(depth=1, width=16, head_size=8, context=16).model_copy(update=changes)
        model = Transformer(settings.config(VOCABULARY))
        initialize(model, torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.copy_(
                        torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1
                    )
        return model

    return make


def test_a_teacher_says_what_its_scores_say(network: Callable[..., Transformer]) -> None:
    """Packed documents, padding, and a table with more rows than there are tokens."""
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    model = network(3)
    ids = torch.randint(0, 20, (2, 16), generator=torch.Generator().manual_seed(4))
    documents = torch.tensor([[0] * 9 + [1] * 7, [0] * 12 + [-1] * 4])
    batch = Batch(ids, ids, documents)
    settings = TeacherSettings(run="x", top_k=4, temperature=2.0)
    said = Teacher(model, settings, runtime, vocabulary=20).told(batch)

    with torch.no_grad():
        hidden = model(ids, packed_attention(documents, torch.float32, model.windows))
        expected = (model.logits(hidden)[..., :20] / 2).softmax(-1)
    assert said.extra[IDS].shape == (2, 16, 4) and int(said.extra[IDS].max()) < 20
    found = said.extra[LOGPROBS].exp()
    torch.testing.assert_close(found[..., :-1], expected.gather(-1, said.extra[IDS]))
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 16))
    assert all(not parameter.requires_grad for parameter in model.parameters())


def step(network: Callable[..., Transformer], batches: Iterable[Batch]) -> list[Tensor]:
    """The parts of a step's loss, and all gradients, as a stage makes them; several batches are added up."""
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    settings = TeacherSettings(run="x", top_k=4, weight=0.7, temperature=1.5)
    objective, student = distilled(NEXT_TOKEN, settings), network(5)
    losses = with_sums(compiled_token_losses(runtime, None, objective.head_loss), objective)
    losses = taught(losses, Teacher(network(3), settings, runtime, VOCABULARY))
    sums = torch.zeros(3)
    for batch in batches:
        found = losses(student, batch, torch.float32)
        assert found.sums_k is not None
        found.total.backward()
        sums += found.sums_k
    assert objective.measures(sums.tolist())["teacher_kl"] > 0
    return [sums, *(parameter.grad for parameter in student.parameters() if parameter.grad is not None)]


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(4))
    return Batch(ids, ids.roll(-1, 1), torch.zeros_like(ids))


def test_a_step_is_the_same_in_microbatches(network: Callable[..., Transformer], batch: Batch) -> None:
    whole = step(network, [batch])
    torch.testing.assert_close(step(network, batch.micro(1)), whole)


def in_one_piece(function: Function) -> Function:
    """As it is captured to be compiled (core/compiling.py); making code of it is torch's own concern."""
    return torch.compile(function, dynamic=False, fullgraph=True, backend="aot_eager")  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, within its compiler
def test_what_is_compiled_is_one_piece(network: Callable[..., Transformer], batch: Batch) -> None:
    teacher, student = network(3).requires_grad_(False), network(5)
    said = [
        f(teacher, batch, torch.float32, None, None, 4, 1.5, 20) for f in (foreseen, in_one_piece(foreseen))
    ]
    torch.testing.assert_close(said[1], said[0])

    told_batch = replace(batch, extra={IDS: said[0][0], LOGPROBS: said[0][1]})
    head_loss = partial(distillation_losses, weight=0.7, temperature=1.5)
    found = []
    for losses in (token_losses, in_one_piece(token_losses)):
        total = losses(student, told_batch, torch.float32, None, None, head_loss).total
        found.append(torch.autograd.grad(total, list(student.parameters())))
    torch.testing.assert_close(found[1], found[0])


def test_sources_are_told_beside_the_teachers_part(network: Callable[..., Transformer], batch: Batch) -> None:
    """A mixture's objective has sums of its own, which come behind."""
    source = torch.tensor([[1], [2], [2], [1]]).expand(4, 16)
    extra = {"source": source, "epoch": torch.zeros(4, 16)}
    settings = TeacherSettings(run="x", top_k=4, weight=0.7)
    objective = distilled(by_source(["text", "talk"]), settings)
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    losses = with_sums(compiled_token_losses(runtime, None, objective.head_loss), objective)
    losses = taught(losses, Teacher(network(3), settings, runtime, VOCABULARY))
    found = losses(network(5), replace(batch, extra=extra), torch.float32)
    assert found.sums_k is not None
    told_row = objective.measures(found.sums_k.tolist())
    parts = [told_row["sources"][name]["loss"] for name in ("text", "talk")]
    assert told_row["cross_entropy"] == pytest.approx(sum(parts) / 2, rel=1e-5)
    assert told_row["sources"]["talk"]["tokens"] == 32 and told_row["teacher_kl"] > 0


def test_without_a_share_of_the_teacher_it_is_the_cross_entropy(numbers: Numbers) -> None:
    hidden, head, targets, teacher = numbers
    batch = told(targets, teacher, 3, 1.0)
    found = distillation_losses(hidden, head, batch, None, 0.0, 1.0)
    plain = next_token_losses(hidden, head, replace(batch, extra={}), None)
    torch.testing.assert_close(found.total, plain.total)
    ours = torch.autograd.grad(found.total, (hidden, head))
    torch.testing.assert_close(ours, torch.autograd.grad(plain.total, (hidden, head)))
