"""Stage 2: text and conversations as token ids on disk, training and validation apart."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pilgrim.core.files import sha256_file
from pilgrim.data.conversations import Conversation, read_conversations
from pilgrim.data.shards import Document, TokenSet, open_token_set, write_token_set
from pilgrim.data.sources import Text, split
from pilgrim.evals.compression import as_json, by_source
from pilgrim.infer.load import load_tokenizer
from pilgrim.stages.journey import Journey, finished
from pilgrim.text.chat import render
from pilgrim.text.tokenizer import Tokenizer
from pilgrim.train.validation import ByDocument

AT_ONCE = 1024  # documents tokenized together


def run(journey: Journey) -> dict[str, Any]:
    """Write the token sets train and val, and, if a later stage needs them, chat_train and chat_val."""
    recipe, folder = journey.recipe, journey.stage_folder("shards")
    tokenizer, digest = run_tokenizer(journey)
    texts = split(recipe.data)
    if texts.left_out:
        journey.console.say(
            f"{texts.left_out} training documents are validation documents too, and were left out"
        )
    for name, documents in (("train", texts.train), ("val", texts.val)):
        write_token_set(folder, name, tokenized(documents, tokenizer), tokenizer.vocab_size, digest)
    if recipe.midtrain or recipe.sft or recipe.dpo:
        for name, files in (
            ("chat_train", recipe.data.conversations),
            ("chat_val", recipe.data.conversations_val),
        ):
            conversations = read_conversations(files)
            write_token_set(folder, name, rendered(conversations, tokenizer), tokenizer.vocab_size, digest)
    return _summary(folder, digest)


def run_tokenizer(journey: Journey) -> tuple[Tokenizer, str]:
    """The run's tokenizer and the hash that its token sets carry."""
    finished(journey, "tokenizer")
    folder = journey.folder / "tokenizer"
    return load_tokenizer(journey.folder), sha256_file(folder / "tokenizer.json")


def token_set(journey: Journey, name: str) -> TokenSet:
    """One of the run's token sets, verified."""
    finished(journey, "shards")
    return open_token_set(journey.folder / "shards", name, run_tokenizer(journey)[1])


def tokenized(texts: Sequence[Text], tokenizer: Tokenizer) -> Iterator[Document]:
    """Each text behind an <|endoftext|>, from which its first token is predicted."""
    for at in range(0, len(texts), AT_ONCE):
        some = texts[at : at + AT_ONCE]
        for text, ids in zip(some, tokenizer.encode_batch([t.text for t in some]), strict=True):
            yield Document([tokenizer.eot_id, *ids], None, text.source, len(text.text.encode()))


def rendered(conversations: Iterable[Conversation], tokenizer: Tokenizer) -> Iterator[Document]:
    """Each conversation as the chat renderer writes it, with its mask."""
    sizes = tokenizer.token_bytes()
    for conversation in conversations:
        r = render(conversation.messages, tokenizer)
        trained_bytes = sum(sizes[i] for i, trained in zip(r.ids, r.mask, strict=True) if trained)
        yield Document(r.ids, r.mask, conversation.source, trained_bytes)


def bits_by_source(tokens: TokenSet, each: ByDocument) -> dict[str, Any]:
    """Bits per byte of each source of a set with their errors, as plain JSON (evals/compression.py)."""
    assert tokens.source_d is not None
    found = by_source(tokens.source_names, tokens.source_d, each.nats_d.numpy(), each.bytes_d.numpy())
    return as_json(found)


def _summary(folder: Path, digest: str) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for file in sorted(folder.glob("*.json")):
        if file.stem == "DONE":
            continue
        manifest = open_token_set(folder, file.stem, digest).manifest
        for what in ("documents", "tokens", "trained_tokens", "bytes"):
            summary[f"{file.stem}_{what}"] = manifest[what]
    return summary
