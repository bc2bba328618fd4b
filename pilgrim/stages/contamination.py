"""Which items of evals stand in a run's training text: looked for once, and kept in contamination.json.

The text is read from the run's token sets, as these are what was trained on: decoded, special tokens as
spaces. All sets for training count, also those of later stages, so that an item that is left out in
pretraining is left out in the end. What is found holds for the very items and the very tokens, so the file
names both by their hashes, and whatever is missing or has changed is looked for anew.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pilgrim.core.files import read_json, write_atomic
from pilgrim.data.shards import TokenSet
from pilgrim.evals.contamination import RULE, Overlap, overlaps
from pilgrim.evals.items import Item
from pilgrim.stages.journey import Journey
from pilgrim.stages.shards import run_tokenizer, token_set
from pilgrim.text.tokenizer import Tokenizer

FILE = "contamination.json"

Files = Mapping[str, Sequence[Item]]  # the SHA-256 of a file of items -> its items


def in_training_text(
    journey: Journey, files: Files, done: Callable[[int], None] = lambda documents: None
) -> dict[str, Overlap]:
    """The overlaps of each file; `done(n)` counts training documents, if any have to be read.

    Raises PilgrimError if the run's token sets are not finished or damaged.
    """
    sets = training_sets(journey)
    hashes = {tokens.name: _hash(tokens) for tokens in sets}
    known = _known(journey, hashes)
    missing = {digest: items for digest, items in files.items() if digest not in known}
    if missing:
        tokenizer, _ = run_tokenizer(journey)
        texts = (text for tokens in sets for text in decoded(tokens, tokenizer))
        known |= overlaps(missing, texts, done)
        kept = {
            digest: {name: sorted(lines) for name, lines in asdict(found).items()}
            for digest, found in known.items()
        }
        what = {"rule": RULE, "training_text": hashes, "files_of_items": kept}
        write_atomic(journey.folder / FILE, json.dumps(what) + "\n")
    return {digest: known[digest] for digest in files}


def overlaps_of(journey: Journey, files: Mapping[str, Sequence[Item]]) -> dict[str, Overlap]:
    """The same, with a bar for the person who waits."""
    documents = sum(tokens.documents for tokens in training_sets(journey))
    with journey.console.progress(documents, "training documents") as progress:
        return in_training_text(journey, files, progress.advance)


def training_sets(journey: Journey) -> list[TokenSet]:
    """All that a run learns from."""
    return [token_set(journey, name) for name in journey.recipe.token_sets()]


def decoded(tokens: TokenSet, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of each document."""
    is_text = tokenizer.token_bytes()
    spelled = [tokenizer.decode_bytes(i) if size else b" " for i, size in enumerate(is_text)]
    for begin, end in zip(tokens.starts, tokens.starts[1:], strict=False):
        ids = tokens.tokens[begin:end].tolist()
        yield b"".join(map(spelled.__getitem__, ids)).decode("utf-8", errors="replace")


def _hash(tokens: TokenSet) -> str:
    return str(dict(tokens.manifest["sha256"])[f"{tokens.name}.tokens.npy"])  # type: ignore[call-overload]


def _known(journey: Journey, hashes: Mapping[str, str]) -> dict[str, Overlap]:
    """What was found before by the same rule, in the same text."""
    file = journey.folder / FILE
    kept: dict[str, Any] = read_json(file) if file.exists() else {}
    if (kept.get("rule"), kept.get("training_text")) != (RULE, hashes):
        return {}
    return {
        digest: Overlap(*(set(found[name]) for name in ("whole", "overlapping", "too_short")))
        for digest, found in kept["files_of_items"].items()
    }


def overlap_lines(result: Mapping[str, Any]) -> list[str]:
    """What was found, for a person; `result` is that of `with_clean`, or has nothing to say."""
    if "rule" not in result:
        return []
    found = {name: task for name, task in result["tasks"].items() if task["contamination"]["overlapping"]}
    lines = [] if found else [f"no item is in the training text ({result['rule']})"]
    for name, task in found.items():
        counts, clean = task["contamination"], task["clean"]
        line = f"{name}: {counts['overlapping']:,} of {task['n']:,} items overlap the training text"
        line += f" ({counts['whole']:,} whole); the others: " if counts["whole"] else "; the others: "
        accuracy = f"{clean['accuracy']:.1%} ± {clean['standard_error']:.1%}" if clean else "none"
        lines.append(line + accuracy)
    if found and (clean := result["clean"]):
        lines.append(
            f"without them, over {clean['tasks']} tasks: {clean['score']:.4f} ± {clean['standard_error']:.4f}"
        )
    return lines
