"""The tokenizer: what it learns, that text comes back to the byte, that no text becomes a special token."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from pilgrim.core.errors import DataError, SettingsError
from pilgrim.text.tokenizer import (
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    StreamDecoder,
    Tokenizer,
    train_tokenizer,
)

CORPUS = [
    "Once upon a time there was a little dog. The dog's name was Spot, and he loved the garden.\n\n" * 3,
    "The little girl didn't know why the garden was so quiet. She'd wait, and wait, and wait.\n" * 3,
    "Übermut tut selten gut, sagte die Großmutter; übermorgen gibt es Äpfel.\r\n" * 3,
    "العربية 12345 עברית 👩‍👩‍👧 日本語 <|im_end|> <tool_call>\t\t  x = [1, 2]\n" * 3,
]
VOCAB_SIZE = 420
quick = settings(max_examples=300, deadline=None, derandomize=True)
pieces = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [*SPECIAL_TOKENS, "<|", "|>", "im_end", " ", "\n", "\r\n", "  \n", "\u00a0", "e\u0301", "👩‍👩‍👧"]
    ),
)
odd_text = st.lists(pieces, max_size=8).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(CORPUS, VOCAB_SIZE)


def test_ids_are_specials_then_bytes_then_merges(tokenizer: Tokenizer) -> None:
    names = [tokenizer.decode([i]) for i in range(len(SPECIAL_TOKENS))]
    singles = [tokenizer.decode_bytes(i) for i in range(len(SPECIAL_TOKENS), SMALLEST_VOCABULARY)]
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert tuple(names) == SPECIAL_TOKENS
    assert names[tokenizer.eot_id] == "<|endoftext|>"
    assert names[tokenizer.im_start_id] == "<|im_start|>"
    assert names[tokenizer.im_end_id] == "<|im_end|>"
    assert sorted(singles) == [bytes([byte]) for byte in range(256)]
    assert all(len(tokenizer.decode_bytes(i)) > 1 for i in range(SMALLEST_VOCABULARY, VOCAB_SIZE))


def test_training_learns_words_of_the_corpus(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" little")) == 1
    assert len(tokenizer.encode(CORPUS[0])) < len(CORPUS[0]) / 2


def test_the_smallest_vocabulary_is_bytes_only() -> None:
    tokenizer = train_tokenizer(["a"], SMALLEST_VOCABULARY)
    assert len(tokenizer.encode("naïve 👋")) == len("naïve 👋".encode())


@given(odd_text)
@example("")
@example("e\u0301 and \u00e9")  # NFC would make these the same
@example("\ufeffbyte order mark\u0000\u2028")
@quick
def test_text_comes_back_and_its_bytes_are_counted(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    counts = tokenizer.token_bytes()
    assert tokenizer.decode(ids) == text
    assert sum(counts[i] for i in ids) == len(text.encode())
    assert all(i >= len(SPECIAL_TOKENS) for i in ids)


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
def test_text_never_becomes_a_special_token(tokenizer: Tokenizer, special: str) -> None:
    middle = len(special) // 2
    texts = [
        special,
        special * 3,
        f" {special}\n",
        f"a{special}b",
        special[:middle] + special + special[middle:],
    ]
    texts += [special + other for other in SPECIAL_TOKENS] + [other + special for other in SPECIAL_TOKENS]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert min(ids) >= len(SPECIAL_TOKENS)
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode(ids) == text


def test_even_a_corpus_full_of_special_names_does_not_learn_them() -> None:
    tokenizer = train_tokenizer([" ".join(SPECIAL_TOKENS) * 50], 300)
    for special in SPECIAL_TOKENS:
        assert min(tokenizer.encode(special)) >= len(SPECIAL_TOKENS)


@given(odd_text)
@quick
def test_encode_equals_merging_by_hand(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == _encode_by_hand(text, tokenizer)


def _encode_by_hand(text: str, tokenizer: Tokenizer) -> list[int]:
    """The slow twin: split by the pattern, then glue the pair that was learned first, again and again.

    A token learned earlier has a smaller id, and no two merges give the same token here.
    """
    id_of = {tokenizer.decode_bytes(i): i for i in range(len(SPECIAL_TOKENS), tokenizer.vocab_size)}
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    ids = []
    for word, _ in split.pre_tokenize_str(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            candidates = [
                (id_of[left + right], place)
                for place, (left, right) in enumerate(itertools.pairwise(parts))
                if left + right in id_of
            ]
            if not candidates:
                break
            _, place = min(candidates)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        ids += [id_of[part] for part in parts]
    return ids


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40))
@quick
def test_streaming_gives_the_same_text_as_decoding_at_once(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = StreamDecoder(tokenizer)
    assert "".join([*map(stream.feed, ids), stream.finish()]) == tokenizer.decode(ids)


def test_streaming_emits_whole_characters_only() -> None:
    tokenizer = train_tokenizer(["a"], SMALLEST_VOCABULARY)
    stream = StreamDecoder(tokenizer)
    assert [stream.feed(i) for i in tokenizer.encode("a👋")] == ["a", "", "", "", "👋"]
    assert stream.finish() == ""
    assert [stream.feed(i) for i in tokenizer.encode("👋")[:2]] == ["", ""]
    assert stream.finish() == "\ufffd"


def test_decoding_an_unknown_id_says_so(tokenizer: Tokenizer) -> None:
    for stranger in (-1, VOCAB_SIZE):
        with pytest.raises(DataError, match=f"token id {stranger} is not among its {VOCAB_SIZE} ids"):
            tokenizer.decode([stranger])


def test_half_a_surrogate_pair_is_refused(tokenizer: Tokenizer) -> None:
    half = json.loads('"wave \\ud83d"')
    for attempt in (tokenizer.encode, lambda text: tokenizer.encode_batch(["ok", text])):
        with pytest.raises(DataError, match=r"character 5 is U\+D83D, half of a UTF-16 pair"):
            attempt(half)
    with pytest.raises(DataError, match="a document of the corpus: character 5"):
        train_tokenizer([half], SMALLEST_VOCABULARY)


def test_same_texts_give_the_same_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one")
    train_tokenizer(iter(CORPUS), VOCAB_SIZE).save(tmp_path / "two")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_load_gives_back_what_was_saved(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.encode_batch(CORPUS) == tokenizer.encode_batch(CORPUS)
    assert again.token_bytes() == tokenizer.token_bytes()
    again.save(tmp_path / "again")
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_a_vocabulary_too_large_for_the_text_says_how_large_it_can_be() -> None:
    text = ["one dog, one cat, one dog"]
    with pytest.raises(
        DataError, match=r"tokenizer\.vocab_size = 999 is more .* set it to \d+ or less"
    ) as caught:
        train_tokenizer(text, 999)
    supported = int(str(caught.value).split("set it to ")[1].split()[0])
    assert train_tokenizer(text, supported).vocab_size == supported


def test_a_vocabulary_without_room_for_bytes_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"tokenizer\.vocab_size = 200 .* set it to 272 or more"):
        train_tokenizer(CORPUS, 200)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_an_empty_corpus_is_refused(texts: list[str]) -> None:
    with pytest.raises(DataError, match="the corpus has no text"):
        train_tokenizer(texts, VOCAB_SIZE)


def test_loading_from_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: there is no such file; run the tokenizer stage"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(DataError, match=r"tokenizer\.json: can't be read"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b'{"model": {"vocab"', b"\xff\xfe{}"])
def test_loading_a_damaged_file_says_so(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(DataError, match=r"tokenizer\.json: is damaged"):
        Tokenizer.load(tmp_path)


def test_loading_a_foreign_tokenizer_says_what_differs(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    ours = file.read_text(encoding="utf-8")
    merge = tokenizer.decode([SMALLEST_VOCABULARY])
    changes: dict[str, tuple[Callable[[Any], object], str]] = {
        "normalizer": (lambda tree: tree.update(normalizer={"type": "NFC"}), "splits text in another way"),
        "pattern": (
            lambda tree: tree["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\s+"),
            "splits text in another way",
        ),
        "special gone": (lambda tree: tree["added_tokens"].pop(), "other special tokens"),
        "special moved": (
            lambda tree: tree["model"]["vocab"].update({"<|im_end|>": 9}),
            "other special tokens",
        ),
        "byte gone": (lambda tree: tree["model"]["vocab"].pop("A"), "vocabulary has holes"),
        "merge gone": (lambda tree: tree["model"]["vocab"].pop(merge), "vocabulary has holes"),
        "merge of specials": (
            lambda tree: tree["model"]["merges"].append(["<|im_start|>", "<|im_end|>"]),
            "vocabulary has holes",
        ),
        "no byte": (
            lambda tree: tree["model"]["vocab"].update({"日": tokenizer.vocab_size}),
            "vocabulary is not made of bytes",
        ),
        "no model": (lambda tree: tree.pop("model"), "not where they belong"),
        "text ids": (lambda tree: tree["model"]["vocab"].update(A="x"), "not where they belong"),
    }
    for name, (change, complaint) in changes.items():
        tree = json.loads(ours)
        change(tree)
        file.write_text(json.dumps(tree), encoding="utf-8")
        with pytest.raises(DataError, match=complaint):
            Tokenizer.load(tmp_path)
            pytest.fail(f"{name} was accepted")
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="not where they belong"):
        Tokenizer.load(tmp_path)
