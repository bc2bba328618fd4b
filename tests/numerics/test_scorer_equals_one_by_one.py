"""The scorer beside a slow twin: no cache, no batches, no code in common, written from the description.

The twin begins with the rows of JSON. It renders with Jinja, as nanochat does; it finds where a continuation
begins by comparing ids one by one; and it reads each option from beginning to end.
"""

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Template
from torch import Tensor

from pilgrim.core.files import read_jsonl_zst
from pilgrim.core.runtime import Runtime
from pilgrim.data.sources import read_documents
from pilgrim.evals.core import evaluate, read_exams
from pilgrim.evals.core_tasks import BUNDLED, TASKS, Task
from pilgrim.evals.prompts import Row
from pilgrim.evals.scoring import pick, score
from pilgrim.evals.trees import WORTH_SHARING
from pilgrim.infer.engine import Engine
from pilgrim.model.attention import causal_attention, reference_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

CONTEXT = 192
ITEMS = 5
# With and without examples, cut and whole, lettered choices and spelled out; all three kinds.
ASKED = (
    "copa",
    "arc_easy",
    "commonsense_qa",
    "winograd",
    "winogrande",
    "lambada_openai",
    "bigbench_operators",
)
BY_NAME = {task.name: task for task in TASKS}

TEMPLATES = {
    "multiple_choice": "{% for e in shots %}{{ e.query }}{{ d }}{{ e.choices[e.gold] }}\n\n{% endfor %}"
    "{{ item.query }}{{ d }}{{ option }}",
    "schema": "{% for e in shots %}{{ e.context_options[e.gold] }}{{ d }}{{ e.continuation }}\n\n{% endfor %}"
    "{{ option }}{{ d }}{{ item.continuation }}",
    "language_modeling": "{% for e in shots %}{{ e.context | trim }}{{ d }}{{ e.continuation }}\n\n"
    "{% endfor %}{{ item.context | trim }}{{ d }}{{ option }}",
}


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [document.text for document in read_documents(["assets:text/val.jsonl.zst"])]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, 600)


@pytest.fixture(scope="module")
def random_model(tokenizer: Tokenizer) -> Transformer:
    shape = ModelSettings(depth=2, width=32, head_size=8, heads=4, kv_heads=2, context=CONTEXT)
    model = Transformer(shape.config(tokenizer.vocab_size))
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=dice) * 2 * parameter.shape[-1] ** -0.5)
    return model


