"""Rows of well-known data sets as conversations: what becomes of them, decoded, and what of broken ones."""

import json
from typing import Any

import pytest

from pilgrim.core.errors import DataError
from pilgrim.data.adapters import from_gsm8k, from_mmlu
from pilgrim.data.questions import multiple_choice
from pilgrim.evals.tasks.arithmetic import number_in, read_gsm8k
from pilgrim.evals.tasks.choice import read_mmlu
from pilgrim.text.chat import messages_from_row, render
from pilgrim.text.tokenizer import train_tokenizer

MMLU = {"question": "Which is a mammal?", "choices": ["a trout", "a bat"], "answer": 1}
CLIPS = {
    "question": "She sold 48 clips in April, and half as many in May. How many in all?",
    "answer": "She sold 48/2 = <<48/2=24>>24 in May.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
}


def test_multiple_choice_is_taught_as_it_is_asked() -> None:
    question, answer = from_mmlu(MMLU, "f, line 1")
    item = read_mmlu(MMLU, 1, "f, line 1")
    assert question["content"] == item.prompt == multiple_choice("Which is a mammal?", ["a trout", "a bat"])
    assert answer["content"] == item.choices[item.gold] == "B"


def test_marks_of_gsm8k_become_calls() -> None:
    """Marks are special tokens, results aren't trained, and the evaluation takes the answer for right."""
    messages = from_gsm8k(CLIPS, "f, line 1")
    calls = [m["tool_calls"][0]["function"] for m in messages if "tool_calls" in m]
    assert [json.loads(call["arguments"])["expression"] for call in calls] == ["48/2", "48+24"]
    tokenizer = train_tokenizer([CLIPS["question"] + CLIPS["answer"]] * 3, 300)
    rendered = render(messages_from_row({"messages": messages}, "f, line 1"), tokenizer)
    assert tokenizer.decode(rendered.ids).endswith(
        "<|im_start|>assistant\nShe sold 48/2 = <tool_call>48/2</tool_call><tool_response>24</tool_response>"
        "24 in May.\nIn all 48+24 = <tool_call>48+24</tool_call><tool_response>72</tool_response>72.\n#### 72"
        "<|im_end|>\n"
    )
    trained = tokenizer.decode([i for i, t in zip(rendered.ids, rendered.mask, strict=True) if t])
    assert trained == (
        "She sold 48/2 = <tool_call>48/2</tool_call>24 in May.\n"
        "In all 48+24 = <tool_call>48+24</tool_call>72.\n#### 72<|im_end|>"
    )
    item = read_gsm8k(CLIPS, 1, "f, line 1")
    assert item.grade(trained).right and number_in(trained) == "72"


def test_a_solution_without_marks() -> None:
    messages = from_gsm8k({"question": "1 + 1?", "answer": "It is 2.\n#### 2"}, "f, line 1")
    assert messages[1:] == [{"role": "assistant", "content": "It is 2.\n#### 2"}]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({**MMLU, "question": " "}, 'f: "question" must be text that is not empty'),
        ({**MMLU, "choices": ["one"]}, 'f: "choices" must be a list of 2 to 26 texts'),
        ({**MMLU, "choices": ["a bat", None]}, "f: \"choices\"[1] is 'None', which has no tokens"),
        ({**MMLU, "choices": ["a bat", "a bat "]}, 'f: all "choices" are the same'),
        ({**MMLU, "answer": 2}, 'f: "answer" is 2, but must be a number from 0 to 1'),
        ({**MMLU, "answer": True}, 'f: "answer" is True, but must be a number from 0 to 1'),
        ({"question": "1 + 1?", "answer": "2"}, 'f: "answer" does not end with "#### " and a number'),
    ],
)
def test_broken_rows(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as error:
        (from_mmlu if "choices" in row else from_gsm8k)(row, "f")
    assert str(error.value).startswith(sentence)
