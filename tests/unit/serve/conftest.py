"""Run folders whose models say exactly what a test wants.

The model is a chain: its layers add nothing, and its head is a table that says which token follows which.
So the reply to anything is the same text, which begins after the line end that opens the assistant's turn.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import SMALLEST_VOCABULARY, train_tokenizer

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(text) makes a run whose model says `text`, in which no character must come twice.

    For a model that calls a tool, it is a list of texts and of the marks' ids: what it says behind the answer
    follows after END_OF_CALL, END_OF_RESPONSE.
    """

    def make(text: str | list[str | int], stage: str = "sft", ends: bool = True, context: int = 256) -> Path:
        tokenizer = train_tokenizer(["bytes only"], SMALLEST_VOCABULARY)
        tokenizer.save(tmp_path / "tokenizer")
        parts = [text] if isinstance(text, str) else text
        ids = [i for part in parts for i in (tokenizer.encode(part) if isinstance(part, str) else [part])]
        model = chain_model([*tokenizer.encode("\n"), *ids, tokenizer.im_end_id if ends else ids[0]], context)
        state = {"model_config": model.config.model_dump()}
        CheckpointStore(tmp_path / stage / "checkpoints").save(1, {"model": model.weights()}, state)
        return tmp_path

    return make


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
