"""What a client may ask for: the bodies of requests, as OpenAI has them, and what is ours beside that.

Every field is checked strictly ("2" is no number, 1.5 is no count, NaN nothing at all), and a field that is
not here is refused: whoever asks for something that this server lacks shall learn it, and not be answered as
if it had obeyed. `null` is the same as leaving a field out, as many clients send it for everything.

Ours, beside OpenAI's: `top_k`, `min_p`, `repetition_penalty`, `penalty_window` and DRY (infer/sampling.py
explains them).
"""

import asyncio
import json
import secrets
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pilgrim.infer.sampling import Sampling
from pilgrim.serve.refusals import Refusal, of_invalid

MOST_STOPS = 4  # as OpenAI has it
MOST_CHOICES = 128
DIALS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "penalty_window",
    "dry_multiplier",
    "dry_base",
    "dry_allowed",
)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]  # JSON does not tell 2.0 from 2


class Body(BaseModel):
    """A JSON object, or a part of one."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Dials(Body):
    """What all endpoints that write take."""

    model: str = Field(description="an id of /v1/models, such as pocket or pocket:pretrain@1200")
    temperature: float | None = Field(None, ge=0, le=2, description="0: the likeliest token; left out: 1")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=1, le=10)
    penalty_window: Whole | None = Field(None, ge=1)
    dry_multiplier: float | None = Field(None, ge=0, le=10)
    dry_base: float | None = Field(None, ge=1, le=4)
    dry_allowed: Whole | None = Field(None, ge=1)
    seed: Whole | None = Field(
        None, ge=-(2**63), lt=2**63, description="the same seed, the same reply; left out: another each time"
    )
    stream: bool | None = None
    user: str | None = Field(None, description="taken, and not used")
    metadata: dict[str, str] | None = Field(None, description="taken, and not used")
    service_tier: Literal["auto", "default"] | None = None


class Asked(Dials):
    """What completions of chats and of texts take."""

    n: Whole | None = Field(None, ge=1, le=MOST_CHOICES, description="how many replies")
    max_tokens: Whole | None = Field(None, ge=0, description="longest reply; never beyond the context")
    frequency_penalty: float | None = Field(None, ge=-2, le=2, description="only 0 is served")
    presence_penalty: float | None = Field(None, ge=-2, le=2, description="only 0 is served")
    stop: str | list[str] | None = Field(None, description=f"up to {MOST_STOPS} strings that end a reply")
    logit_bias: dict[str, float] | None = Field(None, description="token id -> -100 to 100")
    stream_options: StreamOptions | None = None

    def sampling(self, max_tokens: int) -> Sampling:
        """How replies are drawn. Raises Refusal for what the engine lacks."""
        for name in ("frequency_penalty", "presence_penalty"):
            if getattr(self, name):
                raise Refusal(
                    f"{name} = {getattr(self, name)}: only 0 is served; repetition_penalty and "
                    "dry_multiplier keep a reply from repeating itself",
                    param=name,
                    code="unsupported_parameter",
                )
        given = {name: value for name in DIALS if (value := getattr(self, name)) is not None}
        seed = secrets.randbelow(2**63) if self.seed is None else self.seed % 2**63
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_tokens=max(1, max_tokens),
            seed=seed,
            **given,
        )

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """Its stop strings. Raises Refusal."""
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(strings) > MOST_STOPS:
            raise Refusal(f"stop: {len(strings)} strings; give at most {MOST_STOPS}", param="stop")
        if "" in strings:
            raise Refusal('stop: "" is in every text; leave it out', param="stop")
        return strings

    @property
    def biases(self) -> dict[int, float]:
        """By token id. Raises Refusal."""
        found = {}
        for text, bias in (self.logit_bias or {}).items():
            if not (text.isascii() and text.isdecimal() and len(text) < 10):
                raise Refusal(f"logit_bias: {ascii(text)[:40]} is no token id", param="logit_bias")
            if not -100 <= bias <= 100:
                raise Refusal(f"logit_bias.{text} = {bias} must be from -100 to 100", param="logit_bias")
            found[int(text)] = bias
        return found

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with what it has cost."""
        if self.stream_options and not self.stream:
            raise Refusal("stream_options: only with stream = true", param="stream_options")
        return bool(self.stream_options and self.stream_options.include_usage)


class AskedCompletion(Asked):
    """/v1/completions: go on with a text."""

    prompt: str | list[str] | list[Whole] | list[list[Whole]] = Field(description="text, or token ids")
    echo: bool | None = Field(None, description="begin the reply with the prompt")
    logprobs: Whole | None = Field(None, ge=0, le=20, description="so many likeliest tokens at each place")
    best_of: Whole | None = Field(None, ge=1, le=MOST_CHOICES, description="only the same as n is served")
    suffix: Literal[""] | None = None


class TextPart(Body):
    type: Literal["text"]
    text: str


class CalledFunction(Body):
    name: str
    arguments: str


class ToolCall(Body):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    annotations: list[None] | None = None
    audio: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        """Several parts are lines."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())


class FunctionDefinition(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class NamedSchema(Body):
    name: str
    description: str | None = None
    definition: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="taken; a schema is always kept")


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class AskedChat(Asked):
    """/v1/chat/completions: answer the last message."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Whole | None = Field(None, ge=1, description="the newer name of max_tokens")
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="taken; a reply makes one call at a time")
    response_format: ResponseFormat | None = None
    run_tools: list[Literal["calculator"]] | None = Field(
        None, description="ours: tools that the server runs within the reply"
    )
    store: Literal[False] | None = None


B = TypeVar("B", bound=BaseModel)


async def read_body(request: Request, kind: type[B], most_bytes: int, most_s: float) -> B:
    """The request's body, checked.

    Raises Refusal: 408 if it takes too long to come, 413 if it is too large, 415 if it isn't called JSON.
    """
    # A web page can send text/plain to any server without asking, but JSON only to one that allows it (CORS).
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal("send the body as JSON, with the header Content-Type: application/json", status=415)
    try:
        async with asyncio.timeout(most_s):
            data = await _all_of(request, most_bytes)
    except TimeoutError:
        raise Refusal(
            f"the body has not come within {most_s:.0f} seconds; send it faster", status=408
        ) from None
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise of_invalid(error) from None


async def _all_of(request: Request, most_bytes: int) -> bytes:
    data = bytearray()
    async for part in request.stream():
        if len(data) + len(part) > most_bytes:
            raise Refusal(
                f"the body has more than {most_bytes} bytes; send less, or start the server with more "
                "--max-body-mb",
                status=413,
            )
        data += part
    return bytes(data)


def as_json(value: Any) -> str:
    """Compact, and in UTF-8 as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
