"""Run folders whose models say exactly what a test wants.

The model is a chain: its layers add nothing, and its head is a table that says which token follows which.
So the reply to anything is the same text, which begins after the line end that opens the assistant's turn.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path

import torch

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import SMALLEST_VOCABULARY, train_tokenizer

Said = str | Sequence[str | int]


def chain_run(
    folder: Path, text: Said, stages: Collection[str] = ("sft",), ends: bool = True, context: int = 256
) -> Path:
    """A run whose model says `text`, in which no character must come twice; for ever, unless it `ends`.

    The text may be cut in pieces, with ids of special tokens among them.
    """
    tokenizer = train_tokenizer(["bytes only"], SMALLEST_VOCABULARY)
    tokenizer.save(folder / "tokenizer")
    pieces = [text] if isinstance(text, str) else text
    said = [i for piece in pieces for i in ([piece] if isinstance(piece, int) else tokenizer.encode(piece))]
    last = tokenizer.im_end_id if ends else said[0]
    model = chain_model([*tokenizer.encode("\n"), *said, last], context)
    for stage in stages:
        state = {"model_config": model.config.model_dump()}
        CheckpointStore(folder / stage / "checkpoints").save(1, {"model": model.weights()}, state)
    return folder


@torch.no_grad()
def chain_model(ids: list[int], context: int) -> Transformer:
    """A model that continues ids[0] with ids[1], and so on."""
    v = SMALLEST_VOCABULARY
    model = Transformer(ModelSettings(depth=1, width=v, head_size=v, mlp_width=8, context=context).config(v))
    for name, parameter in model.named_parameters():
        parameter.fill_(1 if name.endswith("norm.weight") else 0)
    model.model.embed_tokens.weight.copy_(torch.eye(v))
    for before, after in pairwise(ids):
        model.lm_head.weight[after, before] = 100
    return model
