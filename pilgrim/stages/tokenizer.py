"""Stage 1: learn a vocabulary from the training documents."""

from functools import partial
from typing import Any

from pilgrim.core.files import sha256_file
from pilgrim.data.datasets import documents_of
from pilgrim.data.sources import split
from pilgrim.stages.journey import Journey
from pilgrim.text.tokenizer import train_tokenizer


def run(journey: Journey) -> dict[str, Any]:
    """Write `tokenizer.json` and its configuration; the summary has bytes per token on validation text."""
    recipe = journey.recipe
    texts = split(recipe.data, partial(documents_of, datasets=recipe.datasets))
    tokenizer = train_tokenizer((d.text for d in texts.train), recipe.tokenizer.vocab_size)
    folder = journey.stage_folder("tokenizer")
    tokenizer.save(folder)
    ids = tokenizer.encode_batch([d.text for d in texts.val])
    text_bytes = sum(len(d.text.encode()) for d in texts.val)
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": text_bytes / sum(map(len, ids)),
        "sha256": sha256_file(folder / "tokenizer.json"),  # infer/load.py refuses another one
    }
