"""What can be wrong with a recipe of `pilgrim synth`: one sentence, before anything is sent."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilgrim.core.config import build, load_toml
from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.synth.prompts import Prompts, filled, transcript
from pilgrim.synth.settings import EndpointSettings, SynthRecipe

Make = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[3]
NOWHERE = "http://127.0.0.1:9/v1"

PROMPT = """
[[prompts]]
id = "more"
turns = ["Of {topic}, {nobody}."]
"""
TWICE = """
[[prompts]]
id = "tale"
turns = ["Once more."]
"""
WHOLE = """
[[prompts]]
id = "two"
makes = "conversation"
turns = ["a", "b"]
"""


@pytest.mark.parametrize(
    ("override", "more", "sentence"),
    [
        ("wanted=0", "", "wanted = 0 should be greater than or equal to 1"),
        ("endpoint.url=nowhere", "", "it is no address of a server; write one such as http"),
        ("endpoint.url=http://[x", "", "it is no address of a server"),
        ("endpoint.url=https://me:secret@x.example/v1", "", "a key belongs into the variable of key_env"),
        ("endpoint.key=x", "", "endpoint.key is not a setting"),
        (
            "endpoint.key_env=PILGRIM_NO_SUCH",
            "",
            "the environment has no such variable, or it is empty; set it",
        ),
        ("samples=2", "[run]\npath = 'x'", "exactly one of the tables [endpoint] and [run]"),
        ('questions=["x.toml"]', "", "give either [[prompts]] or questions"),
        ("keep=2", "", "keep = 2 is more than samples = 1; raise samples"),
        (
            "seed=1",
            PROMPT,
            'prompt "more": {nobody} is no slot (there are: topic, style); add [slots.nobody]',
        ),
        ("seed=1", TWICE, 'two prompts have the id "tale"; give each its own'),
        ("seed=1", WHOLE, 'prompt "two" asks for a whole conversation, which needs exactly one turn'),
        ("seed=1", "[slots.x]\nvalues = []", "a slot needs either values"),
        ("seed=1", "[slots.x]\nfile = 'no-such.txt'", "no-such.txt could not be read: it does not exist"),
        ('filters.required=["(a"]', "", "'(a' is no regular expression of Python"),
        ("filters.most_chars=1", "[filters]\nleast_chars = 5", "filters.most_chars = 1 is less than"),
        ("judge.prompt=rate it", "", "it shows the judge no conversation; write {conversation}"),
    ],
)
def test_one_sentence(make: Make, override: str, more: str, sentence: str) -> None:
    with pytest.raises(PilgrimError) as error:
        make(NOWHERE, override, more=more)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_key_in_the_place_of_its_variable_is_not_shown(make: Make) -> None:
    with pytest.raises(
        PilgrimError, match=r"and never the key itself; if that was one, withdraw it"
    ) as error:
        make(NOWHERE, "endpoint.key_env=sk-proj-123")
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_of_a_slot(tmp_path: Path, make: Make, content: str) -> None:
    file = tmp_path / "topics.txt"
    file.write_text(content)
    with pytest.raises(PilgrimError, match=r"topics\.txt of slots\.x is empty; write a value on each line"):
        make(NOWHERE, more=f"[slots.x]\nfile = '{file}'")


def test_a_file_of_a_slot_in_another_encoding(tmp_path: Path, make: Make) -> None:
    file = tmp_path / "topics.txt"
    file.write_bytes(b"caf\xe9\n")
    with pytest.raises(PilgrimError, match=r"topics\.txt: byte 3 is no UTF-8; save the file as UTF-8"):
        make(NOWHERE, more=f"[slots.x]\nfile = '{file}'")


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    from pilgrim.core.console import Console
    from pilgrim.stages.synth import synthesize

    file = tmp_path / "recipe.toml"
    file.write_text(
        f'out = "{tmp_path}"\nwanted = 1\n[run]\npath = "no/run"\n[[prompts]]\nid = "a"\nturns = ["b"]\n'
    )
    with pytest.raises(PilgrimError, match=r"run\.path = no/run: no run is there; give the folder of one"):
        synthesize(file, [], lambda question: True, Console(quiet=True))


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://localhost:8000/v1", True),
        ("http://127.1.2.3/v1/", True),
        ("http://[::1]:1/v1", True),
        ("http://localhost.evil.example/v1", False),
        ("http://192.168.0.2/v1", False),
        ("https://api.example/v1/chat/completions", False),
    ],
)
def test_what_stays_on_this_machine(url: str, loopback: bool) -> None:
    settings = build(EndpointSettings, {"url": url, "model": "m"}, "test")
    assert settings.loopback is loopback
    assert settings.url.endswith("/v1")


def recipe(**changes: Any) -> SynthRecipe:
    tree = {
        "out": "x",
        "wanted": 50,
        "endpoint": {"url": NOWHERE, "model": "m"},
        "slots": {"a": {"values": ["1", "2", "3"]}, "b": {"values": ["{a}"]}},
        "prompts": [
            {"id": "often", "turns": ['{"a": 1} {a} {a} {b}'], "weight": 9.0},
            {"id": "seldom", "turns": ["{b}"]},
        ],
        **changes,
    }
    return build(SynthRecipe, tree, "test")


def test_prompts_are_a_function_of_seed_and_number() -> None:
    one, other = Prompts(recipe()), Prompts(recipe())
    assert len(one) == 250 and [one[n] for n in range(50)] == [other[n] for n in reversed(range(50))][::-1]
    assert [one[n] for n in range(50)] != [Prompts(recipe(seed=2))[n] for n in range(50)]
    assert sum(one[n].id == "often" for n in range(250)) > 200
    text = next(one[n] for n in range(50) if one[n].id == "often")
    value = text.slots["a"]
    assert text.turns == (f'{{"a": 1}} {value} {value} {{a}}',)  # a value is not looked at again


def test_only_names_of_slots_are_replaced() -> None:
    assert filled('{x} {y} {"x": {}} {X}', {"x": "1"}) == '1 {y} {"x": {}} {X}'


def test_a_conversation_reads_like_one() -> None:
    talk: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]
    assert transcript(talk) == "user: Hi\n\nassistant:"


def test_questions_that_are_not_there_are_told_as_such() -> None:
    asked = recipe(prompts=[], questions=["no-such.toml"])
    with pytest.raises(DataError, match=r"^questions names no-such.toml, but there is no file or folder"):
        Prompts(asked)


@pytest.mark.parametrize(
    "file", sorted((ROOT / "recipes" / "synth").glob("*.toml")), ids=lambda file: file.stem
)
def test_the_recipes_that_come_along(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = build(SynthRecipe, load_toml(file), str(file))
    prompts = Prompts(found)
    assert all(prompts[n].turns for n in range(len(prompts)))
