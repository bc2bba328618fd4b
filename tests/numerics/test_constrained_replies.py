"""Replies in a form against what checks that form: Python's `json` and `re`, and a validator of a page.

Schemas and expressions are made at random, and a model of random weights, to which every token is about as
likely, writes after them. Whatever comes to an end must match; whatever is cut must be a beginning.
"""

import json
import random
import re
from typing import Any

import pytest
import torch

from pilgrim.core.runtime import Runtime
from pilgrim.infer.constrained import json_object, json_schema, regex
from pilgrim.infer.engine import Engine
from pilgrim.infer.grammar import Grammar
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.scheduler import Request
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

RUNTIME = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
TEXT = '{"name": "Tim", "age": 7} [1, 2.5, true, null, false] "a cat" {"a": ["b"]} the dog, é猫 \\n "'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT * 4], 300)


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Engine:
    model = Transformer(ModelSettings(depth=1, width=16, head_size=8, context=160).config(300))
    initialize(model, RUNTIME.generator("constrained"))
    return Engine(model, RUNTIME, rows=16, cache_tokens=16 * 160)


def written(engine: Engine, tokenizer: Tokenizer, grammars: list[Grammar]) -> list[Request]:
    """A reply to each, free ones among them."""
    requests = []
    for i, grammar in enumerate(grammars):
        sampling = Sampling(temperature=(0.0, 1.0)[i % 4 > 0], max_tokens=150, seed=i)
        requests.append(engine.submit([5, 6], sampling, {0, 2}, grammar=grammar))
        if i % 8 == 0:
            engine.submit([5, 6], Sampling(max_tokens=50, seed=i), {0, 2})
    while not engine.idle:
        engine.step()
    return requests


def some_schema(dice: random.Random, depth: int = 2) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"]
    kind = dice.choice(kinds + ["object", "array", "anyOf"] * depth)
    match kind:
        case "string":
            return dice.choice(
                [
                    {"type": kind, "minLength": 1, "maxLength": dice.randrange(1, 6)},
                    {"type": kind, "pattern": "^[a-c]{2,5}$"},
                    {"type": kind, "format": "date"},
                ]
            )
        case "integer":
            least = dice.randrange(-50, 50)
            return {"type": kind, "minimum": least, "maximum": least + dice.randrange(30)}
        case "number":
            return {"type": kind, "minimum": -1, "exclusiveMaximum": 2.5}
        case "enum":
            return {kind: dice.sample(["a", 'say "b"', 3, None, {"c": [1]}, "é猫"], 2)}
        case "const":
            return {kind: [True, "x", -1.5]}
        case "object":
            names = dice.sample(["a", "b", "the cat", 'q"', "é"], dice.randrange(4))
            return {
                "type": kind,
                "properties": {name: some_schema(dice, depth - 1) for name in names},
                "required": names[: dice.randrange(len(names) + 1)],
                "additionalProperties": False,
            }
        case "array":
            least = dice.randrange(3)
            items = some_schema(dice, depth - 1)
            return {"type": kind, "items": items, "minItems": least, "maxItems": least + 1}
        case "anyOf":
            return {kind: [some_schema(dice, depth - 1) for _ in range(2)]}
    return {"type": kind}


def matches(value: Any, schema: dict[str, Any]) -> bool:
    """Whether `value` is of the form; knows what `some_schema` makes."""
    if "anyOf" in schema:
        return any(matches(value, each) for each in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    if "const" in schema:
        return bool(value == schema["const"])
    match schema["type"]:
        case "string":
            pattern = {"date": r"\d{4}-\d\d-\d\d"}.get(schema.get("format", ""), schema.get("pattern", ""))
            return (
                isinstance(value, str)
                and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 99)
                and re.search(pattern, value) is not None
            )
        case "integer":
            whole = isinstance(value, int) and not isinstance(value, bool)
            return whole and schema["minimum"] <= value <= schema["maximum"]
        case "number":
            number = isinstance(value, int | float) and not isinstance(value, bool)
            return number and schema["minimum"] <= value < schema["exclusiveMaximum"]
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return (
                isinstance(value, list)
                and schema["minItems"] <= len(value) <= schema["maxItems"]
                and all(matches(each, schema["items"]) for each in value)
            )
    return (
        isinstance(value, dict)
        and value.keys() <= schema["properties"].keys()
        and value.keys() >= set(schema["required"])
        and all(matches(each, schema["properties"][name]) for name, each in value.items())
    )


