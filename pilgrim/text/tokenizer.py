"""Text to token ids and back: a byte-level BPE that is trained on the corpus of the recipe.

Byte-pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) begins with the smallest
pieces and again and again glues together the pair of neighbours that occurs most often, until the
vocabulary is as large as wanted. Ours begins with the 256 bytes (as GPT-2 did), so that any text at
all can be written in it: an unknown character just costs more tokens. Before gluing, a regular
expression cuts the text into words, numbers, punctuation and white space, and no token ever crosses
such a cut. The expression is Qwen2's to the letter, because that is what llama.cpp, Ollama, vLLM and
MLX know under the name "qwen2"; the Rust library `tokenizers` does the gluing.

Qwen2 also normalizes text to Unicode's NFC first. We don't: NFC changes bytes ("e" + accent becomes
"é"), so that a decoded text would differ from what was encoded, and bits per byte would be measured
over bytes that nobody wrote. llama.cpp's qwen2 doesn't normalize either.

The first ids are the special tokens, which are never the result of encoding a text, not even of a
text that spells out "<|im_end|>": a user can't end their own turn. This needs no escaping. `encode`
uses a second tokenizer whose vocabulary doesn't contain the special tokens, so it has no way to
produce their ids; only `pilgrim.text.chat` and the packing of documents put those in.
"""

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from pilgrim.core.errors import DataError, SettingsError
from pilgrim.core.files import write_atomic, write_json_atomic

# Verbatim from Qwen2. In words: English contractions | a word with at most one leading space or sign |
# one digit | signs with at most one leading space and the line ends after them | white space up to and
# with line ends | white space but for its last character, which belongs to the next word | white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Marks that carry meaning inside an assistant's turn. As in Qwen3, transformers is told that they are
# no "special" tokens, because it drops those from decoded text and would take the tool call with them.
INNER_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_RESERVED = tuple(f"<|reserved_{k}|>" for k in range(7))
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, *INNER_MARKS, *_RESERVED)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")


