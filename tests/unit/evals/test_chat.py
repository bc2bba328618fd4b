"""The chat suite: what it asks, that batches don't matter, what it says of itself, and two models."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pilgrim.core.errors import DataError
from pilgrim.core.runtime import Runtime
from pilgrim.data.sources import read_documents
from pilgrim.evals.answering import ask, choice_rows, reply_to
from pilgrim.evals.chat import ChatExam, evaluate, name_of, read_chat_exams, read_own_exams, summary
from pilgrim.evals.chat_tasks import BUNDLED, TASKS, find_chat_file
from pilgrim.evals.compare import compare
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.sandbox import refusal
from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.chat import Message, render
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

Make = Callable[..., Engine]
Ask = Callable[..., dict[str, Any]]
MEMBERS = ["arc_easy", "arc_challenge", "mmlu", "gsm8k", "humaneval", "spelling"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([d.text for d in read_documents(["assets:text/val.jsonl.zst"])], 600)


@pytest.fixture(scope="module")
def engine_of(tokenizer: Tokenizer) -> Make:
    def make(seed: int = 1, context: int = 64, rows: int = 32) -> Engine:
        model = Transformer(
            ModelSettings(depth=1, width=16, head_size=8, context=context).config(tokenizer.vocab_size)
        )
        dice = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=dice))
        return Engine(model, Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1), rows)

    return make


@pytest.fixture(scope="module")
def exams() -> list[ChatExam]:
    found, _ = read_chat_exams(limit=4)
    return [exam for exam in found if exam.task.name != "humaneval"]


@pytest.mark.parametrize("name", ["arc_easy", "mmlu", "gsm8k"])
def test_what_is_looked_for_in_training_text_has_no_words_of_ours(exams: list[ChatExam], name: str) -> None:
    """Words that all questions have would be found together, or not at all."""
    (items,) = (exam.items for exam in exams if exam.task.name == name)
    for item in items:
        options = item.to_look_for().options
        assert len(options) == max(1, len(item.choices)) and item.to_look_for().gold == item.gold
        assert all(context in item.prompt and "Respond only with" not in context for context, _ in options)


@pytest.fixture(scope="module")
def asked(engine_of: Make, tokenizer: Tokenizer, exams: list[ChatExam]) -> dict[str, Any]:
    return evaluate(engine_of(), tokenizer, exams) | {"context": 64}


def test_the_slice_has_every_task() -> None:
    exams, missing = read_chat_exams()
    assert [exam.task.name for exam in exams] + list(missing) == [
        task.name for task in TASKS if refusal() is None or not task.sandbox
    ] + ([] if refusal() is None else ["humaneval"])
    for exam in exams:
        assert len(exam.items) == (256 if exam.task.name == "spelling" else min(100, len(exam.items)))
        assert len(exam.items) >= 40
    assert [task.name for task in TASKS if task.member] == MEMBERS


def test_the_answers_of_the_data_are_right() -> None:
    """Each item's expected reply is graded right, those that can be given at once."""
    exams, _ = read_chat_exams()
    for exam in exams:
        if exam.task.name not in ("ifeval", "humaneval"):
            for item in exam.items[:20]:
                assert item.grade(item.expected).right, (exam.task.name, item)


def test_a_result_has_every_answer(asked: dict[str, Any], exams: list[ChatExam]) -> None:
    for exam in exams:
        task = asked["tasks"][exam.task.name]
        assert task["n"] == len(task["right"]) == len(task["lines"]) == len(task["answers"]) == 4
        assert task["accuracy"] == sum(task["right"]) / 4
        assert task["centered"] == pytest.approx((task["accuracy"] - task["chance"]) / (1 - task["chance"]))
        assert task["low"] <= task["accuracy"] <= task["high"]
        if exam.task.way == "words":
            for item, reply, right in zip(exam.items, task["replies"], task["right"], strict=True):
                assert item.grade(reply).right == right
        else:
            assert all(
                len(row) == len(i.choices) for row, i in zip(task["mean_log_probs"], exam.items, strict=True)
            )
        assert {sample["right"] for sample in task["samples"]} == set(task["right"])
    readings = asked["tasks"]["ifeval"]["readings"]
    assert readings["strict"]["questions"]["accuracy"] == asked["tasks"]["ifeval"]["accuracy"]
    assert readings["loose"]["instructions"]["n"] >= 4
    json.dumps(asked)