@pytest.mark.parametrize("seed", range(4))
def test_json_that_ended_matches_its_schema(seed: int, engine: Engine, tokenizer: Tokenizer) -> None:
    dice = random.Random(seed)
    schemas = [some_schema(dice) for _ in range(16)]
    requests = written(engine, tokenizer, [json_schema(schema, tokenizer) for schema in schemas])
    ended = 0
    for request, schema in zip(requests, schemas, strict=True):
        assert request.trouble is None
        if request.ended:
            ended += 1
            text = b"".join(map(tokenizer.decode_bytes, request.ids)).decode()
            assert matches(json.loads(text), schema), (text, schema)
        else:
            assert request.room == 0
    assert ended > 8  # a number may go on for long


def test_any_object_is_json(engine: Engine, tokenizer: Tokenizer) -> None:
    for request in written(engine, tokenizer, [json_object(tokenizer) for _ in range(16)]):
        if request.ended:
            assert isinstance(json.loads(tokenizer.decode(request.ids)), dict)


def some_expression(dice: random.Random, depth: int = 3) -> str:
    """Of the syntax that Python's `re` and Rust's have in common."""
    if depth == 0:
        return dice.choice(
            ["a", "the", r"\d", "[^a-z\\n]", ".", r"\{", "é", r"\w", "[b-dé]", " ", r"\n", "猫?"]
        )
    parts = [some_expression(dice, depth - 1) for _ in range(dice.randrange(1, 4))]
    joined = dice.choice(["", "|"]).join(parts)
    return f"(?:{joined})" + dice.choice(["", "", "?", "{2}", "{1,3}"])


@pytest.mark.parametrize("seed", range(4))
def test_text_that_ended_matches_its_expression(seed: int, engine: Engine, tokenizer: Tokenizer) -> None:
    dice = random.Random(seed)
    patterns = ["x" + some_expression(dice) for _ in range(16)]
    requests = written(engine, tokenizer, [regex(pattern, tokenizer) for pattern in patterns])
    for request, pattern in zip(requests, patterns, strict=True):
        assert request.ended
        text = b"".join(map(tokenizer.decode_bytes, request.ids)).decode()
        assert re.fullmatch(pattern, text, re.ASCII), (text, pattern)


def forced(ids: set[int], tokenizer: Tokenizer) -> bool:
    """Whether all say the same, one more of it than the other: then the usual token for it is enough."""
    spelled = sorted((tokenizer.decode_bytes(i) for i in ids), key=len)
    return all(spelled[-1].startswith(each) for each in spelled)


def test_what_is_allowed_is_what_could_go_on(tokenizer: Tokenizer) -> None:
    """The slow twin: of a list of words, each token is tried."""
    words = ["the cat", "the dog", "then", "a cat", "a", "é猫"]
    dice = random.Random(1)
    for _ in range(20):
        grammar, so_far = regex("|".join(words), tokenizer), b""
        while not grammar.finished:
            may = {
                i
                for i in range(tokenizer.vocab_size)
                if any(word.encode().startswith(so_far + tokenizer.decode_bytes(i)) for word in words)
            }
            allowed = set(grammar.allowed().nonzero()[:, 0].tolist())
            assert allowed == may or (len(allowed) == 1 and allowed < may and forced(may, tokenizer))
            assert grammar.complete == (so_far.decode(errors="replace") in words)
            token_id = dice.choice(sorted(allowed))
            grammar.feed(token_id)
            so_far += tokenizer.decode_bytes(token_id)
        assert so_far.decode() in words
