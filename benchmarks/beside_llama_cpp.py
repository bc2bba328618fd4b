"""Ours beside llama.cpp: reading a prompt and writing, `python benchmarks/beside_llama_cpp.py [RUN]`.

The same weights (our GGUF export, read by llama-cpp-python), the same prompts, the same number of threads,
processes that take turns, medians over all turns. Reading is the time to the scores behind prompts of
`--prompt` tokens, of all texts; writing is a step that adds a token to each text, chosen greedily. Their loop
is of llama.cpp's own functions, with as little Python as can be: a batch, `llama_decode`, an argmax. With one
thread, times are processor times, so that other programs at work disturb them little.

Without a run, a network of random weights with the shape of the given depth (12: width 768, 12 layers).

Forms: fp32 and bf16 weights; "int8" is our int8 weights beside their q8_0. On processors with AMX their
q8_0 kernel is known to crash. Each turn is a process of its own, so that this is told and the rest goes on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pilgrim.core.runtime import Runtime
from pilgrim.export.gguf import write_file
from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_model, load_tokenizer, newest_stage
from pilgrim.infer.sampling import Sampling
from pilgrim.model.config import ModelSettings
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import train_tokenizer

FORMS = {"fp32": ("fp32", "full"), "bf16": ("bf16", "full"), "int8": ("q8_0", "int8")}  # theirs, our weights
VOCABULARY = 2_048  # of the network with random weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", nargs="?", type=Path, help="a run's folder; left out: random weights")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", help=argparse.SUPPRESS)  # this process is one side's turn
    options = parser.parse_args()
    if options.turn:
        turn(**json.loads(options.turn))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = prepared(options.run, options.depth, Path(folder), options.forms)
        for form in options.forms:
            for texts in options.texts:
                print(compared(files, form, texts, options), flush=True)


def prepared(run: Path | None, depth: int, folder: Path, forms: list[str]) -> dict[str, Path]:
    """The model for us, and a GGUF file of each form for them."""
    if run:
        tokenizer, model = load_tokenizer(run), load_model(run / newest_stage(run))
    else:
        words = ("".join(letters) for letters in product("bdfgklmnprst", "aeiou", "bdfgklmnprst", "aeiou"))
        tokenizer = train_tokenizer([" ".join(words) * 2], VOCABULARY)
        settings = ModelSettings(depth=depth, width=64 * depth, head_size=64, context=1024)
        model = Transformer(settings.config(tokenizer.vocab_size))
        initialize(model, torch.Generator().manual_seed(1))
    files = {"ours": folder / "model.pt"}
    torch.save(model, files["ours"])
    for form in forms:
        files[form] = folder / f"{form}.gguf"
        write_file(files[form], model.weights(), model.config, tokenizer, "benchmark", FORMS[form][0])  # type: ignore[arg-type]
    return files


def compared(files: dict[str, Path], form: str, texts: int, options: Any) -> str:
    """A line: medians of both sides, and how many times as long they take."""
    told: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    asked = {name: getattr(options, name) for name in ("threads", "prompt", "tokens")}
    broken: dict[str, str] = {}
    for number in range(options.rounds):
        for side, file in (("ours", files["ours"]), ("theirs", files[form])):
            about = {"side": side, "file": str(file), "form": form, "texts": texts, "seed": number, **asked}
            result = in_a_process(about) if side not in broken else broken[side]
            if isinstance(result, str):
                broken[side] = result
            else:
                told[side].append(result)
    sides = {
        side: [median(column) * 1e3 for column in zip(*rows, strict=True)] for side, rows in told.items()
    }
    shown = {
        side: broken.get(side) or f"reading {found[0]:.1f} ms, a step {found[1]:.2f} ms"
        for side, found in sides.items()
    }
    line = f"{form:5} {texts:3} texts: ours {shown['ours']}; theirs {shown['theirs']}"
    if not broken:
        (ours_read, ours_step), (their_read, their_step) = sides["ours"], sides["theirs"]
        line += f" ({their_read / ours_read:.2f} and {their_step / ours_step:.2f} times ours)"
    return line


def in_a_process(about: dict[str, Any]) -> tuple[float, float] | str:
    """Seconds to read and for a step; or why there are none."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(about["threads"])}
    command = [sys.executable, __file__, "--turn", json.dumps(about)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode < 0:
        return f"crashed (signal {-done.returncode})"
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1]}"
    read_s, step_s = json.loads(done.stdout.splitlines()[-1])
    return read_s, step_s


