"""A recipe of `pilgrim synth`: who writes, what is asked, what is kept, and what it may cost.

    out = "data/tales"             # the folder that everything lands in
    wanted = 200                   # conversations to keep

    [endpoint]                     # who writes: a server that speaks OpenAI's language, or
    url = "http://127.0.0.1:8000/v1"
    model = "pocket"

    [run]                          # a model of ours, by our own engine
    path = "runs/pocket"

    [slots.topic]                  # what may stand for {topic} in a prompt
    values = ["a dog", "the rain"]

    [[prompts]]
    id = "tale"
    turns = ["Tell me a short story about {topic}."]

Instead of prompts there may be `questions`: files of questions with known answers (evals/tasks/own.py). Each
is asked `samples` times, and what is right is kept: rejection sampling.

The key of an endpoint is never written here. `key_env` names the variable of the environment that holds it.
"""

import json
import re
from collections import Counter
from ipaddress import ip_address
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pilgrim.core.config import Settings

PROMPTS_FOR_EACH_WANTED = 5  # asked at most, where the recipe names no number
# A request's fields that have settings of their own, or change what it costs and how it is read.
OWN_FIELDS = ("model", "messages", "seed", "max_tokens", "max_completion_tokens", "n", "best_of", "stream")
PATIENCE = 50  # conversations rejected in a row, where the recipe names no number


class EndpointSettings(Settings):
    """`[endpoint]`, `[judge.endpoint]`: a server that answers POST url/chat/completions as OpenAI's does."""

    url: str = Field(description="where the server is, up to /v1")
    model: str = Field(min_length=1, description="the name by which the server knows the model")
    key_env: str | None = Field(
        None, description="variable of the environment with the key; left out: none sent"
    )
    temperature: float = Field(1.0, ge=0, le=2, description="at which replies are drawn")
    max_tokens: int = Field(512, ge=1, description="longest reply")
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the server calls that"
    )
    send_seed: bool = Field(True, description="false for a server that refuses the field seed")
    body: dict[str, Any] = Field({}, description="further fields of each request, such as top_p")
    concurrency: int = Field(4, ge=1, le=256, description="requests at the same time")
    timeout_s: float = Field(120.0, gt=0, description="so long it may take to answer")
    tries: int = Field(6, ge=1, description="of one request, before all is stopped")
    wait_s: float = Field(1.0, gt=0, description="after the first failure; twice that after the second, …")
    price_in: float = Field(0.0, ge=0, description="of a million tokens read")
    price_out: float = Field(0.0, ge=0, description="of a million tokens written")

    @property
    def host(self) -> str:
        """The machine that texts are sent to."""
        return urlsplit(self.url).hostname or ""

    @property
    def loopback(self) -> bool:
        """Whether texts stay on this machine."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    @field_validator("url")
    @classmethod
    def _url_is_one(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        except ValueError:  # a port such as "x", half a bracket
            known = False
        if not known:
            raise ValueError("it is no address of a server; write one such as http://127.0.0.1:8000/v1")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("it holds more than an address; a key belongs into the variable of key_env")
        return url.rstrip("/").removesuffix("/chat/completions")

    @field_validator("body")
    @classmethod
    def _body_holds_nothing_of_ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        for name in OWN_FIELDS:
            if name in body:
                raise ValueError(f"body.{name} can't stand in an endpoint's table; use the setting there is")
        try:
            json.dumps(body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"an endpoint's body can't be said in JSON ({error}); mend it") from None
        return body

    @model_validator(mode="after")
    def _key_is_not_in_the_recipe(self) -> "EndpointSettings":
        # A validator of the whole table, because the sentence of a field's would quote the value.
        if self.key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            raise ValueError(
                "key_env must be the name of a variable of the environment, such as OPENAI_API_KEY, and "
                "never the key itself; if that was one, withdraw it, and write the variable's name"
            )
        return self


class RunSettings(Settings):
    """`[run]`: a model that was trained here writes."""

    path: str = Field(description="the run's folder")
    temperature: float = Field(1.0, ge=0, le=2, description="at which replies are drawn")
    top_p: float = Field(1.0, gt=0, le=1, description="among the likeliest that reach this probability")
    max_tokens: int = Field(256, ge=1, description="longest reply")
    calculator: bool = Field(True, description="calls in replies are answered")
    rows: int = Field(32, ge=1, le=1024, description="replies written at the same time")


class SlotSettings(Settings):
    """`[slots.NAME]`: what may stand for {NAME}; a list, or the lines of a file."""

    values: tuple[str, ...] = Field((), description="texts")
    file: str | None = Field(
        None, description=".txt: a value a line; .jsonl: a document or conversation a line"
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> "SlotSettings":
        if bool(self.values) == (self.file is not None):
            raise ValueError("a slot needs either values = [...] with texts in it, or file = …; give one")
        return self


class PromptSettings(Settings):
    """`[[prompts]]`: a template. {topic} stands for a value of the slot topic, everywhere the same."""

    id: str = Field(min_length=1, description="by which its rows know it")
    turns: tuple[str, ...] = Field(min_length=1, description="what the user says; each turn is answered")
    system: str = Field("", description="what the writer is told before")
    keep_system: bool = Field(False, description="whether that is a part of the conversation, too")
    makes: Literal["replies", "conversation"] = Field(
        "replies", description='conversation: the one reply is a whole one, as {"messages": […]}'
    )
    weight: float = Field(1.0, gt=0, description="how often it is drawn, beside the others")

    @model_validator(mode="after")
    def _a_conversation_has_one_turn(self) -> "PromptSettings":
        if self.makes == "conversation" and (len(self.turns) > 1 or self.keep_system):
            raise ValueError(
                f'prompt "{self.id}" asks for a whole conversation, which needs exactly one turn and no '
                'keep_system; write makes = "replies" for a talk of several turns'
            )
        return self


class FilterSettings(Settings):
    """`[filters]`: what a conversation must be like. Lengths and patterns: the assistant's messages."""

    least_chars: int = Field(1, ge=1, description="of each message")
    most_chars: int | None = Field(None, ge=1, description="of each message")
    least_turns: int = Field(1, ge=1, description="messages of the user")
    script: str | None = Field(
        None, description='of the letters, as Unicode names begin: "LATIN", "CYRILLIC", "GREEK"'
    )
    script_share: float = Field(0.95, gt=0, le=1, description="so many of the letters must be of that script")
    required: tuple[str, ...] = Field((), description="regular expressions that must be found")
    forbidden: tuple[str, ...] = Field((), description="regular expressions that must not be found")
    ends: bool = Field(True, description="each message ends like a sentence, and was not cut off")
    near: float = Field(
        0.7, gt=0, le=1, description="what shares so much with a kept one is a copy; 1: the same words only"
    )

    @field_validator("required", "forbidden")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"{pattern!r} is no regular expression of Python ({error}); mend it"
                ) from None
        return patterns

    @model_validator(mode="after")
    def _lengths_fit(self) -> "FilterSettings":
        if self.most_chars is not None and self.most_chars < self.least_chars:
            raise ValueError(
                f"filters.most_chars = {self.most_chars} is less than filters.least_chars = "
                f"{self.least_chars}, so nothing would pass; change one of them"
            )
        return self


