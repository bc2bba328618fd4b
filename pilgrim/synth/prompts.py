"""What is asked: the n-th prompt is a function of the recipe, the seed and n, and of nothing else.

So a run that is started again asks the same, whatever had been answered before it was killed. A template is
drawn by its weight, and then a value for each of its slots:

    "Tell me a short story about {topic}."   with topic = "the rain"

Only {names} of slots are replaced, so that a prompt may hold JSON. Questions with known answers are taken in
the order of their files, each once.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pilgrim.core.errors import DataError, SettingsError
from pilgrim.core.files import explained, read_jsonl_zst, sha256_file
from pilgrim.evals.chat_items import Verdict
from pilgrim.evals.tasks.own import files_of, read_questions
from pilgrim.synth.settings import PROMPTS_FOR_EACH_WANTED, PromptSettings, SlotSettings, SynthRecipe

_SLOT = re.compile(r"\{([a-z_]\w*)\}", re.IGNORECASE)


@dataclass(frozen=True)
class Prompt:
    """The user's messages, each of which will be answered, and what becomes of the answers."""

    id: str
    turns: tuple[str, ...]
    system: str = ""
    keep_system: bool = False
    whole: bool = False  # the reply is a whole conversation, as JSON
    slots: Mapping[str, str] = field(default_factory=dict)
    grade: Callable[[str], Verdict] | None = None
    check: str = ""  # what `grade` is known by


class Prompts:
    """All that may be asked: `len(prompts)` of them; `prompts[n]` is always the same."""

    def __init__(self, recipe: SynthRecipe) -> None:
        """Raises DataError and SettingsError for files and templates that can't be used."""
        self._recipe = recipe
        self._slots = {name: _values(slot, f"slots.{name}") for name, slot in recipe.slots.items()}
        for prompt in recipe.prompts:
            self._refuse_unknown_slots(prompt)
        self._questions = [
            question for name in recipe.questions for file in _files(name) for question in _read(file)
        ]

    def __len__(self) -> int:
        if self._questions:
            return min(len(self._questions), self._recipe.most_prompts or len(self._questions))
        assert self._recipe.wanted is not None
        return self._recipe.most_prompts or PROMPTS_FOR_EACH_WANTED * self._recipe.wanted

    def __getitem__(self, n: int) -> Prompt:
        if self._questions:
            return self._questions[n]
        drawn = random.Random(named_seed(self._recipe.seed, "prompt", n))
        (template,) = drawn.choices(self._recipe.prompts, [p.weight for p in self._recipe.prompts])
        slots = {name: drawn.choice(self._slots[name]) for name in _names(template)}
        return Prompt(
            template.id,
            tuple(filled(turn, slots) for turn in template.turns),
            filled(template.system, slots),
            template.keep_system,
            template.makes == "conversation",
            slots,
        )

    def _refuse_unknown_slots(self, prompt: PromptSettings) -> None:
        for name in _names(prompt):
            if name not in self._slots:
                known = ", ".join(self._slots) or "none"
                raise SettingsError(
                    f'prompt "{prompt.id}": {{{name}}} is no slot (there are: {known}); add [slots.{name}], '
                    "or take the braces away"
                )


def named_seed(seed: int, name: str, *numbers: int) -> int:
    """A number below 2³¹ that depends on all of these, and looks like nothing else."""
    digest = sha256(f"{seed}/{name}/{'/'.join(map(str, numbers))}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def filled(template: str, slots: Mapping[str, str]) -> str:
    """The text with values in the place of their {names}; a value is not looked at again."""
    return _SLOT.sub(lambda found: slots.get(found[1], found[0]), template)


def _names(prompt: PromptSettings) -> list[str]:
    """The slots of a template, in order, each once."""
    found = [name for text in (prompt.system, *prompt.turns) for name in _SLOT.findall(text)]
    return list(dict.fromkeys(found))


def _files(name: str) -> list[Path]:
    """The files that a name in `questions` means: one, or all of a folder."""
    path = Path(name).expanduser()
    if not path.exists():
        raise DataError(f"questions names {name}, but there is no file or folder {path}; mend the path")
    return files_of(path)


def _read(file: Path) -> list[Prompt]:
    digest, name = sha256_file(file), file.name.partition(".")[0]
    return [
        Prompt(
            item.id or f"{name}:{item.line}", (item.prompt,), grade=item.grade, check=f"{digest}:{item.line}"
        )
        for item in read_questions(file)
    ]


def _values(slot: SlotSettings, place: str) -> list[str]:
    if slot.file is None:
        return list(slot.values)
    path = Path(slot.file).expanduser()
    if path.name.endswith((".jsonl", ".jsonl.zst")):
        values = [_text_of(row, f"{path}, line {line}") for line, row in read_jsonl_zst(path)]
    else:
        with explained("read", path):
            try:
                values = path.read_text(encoding="utf-8").splitlines()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: byte {error.start} is no UTF-8; save the file as UTF-8") from None
    values = [value.strip() for value in values if value.strip()]
    if not values:
        raise DataError(f"{path} of {place} is empty; write a value on each line")
    return values


def _text_of(row: Mapping[str, Any], place: str) -> str:
    """A document's text, or a conversation as one would read it aloud."""
    if isinstance(row.get("text"), str):
        return str(row["text"])
    if isinstance(row.get("messages"), list):
        return transcript(row["messages"])
    raise DataError(f'{place}: has neither "text" nor "messages"; give it one, or drop the row')


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """ "user: Hello!" and so on, with an empty line between."""
    return "\n\n".join(
        f"{message.get('role')}: {message.get('content') or ''}".strip() for message in messages
    )