def test_the_mean_is_of_its_members(asked: dict[str, Any]) -> None:
    members = [name for name in MEMBERS if name != "humaneval"]
    assert asked["members"] == members
    centered = [asked["tasks"][name]["centered"] for name in members]
    assert asked["score"] == pytest.approx(sum(centered) / 5)
    assert asked["standard_error"] > 0
    assert asked["name"] == f"chat mean over {', '.join(members)} (up to 4 items each)"
    assert "ChatCORE" not in asked["name"]
    whole = {name: {"n": 5, "of": 5} for name in ("a", "b")}
    assert name_of(whole) == "chat mean over a, b (all items)"
    only = summary({"ifeval": asked["tasks"]["ifeval"]})
    assert only["members"] == [] and "score" not in only


def test_batches_do_not_matter(engine_of: Make, tokenizer: Tokenizer, exams: list[ChatExam]) -> None:
    """Three rows at a time, or one, or fewer items asked: the same replies and the same likelihoods."""
    some = [exam for exam in exams if exam.task.name in ("gsm8k", "mmlu", "mmlu_in_words", "spelling")]
    together, three = (evaluate(engine_of(rows=rows), tokenizer, some) for rows in (32, 3))
    for name, task in together["tasks"].items():
        for column in ("lines", "right", "answers", "replies", "ended"):
            assert task.get(column) == three["tasks"][name].get(column)
        for a, b in zip(
            task.get("mean_log_probs", []), three["tasks"][name].get("mean_log_probs", []), strict=True
        ):
            assert a == pytest.approx(b, abs=1e-5)
    alone = reply_to(engine_of(rows=1), tokenizer, [some[1].items[2].prompt], 512, calculator=True)
    assert alone[0].text == together["tasks"][some[1].task.name]["replies"][2]


# How it is asked ----------------------------------------------------------------------------------


def test_choices_are_scored_as_in_training(tokenizer: Tokenizer, engine_of: Make) -> None:
    """The rows are those that training on the right reply would see; their scores those of a plain pass."""
    rows, cut = choice_rows("Which?\n- a=A\n- b=B", ("A", "B"), tokenizer, 64)
    assert not cut
    for row, letter in zip(rows, "AB", strict=True):
        trained = render([Message("user", "Which?\n- a=A\n- b=B"), Message("assistant", letter)], tokenizer)
        assert list(row.ids) == trained.ids[: len(row.ids)]
        assert trained.ids[len(row.ids)] == tokenizer.im_end_id
        assert trained.mask[row.start] and not trained.mask[row.start - 1]


def test_the_scores_are_those_of_a_plain_pass(tokenizer: Tokenizer, engine_of: Make, tmp_path: Path) -> None:
    engine, file = engine_of(), tmp_path / "q.jsonl"
    file.write_text(json.dumps({"prompt": "Which?", "choices": ["a", "b"], "answer": "a"}))
    exams = read_own_exams(file)
    (found,) = evaluate(engine, tokenizer, exams)["tasks"]["q_by_likelihood"]["mean_log_probs"]
    rows, _ = choice_rows(exams[1].items[0].prompt, ("A", "B"), tokenizer, 64)
    for row, value in zip(rows, found, strict=True):
        with torch.inference_mode():
            hidden = engine.model(torch.tensor([row.ids]), causal_attention)
            scores = engine.model.logits(hidden).log_softmax(-1)
        assert value == pytest.approx(float(scores[0, -2, row.ids[-1]]), abs=1e-5)


def test_long_messages_lose_their_beginning(tokenizer: Tokenizer, engine_of: Make) -> None:
    long = "a very long story. " * 60 + "The end?"
    asked = ask(long, tokenizer, 64, 16)
    assert asked.cut and len(asked.ids) <= 48
    assert tokenizer.decode(asked.ids).endswith("The end?<|im_end|>\n<|im_start|>assistant\n")
    rows, cut = choice_rows(long, ("A", "B"), tokenizer, 64)
    assert cut and len(rows[0].ids) <= 64 and rows[0].ids[0] == tokenizer.eot_id
    said = reply_to(engine_of(), tokenizer, [long, "Hi"], 512, calculator=False)
    assert [one.cut for one in said] == [True, False]
    assert said[0].cramped == (not said[0].ended)
    with pytest.raises(DataError, match="tokens of context have no room"):
        ask("Hi", tokenizer, 8, 4)


