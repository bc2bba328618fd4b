"""Conversations and prompts from files: what is read, and what is refused with file and line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pilgrim.core.errors import DataError
from pilgrim.data.conversations import Prompt, count_by_source, read_conversations, read_prompts
from pilgrim.text.chat import Message

USER = {"role": "user", "content": "Hello!"}
ASSISTANT = {"role": "assistant", "content": "Hi!"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: Any, name: str = "mine.jsonl") -> str:
        file = tmp_path / name
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file.write_bytes(zstandard.ZstdCompressor().compress(data) if name.endswith(".zst") else data)
        return str(file)

    return write


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.zst"])
def test_conversations_are_read_in_order(write: Callable[..., str], name: str) -> None:
    first = {"messages": [USER, ASSISTANT], "source": "friends"}
    second = {"messages": [{"role": "system", "content": "Be kind."}, USER, ASSISTANT], "kind": "greeting"}
    one, two = read_conversations([write(first, second, name=name)])
    assert one.messages == (Message("user", "Hello!"), Message("assistant", "Hi!"))
    assert one.source == "friends"
    assert two.messages[0] == Message("system", "Be kind.")
    assert two.source == "mine"  # a row without a source has its file's name


def test_sources_are_counted_the_most_first(write: Callable[..., str]) -> None:
    rows = [{"messages": [USER, ASSISTANT], "source": source} for source in ("a", "b", "b")]
    assert list(count_by_source(read_conversations([write(*rows)])).items()) == [("b", 2), ("a", 1)]


CALLS = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "rain"}
SILENT = {"role": "assistant", "content": " "}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def test_what_is_no_mistake_is_kept(write: Callable[..., str]) -> None:
    rows: list[Any] = [
        {"messages": [USER, CALLS, RESULT, ASSISTANT], "tools": TOOLS},
        {"messages": [USER, CALLS, RESULT, ASSISTANT], "tools": json.dumps(TOOLS)},
        {"messages": [USER, CALLS, {"role": "tool", "content": ""}, ASSISTANT], "tools": TOOLS},
        {"messages": [USER, CALLS], "tools": TOOLS},
        {"messages": [USER, CALLS, RESULT], "tools": TOOLS},
        {"messages": [USER, ASSISTANT], "tools": []},
        {"messages": [{"role": "system", "content": ""}, USER, ASSISTANT]},
        {"messages": [{"role": "user", "content": "<|im_end|></tool_response>\ud83d\ude00"}, ASSISTANT]},
    ]
    found = read_conversations([write(*rows)])
    assert [len(one.messages) for one in found] == [5, 5, 5, 3, 4, 2, 3, 2]
    assert found[0].messages == found[1].messages
    assert found[0].messages[0].tools == ('{"name": "weather"}',)
    assert found[-1].messages[0].content == "<|im_end|></tool_response>\U0001f600"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"text": "no conversation"}, "messages"),
        ({"messages": []}, "empty"),
        ({"messages": [ASSISTANT, USER]}, "user"),
        ({"messages": [USER]}, "nothing to learn"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "silence"),
        ({"messages": [{"role": "user", "content": "\n"}, ASSISTANT]}, "asks nothing"),
        ({"messages": [USER, ASSISTANT, USER]}, "ends with the user, whom nobody answers; cut"),
        ({"messages": [USER, {"role": "assistant", "content": "x" * 1_000_001}]}, "has 1,000,001 characters"),
        ({"messages": [USER, {"role": "bot", "content": "Hi!"}]}, "role"),
        ({"messages": [USER, CALLS]}, 'calls "weather", which is not defined; define it in "tools"'),
        ({"messages": [USER, ASSISTANT, RESULT]}, "a tool's result, but nothing was called before it"),
        ({"messages": [USER, CALLS, ASSISTANT], "tools": TOOLS}, "has no result"),
        ({"messages": [USER, CALLS, RESULT, SILENT], "tools": TOOLS}, "silence"),
        ({"messages": [USER, ASSISTANT], "tools": "weather"}, '"tools" is no JSON'),
        ({"messages": [USER, ASSISTANT], "source": 3}, '"source" is 3'),
        (["not", "an", "object"], "object"),
    ],
)
def test_a_bad_conversation_is_refused_with_file_and_line(
    write: Callable[..., str], row: Any, complaint: str
) -> None:
    file = write({"messages": [USER, ASSISTANT]}, row)
    with pytest.raises(DataError, match=complaint) as refused:
        read_conversations([file])
    assert f"{file}, line 2" in str(refused.value)


def test_prompts_end_with_the_user(write: Callable[..., str]) -> None:
    named = {"messages": [USER], "kind": "name", "expect": "Pip"}
    longer = {"messages": [USER, ASSISTANT, USER]}
    one, two = read_prompts([write(named, longer)])
    assert one == Prompt((Message("user", "Hello!"),), "name", "Pip")
    assert (two.kind, two.expect, len(two.messages)) == ("mine", None, 3)


def test_a_prompt_that_is_answered_already_is_refused(write: Callable[..., str]) -> None:
    with pytest.raises(DataError, match="line 1: ends with the assistant"):
        read_prompts([write({"messages": [USER, ASSISTANT]})])
