"""`pilgrim chat`: talk to a trained model in the terminal, or through pipes.

A line is said to the model, and its reply is shown as it is drawn. A line that begins with a slash is a
command; /help lists them. Ctrl-C stops a reply; a second one leaves, as Ctrl-D does.
"""

import difflib
import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pilgrim.core.config import build
from pilgrim.core.errors import PilgrimError, SettingsError
from pilgrim.core.files import write_atomic
from pilgrim.core.runtime import Runtime, RuntimeSettings, start
from pilgrim.infer.cache_bits import CacheBits
from pilgrim.infer.quantized import Weights
from pilgrim.infer.sampling import Sampling
from pilgrim.serve.conversation import Continuation, Conversation, Facts, open_conversation
from pilgrim.serve.screen import Screen, printable

# What "off" means for those dials that can be off.
OFF = {"top_k": None, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "dry_multiplier": 0.0}


def chat(
    run_folder: Path,
    *,
    sampling: Sampling,
    system: str | None = None,
    python: bool = False,
    weights: Weights = "full",
    cache: CacheBits = "full",
    runtime: Runtime | None = None,
    screen: Screen | None = None,
) -> None:
    """Talk with the last trained stage of a run until the person leaves or the input ends.

    With `python`, the model may run programs in the sandbox; `weights` and `cache` as for `Engine`.

    Raises PilgrimError if the run has no model that can be used.
    """
    screen = screen or Screen.standard()
    conversation, stage = open_conversation(
        run_folder, runtime or _runtime(sampling), screen.note, system, python, weights, cache
    )
    if isinstance(conversation, Continuation):
        screen.note(
            f"{run_folder} has only a base model yet ({stage}). It can't chat, but it continues your text."
        )
    Chat(conversation, screen, sampling, run_folder / "chats").run()


def exchanges(
    run_folder: Path,
    prompts: Sequence[str],
    *,
    sampling: Sampling,
    system: str | None = None,
    python: bool = False,
    weights: Weights = "full",
    cache: CacheBits = "full",
    runtime: Runtime | None = None,
) -> list[tuple[str, str]]:
    """Each prompt with the reply to it, fit to be printed; each begins a conversation of its own."""
    screen = Screen.standard()
    conversation, _ = open_conversation(
        run_folder, runtime or _runtime(sampling), screen.note, system, python, weights, cache
    )
    answered = []
    for prompt in prompts:
        conversation.reset()
        answered.append((prompt, printable("".join(conversation.ask(prompt, sampling)))))
    return answered


def _runtime(sampling: Sampling) -> Runtime:
    return start(RuntimeSettings(compile="off"), sampling.seed)  # compiling takes longer than a chat


@dataclass(frozen=True)
class Command:
    """What can be typed after a slash; `work` is given what follows it."""

    argument: str
    what: str
    work: Callable[[str], None]


