"""Preference pairs: every shape that rows come in, and a sentence for each that is no pair."""

import json
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.errors import DataError
from pilgrim.data.preferences import Pair, pair_from_row, read_pairs, split_pairs
from pilgrim.text.chat import Message

ASKED = {"role": "user", "content": "Hi!"}
KIND = {"role": "assistant", "content": "Hello, friend."}
RUDE = {"role": "assistant", "content": "Go away."}
PAIR = Pair(
    (Message("user", "Hi!"),),
    (Message("assistant", "Hello, friend."),),
    (Message("assistant", "Go away."),),
    "test",
)


def written(folder: Path, *rows: dict[str, Any], name: str = "pairs.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def row(prompt: str, chosen: str = "yes", rejected: str = "no") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": [ASKED], "chosen": KIND["content"], "rejected": RUDE["content"]},
        {"messages": [ASKED], "chosen": KIND, "rejected": RUDE},
        {"prompt": "Hi!", "chosen": [KIND], "rejected": [RUDE]},
        {"prompt": "Hi!", "chosen": [ASKED, KIND], "rejected": [ASKED, RUDE]},
        {"chosen": [ASKED, KIND], "rejected": [ASKED, RUDE]},
        {
            "chosen": "\n\nHuman: Hi!\n\nAssistant: Hello, friend.",
            "rejected": "\n\nHuman: Hi!\n\nAssistant: Go away.",
        },
        {"prompt": "\n\nHuman: Hi!", "chosen": "Hello, friend.", "rejected": "Go away."},
    ],
)
def test_every_shape_gives_the_same_pair(given: dict[str, Any]) -> None:
    assert pair_from_row(given, "test", "x") == PAIR


def test_a_prompt_may_have_several_turns() -> None:
    begin = [{"role": "system", "content": "Be kind."}, ASKED, KIND, {"role": "user", "content": "Bye."}]
    found = pair_from_row({"prompt": begin, "chosen": "Bye!", "rejected": "Pah."}, "test", "x")
    assert [m.role for m in found.prompt] == ["system", "user", "assistant", "user"]
    whole = pair_from_row({"chosen": [*begin, KIND], "rejected": [*begin, RUDE]}, "test", "x")
    assert whole.prompt == found.prompt and whole.chosen[0].content == "Hello, friend."


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (row("Hi!", "same", " same\n"), "chosen and rejected are the same"),
        (row("Hi!", "", "no"), "the reply of chosen is empty"),
        (row("Hi!", "yes", " \n"), "the reply of rejected is empty"),
        (row(" ", "yes", "no"), "an empty message of the user asks nothing"),
        ({"prompt": "Hi!", "chosen": "yes"}, 'has no "rejected"'),
        ({"prompt": "Hi!", "chosen": 3, "rejected": "no"}, 'has no "chosen"'),
        ({"chosen": "yes", "rejected": "no"}, '"chosen" is a reply to nothing'),
        ({"prompt": [], "chosen": "yes", "rejected": "no"}, '"prompt" must be a text'),
        ({**row("Hi!"), "messages": [ASKED]}, 'both "prompt" and "messages"'),
        (
            {"chosen": [ASKED, KIND], "rejected": [{"role": "user", "content": "Ho!"}, RUDE]},
            "different prompts",
        ),
        (
            {"prompt": "Ho!", "chosen": [ASKED, KIND], "rejected": [ASKED, RUDE]},
            'does not begin with the row\'s "prompt"',
        ),
        ({"chosen": [ASKED], "rejected": [ASKED, RUDE]}, "chosen has no reply of the assistant"),
        (
            {"chosen": [ASKED, KIND], "rejected": [ASKED, KIND, ASKED, RUDE]},
            "message 3 of rejected is the user's",
        ),
        ({"prompt": [KIND], "chosen": "yes", "rejected": "no"}, "the assistant's where the user's is due"),
        ({"prompt": [ASKED, KIND], "chosen": "yes", "rejected": "no"}, "the two take turns"),
        (
            {"prompt": [{"role": "robot", "content": "x"}], "chosen": "yes", "rejected": "no"},
            "has the role 'robot'",
        ),
        ({**row("Hi!"), "source": 7}, '"source" is 7'),
    ],
)
def test_what_is_no_pair_is_told_with_file_and_line(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = written(tmp_path, row("Hi!"), given)
    with pytest.raises(DataError) as told:
        read_pairs([file])
    assert str(told.value).startswith(f"{file}, line 2") and said in str(told.value)
    assert "\n" not in str(told.value)


def test_held_out_prompts_are_never_trained(tmp_path: Path) -> None:
    many = [row(f"Question {i}?") for i in range(60)]
    train = written(tmp_path, *many, *many[:5])
    by_hash = split_pairs([train], [], 0.3)
    assert 5 < len(by_hash.val) < 35 and len(by_hash.train) + len(by_hash.val) == 65
    assert not {p.prompt for p in by_hash.train} & {p.prompt for p in by_hash.val}
    val = written(tmp_path, many[0], row("Another?"), name="val.jsonl")
    by_file = split_pairs([train], [val], 0)
    assert (len(by_file.train), len(by_file.val), by_file.left_out) == (63, 2, 2)


def test_a_side_without_pairs_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, row("Hi!"))
    with pytest.raises(DataError, match="no training pair is left"):
        split_pairs([file], [file], 0)
    with pytest.raises(DataError, match="no held-out pair is left"):
        split_pairs([file], [], 1e-9)
