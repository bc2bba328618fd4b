"""Replies in a given form: JSON after a schema, or text after a regular expression.

A model can't be trusted to close every bracket. But before each token is drawn, one can work out which tokens
could come next in a text of the wanted form, and give all others no chance: the scores of the forbidden are
set to minus infinity. What remains is drawn as always. The end of the reply is a token like others, and
allowed only where the text is complete; so a reply that ended is of that form, and one that was cut by
`max_tokens` is the beginning of such a text.

Which tokens those are is hard to say quickly: tokens know nothing of the form's borders, one may hold the
end of a string, a comma and half a name. llguidance (a library in Rust) walks through a tree of all
tokens and the form's automaton at the same time, in some microseconds for each token of a reply. It knows
forms as *grammars*; here schemas, expressions and tool calls become grammars, and bad ones a sentence.

The engine asks nothing but `Grammar` (grammar.py) of whatever it is handed:

    engine.submit(prompt, sampling, stop_ids, grammar=json_schema({"type": "object"}, tokenizer))

A grammar remembers how far its reply is, so each request needs its own. Making one is cheap: what was
compiled is kept.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import llguidance
import numpy as np
import torch
from torch import Tensor

from pilgrim.core.errors import SettingsError
from pilgrim.infer.grammar import Grammar
from pilgrim.infer.satisfiable import can_end
from pilgrim.infer.tools import CALL, END_OF_CALL
from pilgrim.text.tokenizer import SPECIAL_TOKENS, Tokenizer, refuse_lone_surrogates

LONGEST = 50_000  # characters of a schema or expression
# At most one space where JSON allows any white space: a model that can't go on would write it for ever.
WHITE_SPACE = {"whitespace_flexible": True, "whitespace_pattern": " ?"}
KEPT = 64  # compiled grammars


class Matcher:
    """A `Grammar` by llguidance."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self.trouble: str | None = None
        self._matcher, self._vocab_size = matcher, vocab_size
        self._look()

    @property
    def complete(self) -> bool:
        return self._complete

    @property
    def finished(self) -> bool:
        return self._finished

    def allowed(self) -> Tensor:
        return self._allowed_v

    def feed(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            raise ValueError(f"token {token_id} was not allowed here")
        self._look()

    def copy(self) -> "Matcher":
        """Another one that is as far as this one."""
        return Matcher(self._matcher.deep_copy(), self._vocab_size)

    def _look(self) -> None:
        """What may come next, and whether the text may end here."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        self._complete = self._matcher.is_accepting()
        self._allowed_v = torch.from_numpy(allowed)
        # Its end token is marked where the text is complete; which tokens end a reply, the engine knows.
        self._allowed_v[_END] &= not self._complete
        self._finished = not bool(self._allowed_v.any())
        if self._matcher.is_error() or (self._finished and not self._complete):
            reason = _first_line(self._matcher.get_error()) or "no token can follow"
            self.trouble = f"grammar: can't be followed any further ({reason}); make it simpler"
            self._complete, self._finished = False, True


def json_schema(schema: Mapping[str, Any] | bool, tokenizer: Tokenizer) -> Grammar:
    """JSON that matches `schema`, which is what `json.loads` made of a JSON schema.

    Properties come in the schema's order. Raises SettingsError for a schema that is invalid, that no JSON
    matches, that can never come to an end, or that has keys that can't be checked while writing.
    """
    return _grammar("schema", _of_schema(schema), tokenizer)


def json_object(tokenizer: Tokenizer) -> Grammar:
    """Any JSON object."""
    return json_schema({"type": "object"}, tokenizer)


def regex(pattern: str, tokenizer: Tokenizer) -> Grammar:
    r"""Text that matches `pattern` from beginning to end.

    The syntax is Rust's, which neither looks around nor back; \d and \w are ASCII, as in JSON schemas.
    Raises SettingsError for an expression that is invalid, too complex, or matches nothing but "".
    """
    _refuse_long("regex", pattern)
    refuse_lone_surrogates(pattern, "regex")
    ascii_only = llguidance.regex_to_lark(pattern, use_ascii="dw")
    return _grammar("regex", llguidance.LLMatcher.grammar_from_lark(f"start: /{ascii_only}/"), tokenizer)


def tool_call(functions: Mapping[str, Mapping[str, Any] | None], tokenizer: Tokenizer) -> Grammar:
    """A call of one of `functions`, from <tool_call> to </tool_call>, and nothing else.

    Name -> the schema of its arguments. For the built-in "calculator" and "python" that is None: an
    expression in one line, and "python" with a program below. Raises SettingsError as `json_schema` does.
    """
    if not functions:
        raise SettingsError("tools: there is none to be called; define one")
    rules, calls = "", []
    for at, (name, arguments) in enumerate(functions.items()):
        if arguments is None:
            if name not in _BUILT_IN:
                raise SettingsError(f'tool "{name}": is not built in; define its arguments by a schema')
            calls.append(_BUILT_IN[name])
        else:  # spelled as json.dumps does
            before = '{"name": ' + json.dumps(name) + ', "arguments": '
            calls.append(f'{json.dumps(before)} arguments_{at} "}}"')
            rules += f"arguments_{at}: %json {_checked(arguments, f'tool {name}')}\n"
    begin, end = SPECIAL_TOKENS[CALL], SPECIAL_TOKENS[END_OF_CALL]
    lark = f"start: {begin} call {end}\ncall: " + "\n    | ".join(calls) + f"\n{rules}"
    return _grammar("tools", lark, tokenizer)


_BUILT_IN = {"calculator": r"/[^{\n][^\n]{0,199}/", "python": r"/python\n(.|\n)+/"}
_END = SPECIAL_TOKENS.index("<|im_end|>")  # what llguidance is told to be the end


def _of_schema(schema: Mapping[str, Any] | bool) -> str:
    text = _checked(schema, "schema")
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(text)
    except ValueError as error:
        raise SettingsError(f"schema: {_first_line(str(error))}; correct it") from None


def _checked(schema: Mapping[str, Any] | bool, place: str) -> str:
    """The schema with our rule for white space, as JSON. Raises SettingsError if it can't be used."""
    if not isinstance(schema, Mapping | bool):
        raise SettingsError(f"{place}: must be a JSON object, and not {json.dumps(schema)[:40]}")
    try:
        text = json.dumps(
            {**schema, "x-guidance": WHITE_SPACE} if isinstance(schema, Mapping) else schema, allow_nan=False
        )
        endless = not can_end(schema)
    except RecursionError:
        raise SettingsError(f"{place}: is nested too deeply; name its parts in $defs") from None
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{place}: is not JSON ({error}); correct it") from None
    _refuse_long(place, text)
    refuse_lone_surrogates(text, place)
    if endless:
        raise SettingsError(
            f"{place}: what it requires contains itself, so that no JSON could ever be complete; make a part "
            "of the circle optional"
        )
    return text


def _grammar(place: str, grammar: str, tokenizer: Tokenizer) -> Grammar:
    made = _compiled(grammar, tokenizer)
    if isinstance(made, str):
        raise SettingsError(f"{place}: {made}; correct it")
    return made.copy()


@lru_cache(KEPT)
def _compiled(grammar: str, tokenizer: Tokenizer) -> Matcher | str:
    """Ready to begin; or what is wrong with it, as a clause."""
    matcher = llguidance.LLMatcher(_vocabulary(tokenizer), grammar, log_level=0)
    if matcher.is_error():
        return _first_line(matcher.get_error())
    made = Matcher(matcher, tokenizer.vocab_size)
    if made.finished:
        return "allows no text" if made.trouble is None else made.trouble.partition("(")[2].partition(")")[0]
    return made


@lru_cache(8)
def _vocabulary(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """Our tokens as llguidance wants them: the special ones can be named in a grammar, and are no text."""
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bridge(tokenizer)))


class _Bridge:
    """The names that llguidance looks for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = _END, None
        self.tokens = [tokenizer.decode_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = list(range(len(SPECIAL_TOKENS)))
        self._encode = tokenizer.encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)


def _refuse_long(place: str, text: str) -> None:
    if len(text) > LONGEST:
        raise SettingsError(f"{place}: has {len(text):,} characters; {LONGEST:,} is the most")


def _first_line(message: str) -> str:
    """What a person wants to know of the library's many lines."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (reasons or [line.removesuffix(":") for line in lines] or [""])[0][:200]