def test_replies_are_the_likeliest(tokenizer: Tokenizer, engine_of: Make) -> None:
    engine = engine_of()
    (said,) = reply_to(engine, tokenizer, ["Hello"], 8, calculator=False)
    prompt = ask("Hello", tokenizer, 64, 8).ids
    (reply,) = engine.generate([prompt], Sampling(temperature=0, max_tokens=8), (tokenizer.im_end_id, 0))
    assert said.text == tokenizer.decode(reply.ids)


# Two models ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def others(engine_of: Make, tokenizer: Tokenizer, exams: list[ChatExam]) -> dict[str, Any]:
    return evaluate(engine_of(seed=2), tokenizer, exams) | {"context": 64}


def test_two_models_are_paired(asked: dict[str, Any], others: dict[str, Any]) -> None:
    found = compare(asked, others)
    assert set(found.tasks) == set(asked["tasks"]) and found.left_out == {}
    assert list(found.members) == asked["members"]
    assert found.difference == pytest.approx(others["score"] - asked["score"])
    assert compare(asked, asked).difference == 0


def test_other_contexts_and_other_ways_are_not_compared(
    asked: dict[str, Any], others: dict[str, Any]
) -> None:
    first, second = (json.loads(json.dumps(result)) for result in (asked, others))
    for name in ("mmlu", "ifeval"):  # let these have had room
        for result in (first, second):
            result["tasks"][name] |= {"cut": 0, "cramped": 0}
    second["context"] = 128
    found = compare(first, second)
    assert set(found.tasks) == {"mmlu", "ifeval"} and found.members == ("mmlu",)
    assert set(found.left_out.values()) == {"one context cut what the other did not"}
    with pytest.raises(DataError, match=r"no items in common .one context cut what the other did not.; eval"):
        compare(asked, others | {"context": 128})
    shorter = json.loads(json.dumps(others))
    shorter["tasks"]["gsm8k"]["max_tokens"] = 16
    shorter["tasks"]["mmlu"]["sha256"] = "another"
    shorter["tasks"]["arc_easy"]["lines"] = [9001, 9002, 9003, 9004]
    del shorter["tasks"]["spelling"]
    assert compare(asked, shorter).left_out == {
        "arc_easy": "no item was asked of both",
        "mmlu": "their files differ",
        "gsm8k": "it was asked in another way",
        "spelling": "only one of them was asked",
    }


# Wrong input --------------------------------------------------------------------------------------


def test_data_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no task of the chat suite, such as gsm8k/test\.jsonl"):
        read_chat_exams(tmp_path)
    (tmp_path / "gsm8k").mkdir()
    file = tmp_path / "gsm8k" / "test.jsonl"
    file.write_text('{"question": "How many?", "answer": "#### 3"}\n')
    exams, missing = read_chat_exams(tmp_path)
    assert [exam.task.name for exam in exams] == ["gsm8k", "spelling"]
    assert missing["mmlu"] == f"no mmlu/test.jsonl in {tmp_path}"
    file.write_text('{"question": "How many?", "answer": "#### 3"}\n{"question": 3}\n')
    with pytest.raises(DataError, match=r'test\.jsonl, line 2: "answer" is missing where there must be text'):
        read_chat_exams(tmp_path)
    file.write_text("")
    with pytest.raises(DataError, match=r"test\.jsonl holds no items; fetch or make it again"):
        read_chat_exams(tmp_path)


def test_duplicate_ids(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "ifeval", tmp_path / "ifeval")
    row = '{"key": 7, "prompt": "a", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}\n'
    (tmp_path / "ifeval" / "input_data.jsonl").write_text(row + row)
    with pytest.raises(DataError, match="line 2: the id '7' is that of line 1, too; give each its own"):
        read_chat_exams(tmp_path)


def test_arc_is_found_beside(tmp_path: Path) -> None:
    task = TASKS[0]
    core = tmp_path / "core" / "eval_data" / "world_knowledge"
    core.mkdir(parents=True)
    assert find_chat_file(tmp_path / "chat", task) is None
    (core / "arc_easy.jsonl").write_text("{}")
    assert find_chat_file(tmp_path / "chat", task) == core / "arc_easy.jsonl"
    assert find_chat_file(tmp_path, task) == core / "arc_easy.jsonl"
