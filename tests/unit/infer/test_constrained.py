import json
import re
from typing import Any

import pytest
import torch

from pilgrim.core.errors import DataError, PilgrimError, SettingsError
from pilgrim.core.runtime import Runtime
from pilgrim.infer.constrained import json_object, json_schema, regex, tool_call
from pilgrim.infer.engine import Engine
from pilgrim.infer.grammar import may_follow
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.tools import CALL, END_OF_CALL
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

TEXT = '{"name": "Tim", "age": 7} [1, 2.5, true] "a cat" 2026-11-23 the cat and the dog. '


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT * 4, "Ärger 猫 naïve"], 300)


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer, runtime: Runtime) -> Engine:
    model = Transformer(ModelSettings(depth=1, width=16, head_size=8, context=96).config(300))
    initialize(model, runtime.generator("constrained"))
    return Engine(model, runtime, rows=4, cache_tokens=400)


def stops(tokenizer: Tokenizer) -> set[int]:
    return {tokenizer.eot_id, tokenizer.im_end_id}


def allowed_after(grammar: Any, text: str, tokenizer: Tokenizer) -> list[str]:
    for token_id in tokenizer.encode(text):
        grammar.feed(token_id)
    ids = may_follow(grammar, stops(tokenizer)).nonzero()[:, 0].tolist()
    return [tokenizer.decode([i]) for i in ids]


def test_the_end_is_allowed_only_where_the_text_is_complete(tokenizer: Tokenizer) -> None:
    dates = regex(r"\d{4}-\d\d", tokenizer)
    assert "<|im_end|>" not in allowed_after(dates, "2026-1", tokenizer)
    assert allowed_after(dates, "1", tokenizer) == ["<|endoftext|>", "<|im_end|>"]
    assert dates.complete and dates.finished and dates.trouble is None


def test_an_end_that_may_be_put_off_is_one_of_many(tokenizer: Tokenizer) -> None:
    number = regex("[0-9]+", tokenizer)
    allowed = allowed_after(number, "7", tokenizer)
    assert {"<|endoftext|>", "<|im_end|>", "0", "9"} <= set(allowed)
    assert number.complete and not number.finished


def test_text_never_holds_special_tokens(tokenizer: Tokenizer) -> None:
    anything = allowed_after(json_object(tokenizer), '{"', tokenizer)
    assert "a" in anything and not any(token.startswith("<|") for token in anything)
    assert "<tool_call>" not in allowed_after(regex("(.|\n)*", tokenizer), "", tokenizer)


def test_each_grammar_has_its_own_place(tokenizer: Tokenizer) -> None:
    first, second = regex("abc", tokenizer), regex("abc", tokenizer)
    first.feed(tokenizer.encode("a")[0])
    assert not torch.equal(first.allowed(), second.allowed())


def test_calls_have_the_forms_of_tools(tokenizer: Tokenizer) -> None:
    city = {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/name"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"name": {"enum": ["Bonn", "Köln"]}},
    }
    for text in ('{"name": "weather", "arguments": {"city": "Köln"}}', "9*2", "python\nprint(1)\n"):
        call = tool_call({"weather": city, "calculator": None, "python": None}, tokenizer)
        assert may_follow(call, stops(tokenizer)).nonzero().tolist() == [[CALL]]
        call.feed(CALL)
        assert "</tool_call>" in allowed_after(call, text, tokenizer)
        call.feed(END_OF_CALL)
        assert call.finished and call.complete


def test_free_and_bound_requests_run_together(engine: Engine, tokenizer: Tokenizer) -> None:
    """And whoever is bound changes nothing for the others."""
    sampling, stop_ids = Sampling(temperature=1.5, max_tokens=40), stops(tokenizer)
    prompt = tokenizer.encode("the cat")
    alone = engine.generate([prompt], sampling, stop_ids)[0]
    free = engine.submit(prompt, sampling, stop_ids)
    schema = {"enum": [{"age": 7}, [1, 2]]}
    bound = [
        engine.submit(prompt, sampling, stop_ids, i, grammar=json_schema(schema, tokenizer)) for i in (1, 2)
    ]
    date = engine.submit(prompt, sampling, stop_ids, 3, grammar=regex(r"\d{4}-\d\d", tokenizer))
    while not engine.idle:
        engine.step()
    assert free.ids == alone.ids
    assert date.ended and re.fullmatch(r"\d{4}-\d\d", tokenizer.decode(date.ids))
    for request in bound:
        assert request.ended and json.loads(tokenizer.decode(request.ids)) in schema["enum"]


