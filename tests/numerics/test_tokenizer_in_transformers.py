"""transformers, with the files that `Tokenizer.save` writes, gives the same ids as we do."""

import random
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from odd_texts import FRAGMENTS, odd_conversation, odd_text, odd_tool_row
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from pilgrim.text.calls import MARKS, dumps
from pilgrim.text.chat import CHAT_TEMPLATE, Message, messages_from_row, render, render_prompt
from pilgrim.text.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer, train_tokenizer

CONVERSATIONS = 400


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(
        ["".join(FRAGMENTS) * 3, " ".join(FRAGMENTS) * 3, "\n".join(SPECIAL_TOKENS) * 3], 400
    )


@pytest.fixture(scope="module", params=["tokenizer alone", "beside a qwen3 model"])
def theirs(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Beside a model's config.json, AutoTokenizer could take the class that it thinks goes with the model."""
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    if request.param == "beside a qwen3 model":
        (folder / "config.json").write_text('{"model_type": "qwen3"}', encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def templated(theirs: Any, messages: list[Message], *, prompt: bool) -> list[int]:
    rows = [{"role": message.role, "content": message.content} for message in messages]
    ids: list[int] = theirs.apply_chat_template(rows, add_generation_prompt=prompt, return_dict=False)
    return ids


def test_the_split_pattern_is_qwen2s() -> None:
    assert SPLIT_PATTERN == PRETOKENIZE_REGEX


def test_transformers_knows_the_same_tokens(theirs: Any, tokenizer: Tokenizer) -> None:
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
    assert theirs.eos_token_id == tokenizer.im_end_id
    assert theirs.pad_token_id == tokenizer.eot_id
    assert theirs.bos_token_id is None
    assert theirs.chat_template == CHAT_TEMPLATE


def test_text_has_the_same_ids_and_comes_back(theirs: Any, tokenizer: Tokenizer) -> None:
    dice = random.Random(1)
    texts = [odd_text(dice) for _ in range(CONVERSATIONS)]
    ids = tokenizer.encode_batch(texts)
    assert theirs(texts)["input_ids"] == ids
    assert theirs.batch_decode(ids) == texts


def test_conversations_have_the_same_ids(theirs: Any, tokenizer: Tokenizer) -> None:
    dice = random.Random(2)
    for _ in range(CONVERSATIONS):
        messages = odd_conversation(dice)
        assert templated(theirs, messages, prompt=False) == render(messages, tokenizer).ids
        assert templated(theirs, messages[:-1], prompt=True) == render_prompt(messages[:-1], tokenizer)


def test_special_tokens_in_messages_forge_nothing_there_either(theirs: Any, tokenizer: Tokenizer) -> None:
    """The template breaks them with a space; otherwise the ids are those of the broken text."""
    dice = random.Random(3)
    for _ in range(CONVERSATIONS):
        messages = odd_conversation(dice, (*SPECIAL_TOKENS, *SPECIAL_TOKENS, *FRAGMENTS))
        broken = [Message(message.role, with_broken_specials(message.content)) for message in messages]
        assert templated(theirs, messages, prompt=False) == render(broken, tokenizer).ids


def test_conversations_with_tools_have_the_same_ids(theirs: Any, tokenizer: Tokenizer) -> None:
    dice = random.Random(4)
    for number in range(CONVERSATIONS // 2):
        waits = number % 2 == 1
        row = odd_tool_row(dice, waits=waits)
        if any(special in dumps(row) for special in SPECIAL_TOKENS):
            continue  # by chance; the next test is about these
        ids = theirs.apply_chat_template(
            row["messages"], tools=row["tools"], add_generation_prompt=waits, return_dict=False
        )
        messages = messages_from_row(row, "row")
        assert ids == (render_prompt(messages, tokenizer) if waits else render(messages, tokenizer).ids)


def test_special_tokens_in_calls_results_and_definitions_forge_nothing_there(
    theirs: Any, tokenizer: Tokenizer
) -> None:
    """As many control tokens as of the same conversation with its texts broken by a space."""
    dice = random.Random(5)
    for _ in range(CONVERSATIONS // 2):
        row = odd_tool_row(dice, (*SPECIAL_TOKENS, *SPECIAL_TOKENS, *FRAGMENTS))
        ids = theirs.apply_chat_template(row["messages"], tools=row["tools"], return_dict=False)
        ours = render(messages_from_row(row, "row"), tokenizer).ids
        assert [i for i in ids if i < len(SPECIAL_TOKENS)] == [i for i in ours if i < len(SPECIAL_TOKENS)]
        assert ours.count(MARKS[0]) == sum(len(m.get("tool_calls", ())) for m in row["messages"])


def test_arguments_as_text_are_refused_by_the_template(theirs: Any) -> None:
    """It could not look into them: so programs that can are told to."""
    call = {"function": {"name": "calculator", "arguments": '{"expression": "1"}'}}
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    with pytest.raises(TemplateError, match="as an object"):
        theirs.apply_chat_template(turns)


def with_broken_specials(text: str) -> str:
    for special in SPECIAL_TOKENS:
        text = text.replace(special, "< " + special[1:])
    return text


def test_nested_special_tokens_stay_broken(theirs: Any, tokenizer: Tokenizer) -> None:
    for special in SPECIAL_TOKENS:
        nested = [special[:k] + special + special[k:] for k in range(len(special) + 1)]
        ids = templated(theirs, [Message("user", "".join(nested))], prompt=False)
        assert [i for i in ids if i < len(SPECIAL_TOKENS)] == [0, 1, 2]


def test_tool_calls_survive_skipping_special_tokens(theirs: Any, tokenizer: Tokenizer) -> None:
    ids = [
        tokenizer.im_start_id,
        SPECIAL_TOKENS.index("<tool_call>"),
        *tokenizer.encode("{}"),
        tokenizer.im_end_id,
    ]
    assert theirs.decode(ids, skip_special_tokens=True) == "<tool_call>{}"
