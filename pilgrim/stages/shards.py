"""Stage 2: text and conversations as token ids on disk, training and validation apart.

What `[dpo]` and `[rl]` read of data sets is left beside them as rows (rows.py). So all that has to be fetched
is fetched here, and a machine without a network can do the rest.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.core.files import sha256_file
from pilgrim.data.conversations import Conversation
from pilgrim.data.datasets import conversations, conversations_of, documents_of, local_files, texts
from pilgrim.data.loader import too_long
from pilgrim.data.shards import Document, TokenSet, open_token_set, write_token_set
from pilgrim.data.sources import Text, apart, find, fingerprint, split
from pilgrim.evals.compression import as_json, by_source
from pilgrim.infer.load import load_tokenizer
from pilgrim.stages.journey import Journey, finished
from pilgrim.stages.rows import write_rows
from pilgrim.text.chat import render
from pilgrim.text.tokenizer import Tokenizer
from pilgrim.train.validation import ByDocument

AT_ONCE = 1024  # documents tokenized together


def run(journey: Journey) -> dict[str, Any]:
    """Write the token sets train and val and, as far as later stages need them, chat_train, chat_val, one for
    each data set of a mixture, and rows."""
    recipe, folder = journey.recipe, journey.stage_folder("shards")
    tokenizer, digest = run_tokenizer(journey)
    found = split(recipe.data, partial(documents_of, datasets=recipe.datasets))
    if found.left_out:
        journey.console.say(
            f"{found.left_out} training documents are validation documents too, and were left out"
        )
    for name, documents in (("train", found.train), ("val", found.val)):
        write_token_set(folder, name, tokenized(documents, tokenizer), tokenizer.vocab_size, digest)
    for name in recipe.token_sets():
        if name in recipe.datasets:
            _write_dataset(journey, name, tokenizer, digest, found.val)
    of_data = {"chat_train": recipe.data.conversations, "chat_val": recipe.data.conversations_val}
    for name, files in of_data.items():
        if name in recipe.token_sets() or (name == "chat_val" and recipe.chats):
            chats = conversations_of(files, recipe.datasets, journey.console.say)
            write_token_set(folder, name, rendered(chats, tokenizer), tokenizer.vocab_size, digest)
    rows = {f"{name}_rows": write_rows(journey, name) for name in recipe.rows_read()}
    return _summary(journey, digest) | rows


def _write_dataset(
    journey: Journey, name: str, tokenizer: Tokenizer, digest: str, val: Iterable[Text]
) -> None:
    """The token set of a data set, unless it was made of the same before this stage was interrupted."""
    folder, settings = journey.folder / "shards", journey.recipe.datasets[name]
    hashes = {file: sha256_file(find(file)) for file in local_files(settings)}
    origin: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "sha256": hashes}
    if settings.is_text:
        origin["apart_from"] = fingerprint(val)
    if (folder / f"{name}.json").exists():
        try:
            if open_token_set(folder, name, digest).manifest.get("origin") == origin:
                return
        except DataError as error:
            journey.console.say(f"{error} (which is done now)")
    documents = (
        tokenized(apart(texts(name, settings), val), tokenizer)
        if settings.is_text
        else rendered(conversations(name, settings, journey.console.say), tokenizer)
    )
    write_token_set(folder, name, documents, tokenizer.vocab_size, digest, origin)


def run_tokenizer(journey: Journey) -> tuple[Tokenizer, str]:
    """The run's tokenizer and the hash that its token sets carry."""
    finished(journey, "tokenizer")
    folder = journey.folder / "tokenizer"
    return load_tokenizer(journey.folder), sha256_file(folder / "tokenizer.json")


def token_set(journey: Journey, name: str) -> TokenSet:
    """One of the run's token sets, verified."""
    finished(journey, "shards")
    return open_token_set(journey.folder / "shards", name, run_tokenizer(journey)[1])


def tokenized(texts: Iterable[Text], tokenizer: Tokenizer) -> Iterator[Document]:
    """Each text behind an <|endoftext|>, from which its first token is predicted."""
    texts = iter(texts)
    while some := list(islice(texts, AT_ONCE)):
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


def _summary(journey: Journey, digest: str) -> dict[str, Any]:
    folder, summary = journey.stage_folder("shards"), dict[str, Any]()
    for file in sorted(folder.glob("*.json")):
        if file.stem == "DONE":
            continue
        tokens = open_token_set(folder, file.stem, digest)
        for what in ("documents", "tokens", "trained_tokens", "bytes"):
            summary[f"{file.stem}_{what}"] = tokens.manifest[what]
        if tokens.trained is not None:
            _tell_of_long_ones(journey, tokens)
    return summary


def _tell_of_long_ones(journey: Journey, tokens: TokenSet) -> None:
    """Conversations that the context can't hold whole are cut, and nobody should have to guess."""
    context = journey.recipe.model_of(journey.recipe.stage_before("evaluate")).context
    found = too_long(tokens, context)
    if found.conversations:
        journey.console.say(
            f"{found.conversations:,} of {tokens.documents:,} conversations of {tokens.name} are longer than "
            f"the context of {context:,} tokens and are cut into {found.pieces:,} pieces"
            + (f"; in {found.left_out:,} of these nothing is learned: left out" if found.left_out else "")
        )
