"""`pilgrim bench infer RUN`: how fast a model reads and writes here, and how fast this machine lets it.

For 1, 8 and 64 texts together: the time to their first tokens (reading all prompts), the time of a step of
writing, and the same of transformers' `generate` with the same weights, in turns, so that a machine that gets
slower meanwhile treats both alike. What is told are medians.

A step of writing multiplies each weight with few numbers, so what limits it is how fast weights and
cache come from memory, the *roofline* (Williams et al. 2009). Honest is to count what must be read:

    bytes = the matrices that are multiplied, once for all texts    (of the embedding, only rows are read)
          + the keys and values that each text's layers look at     (no more than a window; as they are kept)
    share = bytes / bandwidth / time of a step

The bandwidth is that of a large copy on this machine, now. A share above 1 is no mistake where the weights
fit into a processor's cache. With many texts a CPU is limited by arithmetic instead, and the share is low.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pilgrim.core import peaks
from pilgrim.core import runtime as machine
from pilgrim.core.config import build, load_toml
from pilgrim.core.console import Console
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import write_json_atomic
from pilgrim.core.runtime import GB, Runtime
from pilgrim.export.huggingface import export_weights
from pilgrim.infer.cache_bits import CacheBits, bytes_per_vector
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_model, newest_stage
from pilgrim.infer.quantized import Weights, bits_per_weight
from pilgrim.infer.sampling import Sampling
from pilgrim.model.config import ModelConfig
from pilgrim.model.count import parameters
from pilgrim.model.transformer import Transformer
from pilgrim.stages.journey import only_writer
from pilgrim.stages.recipe import Recipe
from pilgrim.text.tokenizer import Tokenizer

BATCHES = (1, 8, 64)


@dataclass(frozen=True)
class Speed:
    """Seconds, each a median."""

    read_s: float  # until every text has its first token
    step_s: float  # one more token for each


@dataclass(frozen=True)
class Row:
    """What was measured with `texts` together. The peer's speed is None where transformers is not there."""

    texts: int
    dtype: str
    weights: Weights
    cache: CacheBits
    ours: Speed
    theirs: Speed | None
    bytes_per_step: int
    bandwidth_share: float
    weight_bytes: int
    cache_bytes: int


