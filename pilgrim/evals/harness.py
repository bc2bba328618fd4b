"""A pilgrim model for the field's harness: EleutherAI's lm-evaluation-harness, with its hundreds of tasks.

The harness (lm_eval, extra `pilgrim[harness]`) writes prompts and judges answers. It asks a model three
things, which `Answers` answers with our scorer and our engine:

    loglikelihood          (context, continuation) -> nats, and whether greedy decoding would write it
    loglikelihood_rolling  a text                  -> nats of all of it, in windows if it is long
    generate_until         (context, settings)     -> a reply up to one of some strings

How a pair becomes ids is the harness's own rule (TemplateLM in its api/model.py): white space at the end of
the context goes to the continuation, both are encoded as one text, and scored are the ids after as many as
the context has by itself. One thing is ours: every text begins with <|endoftext|>, as our models have always
seen it. With `begin=False` it does not, which is how the harness's own `hf` model reads a folder without a
BOS token.

The harness has no plug-ins for models, so its command learns of ours by being called through this file:

    python -m pilgrim.evals.harness run --model pilgrim --model_args run=runs/pocket --tasks arc_easy
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from pilgrim.core import runtime as machine
from pilgrim.core.errors import DataError, PilgrimError, SettingsError
from pilgrim.evals.prompts import Row
from pilgrim.evals.scoring import score
from pilgrim.infer.engine import Engine
from pilgrim.infer.huggingface import load_folder
from pilgrim.infer.load import load_engine, newest_stage
from pilgrim.infer.sampling import Sampling
from pilgrim.text.foreign import Encoder
from pilgrim.text.tokenizer import Tokenizer

Pair = tuple[str, str]
Scored = tuple[float, bool]  # nats of all scored ids together, and whether each was the likeliest

AT_ONCE = 1024  # requests held as ids
REPLY_TOKENS = 256  # where a task says nothing, as with the harness's own models


class Answers:
    """What the harness asks of a model, without the harness."""

    def __init__(self, engine: Engine, tokenizer: Encoder, begin: bool = True) -> None:
        """`begin`: put <|endoftext|> (or what the model has in its place) before every text."""
        self.engine, self.tokenizer, self.begin = engine, tokenizer, begin
        self.cut = 0  # pairs that lost ids at their beginning, as they are longer than the context

    def log_likelihoods(self, pairs: Sequence[Pair]) -> Iterator[Scored]:
        """One answer for each pair. Neighbours with the same context are read as one tree (trees.py)."""
        for first in range(0, len(pairs), AT_ONCE):
            some = pairs[first : first + AT_ONCE]
            rows = iter([self._row(*ids) for ids in self._encoded(some)])
            groups = [list(group) for _, group in groupby(some, key=lambda pair: pair[0])]
            questions = [[next(rows) for _ in group] for group in groups]
            for scores in score(self.engine, questions):
                yield from ((found.log_prob, found.greedy) for found in scores)

    def of_whole_texts(self, texts: Sequence[str]) -> Iterator[float]:
        """Nats of every text, each id of it scored once; an empty text has 0."""
        for text in texts:
            rows = list(self._windows(self.tokenizer.encode(text)))
            yield math.fsum(found.log_prob for (found,) in score(self.engine, [[row] for row in rows]))

    def replies(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[str]:
        """What the model writes after each context, up to the first of the strings in "until".

        A context that leaves no room for the reply loses its beginning. Raises SettingsError for settings
        that our engine has not.
        """
        for _, group in groupby(asked, key=lambda request: str(request[1])):
            some = list(group)
            sampling, stops = _sampling(some[0][1])
            room = self.engine.config.context - sampling.max_tokens
            if room < 1:
                raise SettingsError(
                    f"max_gen_toks = {sampling.max_tokens} leaves no room for a prompt in the context "
                    f"of {self.engine.config.context}; pass a smaller one with --gen_kwargs"
                )
            prompts = [self._begun(self.tokenizer.encode(context)) for context, _ in some]
            self.cut += sum(len(prompt) > room for prompt in prompts)
            prompts = [prompt[-room:] for prompt in prompts]
            tail = max(len(stop.encode()) for stop in stops) if stops else 0  # a token is a byte or more

            def enough(ids: Sequence[int], stops: Sequence[str] = stops, tail: int = tail) -> bool:
                text = self.tokenizer.decode(ids[-tail:]) if tail else ""
                return any(stop in text for stop in stops)

            replies = self.engine.generate(prompts, sampling, stop_ids={self.tokenizer.eot_id}, enough=enough)
            for reply in replies:
                yield _before(self.tokenizer.decode(reply.ids), stops)

    # Ids ------------------------------------------------------------------------------------------

    def _encoded(self, pairs: Iterable[Pair]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of context and continuation."""
        moved = [_moved(*pair) for pair in pairs]
        wholes = self.tokenizer.encode_batch([context + continuation for context, continuation in moved])
        befores = self.tokenizer.encode_batch([context for context, _ in moved])
        for (_, continuation), whole, before in zip(moved, wholes, befores, strict=True):
            if len(whole) <= len(before):
                raise DataError(
                    f"the continuation {continuation[:40]!r} has no ids of its own to score; change the task"
                )
            yield whole[: len(before)], whole[len(before) :]

    def _begun(self, ids: list[int]) -> list[int]:
        """With <|endoftext|> before it, if that is wanted or there is nothing else."""
        return [self.tokenizer.eot_id, *ids] if self.begin or not ids else ids

    def _row(self, before: list[int], scored: list[int]) -> Row:
        """The pair's ids, the last ones if they are too many for the context."""
        ids = (*self._begun(before), *scored)
        cut = max(0, len(ids) - self.engine.config.context)
        self.cut += cut > 0
        return Row(ids[cut:], max(1, len(ids) - len(scored) - cut))

    def _windows(self, ids: list[int]) -> Iterator[Row]:
        """The text in windows as long as the context, as the harness cuts them: the first begins with
        <|endoftext|>, and a later one scores only what none did before, with all that fits in front."""
        context = self.engine.config.context
        whole = (self.tokenizer.eot_id, *ids)
        scored = 1
        while scored < len(whole):
            end = min(scored + context - 1, len(whole))
            first = max(0, end - context)
            yield Row(whole[first:end], scored - first)
            scored = end