def turn(
    side: str, file: str, form: str, texts: int, seed: int, threads: int, prompt: int, tokens: int
) -> None:
    """One side's measurement, warmed up by a shorter one; printed as JSON."""
    torch.set_num_threads(threads)
    now = time.process_time if threads == 1 else time.perf_counter
    work = Ours(file, form, texts) if side == "ours" else Theirs(file, texts, threads, prompt + tokens + 2)
    draw = torch.Generator().manual_seed(seed)
    for steps in (2, tokens):
        prompts = torch.randint(300, work.vocabulary, (texts, prompt), generator=draw).tolist()
        began = now()
        work.read(prompts)
        read_s, times = now() - began, []
        for _ in range(steps):
            began = now()
            work.step()
            times.append(now() - began)
        work.forget()
    print(json.dumps([read_s, median(times)]))


class Ours:
    """The engine."""

    def __init__(self, file: str, form: str, texts: int) -> None:
        model = torch.load(file, weights_only=False)  # written by the parent a moment ago
        dtype = torch.float32 if form == "fp32" else torch.bfloat16
        runtime = Runtime(torch.device("cpu"), dtype, compile=False, seed=1)
        self.vocabulary = model.config.vocab_size
        self._engine = Engine(model, runtime, rows=texts, record=True, weights=FORMS[form][1])  # type: ignore[arg-type]
        self._requests: list[Any] = []

    def read(self, prompts: list[list[int]]) -> None:
        sampling = Sampling(temperature=0, max_tokens=4096)
        self._requests = [self._engine.submit(prompt, sampling) for prompt in prompts]
        while any(request.written == 0 for request in self._requests):
            self._engine.step()

    def step(self) -> None:
        self._engine.step()

    def forget(self) -> None:
        for request in self._requests:
            self._engine.cancel(request)


class Theirs:
    """llama.cpp, by its own functions."""

    def __init__(self, file: str, texts: int, threads: int, length: int) -> None:
        import llama_cpp

        self._llama = llama_cpp
        llama_cpp.llama_backend_init()
        self._log = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._log, None)
        self._model = llama_cpp.llama_load_model_from_file(
            file.encode(), llama_cpp.llama_model_default_params()
        )
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = texts * (-(-length // 256) * 256)
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_seq_max = texts
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(512, 0, 1)
        self._last: list[int] = []
        self._position = 0

    def read(self, prompts: list[list[int]]) -> None:
        self._last = []
        for text, prompt in enumerate(prompts):
            for begin in range(0, len(prompt), 512):
                part = prompt[begin : begin + 512]
                wanted = begin + len(part) == len(prompt)
                entries = [
                    (token, begin + i, text, wanted and i == len(part) - 1) for i, token in enumerate(part)
                ]
                self._decode(entries)
            self._last.append(self._likeliest(len(part) - 1))
        self._position = len(prompts[0])

    def step(self) -> None:
        self._decode([(token, self._position, text, True) for text, token in enumerate(self._last)])
        self._last = [self._likeliest(text) for text in range(len(self._last))]
        self._position += 1

    def forget(self) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        batch = self._batch
        batch.n_tokens = len(entries)
        for i, (token, position, text, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, text
        if self._llama.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _likeliest(self, place: int) -> int:
        import numpy as np

        scores = self._llama.llama_get_logits_ith(self._context, place)
        return int(np.argmax(np.ctypeslib.as_array(scores, shape=(self.vocabulary,))))


if __name__ == "__main__":
    main()