class Tokenizer:
    """A trained vocabulary; made by `train_tokenizer` or `Tokenizer.load`.

    Ids 0 … 15 are `SPECIAL_TOKENS` in their order, then the 256 bytes, then the merges in the order in
    which they were learned.
    """

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]) -> None:
        """`vocabulary`: token -> id without the special tokens, spelled as GPT-2 does; `merges`: in order."""
        self.vocab_size = len(SPECIAL_TOKENS) + len(vocabulary)
        self.eot_id, self.im_start_id, self.im_end_id = 0, 1, 2
        self._vocabulary = vocabulary
        self.merges = list(merges)  # in the order in which they were learned
        self._text_only = _bare_tokenizer(vocabulary, self.merges)
        self._bytes_by_id = [special.encode() for special in SPECIAL_TOKENS] + [b""] * len(vocabulary)
        byte_of = {character: byte for byte, character in _byte_spelling().items()}
        for token, token_id in vocabulary.items():
            self._bytes_by_id[token_id] = bytes(byte_of[character] for character in token)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; never a special one, and `decode` gives back `text` exactly.

        Raises DataError if `text` has a lone surrogate (half of a UTF-16 pair), which has no bytes.
        """
        refuse_lone_surrogates(text, "text")
        return self._text_only.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of many texts at once, on all cores that the `tokenizers` library may use."""
        for text in texts:
            refuse_lone_surrogates(text, "text")
        return [
            encoding.ids for encoding in self._text_only.encode_batch_fast(texts, add_special_tokens=False)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens by their name, bytes that are no UTF-8 as U+FFFD."""
        return b"".join(map(self.decode_bytes, ids)).decode("utf-8", errors="replace")

    def decode_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, which may be a part of a character; of a special token, its name's."""
        if not 0 <= token_id < self.vocab_size:
            raise DataError(
                f"tokenizer: token id {token_id} is not among its {self.vocab_size} ids; "
                "these ids come from another tokenizer"
            )
        return self._bytes_by_id[token_id]

    def token_bytes(self) -> list[int]:
        """How many bytes of text each id stands for, by id; 0 for the special ones, which are no text.

        This is the denominator of bits per byte.
        """
        specials = len(SPECIAL_TOKENS)
        return [0] * specials + [len(data) for data in self._bytes_by_id[specials:]]

    def spellings(self) -> list[str]:
        """Every token as files of vocabularies write it, by id: special ones by name, bytes as GPT-2 does."""
        by_id = {token_id: token for token, token_id in self._vocabulary.items()}
        return [*SPECIAL_TOKENS, *(by_id[i] for i in range(len(SPECIAL_TOKENS), self.vocab_size))]

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`: what transformers' AutoTokenizer loads.

        The bytes of both files depend only on the vocabulary. Raises PilgrimError if they can't be written.
        """
        write_atomic(folder / "tokenizer.json", self._with_special_tokens().to_str(pretty=True) + "\n")
        config = {
            # Not "Qwen2Tokenizer", which would put the NFC normalizer back.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": CHAT_TEMPLATE,
            # A chat turn is over at <|im_end|>, so this is where generation has to stop.
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "bos_token": None,
            "unk_token": None,
            "add_bos_token": False,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        }
        write_json_atomic(folder / "tokenizer_config.json", config)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads what `save` wrote. Raises DataError if it isn't there, is damaged, or is another kind's."""
        file = folder / "tokenizer.json"
        cure = "run the tokenizer stage again"
        try:
            tree = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise DataError(f"{file}: there is no such file; {cure}") from None
        except OSError as error:
            raise DataError(f"{file}: can't be read ({error.strerror}); mend that, or {cure}") from None
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 both
            raise DataError(f"{file}: is damaged ({error}); {cure}") from None
        problem = _what_is_wrong(tree)
        if problem:
            raise DataError(f"{file}: is not a tokenizer of pilgrim ({problem}); {cure}")
        model = tree["model"]
        vocabulary = {token: i for token, i in model["vocab"].items() if token not in SPECIAL_TOKENS}
        return cls(vocabulary, [(left, right) for left, right in model["merges"]])

    def _with_special_tokens(self) -> tokenizers.Tokenizer:
        """The tokenizer for other programs, which do turn "<|im_end|>" into the special token."""
        specials = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
        whole = _bare_tokenizer(specials | self._vocabulary, self.merges)
        whole.add_tokens(
            [
                AddedToken(token, special=token not in INNER_MARKS, normalized=False)
                for token in SPECIAL_TOKENS
            ]
        )
        return whole


class StreamDecoder:
    """Decodes ids one at a time for showing text as it is generated; only whole characters come out.

    The pieces together equal `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """The characters that this id completes: often one word, sometimes nothing yet."""
        return self._utf8.decode(self._tokenizer.decode_bytes(token_id))

    def finish(self) -> str:
        """What is left at the end: nothing, or U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns `vocab_size` tokens, special ones included, from `texts`; the same texts give the same tokens.

    Raises SettingsError if `vocab_size` has no room for bytes and special tokens, DataError if there is
    no text, or not enough of it for so many tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise SettingsError(
            f"tokenizer.vocab_size = {vocab_size} has no room for the 256 bytes and the "
            f"{len(SPECIAL_TOKENS)} special tokens; set it to {SMALLEST_VOCABULARY} or more"
        )
    learner = _bare_tokenizer({}, [])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        min_frequency=2,  # a pair that was seen once tells nothing about other texts
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(_some_text(texts), trainer)
    model = json.loads(learner.to_str())["model"]
    supported = len(SPECIAL_TOKENS) + len(model["vocab"])
    if supported < vocab_size:
        raise DataError(
            f"tokenizer.vocab_size = {vocab_size} is more than this text supports; "
            f"set it to {supported} or less, or give it more text"
        )
    vocabulary = {token: i + len(SPECIAL_TOKENS) for token, i in model["vocab"].items()}
    return Tokenizer(vocabulary, [(left, right) for left, right in model["merges"]])


def _bare_tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Split by the pattern, spell as bytes, merge; without any special tokens."""
    bare = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.decoder = decoders.ByteLevel()
    return bare


def _some_text(texts: Iterable[str]) -> Iterator[str]:
    """Passes the non-empty texts on; raises DataError if there is none."""
    empty = True
    for text in texts:
        refuse_lone_surrogates(text, "tokenizer: a document of the corpus")
        if text:
            empty = False
            yield text
    if empty:
        raise DataError("tokenizer: the corpus has no text to learn from; name a file that has some in data")


def refuse_lone_surrogates(text: str, place: str) -> None:
    """Raises DataError if `text` has half of a UTF-16 pair, as JSON with a "\\ud83d" alone can smuggle in."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: character {error.start} is U+{ord(text[error.start]):04X}, half of a UTF-16 pair, "
            "which no encoding can store; repair or drop this text"
        ) from None


def _byte_spelling() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where it prints, else one from U+0100 upwards.

    JSON files and the `tokenizers` library hold strings, not bytes; this is how tokens are written there.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), 256)}
    substitutes = itertools.count(256)
    return {byte: chr(byte if byte in printable else next(substitutes)) for byte in range(256)}


def _what_is_wrong(tree: Any) -> str | None:
    """Why a parsed tokenizer.json can't be ours, in a few words; None if it is."""
    specials = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    try:
        pattern = tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        splits_alike = pattern == SPLIT_PATTERN and tree["normalizer"] is None
        added = {token["content"]: token["id"] for token in tree["added_tokens"]}
        vocab = dict(tree["model"]["vocab"])
        named = {token: vocab.pop(token, None) for token in SPECIAL_TOKENS}
        gapless = sorted(vocab.values()) == list(range(len(specials), len(specials) + len(vocab)))
        pieces = {piece for left, right in tree["model"]["merges"] for piece in (left, right, left + right)}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return f"its parts are not where they belong: {type(error).__name__}"
    spelling = set(_byte_spelling().values())
    if not splits_alike:
        return "it splits text in another way"
    if added != specials or named != specials:
        return "it has other special tokens"
    if not gapless or not spelling | pieces <= vocab.keys():
        return "its vocabulary has holes"
    if not spelling.issuperset("".join(vocab)):
        return "its vocabulary is not made of bytes"
    return None