JUDGE_PROMPT = """Here is a conversation between a user and an assistant.

{conversation}

How good are the assistant's messages: do they do what the user asked, are they right, and do they read \
well? Answer with nothing but JSON: {"why": "one sentence", "score": N} where N is a whole number from 1 \
(useless) to 10 (could not be better)."""


class JudgeSettings(Settings):
    """`[judge]`: a model gives each conversation that passed the filters a score from 1 to 10."""

    least: float = Field(7, ge=1, le=10, description="a score below this is rejected")
    prompt: str = Field(JUDGE_PROMPT, description="what it is asked, with {conversation} in it")
    tries: int = Field(3, ge=1, description="as long as its answer holds no score")
    endpoint: EndpointSettings | None = Field(None, description="who judges; left out: who writes")

    @field_validator("prompt")
    @classmethod
    def _shows_the_conversation(cls, prompt: str) -> str:
        if "{conversation}" not in prompt:
            raise ValueError("it shows the judge no conversation; write {conversation} where that belongs")
        return prompt


class LimitSettings(Settings):
    """`[limits]`: before a request that might go beyond them, all is stopped."""

    max_cost: float | None = Field(None, gt=0, description="in the money of the prices")
    max_tokens: int | None = Field(None, gt=0, description="read and written")


class SynthRecipe(Settings):
    """A recipe of `pilgrim synth`."""

    out: str = Field(min_length=1, description="the folder that everything lands in")
    wanted: int | None = Field(
        None, ge=1, description="conversations to keep; left out: what all questions give"
    )
    seed: int = Field(1, ge=0, lt=2**31, description="of all randomness")
    samples: int = Field(1, ge=1, le=1024, description="conversations for each prompt or question")
    keep: int = Field(1, ge=1, description="of them, the best by the judge, or the first")
    most_prompts: int | None = Field(
        None, ge=1, description="asked before giving up; left out: 5 for each that is wanted"
    )
    patience: int | None = Field(
        None, ge=1, description="stop after so many rejected in a row; left out: 50, with questions never"
    )
    endpoint: EndpointSettings | None = None
    run: RunSettings | None = None
    slots: dict[str, SlotSettings] = Field({}, description="what may stand for a {name}")
    prompts: tuple[PromptSettings, ...] = ()
    questions: tuple[str, ...] = Field((), description="files of questions (docs/evals.md)")
    filters: FilterSettings = FilterSettings()
    judge: JudgeSettings | None = None
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _one_writer(self) -> "SynthRecipe":
        if (self.endpoint is None) == (self.run is None):
            raise ValueError("who writes? give exactly one of the tables [endpoint] and [run]")
        return self

    @model_validator(mode="after")
    def _money_needs_prices(self) -> "SynthRecipe":
        asked = [self.endpoint, self.judge.endpoint if self.judge else None]
        if self.limits.max_cost is not None and not any(e and (e.price_in or e.price_out) for e in asked):
            raise ValueError(
                f"limits.max_cost = {self.limits.max_cost:g} limits nothing, as all prices are 0; write "
                "price_in and price_out of the endpoint, or limits.max_tokens"
            )
        return self

    @model_validator(mode="after")
    def _something_to_ask(self) -> "SynthRecipe":
        if bool(self.prompts) == bool(self.questions):
            raise ValueError("what is asked? give either [[prompts]] or questions = [...]")
        if self.prompts and self.wanted is None:
            raise ValueError("wanted is missing: prompts can be asked for ever; write wanted = 100")
        if self.keep > self.samples:
            raise ValueError(f"keep = {self.keep} is more than samples = {self.samples}; raise samples")
        ids = Counter(prompt.id for prompt in self.prompts)
        if twice := [name for name, count in ids.items() if count > 1]:
            raise ValueError(f'two prompts have the id "{twice[0]}"; give each its own')
        return self