class Chat:
    """The loop between a person and a conversation."""

    def __init__(self, conversation: Conversation, screen: Screen, sampling: Sampling, chats: Path) -> None:
        """`chats` is the folder that /save writes to when it is given no name."""
        self.sampling = sampling
        self._conversation, self._screen = conversation, screen
        self._file = chats / f"{time.strftime('%Y-%m-%d-%H%M%S')}.jsonl"
        self._written: set[Path] = set()  # files of this chat, which it may write again
        self._forgotten = 0
        self._over = False
        self._commands = {
            "help": Command("", "this list", self._help),
            "reset": Command("", "begin a new conversation", self._reset),
            "retry": Command("", "have the last message answered once more", self._retry),
            "save": Command("[FILE]", "write the conversation to a file (JSON Lines)", self._save),
            "system": Command("[TEXT | off]", "set, remove or show the system prompt", self._system),
            "quit": Command("", "leave, as Ctrl-D does", self._quit),
        }
        for name, field in Sampling.model_fields.items():
            argument = "[VALUE | off]" if name in OFF else "[VALUE]"
            self._commands[name] = Command(argument, field.description or "", partial(self._dial, name))

    def run(self) -> None:
        """Goes on until the person leaves."""
        screen, context = self._screen, self._conversation.engine.config.context
        if screen.interactive:
            screen.note(f"Its context is {context} tokens. /help lists the commands, Ctrl-D leaves.")
        stopped = False  # by a Ctrl-C just now, so that the next one leaves
        while not self._over:
            try:
                line = screen.read_line()
                stopped = False
                if line is None:
                    return
                self.hear(line)
            except KeyboardInterrupt:
                if not screen.interactive:
                    raise
                if stopped:
                    return
                stopped = True
                screen.note("\nCtrl-C once more leaves, as Ctrl-D does.")

    def hear(self, line: str) -> None:
        """Obeys a command, or has the line answered. What is wrong with it is told on the screen."""
        line = line.strip()
        try:
            if line.startswith("/"):
                name, _, rest = line[1:].partition(" ")
                self._command(name.lower()).work(rest.strip())
            elif line:
                self._answer(self._conversation.ask(line, self.sampling))
        except PilgrimError as error:
            self._screen.note(str(error))

    def _command(self, name: str) -> Command:
        if name not in self._commands:
            near = [known for known in self._commands if name and known.startswith(name)]
            near += difflib.get_close_matches(name, self._commands, n=1, cutoff=0.5)
            cure = f"did you mean /{near[0]}?" if near else "/help lists the commands"
            raise SettingsError(f"/{name} is no command; {cure}")
        return self._commands[name]

    def _answer(self, pieces: Generator[str, None, None]) -> None:
        said = False
        with closing(pieces):
            try:
                for piece in pieces:
                    said = True
                    self._screen.reply(piece, self._conversation.aside)
            finally:
                if said:
                    self._screen.end_reply()
        if facts := self._conversation.facts:
            self._tell(facts)

    def _tell(self, facts: Facts) -> None:
        """What there is to say about a reply."""
        note = self._screen.note
        if facts.forgotten > self._forgotten:
            note(f"It has forgotten the first {facts.forgotten} messages: its context has no room for them.")
        self._forgotten = facts.forgotten
        if facts.was_cut:
            note("Your message is longer than its context: it has read only the end.")
        if not facts.ended and facts.context_used == facts.context:
            note("Its context is full, so the reply breaks off here.")
        elif not facts.ended:
            note(f"The reply was cut off after {facts.tokens} tokens; /max_tokens allows more.")
        if self._screen.interactive:
            speed = facts.tokens / facts.elapsed_s
            used = f"{facts.context_used} of {facts.context} tokens of context"
            note(f"{facts.tokens} tokens, {speed:.0f} a second; {used}")

    def _help(self, _: str) -> None:
        settings = self.sampling.model_dump()
        for name, command in self._commands.items():
            now = f" (now {_shown(settings[name])})" if name in settings else ""
            self._screen.note(f"{f'/{name} {command.argument}':<34}{command.what}{now}")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._forgotten = 0
        self._screen.note("A new conversation begins.")

    def _retry(self, _: str) -> None:
        self._answer(self._conversation.retry(self.sampling))

    def _save(self, name: str) -> None:
        if not self._conversation.messages:
            raise SettingsError("/save: nothing was said yet; write something first")
        file = Path(name).expanduser() if name else self._file
        if file.exists() and file.resolve() not in self._written:
            raise SettingsError(f"/save: {file} is there already; give another name")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in self._conversation.rows())
        write_atomic(file, "".join(lines))
        self._written.add(file.resolve())
        self._screen.note(f"Saved in {file}")

    def _system(self, text: str) -> None:
        if isinstance(self._conversation, Continuation):
            raise SettingsError(
                "/system: a base model knows no system prompt; let `pilgrim run` go on to sft"
            )
        if text:
            self._conversation.system = None if text == "off" else text
        self._screen.note(f"System prompt: {self._conversation.system or 'none'}")

    def _dial(self, name: str, value: str) -> None:
        """Sets one of the settings of how replies are drawn, or shows it."""
        if value:
            settings = self.sampling.model_dump() | {name: _parsed(name, value)}
            self.sampling = build(Sampling, settings, f"/{name}")
        self._screen.note(f"{name} = {_shown(getattr(self.sampling, name))}")

    def _quit(self, _: str) -> None:
        self._over = True


def _parsed(name: str, value: str) -> Any:
    """The number that was typed, or what "off" means; anything else as it is, for `build` to refuse."""
    if value == "off" and name in OFF:
        return OFF[name]
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def _shown(value: Any) -> str:
    return "off" if value is None else str(value)
