"""How likely is a prompt? The scores of its own tokens, for who asks to have it echoed with them.

That is how evaluation programs measure a model over this API: they send a question with an answer behind it,
and look at the answer's tokens. The engine that writes replies only computes what comes after the last token,
so the prompt is read by the scorer's way (evals/trees.py), between two of the engine's steps.
"""

from collections.abc import Sequence

import torch

from pilgrim.core.errors import PilgrimError
from pilgrim.evals.prompts import Row
from pilgrim.evals.scoring import LOGITS_AT_ONCE
from pilgrim.evals.trees import read, trees
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import TokenScores, token_scores


@torch.inference_mode()
def prompt_scores(engine: Engine, ids: Sequence[int], likeliest: int) -> list[TokenScores | None]:
    """What the model thought of each of `ids`, with as many likeliest ones; None for the first.

    Raises PilgrimError if its weights are spoiled.
    """
    if len(ids) < 2:
        return [None] * len(ids)
    hidden_nw = read(engine, list(trees(0, [Row(tuple(ids), 1)])))
    step = max(1, LOGITS_AT_ONCE // engine.config.vocab_size)
    found: list[TokenScores | None] = [None]
    for at in range(0, len(hidden_nw), step):
        logits_nv = engine.model.logits(hidden_nw[at : at + step]).float().cpu()
        if not logits_nv.isfinite().all():
            raise PilgrimError(
                "the model's scores are not finite, so its weights are spoiled; use an earlier checkpoint"
            )
        goals = ids[at + 1 : at + 1 + len(logits_nv)]
        found += token_scores(logits_nv, goals, [likeliest] * len(goals))
    return found
