"""lm-evaluation-harness measures a model over HTTP as our own scorer does: its `local-completions`.

Needs `pip install 'lm_eval[api]'`, which no extra of ours has whole.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import RUNTIME, Served, random_run, serving

from pilgrim.evals.prompts import Row
from pilgrim.evals.scoring import score
from pilgrim.infer.load import load_engine, load_tokenizer
from pilgrim.infer.sampling import Sampling

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "tiny", 128, {"sft": (5,)})


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    with serving({"tiny": run}) as server:
        yield server


@pytest.mark.filterwarnings("ignore")  # of the harness's own
def test_the_harness_gets_our_numbers(run: Path, served: Served) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"http://127.0.0.1:{served.port}/v1/completions",
        tokenizer_backend="huggingface",
        tokenizer=str(run / "tokenizer"),
        model="tiny",
        max_length=128,
        batch_size=2,
    )
    pairs = [("The sky is", " blue"), ("The sky is", " a very long word"), ("Two and two", " make four")]
    asked = [
        Instance("loglikelihood", {}, pair, i, ("t", i, 1)) for i, pair in enumerate(pairs)
    ]  # fmt: skip
    found = model.loglikelihood(asked, disable_tqdm=True)
    tokenizer = load_tokenizer(run)
    engine = load_engine(run / "sft", tokenizer, RUNTIME)
    for (context, continuation), (nats, greedy) in zip(pairs, found, strict=True):
        ids = tokenizer.encode(context + continuation)
        ((ours,),) = score(engine, [[Row(tuple(ids), len(tokenizer.encode(context)))]])
        assert math.isclose(nats, ours.log_prob, abs_tol=1e-4)
        assert greedy == ours.greedy
    settings = {"until": ["\n"], "max_gen_toks": 20, "temperature": 0}
    (text,) = model.generate_until(
        [Instance("generate_until", {}, ("The sky is", settings), 0, ("t", 0, 1))], disable_tqdm=True
    )
    (reply,) = engine.generate(
        [tokenizer.encode("The sky is")], Sampling(temperature=0, max_tokens=20), {tokenizer.eot_id}
    )
    assert text == tokenizer.decode(reply.ids).partition("\n")[0]