def _moved(context: str, continuation: str) -> Pair:
    """White space at the context's end belongs to the continuation's first token."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + continuation


def _before(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of `stops`."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _sampling(settings: Mapping[str, Any]) -> tuple[Sampling, list[str]]:
    """The harness's generation settings in our words, and the strings to stop at."""
    left = dict(settings)
    until = left.pop("until", None) or []
    stops = [until] if isinstance(until, str) else [stop for stop in until if stop]
    lengths = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    named = [left.pop(name) for name in lengths if name in left]
    temperature = float(left.pop("temperature", 0.0) or 0.0)
    if not left.pop("do_sample", temperature > 0):
        temperature = 0.0
    top_p, top_k = left.pop("top_p", None), left.pop("top_k", None)
    if left:
        raise SettingsError(f"the engine has no generation setting {sorted(left)[0]}; leave it out")
    sampling = Sampling(
        temperature=temperature,
        top_p=1.0 if top_p is None else float(top_p),
        top_k=int(top_k) if top_k else None,
        max_tokens=int(named[0]) if named else REPLY_TOKENS,
    )
    return sampling, stops


# lm_eval ------------------------------------------------------------------------------------------


def open_model(
    run: Path | None,
    hf: Path | None,
    context: int | None = None,
    device: str | None = None,
    dtype: str = "auto",
) -> tuple[Engine, Encoder]:
    """A run's newest model, or that of a Hugging Face folder. Raises PilgrimError if there is none."""
    kind = (device or "auto").partition(":")[0]  # the harness says "cuda:0"
    settings = machine.RuntimeSettings.model_validate({"device": kind, "dtype": dtype})
    runtime = machine.start(settings, seed=1)
    if (run is None) == (hf is None):
        raise SettingsError("the model pilgrim needs run=FOLDER or hf=FOLDER, one of the two")
    if hf is not None:
        return load_folder(hf, runtime, context)
    assert run is not None
    tokenizer = Tokenizer.load(run / "tokenizer")
    return load_engine(run / newest_stage(run), tokenizer, runtime), tokenizer


def lm_class() -> type[Any]:
    """The class that the harness knows as `pilgrim`. Raises PilgrimError if lm_eval isn't installed."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import model_registry
    except ImportError:
        raise PilgrimError(
            'the harness is not installed; install it: pip install "pilgrim[harness]"'
        ) from None
    if "pilgrim" in model_registry:
        known: type[Any] = model_registry.get("pilgrim")
        return known

    class PilgrimLM(LM):  # type: ignore[misc]
        """`Answers` in the harness's words. Batches are found by the scorer, so batch sizes are ignored."""

        def __init__(self, answers: Answers) -> None:
            super().__init__()
            self.answers = answers

        @classmethod
        def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: Any = None) -> "PilgrimLM":
            named = dict(arg_dict)
            run, hf = (Path(str(named.pop(key))) if key in named else None for key in ("run", "hf"))
            context, begin = named.pop("context", None), named.pop("begin", True)
            dtype = named.pop("dtype", "auto")
            if named:
                raise SettingsError(
                    f"the model pilgrim has no argument {sorted(named)[0]}; it has run, hf, context, "
                    "begin and dtype"
                )
            engine, tokenizer = open_model(run, hf, context, (additional_config or {}).get("device"), dtype)
            return cls(Answers(engine, tokenizer, begin))

        @classmethod
        def create_from_arg_string(cls, arg_string: str, additional_config: Any = None) -> "PilgrimLM":
            from lm_eval.utils import simple_parse_args_string

            return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Scored]:
            return list(self.answers.log_likelihoods([request.args for request in requests]))

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            return list(self.answers.of_whole_texts([request.args[0] for request in requests]))

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return list(self.answers.replies([request.args for request in requests]))

        @property
        def tokenizer_name(self) -> str:
            """Under which the harness may keep its prompts: they do not depend on a tokenizer."""
            return "pilgrim"

    model_registry.register("pilgrim")(PilgrimLM)
    return PilgrimLM


def main() -> None:
    """lm_eval's command, with our model in its registry."""
    lm_class()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
