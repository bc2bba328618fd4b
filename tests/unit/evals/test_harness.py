"""What the harness asks of a model, answered without the harness; and through it, where it is installed."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pilgrim.core.errors import DataError, PilgrimError, SettingsError
from pilgrim.core.files import read_json
from pilgrim.core.runtime import Runtime
from pilgrim.evals.core import read_exams
from pilgrim.evals.harness import Answers, lm_class, open_model
from pilgrim.export.huggingface import export_weights
from pilgrim.infer.engine import Engine
from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.stages.harness import evaluate_with_harness, table
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

CONTEXT = 96
SCRIPT = Path(__file__).parents[3] / "benchmarks" / "harness.py"
installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason='needs the harness: pip install "pilgrim[harness]"'
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat. " * 9, "Question: is it so? Answer: yes. " * 9], 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Transformer:
    made = Transformer(
        ModelSettings(depth=2, width=32, head_size=8, context=CONTEXT).config(tokenizer.vocab_size)
    )
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=dice) * 2 * parameter.shape[-1] ** -0.5)
    return made


@pytest.fixture(scope="module")
def engine(model: Transformer) -> Engine:
    return Engine(model, Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1))


def nats(model: Transformer, ids: list[int], scored: int) -> tuple[float, bool]:
    """Of the last `scored` ids: their log-probability, and whether each was the likeliest."""
    with torch.no_grad():
        logits_tv = model.logits(model(torch.tensor([ids]), causal_attention))[0, -1 - scored : -1].double()
    goal = torch.tensor(ids[-scored:])
    found = logits_tv.log_softmax(-1).gather(1, goal[:, None]).sum()
    return float(found), bool((logits_tv.argmax(-1) == goal).all())


@pytest.mark.parametrize("begin", [True, False])
def test_pairs(model: Transformer, engine: Engine, tokenizer: Tokenizer, begin: bool) -> None:
    pairs = [
        ("the cat", " sat"),
        ("the cat", " on the mat"),
        ("the cat ", "sat"),  # the space is the continuation's
        ("", "the mat"),
        ("the cat sat on the mat. " * 20, " so"),  # longer than the context
    ]
    answers = Answers(engine, tokenizer, begin)
    found = list(answers.log_likelihoods(pairs))
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        whole = tokenizer.encode(context + continuation)
        scored = len(whole) - len(tokenizer.encode(context.rstrip()))
        before = [tokenizer.eot_id] if begin or not context else []
        expected, likeliest = nats(model, [*before, *whole][-CONTEXT:], scored)
        assert value == pytest.approx(expected, abs=1e-4) and greedy == likeliest
    assert answers.cut == 1
    assert found[1][0] < 0 and found[0] == pytest.approx(next(answers.log_likelihoods(pairs[:1])), abs=1e-4)


def test_a_continuation_without_ids(engine: Engine, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="has no ids of its own"):
        list(Answers(engine, tokenizer).log_likelihoods([("the cat", "")]))


@pytest.mark.parametrize("times", [0, 1, 12, 40])
def test_whole_texts_in_windows(model: Transformer, engine: Engine, tokenizer: Tokenizer, times: int) -> None:
    """Each id is scored once; in a later window, after as much as fits."""
    text = "the cat sat on the mat. " * times
    ids, expected, done = [tokenizer.eot_id, *tokenizer.encode(text)], 0.0, 1
    while done < len(ids):
        end = min(done + CONTEXT - 1, len(ids))
        expected += nats(model, ids[max(0, end - CONTEXT) : end], end - done)[0]
        done = end
    (found,) = Answers(engine, tokenizer).of_whole_texts([text])
    assert found == pytest.approx(expected, abs=1e-3)


def test_replies_end_before_the_first_stop(engine: Engine, tokenizer: Tokenizer) -> None:
    answers = Answers(engine, tokenizer)
    prompts = ["the cat", "Question: " * 60]
    free = list(answers.replies([(p, {"until": [], "max_gen_toks": 20}) for p in prompts]))
    assert answers.cut == 1 and all(len(tokenizer.encode(text)) > 0 for text in free)
    stop = free[0][3:6]
    asked = {"until": [stop, "never to be seen"], "max_gen_toks": 20, "do_sample": False}
    (cut,) = answers.replies([(prompts[0], asked)])
    assert cut == free[0][: free[0].find(stop)]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_beams": 4}, "no generation setting num_beams"),
        ({"max_gen_toks": CONTEXT}, f"max_gen_toks = {CONTEXT} leaves no room"),
    ],
)
def test_settings_that_the_engine_has_not(
    engine: Engine, tokenizer: Tokenizer, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        list(Answers(engine, tokenizer).replies([("the cat", settings)]))


def test_the_table_has_a_line_for_each_metric() -> None:
    numbers = {"acc,none": 0.25, "acc_stderr,none": 0.05, "word_perplexity,none": 9.0, "other": 1}
    _, acc, perplexity = table({"piqa": numbers})
    assert acc.split() == ["piqa", "acc", "0.2500", "±", "0.0500"]
    assert perplexity.split() == ["piqa", "word_perplexity", "9.0000"]


def test_a_run_or_a_folder() -> None:
    with pytest.raises(SettingsError, match="needs run=FOLDER or hf=FOLDER"):
        open_model(None, None)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the harness is installed")
def test_without_the_harness() -> None:
    with pytest.raises(PilgrimError, match=r'install it: pip install "pilgrim\[harness\]"'):
        lm_class()


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_the_harness", SCRIPT)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


def test_items_become_the_documents_of_the_harness(bench: ModuleType) -> None:
    exams = {exam.task.name: exam for exam in read_exams()}
    documents = {task: [make(item) for item in exams[name].items] for name, task, make in bench.TASKS}
    for document, item in zip(documents["winogrande"], exams["winogrande"].items, strict=True):
        before, after = document["sentence"].split("_", 1)
        filled = [before + document[option] + after for option in ("option1", "option2")]
        assert filled == [" ".join(option) for option in item.options]
        assert int(document["answer"]) - 1 == item.gold
    for document, item in zip(documents["lambada_openai"], exams["lambada_openai"].items, strict=True):
        assert document["text"].split(" ")[-1] == item.options[0][1]
    assert not any(d["question"].startswith("Question:") for d in documents["arc_easy"])


@installed
@pytest.mark.filterwarnings("ignore")  # of the many packages behind it
@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("number", range(6))
def test_our_numbers_are_the_harness_s(
    bench: ModuleType, number: int, trained: bool, engine: Engine, tokenizer: Tokenizer
) -> None:
    name, task, document = bench.TASKS[number]
    model = wider(engine)
    if trained:
        train(model, tokenizer)
    long = Engine(model, Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1))
    (exam,) = [exam for exam in read_exams(limit=8) if exam.task.name == name]
    found = bench.compare_task(long, tokenizer, exam, task, document)
    assert found.ours_by_sum == found.acc
    assert found.worst_nats < 1e-3


def train(model: Transformer, tokenizer: Tokenizer) -> None:
    """Twenty steps on the tokenizer's few words: enough to prefer some to others."""
    ids = torch.tensor([tokenizer.encode("Question: is it so? Answer: yes. The cat sat on the mat. " * 9)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(20):
        logits = model.logits(model(ids[:, :-1], causal_attention))
        loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def wider(engine: Engine) -> Transformer:
    """The same weights with room for whole prompts: cut ones lose different beginnings."""
    made = Transformer(engine.config.model_copy(update={"context": 1024}))
    made.load_weights(engine.model.weights())
    return made


@installed
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_what_the_harness_found(
    bench: ModuleType,
    model: Transformer,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a data set that comes from here and not from the network."""
    import datasets

    (exam,) = [exam for exam in read_exams() if exam.task.name == "piqa"]
    documents = datasets.Dataset.from_list([bench.piqa(item) for item in exam.items[:5]])
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: {"validation": documents, "train": documents})
    export_weights(model.weights(), model.config, tokenizer, tmp_path / "hf")
    evaluate_with_harness(tmp_path / "out", tmp_path / "hf", ["piqa"], limit=4)
    found = read_json(tmp_path / "out" / "evaluate" / "harness.json")
    assert set(found["tasks"]["piqa"]) >= {"acc,none", "acc_norm,none"} and found["shots"] == {"piqa": 0}
    with pytest.raises(DataError, match="the harness has no such task"):
        evaluate_with_harness(tmp_path / "out", tmp_path / "hf", ["nothere"])

    def unreachable(**_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"could not fetch the data of piqa \(no network\)"):
        evaluate_with_harness(tmp_path / "out", tmp_path / "hf", ["piqa"])
