"""The scorer beside a plain one, on the bundled slice of CORE: `python benchmarks/evals.py`.

The plain scorer is what one writes first: for each option of each question a pass over the whole row, logits
at all its places, cross-entropy. Ours (pilgrim/evals/scoring.py) reads once what options have in common, rows
of similar length together, and has last block and logits only where something is scored. Both score the
same rows with the same random weights, in the same number format. Times are processor seconds of one thread,
so that other programs at work disturb them little. Prints the ratio by task and over all, and the largest
difference of a row's mean log-probability.

How much is won depends on the shape. The network is the pocket model's, but context and vocabulary are,
unless told otherwise, nearer to a grown model's. `--context 512 --vocabulary 4096` is the pocket model
itself: there prompts are cut, each option at another place, so that they have less in common, and logits
cost little.
"""

import argparse
import time
from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import torch
import torch.nn.functional as F

from pilgrim.core.runtime import Runtime
from pilgrim.data.sources import read_documents
from pilgrim.evals.core import read_exams
from pilgrim.evals.prompts import Row
from pilgrim.evals.scoring import Score, pick, score
from pilgrim.infer.engine import Engine
from pilgrim.model.attention import causal_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import train_tokenizer

T = TypeVar("T")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEXT = ("assets:text/train.jsonl.zst", "assets:text/classics.jsonl.zst")  # for the tokenizer


@torch.inference_mode()
def plainly(engine: Engine, row: Row) -> Score:
    """One row, from beginning to end."""
    model = engine.model
    ids_1t = torch.tensor([row.ids])
    logits_tv = model.logits(model(ids_1t, causal_attention, dtype=engine.dtype))[0, :-1].float()
    nats_t = -F.cross_entropy(logits_tv, ids_1t[0, 1:], reduction="none")
    hits_t = logits_tv.argmax(-1) == ids_1t[0, 1:]
    scored = slice(row.start - 1, None)
    return Score(float(nats_t[scored].double().sum()), len(row.ids) - row.start, bool(hits_t[scored].all()))


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """Processor seconds, and what came out."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=8, help="of each task")
    parser.add_argument("--context", type=int, default=2048, help="the model's, in tokens")
    parser.add_argument(
        "--vocabulary", type=int, default=16384, help="tokens that a plain scorer has logits of"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="number format of both scorers")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runtime = Runtime(torch.device("cpu"), DTYPES[arguments.dtype], compile=False, seed=1)
    tokenizer = train_tokenizer((d.text for d in read_documents(TEXT)), arguments.vocabulary)
    settings = ModelSettings(depth=3, width=256, context=arguments.context)
    model = Transformer(settings.config(tokenizer.vocab_size))
    initialize(model, runtime.generator("initialize"))
    with torch.no_grad():  # what starts at zero would make all options equally likely
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=runtime.generator("not zero"))
    engine = Engine(model, runtime)
    score(engine, [[Row((0,) * 512, 1)]])  # the first pass sets things up
    total_ours_s = total_plain_s = worst = 0.0
    same = rows = 0
    print(f"{'task':32} {'rows':>5} {'plain':>8} {'ours':>8}  ratio")
    for exam in read_exams(limit=arguments.items):
        asked = [exam.question(place, tokenizer, arguments.context).rows for place in exam.places]
        ours_s, ours = timed(lambda asked=asked: score(engine, asked))  # type: ignore[misc]
        plain_s, plain = timed(lambda asked=asked: [[plainly(engine, row) for row in q] for q in asked])  # type: ignore[misc]
        total_ours_s, total_plain_s = total_ours_s + ours_s, total_plain_s + plain_s
        count = sum(map(len, asked))
        rows += count
        same += sum(pick(a) == pick(b) for a, b in zip(ours, plain, strict=True))
        pairs = zip(chain(*ours), chain(*plain), strict=True)
        worst = max(worst, *(abs(a.mean - b.mean) for a, b in pairs))
        print(f"{exam.task.name:32} {count:5} {plain_s:7.2f}s {ours_s:7.2f}s  {plain_s / ours_s:5.1f}")
    print(
        f"{'all':32} {rows:5} {total_plain_s:7.2f}s {total_ours_s:7.2f}s  {total_plain_s / total_ours_s:5.1f}"
    )
    print(f"largest difference {worst:.1e} nats a token, same choice in {same} questions")


if __name__ == "__main__":
    main()
