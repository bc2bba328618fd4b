"""The documents keep their word.

Whatever in README.md and docs/ can be checked is checked: Python examples run, as if typed into a shell,
and print what stands below them; commands parse, with their options, stages and settings; settings that
are named exist; paths of a run's folder exist in a real run, a very small one; files, names of functions
and links lead somewhere. The changelog and the journal tell of the past, so only their links are followed.

The Markdown conventions that this rests on: a block marked `python` runs, and a `text` block right after
it is what it prints; a block marked `sh` holds commands, and one marked `toml` questions for `pilgrim eval`.
A path or command with `…` in it is a pattern.
"""

import ast
import code
import io
import re
import shlex
import string
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from pydantic import BaseModel
from typer.core import TyperGroup
from typer.main import get_command

from pilgrim.cli import app
from pilgrim.core.config import build
from pilgrim.core.console import Console
from pilgrim.evals.tasks.own import read_questions
from pilgrim.infer.sandbox import refusal
from pilgrim.stages.by_stage import evaluate_stages
from pilgrim.stages.chat import evaluate_chat
from pilgrim.stages.core import evaluate_core
from pilgrim.stages.journey import chosen, run_journey
from pilgrim.stages.recipe import Recipe, load_recipe
from pilgrim.synth.settings import SynthRecipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
HISTORY = [ROOT / "CHANGELOG.md", *sorted(ROOT.glob("journal/*.md"))]

# Every program that a document tells one to start; pilgrim and make are checked further.
PROGRAMS = {"pilgrim", "make", "cmp", "tail", "source", "export", "pip", "pytest", "python"}
PROGRAMS |= {"sky", "rsync", "torchrun", "curl"}
SUFFIXES = {".html", ".json", ".jsonl", ".md", ".npy", ".py", ".safetensors", ".toml", ".zst"}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# Reading Markdown ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block; `follows` says that nothing but an empty line stands between it and the one before."""

    language: str
    text: str
    follows: bool


FENCED = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$\n?", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found: list[Block] = []
    end = 0
    for match in FENCED.finditer(text):
        follows = bool(found) and not text[end : match.start()].strip()
        found.append(Block(match["language"], match["text"], follows))
        end = match.end()
    return found


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def spans(text: str) -> list[str]:
    """What is written `like this`."""
    return re.findall(r"`([^`\n]+)`", text)


def test_there_is_something_to_check() -> None:
    assert len(PAGES) > 15
    assert {block.language for page in PAGES for block in blocks(page)} == {"python", "text", "sh", "toml"}


# Examples -----------------------------------------------------------------------------------------


class Shell(code.InteractiveConsole):
    """Python's own interactive shell, but an error in it is ours."""

    def showtraceback(self) -> NoReturn:
        raise  # called while it is handled

    def showsyntaxerror(self, filename: str | None = None, **kwargs: object) -> NoReturn:
        raise


