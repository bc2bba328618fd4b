"""How low does nanochat get on our bundled text in a pocket run? The public baseline of benchmarks/pocket.py.

    git clone https://github.com/karpathy/nanochat
    python benchmarks/beside_nanochat.py --repo nanochat                   with its own learning rates
    python benchmarks/beside_nanochat.py --repo nanochat --lr-factor 4     with rates four times higher
    python benchmarks/beside_nanochat.py --repo nanochat --quick           a smoke test in a minute or two

Network, initialization and optimizer are nanochat's own code, imported from the checkout (the versions from
March 2026 on, which have `smear` and `backout` in gpt.py). Text and tokenizer are pilgrim's: the bundled
training text, and a vocabulary of 4096 learned from it. What nanochat keeps in scripts that run when they
are imported is written anew here: how its loader packs rows (`best_fit_rows`), and how scripts/base_train.py
derives rates and schedules from the batch (`rates`, `schedule`). It computes in bf16, which nanochat does on
a CPU only where it is told so; NANOCHAT_DTYPE=float32 in the environment gives its default.

Validation is measured three ways, and always in bits and in nats per byte, as the two are easily confused:

    every byte     each document alone; a longer one than the context is cut into rows, as in pilgrim's own
                   validation. This is the figure to compare with pilgrim's, also source by source.
    packed, once   best-fit rows of all validation documents; what is cropped is not counted
    packed, loop   as nanochat evaluates: the same from an endless repetition, as many rows as would hold
                   the text once. Its buffer holds the text several times, and takes what fits a row best.
"""

import argparse
import importlib
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pilgrim.data.packing import cut
from pilgrim.data.sources import DataSettings, Text, split
from pilgrim.text.tokenizer import Tokenizer, train_tokenizer

IGNORED = -1  # the target that nanochat's loss leaves out
BUFFERED, REFILL = 1000, 128  # documents that its loader chooses from, and how many it reads at once

# The defaults of scripts/base_train.py. Rates were found at width 768 and 2**19 tokens a step.
RATES = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "matrix_lr": 0.02, "scalar_lr": 0.5}
WEIGHT_DECAY = 0.28
REFERENCE_BATCH, REFERENCE_DEPTH = 2**19, 12
WARMUP_STEPS, WARMDOWN, FINAL = 40, 0.65, 0.05
HEAD_SIZE, WIDTH_PER_LAYER = 128, 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repo", type=Path, required=True, help="a checkout of karpathy/nanochat")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr-factor", type=float, default=1.0, help="multiplies its four learning rates")
    parser.add_argument("--rows", type=int, default=16, help="rows of 512 tokens in a step")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two layers, three steps of two short rows")
    arguments = parser.parse_args()
    depth, context = 4, 512
    if arguments.quick:
        arguments.steps, arguments.rows, depth, context = 3, 2, 2, 128

    gpt = nanochat_gpt(arguments.repo)
    texts = split(DataSettings())
    tokenizer = train_tokenizer((d.text for d in texts.train), 4096)
    torch.manual_seed(arguments.seed)  # nanochat draws from the global state
    model = build(gpt, depth, context, tokenizer.vocab_size)
    model.to_empty(device="cpu")
    model.init_weights()
    decay = weight_decay(gpt, model, context, arguments.rows * context)
    optimizer = model.setup_optimizer(
        **rates(arguments.rows * context, arguments.lr_factor), weight_decay=decay
    )
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters:,} parameters, {arguments.rows * context:,} tokens a step, "
        f"{torch.get_num_threads()} threads"
    )

    documents = shuffled(encoded(tokenizer, texts.train), arguments.seed)
    compiled = model if arguments.quick else torch.compile(model, dynamic=False)
    train(compiled, optimizer, documents, arguments.steps, arguments.rows, context)
    tell(validations(model, tokenizer, texts.val, arguments.rows, context, arguments.quick))


def nanochat_gpt(repo: Path) -> Any:
    """nanochat's module `gpt`, from the checkout. Exits with one sentence if there is none."""
    if not (repo / "nanochat" / "gpt.py").is_file():
        raise SystemExit(
            f"--repo {repo}: there is no nanochat/gpt.py; git clone https://github.com/karpathy/nanochat "
            "and name that folder"
        )
    os.environ.setdefault("NANOCHAT_DTYPE", "bfloat16")
    sys.path.insert(0, str(repo.resolve()))
    return importlib.import_module("nanochat.gpt")


