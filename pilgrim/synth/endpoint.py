"""A server that speaks OpenAI's language, asked once: POST {url}/chat/completions.

    {"model": …, "messages": […], "temperature": …, "max_tokens": …, "seed": …}
    -> {"choices": [{"message": {"content": …}, "finish_reason": "stop"}], "usage": {"prompt_tokens": …, …}}

Almost every server of language models speaks it: OpenAI's own, vLLM, llama.cpp, Ollama, and our own. What
comes back is sorted into what asking again may mend and what it can't:

    200, as above                          an answer
    429, 500, 502, 503, …                  not now: again, when it says (Retry-After), or after a while
    no connection                          again
    cut off, timed out, not the JSON above again, though it may have been charged
    400, 413, 422                          this question can't be answered
    401, 403, 404, and what else there is  all is stopped, with a sentence

The key is read from the environment when the first request is made, and stands in no file and no message.
"""

import asyncio
import os
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from pilgrim.core.console import CONTROL_CHARACTERS
from pilgrim.core.errors import PilgrimError, SettingsError
from pilgrim.synth.answers import Answer, Lost, Refused, Tokens, Unanswerable, Wire
from pilgrim.synth.settings import EndpointSettings

AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
THIS_QUESTION = frozenset({400, 413, 422})
WRAPPING_TOKENS = 16  # of the template around each message, at most
LARGEST_REPLY_BYTES = 64 << 20


class Endpoint:
    """A `Writer`. Several requests may be on the way at once."""

    def __init__(self, settings: EndpointSettings, table: str) -> None:
        """`table` names the settings in sentences. Raises SettingsError if the key isn't there."""
        self.settings = settings
        self.concurrency, self.tries, self.wait_s = settings.concurrency, settings.tries, settings.wait_s
        self.name, self.where = settings.model, f"{table}: {settings.url}"
        self.price = settings.price_in, settings.price_out
        headers = {"User-Agent": "pilgrim"}
        key = _key(settings.key_env, table) if settings.key_env is not None else None
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        self._key = key
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=settings.timeout_s,
            limits=httpx2.Limits(max_connections=settings.concurrency),
            # A proxy of the environment would carry what is meant for this machine away from it.
            trust_env=not settings.loopback,
            verify=settings.url.startswith("https:"),  # certificates take a while to load; http has none
        )

    def most(self, messages: list[Wire]) -> Tokens:
        """No tokenizer has tokens of less than a byte."""
        read = sum(len(str(m["content"]).encode("utf-8", "replace")) + WRAPPING_TOKENS for m in messages)
        return Tokens(read + WRAPPING_TOKENS, self.settings.max_tokens)

    def body(self, messages: list[Wire], seed: int) -> dict[str, Any]:
        settings = self.settings
        return {
            "model": settings.model,
            "messages": messages,
            "temperature": settings.temperature,
            settings.tokens_field: settings.max_tokens,
            "seed": seed,
            **settings.body,
        }

    async def reply(self, messages: list[Wire], seed: int) -> Answer:
        body = self.body(messages, seed)
        if not self.settings.send_seed:
            del body["seed"]
        if any(_broken(str(message["content"])) for message in messages):
            raise Unanswerable("there is half a surrogate pair in it, which can't be sent as UTF-8")
        try:
            # httpx's time-outs are for each piece that arrives; this one is for the whole.
            async with asyncio.timeout(self.settings.timeout_s):
                response = await self._client.post(f"{self.settings.url}/chat/completions", json=body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            raise Refused(f"no connection: {error or type(error).__name__}") from None
        except (httpx2.TimeoutException, TimeoutError):
            raise Lost(f"no answer within {self.settings.timeout_s:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise Lost(f"the connection broke off: {error or type(error).__name__}") from None
        try:
            if response.status_code != 200:
                self._refused(response)
            return _answer(response)
        except (Refused, Lost, Unanswerable, PilgrimError) as error:
            error.args = tuple(self._without_key(arg) for arg in error.args)
            raise

    async def close(self) -> None:
        await self._client.aclose()

    def _without_key(self, sentence: str) -> str:
        """Some servers quote the key in what they say of it."""
        return sentence.replace(self._key, "(the key)") if self._key else sentence

    def _said(self, response: httpx2.Response) -> str:
        """The status, and the server's own words; without the key even where they are cut short."""
        words: Any = response.text
        try:
            error = response.json()["error"]
            words = error["message"] if isinstance(error, dict) else error
        except (ValueError, RecursionError, LookupError, TypeError):
            pass
        words = self._without_key(str(words)) if words else ""
        return f"{response.status_code}, {_shown(words)}" if words else str(response.status_code)

    def _refused(self, response: httpx2.Response) -> None:
        status, where = response.status_code, self.where
        if status in AGAIN:
            raise Refused(self._said(response), _wait_s(response))
        if status in THIS_QUESTION:
            raise Unanswerable(f"the server refuses it: {self._said(response)}")
        if status in (401, 403):  # its text is not shown, as some servers quote the key in it
            name = self.settings.key_env
            held = f"the key in the variable {name}" if name else "a request without a key; set key_env"
            raise PilgrimError(
                f"{where} refuses {held} ({status}); mend that, and start again: nothing is lost"
            )
        if status == 404:
            raise PilgrimError(
                f"{where} has no /chat/completions, or no model {self.name} ({self._said(response)}); "
                "mend url or model, and start again"
            )
        raise PilgrimError(f"{where} answers in a way that asking again can't mend: {self._said(response)}")


def _key(variable: str, table: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key:
        raise SettingsError(
            f"{table}.key_env = {variable}, but the environment has no such variable, or it is empty; "
            f"set it: export {variable}=…"
        )
    if not key.isascii() or not key.isprintable():
        raise SettingsError(f"{table}.key_env: what {variable} holds is no key: it has odd characters in it")
    return key


def _broken(text: str) -> bool:
    return any("\ud800" <= sign <= "\udfff" for sign in text)


def _answer(response: httpx2.Response) -> Answer:
    """What the server said. Raises Lost if that has not the shape it should have."""
    if len(response.content) > LARGEST_REPLY_BYTES:
        raise Lost(f"an answer of {len(response.content):,} bytes")
    try:
        tree = response.json()
        choice = tree["choices"][0]
        text = choice["message"].get("content")
        cut = choice.get("finish_reason") == "length"
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise Lost(f"what came is no chat completion: {_shown(response.text)}") from None
    if not isinstance(text, str | None):
        raise Lost(f"what came is no text: {_shown(str(text))}")
    text = text or ""
    return Answer(text, [{"role": "assistant", "content": text}], cut, _tokens(tree.get("usage")))


def _tokens(usage: Any) -> Tokens | None:
    try:
        read, written = usage["prompt_tokens"], usage["completion_tokens"]
    except (TypeError, LookupError):
        return None
    sound = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (read, written))
    return Tokens(read, written) if sound else None


def _wait_s(response: httpx2.Response) -> float | None:
    """Retry-After: seconds, or a date (RFC 9110, section 10.2.3)."""
    told = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(told))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(told)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _shown(text: str) -> str:
    """Foreign words in a sentence of ours: on one line, and short."""
    line = " ".join(text.translate(CONTROL_CHARACTERS).split())
    return repr(line if len(line) <= 120 else line[:117] + "...")
