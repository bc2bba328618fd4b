"""Where a teacher comes from: a run of ours, or a Hugging Face folder, with the student's tokenizer.

A teacher speaks of tokens by their numbers. If its tokenizer had other numbers, training would go on without
a word, and teach nonsense; so the two are compared, by a hash of what they are made of. And the stage
remembers which weights have taught it: a run that goes on with another teacher would not be the same run.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from pilgrim.core.errors import DataError, PilgrimError, SettingsError
from pilgrim.core.files import read_json, write_json_atomic
from pilgrim.infer.huggingface import load_transformer, read_config
from pilgrim.infer.load import load_model, newest_stage
from pilgrim.model.attention_choice import trouble
from pilgrim.model.attention_kernels import Backend
from pilgrim.model.config import ModelConfig
from pilgrim.model.transformer import Transformer
from pilgrim.stages.journey import Journey
from pilgrim.train.distillation import TeacherSettings
from pilgrim.train.keeping import weights_hash
from pilgrim.train.teacher import Teacher

NOTE = "teacher.json"  # in a stage's folder: which weights teach


def teacher_of(
    journey: Journey,
    stage: str,
    settings: TeacherSettings | None,
    student: ModelConfig,
    backend: Backend | None,
    notes: Path,
) -> Teacher | None:
    """The stage's teacher, if it has one. `backend` is the student's attention; `notes` the stage's folder.

    Raises PilgrimError if there is no such model, or it can't teach this student.
    """
    if settings is None:
        return None
    place, folder = f"{stage}.teacher.run = {settings.run}", Path(settings.run).expanduser()
    model, tokenizer = load_teacher(folder, settings.stage, journey.runtime.dtype, place)
    own = journey.folder / "tokenizer" / "tokenizer.json"
    if vocabulary_hash(tokenizer) != vocabulary_hash(own):
        raise DataError(
            f"{place}: its tokenizer is not this run's, so its tokens have other numbers; take a teacher "
            f"with the tokenizer of {own}, or learn from its texts (docs/synthetic-data.md)"
        )
    if model.config.context < student.context:
        raise SettingsError(
            f"{place} was made for {model.config.context} tokens, and model.context = {student.context}; "
            "lower that, or take another teacher"
        )
    if settings.top_k >= student.vocab_size:
        raise SettingsError(
            f"{stage}.teacher.top_k = {settings.top_k} must be less than the {student.vocab_size} tokens of "
            "the tokenizer; try 32"
        )
    journey.runtime.processes.by_first(lambda: _remembered(notes / NOTE, weights_hash(model), place))
    if backend is not None and (why := trouble(backend, journey.runtime, model.config)):
        journey.console.say(f"the teacher goes without the student's attention, and slower: {why}")
        backend = None
    return Teacher(model, settings, journey.runtime, student.vocab_size, backend)


def load_teacher(folder: Path, stage: str | None, dtype: torch.dtype, place: str) -> tuple[Transformer, Path]:
    """The model in a run or a Hugging Face folder, and its tokenizer's file. Raises PilgrimError."""
    if (folder / "recipe.toml").exists():
        return load_model(folder / (stage or newest_stage(folder))), folder / "tokenizer" / "tokenizer.json"
    if (folder / "config.json").exists():
        config = read_config(read_json(folder / "config.json"), str(folder / "config.json"))
        return load_transformer(folder, config, dtype), folder / "tokenizer.json"
    raise SettingsError(
        f"{place}: there is neither a run (recipe.toml) nor a Hugging Face folder (config.json); mend "
        "the path"
    )


def vocabulary_hash(file: Path) -> str:
    """The same for tokenizers that give every text the same ids, whatever else their files say."""
    tree: Any = read_json(file)
    try:
        model = tree["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        added = sorted((token["id"], token["content"]) for token in tree["added_tokens"])
        parts = [model["vocab"], merges, added, tree.get("pre_tokenizer"), tree.get("normalizer")]
    except (KeyError, TypeError):
        raise DataError(f"{file} is no tokenizer of byte pairs; a teacher needs the student's own") from None
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _remembered(file: Path, weights: str, place: str) -> None:
    known = read_json(file)["weights_sha256"] if file.exists() else weights
    if known != weights:
        raise PilgrimError(
            f"{place}: these are not the weights that this stage has begun to learn from ({file}); put those "
            "back, or begin a new run with name=…"
        )
    write_json_atomic(file, {"teacher": place, "weights_sha256": weights})