def build(gpt: Any, depth: int, context: int, vocab_size: int) -> Any:
    """Its network of a depth, without memory yet: shapes follow from the depth as in base_train.py."""
    width = -(-depth * WIDTH_PER_LAYER // HEAD_SIZE) * HEAD_SIZE
    heads = width // HEAD_SIZE
    config = gpt.GPTConfig(
        sequence_len=context,
        vocab_size=vocab_size,
        n_layer=depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
        window_pattern="SSSL",
    )
    with torch.device("meta"):
        return gpt.GPT(config)


# Rates and schedules, after scripts/base_train.py ----------------------------------------------------


def rates(batch_tokens: int, factor: float) -> dict[str, float]:
    """Its learning rates: proportional to the square root of the batch."""
    scale = factor * math.sqrt(batch_tokens / REFERENCE_BATCH)
    return {name: rate * scale for name, rate in RATES.items()}


def weight_decay(gpt: Any, model: Any, context: int, batch_tokens: int) -> float:
    """Its weight decay for the matrices: √(batch / reference batch) · reference tokens / tokens.

    Tokens are those that it would train for by its rule (a fixed number for each parameter of matrices and
    head), not those of this run; so their ratio is that of the parameters.
    """
    reference = build(gpt, REFERENCE_DEPTH, context, model.config.vocab_size)
    ratio = scaling_parameters(reference) / scaling_parameters(model)
    return WEIGHT_DECAY * math.sqrt(batch_tokens / REFERENCE_BATCH) * ratio


def scaling_parameters(model: Any) -> int:
    counts = model.num_scaling_params()
    return int(counts["transformer_matrices"] + counts["lm_head"])


def schedule(step: int, steps: int) -> tuple[float, float, float]:
    """(factor of all rates, Muon's momentum, factor of the weight decay) at a step, counted from 0."""
    down = round(WARMDOWN * steps)
    if step < WARMUP_STEPS:
        rate = (step + 1) / WARMUP_STEPS
    elif step <= steps - down:
        rate = 1.0
    else:
        rate = FINAL + (1 - FINAL) * (steps - step) / down
    if step < 400:
        momentum = 0.85 + 0.12 * step / 400
    elif step >= steps - down:
        momentum = 0.97 - 0.07 * (step - (steps - down)) / down
    else:
        momentum = 0.97
    return rate, momentum, 0.5 * (1 + math.cos(math.pi * step / steps))


# Rows -------------------------------------------------------------------------------------------------


def encoded(tokenizer: Tokenizer, texts: list[Text]) -> list[list[int]]:
    """Every document as ids, with the mark that nanochat calls BOS before it."""
    return [[tokenizer.eot_id, *ids] for ids in tokenizer.encode_batch([d.text for d in texts])]


def shuffled(documents: list[list[int]], seed: int) -> list[list[int]]:
    """In one order for all epochs: nanochat's shards are shuffled when they are made, and never again."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed))
    return [documents[i] for i in order.tolist()]


class Counted:
    """Passes documents on and counts them and their tokens."""

    def __init__(self, documents: Iterable[list[int]]) -> None:
        self.documents = self.tokens = 0
        self._documents = documents

    def __iter__(self) -> Iterator[list[int]]:
        for document in self._documents:
            self.documents += 1
            self.tokens += len(document)
            yield document


def best_fit_rows(documents: Iterable[list[int]], capacity: int) -> Iterator[list[int]]:
    """Full rows of `capacity` ids, each beginning with a document's beginning, as nanochat packs them.

    Of a buffer of documents the longest that fits goes into the row; when none fits, the shortest fills the
    rest, and what is cropped of it is lost. Ends when the documents do, with the last row left out.
    """
    source, buffer = iter(documents), list[list[int]]()
    while True:
        row: list[int] = []
        while len(row) < capacity:
            while len(buffer) < BUFFERED and (more := list(islice(source, REFILL))):
                buffer += more
            if not buffer:
                return
            left = capacity - len(row)
            fitting = [i for i, document in enumerate(buffer) if len(document) <= left]
            if fitting:
                row += buffer.pop(max(fitting, key=lambda i: len(buffer[i])))
            else:
                row += buffer.pop(min(range(len(buffer)), key=lambda i: len(buffer[i])))[:left]
        yield row


def packed_batch(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """(inputs, targets), [rows, capacity - 1] each."""
    ids = torch.tensor(rows)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


def whole_batch(documents: list[list[int]], context: int, end_id: int) -> tuple[Tensor, Tensor]:
    """(inputs, targets) with every document alone in as many rows as it needs, every token a target once."""
    pieces = [piece for n, ids in enumerate(documents) for piece in cut(n, len(ids), context)]
    inputs = torch.full((len(pieces), context), end_id)
    targets = torch.full((len(pieces), context), IGNORED)
    for row, piece in enumerate(pieces):
        ids = torch.tensor([*documents[piece.document], end_id])
        inputs[row, : piece.length] = ids[piece.start : piece.start + piece.length]
        targets[row, : piece.length] = ids[piece.start + 1 : piece.start + 1 + piece.length]
    return inputs, targets


# Training and validation ------------------------------------------------------------------------------


def train(
    model: Any, optimizer: Any, documents: list[list[int]], steps: int, rows: int, context: int
) -> None:
    """All steps, and what they cost."""
    read = Counted(chain.from_iterable(repeat(documents)))
    source = best_fit_rows(read, context + 1)
    losses: list[float] = []
    seconds: list[float] = []
    for step in range(steps):
        began = time.perf_counter()
        inputs, targets = packed_batch(list(islice(source, rows)))
        loss = model(inputs, targets)
        loss.backward()
        rate, momentum, decay = schedule(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = group.setdefault("initial_decay", group["weight_decay"]) * decay
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        seconds.append(time.perf_counter() - began)
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {losses[-1]:.3f}, {sum(seconds):.0f} s", flush=True)
    trained, whole = steps * rows * context, sum(map(len, documents))
    print(
        f"\n{trained:,} tokens in {sum(seconds) / 60:.2f} minutes, the first step's compilation "
        f"({seconds[0]:.0f} s) included; {rows * context / statistics.median(seconds):,.0f} tokens/s by the "
        f"median step\ntrain loss of the last 20 steps: {statistics.mean(losses[-20:]):.4f} nats per token\n"
        f"{read.documents / len(documents):.2f} epochs read ({read.tokens:,} tokens, cropped ones and the "
        f"buffer's included), {trained / whole:.2f} epochs' worth of tokens trained on"
    )


@dataclass(frozen=True)
class Score:
    """Summed loss of the text tokens in nats, and the UTF-8 bytes that they stand for."""

    nats: float
    bytes: int


def validations(
    model: Any, tokenizer: Tokenizer, texts: list[Text], rows: int, context: int, quick: bool
) -> dict[str, Score]:
    """All measures by their name."""
    if quick:
        texts = texts[:: max(1, len(texts) // 20)]
    bytes_of = torch.tensor(tokenizer.token_bytes())
    documents = encoded(tokenizer, texts)
    by_source: dict[str, list[list[int]]] = defaultdict(list)
    for text, ids in zip(texts, documents, strict=True):
        by_source[text.source].append(ids)
    found = {
        name: score(model, *whole_batch(some, context, tokenizer.eot_id), bytes_of, rows)
        for name, some in by_source.items()
    }
    every = Score(sum(s.nats for s in found.values()), sum(s.bytes for s in found.values()))
    once = list(best_fit_rows(documents, context + 1))
    enough = -(-sum(map(len, documents)) // context)
    loop = list(islice(best_fit_rows(chain.from_iterable(repeat(documents)), context + 1), enough))
    return {
        "every byte": every,
        **{f"  {name}": found[name] for name in sorted(found)},
        "packed, once": score(model, *packed_batch(once), bytes_of, rows),
        "packed, loop": score(model, *packed_batch(loop), bytes_of, rows),
    }


@torch.no_grad()
def score(model: Any, inputs: Tensor, targets: Tensor, bytes_of: Tensor, rows: int) -> Score:
    """The loss of rows, a few at a time. Tokens without bytes (ends of documents) are not counted."""
    nats, counted = 0.0, 0
    for some_inputs, some_targets in zip(inputs.split(rows), targets.split(rows), strict=True):
        each = model(some_inputs, some_targets, loss_reduction="none").double()
        sizes = bytes_of[some_targets.flatten().clamp(min=0)] * (some_targets.flatten() != IGNORED)
        nats += float(each[sizes > 0].sum())
        counted += int(sizes.sum())
    return Score(nats, counted)


def tell(found: dict[str, Score]) -> None:
    """Print the table."""
    print(f"\n{'validation':<20} {'bytes':>9} {'bits per byte':>14} {'nats per byte':>14}")
    for name, result in found.items():
        nats = result.nats / max(1, result.bytes)
        print(f"{name:<20} {result.bytes:>9,} {nats / math.log(2):>14.4f} {nats:>14.4f}")


if __name__ == "__main__":
    main()