@pytest.mark.parametrize("page", [page for page in PAGES if "python" in page.read_text()], ids=name_of)
def test_examples_print_what_stands_below_them(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's examples share one shell, from its top to its end."""
    monkeypatch.chdir(ROOT)
    shell, printed = Shell(), ""
    for block in blocks(page):
        if block.language == "python":
            with redirect_stdout(io.StringIO()) as out:
                for line in [*block.text.splitlines(), ""]:
                    unfinished = shell.push(line)
            assert not unfinished, block.text
            printed = out.getvalue()
        elif block.language == "text" and block.follows:
            assert printed == block.text
            printed = ""


# Commands -----------------------------------------------------------------------------------------


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command: in `sh` blocks, in indented blocks, and in the text."""
    text = prose(page)
    lines = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    lines += [line for line in text.splitlines() if line.startswith("    ")]
    lines += [span for span in spans(text) if re.match(r"(\S*/)?(pilgrim|make) ", span)]
    for line in lines:
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in ("&&", "|"):
                words.append(word)
            elif words:
                yield words
                words = []


def make_targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@each_page
def test_commands_exist(page: Path) -> None:
    for program, *arguments in commands(page):
        name = program.rpartition("/")[2]
        assert name in PROGRAMS, f"{program}: if a document is to name it, add it to PROGRAMS"
        if name == "make":
            assert set(arguments) <= make_targets() | {"…"}, arguments
        if name == "pilgrim" and "…" not in arguments:
            check_pilgrim(arguments)


def check_pilgrim(arguments: list[str]) -> None:
    """Parse a command as the program does. A usage error is raised by the parser with its own message."""
    group = get_command(app)
    if arguments[0].startswith("-"):
        group.make_context("pilgrim", arguments, resilient_parsing=True)
        return
    name, *rest = arguments
    assert isinstance(group, TyperGroup)
    assert name in group.commands, f"pilgrim {name}"
    if not rest or "--help" in rest:
        return
    parameters = group.commands[name].make_context(name, rest).params
    if name == "run":
        recipe = load_recipe(ROOT / str(parameters["recipe"]), parameters["overrides"] or [])
        chosen(recipe, parameters["only"], parameters["until"])


# Settings -----------------------------------------------------------------------------------------

TABLES = "|".join(name for name, field in Recipe.model_fields.items() if field.annotation not in (str, int))
SETTING = re.compile(rf"(?P<table>{TABLES})\.(?P<key>\w+)( ?=.*)?")


@each_page
def test_settings_exist(page: Path) -> None:
    recipe = load_recipe(ROOT / "recipes/pocket-rl.toml", ["dpo.steps=100"])
    for span in spans(prose(page)):
        setting = SETTING.fullmatch(span)
        if setting and f".{setting['key']}" not in SUFFIXES:
            table = getattr(recipe, setting["table"])
            assert isinstance(table, BaseModel)
            assert setting["key"] in type(table).model_fields, span
        if table_name := re.fullmatch(r"\[(\w+)\]", span):
            assert table_name[1] in {**Recipe.model_fields, **SynthRecipe.model_fields}, span


@pytest.mark.skipif(refusal() is not None, reason=str(refusal()))
def test_questions_can_be_asked(tmp_path: Path) -> None:
    """A `toml` block is a file of questions, a recipe of `pilgrim synth` (it begins with `out`), or tables of
    a recipe."""
    for block in (block for page in PAGES for block in blocks(page) if block.language == "toml"):
        if block.text.startswith("out = "):
            build(SynthRecipe, tomllib.loads(block.text), "docs")
            continue
        if "[[question]]" not in block.text:
            build(Recipe, {"name": "docs"} | tomllib.loads(block.text), "docs")
            continue
        (tmp_path / "mine.toml").write_text(block.text)
        assert len(read_questions(tmp_path / "mine.toml")) == block.text.count("[[question]]")


# Paths and names ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, in seconds: little text, a step or two, hardly a network; and `pilgrim eval` on it."""
    conversations = '["assets:conversations/heldout.jsonl.zst"]'
    run = run_journey(
        ROOT / "recipes/pocket.toml",
        [
            "runtime.compile=off",
            "tokenizer.vocab_size=512",
            'data.train=["assets:text/val.jsonl.zst"]',
            "data.val=[]",
            "data.val_share=0.1",
            f"data.conversations={conversations}",
            f"data.conversations_val={conversations}",
            "model.depth=1",
            "model.width=16",
            *(f"{stage}.{key}" for stage in ("pretrain", "midtrain", "sft") for key in ("steps=2", "rows=8")),
            *(f"{stage}.warmup=0" for stage in ("pretrain", "midtrain", "sft")),
            "eval.sample_tokens=2",
            "eval.reply_tokens=2",
        ],
        runs=tmp_path_factory.mktemp("runs"),
        console=Console(quiet=True),
    )
    evaluate_core(run, limit=1, console=Console(quiet=True))
    evaluate_chat(run, limit=1, console=Console(quiet=True))
    evaluate_stages(run, ["behaviour"], console=Console(quiet=True))
    return run


def words_with_paths(page: Path) -> Iterator[str]:
    """Words that name files or folders, in the text and in `sh` blocks; patterns left out."""
    listed = [word for block in blocks(page) if block.language == "sh" for word in block.text.split()]
    for word in [*listed, *(word for span in spans(prose(page)) for word in span.split())]:
        bare = word.strip("\"'[],")
        is_path = "/" in bare and not bare.startswith(("/", "~", "http", "assets:", "."))
        if (is_path or bare.endswith((".py", ".toml"))) and "…" not in bare and "=" not in bare:
            yield bare


def test_paths_of_a_run_exist(tiny_run: Path) -> None:
    paths = [word.split("/", 2) for page in PAGES for word in words_with_paths(page)]
    named = {
        path[2] for path in paths if path[0] == "runs" and len(path) == 3
    }  # and no run by its name alone
    assert len(named) > 20
    missing = [path for path in named if not (tiny_run / path).exists()]
    assert not missing


@each_page
def test_files_exist(page: Path) -> None:
    code_files = [*ROOT.glob("pilgrim/**/*.py"), *ROOT.glob("tests/**/*.py")]
    names = {"recipe.toml", *(file.name for file in code_files)}
    for word in words_with_paths(page):
        if word.startswith("runs/"):
            continue  # the test before
        inside = ROOT / "pilgrim" / word  # as in core/errors.py
        assert (ROOT / word).exists() or inside.exists() or word in names, word


def defined_in(file: Path) -> set[str]:
    """Functions, classes, `Class.method` and module-level names of a Python file."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@each_page
def test_names_in_reading_lists_are_defined_there(page: Path) -> None:
    """In "- `pilgrim/data/packing.py`: `cut`, `pack`" each name belongs to the file before it."""
    for line in prose(page).splitlines():
        known: set[str] | None = None
        for span in spans(line) if line.startswith("- `") else []:
            if span.endswith(".py") and span.startswith("pilgrim/"):
                known = defined_in(ROOT / span)
            elif known is not None and set(span) <= {*string.ascii_letters, *string.digits, "_", "."}:
                # A setting or a package may be mentioned beside the names.
                assert span in known or SETTING.fullmatch(span) or span == "tokenizers", f"{span}: {line}"


@each_page
def test_a_named_home_is_one(page: Path) -> None:
    """ "`measure` in `pilgrim/evals/behaviour.py`" """
    for name, file in re.findall(r"`(\w+)` in `(pilgrim/[\w/]+\.py)`", prose(page)):
        assert name in defined_in(ROOT / file), f"{name} in {file}"


def test_architecture_names_every_room() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = [file.parent.name for file in ROOT.glob("pilgrim/*/__init__.py")]
    assert len(rooms) > 10
    assert [room for room in rooms if f"`pilgrim/{room}`" not in text] == []


# Links --------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The headings as GitHub names them in addresses."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *HISTORY], ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        to = page.parent / path if path else page
        assert to.exists(), f"{target} does not exist"
        assert not anchor or anchor in anchors(to), f"{target} has no such heading"


def test_what_the_program_links_to_exists() -> None:
    """Fixes of a profile, and whatever else names a document: "docs/speed.md#batches"."""
    code_files = ROOT.glob("pilgrim/**/*.py")
    named = {link for file in code_files for link in re.findall(r'"(docs/[^"\s]+)"', file.read_text("utf-8"))}
    assert len(named) >= 5
    for link in named:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        assert not anchor or anchor in anchors(ROOT / path), link


def test_the_index_is_complete() -> None:
    index = ROOT / "docs/README.md"
    links = {(index.parent / link).resolve() for link in re.findall(r"\]\(([^)\s#]+)\)", index.read_text())}
    assert {page for page in PAGES if page.parent != ROOT} - {index} <= links