def test_a_reply_that_was_cut_says_so(engine: Engine, tokenizer: Tokenizer) -> None:
    cut = engine.submit([5], Sampling(max_tokens=3), (), grammar=regex("a{20}", tokenizer))
    whole = engine.submit([5], Sampling(max_tokens=3), (), grammar=regex("abc", tokenizer))
    while not engine.idle:
        engine.step()
    assert not cut.ended and set(tokenizer.decode(cut.ids)) == {"a"}
    assert whole.ended and tokenizer.decode(whole.ids) == "abc"


def test_greedy_replies_follow_too(engine: Engine, tokenizer: Tokenizer) -> None:
    greedy = Sampling(temperature=0, max_tokens=40, repetition_penalty=1.3, dry_multiplier=0.8)
    request = engine.submit([5, 6], greedy, stops(tokenizer), grammar=regex("(ab|ba){5}", tokenizer))
    while not engine.idle:
        engine.step()
    assert re.fullmatch("(ab|ba){5}", tokenizer.decode(request.ids))


def test_trouble_ends_one_reply_and_no_other(engine: Engine, tokenizer: Tokenizer) -> None:
    class Stuck:
        complete, finished = False, False
        trouble: str | None = None

        def allowed(self) -> torch.Tensor:
            return torch.ones(300, dtype=torch.bool)

        def feed(self, token_id: int) -> None:
            self.finished, self.trouble = True, "grammar: is stuck; make it simpler"

    stuck = engine.submit([5], Sampling(max_tokens=9), (), grammar=Stuck())
    other = engine.submit([5], Sampling(max_tokens=9), ())
    while not engine.idle:
        engine.step()
    assert stuck.over and not stuck.ended and stuck.trouble and stuck.written == 1
    assert other.written == 9 and other.trouble is None


BAD_SCHEMAS: dict[str, Any] = {
    "no JSON matches": {"type": "integer", "minimum": 5, "maximum": 3},
    "nothing to choose from": {"enum": []},
    "never": False,
    "contradiction": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "unknown type": {"type": "wrong"},
    "unknown key": {"not": {}},
    "unknown format": {"type": "string", "format": "frob"},
    "bad expression within": {"type": "string", "pattern": "("},
    "points nowhere": {"$ref": "#/$defs/x"},
    "points away": {"$ref": "https://example.org/schema.json"},
    "contains itself": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "a list": [1],
    "no JSON": {"const": float("nan")},
    "half a character": {"const": "\ud83d"},
    "long": {"enum": ["x" * 60_000]},
}
for _depth in (150, 5_000):
    BAD_SCHEMAS[f"{_depth} deep"] = {}
    for _ in range(_depth):
        BAD_SCHEMAS[f"{_depth} deep"] = {"type": "array", "items": BAD_SCHEMAS[f"{_depth} deep"]}


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_a_bad_schema_is_told_in_a_sentence(name: str, tokenizer: Tokenizer) -> None:
    for _ in range(2):  # what is kept is refused again
        with pytest.raises(PilgrimError) as told:
            json_schema(BAD_SCHEMAS[name], tokenizer)
        assert "\n" not in str(told.value) and len(str(told.value)) < 300


@pytest.mark.parametrize(
    "bad", ["", "(", "a{5,2}", "(?=x)", r"(a)\1", "a$b", "[z-a]", "x" * 60_000, "\ud83d"]
)
def test_a_bad_expression_is_told_in_a_sentence(bad: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(PilgrimError) as told:
        regex(bad, tokenizer)
    assert str(told.value).startswith("regex: ") and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "functions", [{}, {"weather": None}, {"f": {"type": "wrong"}}, {"f": 7}, {"f": {"$ref": "#"}}]
)
def test_bad_tools_are_told_in_a_sentence(functions: dict[str, Any], tokenizer: Tokenizer) -> None:
    with pytest.raises(SettingsError) as told:
        tool_call(functions, tokenizer)
    assert str(told.value).startswith("tool") and "\n" not in str(told.value)


def test_a_grammar_of_another_tokenizer_is_refused(engine: Engine) -> None:
    other = train_tokenizer([TEXT * 4], 290)
    with pytest.raises(DataError, match="290"):
        engine.submit([5], Sampling(), grammar=regex("a", other))
