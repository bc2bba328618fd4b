"""From rows of a file to the targets of packed rows, decoded: what the assistant says, and nothing else.

The mask is decided in one room, stored in another and becomes targets in a third. Here it is read at the end.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from pilgrim.core.files import read_jsonl_zst
from pilgrim.core.runtime import Runtime
from pilgrim.data.conversations import read_conversations
from pilgrim.data.loader import IGNORED, Batch, PackedRows, stack
from pilgrim.data.shards import TokenSet, in_memory
from pilgrim.data.sources import find
from pilgrim.stages.shards import rendered
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

BUNDLED = "assets:conversations/heldout.jsonl.zst"


def call(name: str, arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def says(content: str | None, *calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | ({"tool_calls": list(calls)} if calls else {})


ASK, ORDER = {"role": "user", "content": "Ask."}, {"role": "system", "content": "Order."}
TOOLS = [{"type": "function", "function": {"name": "rain", "description": "Does it?"}}]


def told(content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content}


# Each row with what of it is to be trained.
ROWS: list[tuple[dict[str, Any], str]] = [
    ({"messages": [ASK, says("One.")]}, "One.<|im_end|>"),
    ({"messages": [ORDER, ASK, says(" Two.\n"), ASK, says("Three.")]}, "Two.<|im_end|>Three.<|im_end|>"),
    ({"messages": [ASK, says("<|im_end|>user")]}, "<|im_end|>user<|im_end|>"),
    (
        {"messages": [ASK, says("It is ", call("calculator", {"expression": "9*2"})), told("18"), says(".")]},
        "It is <tool_call>9*2</tool_call>.<|im_end|>",
    ),
    (
        {
            "messages": [
                ORDER,
                ASK,
                says(None, call("python", {"code": "print(1)\n"}), call("rain", {"in": "Bonn"})),
                told("1"),
                told("</tool_response>yes<|im_end|>"),
                says("Done."),
                ASK,
                says("Bye."),
            ],
            "tools": TOOLS,
        },
        "<tool_call>python\nprint(1)\n</tool_call>"
        '<tool_call>{"name": "rain", "arguments": {"in": "Bonn"}}</tool_call>'
        "Done.<|im_end|>Bye.<|im_end|>",
    ),
    ({"messages": [ASK, says("", call("rain", {}))], "tools": TOOLS},
     '<tool_call>{"name": "rain", "arguments": {}}</tool_call>'),
    ({"messages": [ASK, says("So: ", call("rain", {})), told("no")], "tools": TOOLS},
     'So: <tool_call>{"name": "rain", "arguments": {}}</tool_call>'),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    rows = [json.dumps(row) for row, _ in ROWS]
    bundled = [m["content"] for _, row in read_jsonl_zst(find(BUNDLED)) for m in row["messages"]]
    return train_tokenizer([*rows, *bundled], 600)


@pytest.fixture(scope="module")
def handmade(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    file: Path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row, _ in ROWS), encoding="utf-8")
    return in_memory("rows", rendered(read_conversations([str(file)]), tokenizer), tokenizer.vocab_size)


@pytest.fixture(scope="module")
def bundled(tokenizer: Tokenizer) -> TokenSet:
    return in_memory("rows", rendered(read_conversations([BUNDLED]), tokenizer), tokenizer.vocab_size)


def epoch(tokens: TokenSet, context: int) -> list[Batch]:
    runtime = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
    found: list[Batch] = []
    for row, position in PackedRows(tokens, context, 0, runtime).rows(None):
        if position["epoch"] > 0:
            return found
        found.append(row)
    raise AssertionError("rows never end")


def trained_texts(rows: list[Batch], tokenizer: Tokenizer) -> Counter[str]:
    """What is trained of each document in each row."""
    texts: Counter[str] = Counter()
    for row in rows:
        for number in range(int(row.documents_bt.max()) + 1):
            targets = row.targets_bt[(row.documents_bt == number) & (row.targets_bt != IGNORED)]
            texts[tokenizer.decode(targets.tolist())] += 1
    return texts


def test_what_is_trained_of_rows_by_hand(handmade: TokenSet, tokenizer: Tokenizer) -> None:
    rows = epoch(handmade, 600)
    assert len(rows) < len(ROWS)  # they are packed
    assert trained_texts(rows, tokenizer) == Counter(text for _, text in ROWS)


def test_what_is_trained_of_the_bundled_conversations(bundled: TokenSet, tokenizer: Tokenizer) -> None:
    said = [
        "".join(m["content"].strip() + "<|im_end|>" for m in row["messages"] if m["role"] == "assistant")
        for _, row in read_jsonl_zst(find(BUNDLED))
    ]
    assert trained_texts(epoch(bundled, 600), tokenizer) == Counter(said)


@pytest.mark.parametrize("context", [8, 24, 100, 600])
def test_each_trained_token_once_and_none_without_in_any_microbatch(
    handmade: TokenSet, bundled: TokenSet, context: int
) -> None:
    for tokens in (handmade, bundled):
        assert tokens.trained is not None
        rows = epoch(tokens, context)
        assert sum(row.trained_tokens for row in rows) == tokens.trained.sum()
        assert tokens.manifest["trained_tokens"] == tokens.trained.sum()
        for row in rows:
            assert all(part.trained_tokens > 0 for part in row.micro(1))


def test_padding_counts_nowhere(handmade: TokenSet, bundled: TokenSet) -> None:
    """What speeds are told in (`tokens`) and what the loss is divided by know no padding."""
    for tokens in (handmade, bundled):
        batch = stack(epoch(tokens, 600))
        padding = batch.documents_bt < 0
        assert padding.any()
        assert bool((batch.targets_bt[padding] == IGNORED).all())
        assert batch.tokens == batch.inputs_bt.numel() - int(padding.sum()) == len(tokens.tokens)
        assert batch.trained_tokens == tokens.manifest["trained_tokens"]


def test_no_conversation_sees_another(bundled: TokenSet) -> None:
    """Each document of a row begins with <|endoftext|>, and has it nowhere else."""
    for row in epoch(bundled, 600):
        begins = (row.inputs_bt == 0) & (row.documents_bt >= 0)
        assert int(begins.sum()) == int(row.documents_bt.max()) + 1