def bench_infer(
    folder: Path,
    *,
    prompt: int | None = None,
    tokens: int = 32,
    rounds: int = 5,
    weights: Weights = "full",
    cache: CacheBits = "full",
    console: Console | None = None,
) -> list[Row]:
    """Measure a run's newest model with prompts of `prompt` tokens (None: half its context); the rows also
    go to RUN/bench/infer.json. Raises PilgrimError if the run has no model,
    or `tokens` fill its context."""
    console = console or Console()
    recipe = build(Recipe, load_toml(folder / "recipe.toml"), str(folder / "recipe.toml"))
    runtime = machine.start(recipe.runtime, recipe.seed)
    with only_writer(folder):
        stage = newest_stage(folder)
        model = load_model(folder / stage, console.say)
        tokenizer = Tokenizer.load(folder / "tokenizer")
        context = model.config.context
        if tokens > context - 2:
            raise PilgrimError(
                f"--tokens {tokens} leaves no room for a prompt in the model's context of {context}; "
                f"give {context - 2} at most"
            )
        length = min(prompt or context // 2, context - tokens - 1)
        console.stage("bench", f"{stage}, prompts of {length} tokens, {tokens} written")
        rows = [
            _measure(model, tokenizer, runtime, texts, length, tokens, rounds, weights, cache, console)
            for texts in BATCHES
        ]
        (folder / "bench").mkdir(exist_ok=True)
        write_json_atomic(folder / "bench" / "infer.json", [asdict(row) for row in rows])
    for line in table(rows, length):
        console.say(line)
    return rows


def table(rows: Sequence[Row], length: int) -> list[str]:
    """For a person; times in milliseconds."""
    lines = [
        f"{'texts':>5} {'dtype':>8} {'first token':>12} {'step':>8} {'tokens/s':>9} {'of bandwidth':>12} "
        f"{'weights':>9} {'cache':>9} {'in':>8}   transformers' first token and step, and how many times ours"
    ]
    for row in rows:
        form = row.dtype if row.weights == "full" else row.weights
        kept = row.dtype if row.cache == "full" else row.cache
        line = (
            f"{row.texts:5} {form:>8} {row.ours.read_s * 1e3:9.1f} ms {row.ours.step_s * 1e3:5.2f} ms "
            f"{row.texts / row.ours.step_s:9,.0f} {row.bandwidth_share:12.0%} "
            f"{row.weight_bytes / GB:6.3f} GB {row.cache_bytes / GB:6.3f} GB {kept:>8}   "
        )
        if row.theirs:
            line += f"{row.theirs.read_s * 1e3:.1f} ms ({row.theirs.read_s / row.ours.read_s:.2f}), "
            line += f"{row.theirs.step_s * 1e3:.2f} ms ({row.theirs.step_s / row.ours.step_s:.2f})"
        lines.append(line)
    if not all(row.theirs for row in rows):
        lines.append("transformers is not here to be compared with: pip install 'pilgrim[test]'")
    return lines


def bytes_per_step(
    config: ModelConfig,
    dtype: torch.dtype,
    texts: int,
    length: int,
    weights: Weights = "full",
    cache: CacheBits = "full",
) -> int:
    """What has to be read to write a token for each of `texts` texts of `length` tokens."""
    multiplied = parameters(config).matrices + config.vocab_size * config.width
    looked_at = sum(min(length, window or length) for window in config.windows)
    key_and_value = 2 * config.kv_heads * bytes_per_vector(config.head_size, cache, dtype)
    of_weights = multiplied * bits_per_weight(weights, dtype) // 8
    return of_weights + texts * looked_at * key_and_value


def _measure(
    model: Transformer,
    tokenizer: Tokenizer,
    runtime: Runtime,
    texts: int,
    length: int,
    tokens: int,
    rounds: int,
    weights: Weights,
    cache: CacheBits,
    console: Console,
) -> Row:
    engine = Engine(model, runtime, rows=texts, record=True, weights=weights, cache=cache)
    draw = torch.Generator().manual_seed(texts)

    def prompts() -> list[list[int]]:  # new ones each time, or their beginnings would be in the cache
        return torch.randint(model.config.vocab_size, (texts, length), generator=draw).tolist()

    theirs = _transformers(model, tokenizer, engine.dtype, runtime.device)
    measured: dict[str, list[Speed]] = {"ours": [], "theirs": []}
    with console.progress(rounds + 1, f"{texts} texts") as progress:
        for _ in range(rounds + 1):
            measured["ours"].append(_ours(engine, prompts(), tokens, runtime.device))
            if theirs:
                measured["theirs"].append(_theirs(theirs, prompts(), tokens, runtime.device))
            progress.advance(1)
    ours, peer = (
        _medians(speeds[1:]) if speeds else None for speeds in measured.values()
    )  # first: warming up
    assert ours is not None
    needed = bytes_per_step(model.config, engine.dtype, texts, length + tokens // 2, weights, cache)
    bandwidth = peaks.measured(runtime.device, engine.dtype).copy_bytes_per_s
    return Row(
        texts,
        str(engine.dtype).removeprefix("torch."),
        weights,
        cache,
        ours,
        peer,
        needed,
        needed / bandwidth / ours.step_s,
        _bytes_of(engine.model),
        engine.cache_bytes,
    )


def _bytes_of(model: Transformer) -> int:
    held = {each.data_ptr(): each.nbytes for each in (*model.parameters(), *model.buffers())}
    return sum(held.values())


def _medians(speeds: Sequence[Speed]) -> Speed:
    return Speed(median(s.read_s for s in speeds), median(s.step_s for s in speeds))


def _ours(engine: Engine, prompts: Sequence[Sequence[int]], tokens: int, device: torch.device) -> Speed:
    sampling = Sampling(temperature=0, max_tokens=2 * tokens)
    requests = [engine.submit(prompt, sampling, index=i) for i, prompt in enumerate(prompts)]
    began = _now(device)
    while any(request.written == 0 for request in requests):
        engine.step()
    read_s, steps = _now(device) - began, []
    for _ in range(tokens):
        began = time.perf_counter()
        engine.step()  # it has the tokens when it returns, so the device is done
        steps.append(time.perf_counter() - began)
    for request in requests:
        engine.cancel(request)
    return Speed(read_s, median(steps))


Generate = Callable[[torch.Tensor, int], Any]


def _transformers(
    model: Transformer, tokenizer: Tokenizer, dtype: torch.dtype, device: torch.device
) -> Generate | None:
    """Their `generate`, greedy, for exactly so many tokens; None if it isn't installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    quiet: Any = logging.disable_progress_bar  # there is a bar of ours already
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        exported = export_weights(model.weights(), model.config, tokenizer, Path(folder) / "model")
        load: Any = AutoModelForCausalLM.from_pretrained
        theirs = load(exported, dtype=dtype).to(device).eval()

    def generate(ids_bt: torch.Tensor, tokens: int) -> Any:
        exactly = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        return theirs.generate(ids_bt, attention_mask=torch.ones_like(ids_bt), **exactly)

    return generate


def _theirs(generate: Generate, prompts: Sequence[Sequence[int]], tokens: int, device: torch.device) -> Speed:
    ids_bt = torch.tensor(prompts, device=device)
    began = _now(device)
    generate(ids_bt, 1)
    first_s = _now(device) - began
    began = _now(device)
    generate(ids_bt, tokens + 1)
    return Speed(first_s, (_now(device) - began - first_s) / tokens)


def _now(device: torch.device) -> float:
    """The time when the device has done what it was given."""
    peaks.synchronize(device)
    return time.perf_counter()
