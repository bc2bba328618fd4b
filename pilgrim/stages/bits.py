"""`pilgrim eval RUN --text FILE...`: how many bits for each byte of any text does the newest model need?

The measure is that of validation (train/validation.py): bytes are counted in the text itself, so runs with
different tokenizers can be compared on the same files. Documents are read, tokenized and scored some thousand
at a time, so a file may be larger than memory. Each file has its total, its sources where it has several,
and an error bar over its documents (evals/compression.py). The result goes to RUN/evaluate/text.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pilgrim.core.console import Console
from pilgrim.core.errors import DataError
from pilgrim.core.files import write_json_atomic
from pilgrim.data.loader import one_pass
from pilgrim.data.shards import in_memory
from pilgrim.data.sources import read_documents
from pilgrim.evals.compression import as_json, bits, by_source
from pilgrim.infer.cache_bits import CacheBits, refuse, rounded_cache
from pilgrim.infer.load import load_model, newest_stage
from pilgrim.infer.quantized import Weights, rounded
from pilgrim.model.transformer import Transformer
from pilgrim.stages.answers import opened_run
from pilgrim.stages.journey import Journey, only_writer, refuse_older
from pilgrim.stages.shards import run_tokenizer, tokenized
from pilgrim.text.tokenizer import Tokenizer
from pilgrim.train.fit import MicroBatch
from pilgrim.train.step import compiled_token_losses
from pilgrim.train.validation import ByDocument, validate

AT_ONCE = 4096  # documents


@dataclass
class Sums:
    """Documents' nats and bytes, and where each comes from."""

    numbers: dict[str, int] = field(default_factory=dict)  # of the sources, in the order they were met
    sources: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)

    def add(self, source: str, nats: float, size: int) -> None:
        self.sources.append(self.numbers.setdefault(source, len(self.numbers)))
        self.nats.append(nats)
        self.bytes.append(size)

    def to_json(self) -> dict[str, Any] | None:
        """{"bpb", "standard_error", "bytes", "documents", "sources": {…}}; None without a byte."""
        nats_d, bytes_d = np.array(self.nats), np.array(self.bytes, np.int64)
        of_all = bits(nats_d, bytes_d)
        sources = by_source(list(self.numbers), np.array(self.sources, np.int32), nats_d, bytes_d)
        return None if of_all is None else asdict(of_all) | {"sources": as_json(sources)}


def evaluate_text(
    folder: Path,
    files: Sequence[Path],
    console: Console | None = None,
    weights: Weights = "full",
    cache: CacheBits = "full",
) -> dict[str, Any]:
    """Measure a run's newest model on files and write `evaluate/text.json`; returns what is in it.

    `weights`: rounded as replies of the same setting have them (infer/quantized.py), and so with `cache` the
    keys and values of every token (infer/cache_bits.py).

    Raises DataError for a file that can't be read or is empty, CheckpointError without a trained model.
    """
    for file in files:
        next(read_documents([str(file)]), None)  # a wrong name is told before minutes are spent
    with opened_run(folder, console) as journey, only_writer(folder, journey.runtime.processes):
        stage = newest_stage(folder)
        tokenizer, _ = run_tokenizer(journey)
        model = load_model(folder / stage, refuse_older(journey, stage))
        refuse(cache, journey.runtime.device)
        model = rounded_cache(rounded(model, weights), cache).to(journey.runtime.device)
        found = {str(file): measured(journey, model, tokenizer, file) for file in files}
        dtype = str(journey.runtime.dtype).removeprefix("torch.")
        result = {"stage": stage, "dtype": dtype, "weights": weights, "cache": cache, "files": found}
        out = journey.folder / "evaluate" / "text.json"
        journey.runtime.processes.by_first(lambda: write_json_atomic(out, result))
        for line in table(result):
            journey.console.say(line)
    return result


def measured(journey: Journey, model: Transformer, tokenizer: Tokenizer, file: Path) -> dict[str, Any]:
    """One file's bits per byte. Raises DataError if there is no text in it."""
    sums = Sums()
    for source, nats, size in _documents(journey, model, tokenizer, file):
        sums.add(source, nats, size)
    found = sums.to_json()
    if found is None:
        raise DataError(f"{file} holds no text; give it some, or name another file")
    return found


def _documents(
    journey: Journey, model: Transformer, tokenizer: Tokenizer, file: Path
) -> Iterator[tuple[str, float, int]]:
    """(source, nats, bytes) of each document."""
    recipe, runtime, context = journey.recipe, journey.runtime, model.config.context
    assert recipe.pretrain.rows is not None
    rows = MicroBatch(recipe.pretrain.micro_rows).rows(recipe.pretrain.rows, context)
    losses, token_bytes = compiled_token_losses(runtime), tokenizer.token_bytes()
    documents = read_documents([str(file)])
    while texts := list(islice(documents, AT_ONCE)):
        tokens = in_memory(str(file), tokenized(texts, tokenizer), tokenizer.vocab_size)
        each = ByDocument(tokens.documents)
        batches = one_pass(tokens, context, tokenizer.eot_id, rows)
        validate(model, batches, token_bytes, losses, runtime, each)
        for text, nats, size in zip(texts, each.nats_d.tolist(), each.bytes_d.tolist(), strict=True):
            yield text.source, nats, size


def table(result: Mapping[str, Any]) -> list[str]:
    """The result for a person: a line for each file, and for its sources if there are several."""
    lines = [f"{'text':44} {'documents':>9} {'bytes':>13} {'bits per byte':>19}"]
    for file, found in result["files"].items():
        lines.append(_line(file, found))
        if len(found["sources"]) > 1:
            lines += [_line(f"  {name}", source) for name, source in found["sources"].items()]
    lines.append(f"± is the standard error over documents; model of {result['stage']}")
    return lines


def _line(name: str, found: Mapping[str, Any]) -> str:
    error = found["standard_error"]
    value = f"{found['bpb']:.4f} ± " + ("     –" if error is None else f"{error:.4f}")
    shown = name if len(name) <= 44 else f"…{name[-43:]}"
    return f"{shown:44} {found['documents']:9,} {found['bytes']:13,} {value:>19}"