@pytest.fixture(scope="module")
def trained_model(texts: list[str], tokenizer: Tokenizer) -> Transformer:
    """Forty steps on a few stories: enough to prefer some words to others."""
    shape = ModelSettings(depth=2, width=32, head_size=8, context=CONTEXT)
    model = Transformer(shape.config(tokenizer.vocab_size))
    dice = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.0 if parameter.ndim == 1 else 0.1 * torch.randn(parameter.shape, generator=dice)
            parameter.copy_(torch.as_tensor(scale).expand(parameter.shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    ids = torch.tensor([i for text in texts[:40] for i in [0, *tokenizer.encode(text)]][: 40 * 257])
    for step in range(40):
        row = ids[step * 257 : (step + 1) * 257][None]
        logits = model.logits(model(row[:, :-1], causal_attention))
        loss = torch.nn.functional.cross_entropy(logits[0], row[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 5.5  # 6.4 is knowing nothing
    return model


def items_of(task: Task) -> list[dict[str, Any]]:
    rows = [row for _, row in read_jsonl_zst(BUNDLED / f"{task.file}.jsonl.zst")]
    random.Random(1337).shuffle(rows)
    return rows


@torch.no_grad()
def nats(model: Transformer, ids: list[int]) -> tuple[Tensor, Tensor]:
    """Log-probability of each id but the first, and whether it was the likeliest."""
    logits_tv = model.logits(model(torch.tensor([ids]), causal_attention))[0].double()
    log_probs_tv = logits_tv.log_softmax(-1)
    goal = torch.tensor(ids[1:])
    return log_probs_tv[torch.arange(len(goal)), goal], logits_tv[:-1].argmax(-1) == goal


def slow(
    model: Transformer, tokenizer: Tokenizer, task: Task, rows: list[dict[str, Any]], at: int
) -> tuple[bool, list[float]]:
    """Whether the item is answered rightly, and the mean log-probability of each option."""
    item, shots = rows[at], []
    if task.shots:
        others = [i for i in range(len(rows)) if i != at]
        shots = [rows[i] for i in random.Random(1234 + at).sample(others, task.shots)]
    key = {"multiple_choice": "choices", "schema": "context_options"}.get(task.kind)
    options = item[key] if key else [item["continuation"], ""]
    template = Template(TEMPLATES[task.kind])
    prompts = [template.render(shots=shots, item=item, d=task.delimiter, option=o) for o in options]
    if task.kind == "language_modeling":
        prompts[1] = prompts[1].strip()
    all_ids = [[tokenizer.eot_id, *tokenizer.encode(prompt)] for prompt in prompts]
    same = 0
    if task.kind == "schema":
        while len({ids[-1 - same] for ids in all_ids}) == 1:
            same += 1
        starts = [len(ids) - same for ids in all_ids]
    else:
        while all(same < len(ids) for ids in all_ids) and len({ids[same] for ids in all_ids}) == 1:
            same += 1
        starts = [same] * len(all_ids)
    means, greedy = [], []
    for ids, start in list(zip(all_ids, starts, strict=True))[: None if key else 1]:
        cut = max(0, len(ids) - CONTEXT)
        log_probs, likeliest = nats(model, ids[cut:])
        means.append(float(log_probs[start - cut - 1 :].mean()))
        greedy.append(bool(likeliest[start - cut - 1 :].all()))
    return (means.index(max(means)) == item["gold"] if key else greedy[0]), means


@pytest.mark.parametrize("which", ["random_model", "trained_model"])
def test_every_item_as_one_by_one(
    which: str, request: pytest.FixtureRequest, tokenizer: Tokenizer, runtime: Runtime
) -> None:
    model: Transformer = request.getfixturevalue(which)
    exams = [exam for exam in read_exams(limit=ITEMS) if exam.task.name in ASKED]
    result = evaluate(Engine(model, runtime), tokenizer, exams)
    assert set(result["tasks"]) == set(ASKED)
    for name, found in result["tasks"].items():
        rows = items_of(BY_NAME[name])
        for at in range(ITEMS):
            right, means = slow(model, tokenizer, BY_NAME[name], rows, at)
            assert found["right"][at] == right, (name, at)
            assert found["mean_log_probs"][at] == pytest.approx(means, abs=1e-5), (name, at)
    assert result["tasks"]["arc_easy"]["cut"] == ITEMS
    assert result["tasks"]["copa"]["cut"] == 0


def test_greedy_is_what_the_model_would_write(
    trained_model: Transformer, tokenizer: Tokenizer, runtime: Runtime
) -> None:
    """Continuations that the model wrote itself are all greedy; with another last token they are not."""
    engine, rows = Engine(trained_model, runtime), []
    for begin in ("Once upon a time", "The dog", "She said that"):
        ids = [tokenizer.eot_id, *tokenizer.encode(begin)]
        start = len(ids)
        for _ in range(5):
            with torch.no_grad():
                logits_v = trained_model.logits(trained_model(torch.tensor([ids]), causal_attention))[0, -1]
            ids.append(int(logits_v.argmax()))
        rows.append([Row(tuple(ids), start), Row((*ids[:-1], (ids[-1] + 1) % 600), start)])
    assert [[s.greedy for s in scores] for scores in score(engine, rows)] == [[True, False]] * 3


@st.composite
def questions(draw: st.DrawFn) -> list[list[Row]]:
    """Options that begin alike (or hardly), differ early or late, are equal, or part of one another."""
    ids = st.integers(0, 599)
    found = []
    for _ in range(draw(st.integers(1, 5))):
        trunk = draw(st.lists(ids, min_size=1, max_size=60))
        rows = []
        for _ in range(draw(st.integers(1, 4))):
            begin = trunk if draw(st.booleans()) else trunk[draw(st.integers(0, len(trunk) - 1)) :]
            row = (*begin, *draw(st.lists(ids, min_size=1, max_size=12)))
            rows.append(Row(row, draw(st.integers(1, len(row) - 1))))
        found.append(rows)
    return found


@settings(max_examples=40, deadline=None)
@given(asked=questions(), tokens_per_pass=st.sampled_from([1, 100, 8192]))
def test_batches_change_nothing(
    asked: list[list[Row]], tokens_per_pass: int, random_model: Transformer, runtime: Runtime
) -> None:
    found = score(Engine(random_model, runtime), asked, tokens_per_pass)
    for rows, scores in zip(asked, found, strict=True):
        for row, value in zip(rows, scores, strict=True):
            log_probs, likeliest = nats(random_model, list(row.ids))
            scored = log_probs[row.start - 1 :]
            assert value.tokens == len(scored)
            assert value.mean == pytest.approx(float(scored.mean()), abs=1e-5)
            assert value.greedy == bool(likeliest[row.start - 1 :].all())


@settings(max_examples=20, deadline=None)
@given(asked=questions())
def test_windows_are_honoured(asked: list[list[Row]], runtime: Runtime) -> None:
    shape = ModelSettings(
        depth=3, width=32, head_size=8, kv_heads=2, context=CONTEXT, window=12, window_pattern="SLS"
    )
    config = shape.config(600).model_copy(update={"window_pattern": "SLS"})  # the last layer has one, too
    model = Transformer(config)
    dice = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=dice) * 2 * parameter.shape[-1] ** -0.5)
    found = score(Engine(model, runtime), asked)
    for row, value in ((r, v) for q, s in zip(asked, found, strict=True) for r, v in zip(q, s, strict=True)):
        ids_1t = torch.tensor([row.ids])
        attend = reference_attention(torch.zeros_like(ids_1t), config.windows)
        with torch.no_grad():
            log_probs_tv = model.logits(model(ids_1t, attend))[0].double().log_softmax(-1)
        goal = ids_1t[0, row.start :]
        expected = log_probs_tv[row.start - 1 : -1].gather(1, goal[:, None])
        assert value.mean == pytest.approx(float(expected.mean()), abs=1e-5)


def test_questions_with_more_and_fewer_options_are_read_together(
    random_model: Transformer, runtime: Runtime
) -> None:
    """The longest trunk has the fewest options, and the shortest has options of very unequal length."""
    asked = []
    for trunk, ends in ((20, (1, 30, 2, 3)), (30, (5, 1, 1)), (40, (2, 4))):
        begin = tuple(range(trunk))
        asked.append([Row((*begin, *range(100 + n, 100 + n + end)), trunk) for n, end in enumerate(ends)])
    for rows, scores in zip(asked, score(Engine(random_model, runtime), asked), strict=True):
        for row, value in zip(rows, scores, strict=True):
            log_probs, _ = nats(random_model, list(row.ids))
            assert value.mean == pytest.approx(float(log_probs[row.start - 1 :].mean()), abs=1e-5)


def test_logits_in_small_parts(
    random_model: Transformer, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row((*range(1, 40), *end), 20) for end in ((7, 8, 9), (5,), (6, 6))]
    whole = score(Engine(random_model, runtime), [rows])
    monkeypatch.setattr("pilgrim.evals.scoring.LOGITS_AT_ONCE", 3 * 600)
    parts = score(Engine(random_model, runtime), [rows])
    for a, b in zip(whole[0], parts[0], strict=True):
        assert (a.tokens, a.greedy) == (b.tokens, b.greedy)
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


def test_of_equal_options_the_first_is_picked(random_model: Transformer, runtime: Runtime) -> None:
    trunk = tuple(range(1, 40))
    rows = [Row((*trunk, *end), len(trunk)) for end in ((7, 8, 9), (5,), (7, 8, 9), (5,))]
    (scores,) = score(Engine(random_model, runtime), [rows])
    assert scores[0] == scores[2] and scores[1] == scores[3]
    assert pick(scores) in (0, 1)
    assert len(trunk) > WORTH_SHARING
