"""Stage 6: preferences. Of two replies to one prompt, learn which is the better (train/preference.py).

    dpo/pairs/  train.tokens.npy …        chosen and rejected of each pair, as documents 2k and 2k + 1
                train.reference.npy       what the network that the stage begins with thinks of each token
                pairs.json                which files the sets were made of
                reference.json            a hash of those weights; `val` is like `train`

The reference's log-probabilities are computed once, before the first step. That needs no second network in
memory, and no second pass in each step. A stage that was interrupted finds them. If its files, or the stage
before it, have changed since, they would be of something else: before the first checkpoint they are made
anew, and after it the stage refuses to go on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pilgrim.core.checkpoint import CheckpointStore
from pilgrim.core.errors import ChangedRecipe, DataError
from pilgrim.core.files import explained, read_json, sha256_file, write_json_atomic
from pilgrim.data.pairs import PairRows, pair_documents
from pilgrim.data.preferences import split_pairs
from pilgrim.data.shards import TokenSet, open_token_set, save_array, write_token_set
from pilgrim.data.sources import find
from pilgrim.stages.journey import Journey
from pilgrim.stages.rows import rows_files
from pilgrim.stages.shards import run_tokenizer
from pilgrim.stages.training import Given, Made, Plan, train_stage, weights_of
from pilgrim.train.keeping import weights_hash
from pilgrim.train.preference import PreferenceSettings, preference_objective
from pilgrim.train.preference_eval import measured_pairs

SETS = ("train", "val")


def run(journey: Journey) -> dict[str, Any]:
    """Go on from the last stage before, on pairs of replies."""
    return train_stage(journey, plan(journey))


def plan(journey: Journey) -> Plan:
    """What this stage trains on, for what, and from which weights."""
    settings = journey.recipe.dpo
    assert settings is not None
    return Plan(
        "dpo",
        settings,
        rows=None,
        begin=weights_of(journey, journey.recipe.stage_before("dpo")),
        chat=True,
        objective=preference_objective(settings),
        made=lambda given: _made(journey, settings, given),
    )


def _made(journey: Journey, settings: PreferenceSettings, given: Given) -> Made:
    """Rows with what the reference thinks of them, and what is measured on held-out pairs."""
    processes, context = journey.runtime.processes, journey.recipe.model_of("dpo").context
    folder = given.folder / "pairs"
    begun = processes.by_first(lambda: bool(CheckpointStore(given.folder / "checkpoints").steps()))
    named = rows_files(journey, (*settings.pairs, *settings.pairs_val))
    processes.by_first(lambda: write_pairs(journey, settings, folder, begun, named))
    tokenizer, digest = run_tokenizer(journey)
    sets = {name: open_token_set(folder, name, digest) for name in SETS}
    references = _references(journey, given, folder, sets, begun)
    preference = settings.preference()

    def measures() -> dict[str, Any]:
        logprob_n = given.logprobs(sets["val"])
        return measured_pairs(sets["val"], logprob_n, references["val"], preference)

    rows = PairRows(sets["train"], references["train"], context, tokenizer.eot_id, journey.runtime)
    return Made(rows, measures)


def write_pairs(
    journey: Journey, settings: PreferenceSettings, folder: Path, begun: bool, rows: Mapping[str, Path]
) -> None:
    """Write the two token sets, unless they are there. `rows` are the files of data sets, by "dataset:NAME".

    Raises DataError if no pair fits a row, ChangedRecipe if a stage that has `begun` would get other pairs.
    """
    tokenizer, digest = run_tokenizer(journey)
    context, file = journey.recipe.model_of("dpo").context, folder / "pairs.json"
    paths = {name: rows.get(name) or find(name, "[dpo]") for name in (*settings.pairs, *settings.pairs_val)}
    made_of = {
        "train": list(settings.pairs),
        "val": list(settings.pairs_val),
        "val_share": settings.val_share,
        "context": context,
        "tokenizer": digest,
        "sha256": {name: sha256_file(path) for name, path in paths.items()},
    }
    before = read_json(file) if file.exists() else None
    if before == made_of:
        return
    if begun and before is not None:
        raise ChangedRecipe(
            f"{file}: the stage has begun with other pairs than those that the recipe names now; put the "
            f"files back, or delete {folder.parent} to begin the stage anew"
        )
    train, val = ([str(paths[name]) for name in names] for names in (settings.pairs, settings.pairs_val))
    split = split_pairs(train, val, settings.val_share)
    if split.left_out:
        journey.console.say(
            f"{split.left_out} training pairs have a prompt of the held-out ones, and were left out"
        )
    for name, pairs in (("train", split.train), ("val", split.val)):
        documents, too_long = pair_documents(pairs, tokenizer, context)
        if not documents:
            raise DataError(
                f"[dpo]: none of the {len(pairs)} {'held-out ' if name == 'val' else ''}pairs fits into "
                f"model.context = {context} tokens, chosen and rejected together; train with a longer one"
            )
        if too_long:
            journey.console.say(
                f"{too_long} of {len(pairs)} {name} pairs are left out: chosen and rejected together are "
                f"longer than model.context = {context} tokens"
            )
        write_token_set(folder, name, documents, tokenizer.vocab_size, digest)
    write_json_atomic(file, made_of, journey.may_write)


def _references(
    journey: Journey, given: Given, folder: Path, sets: dict[str, TokenSet], begun: bool
) -> dict[str, NDArray[np.float32]]:
    """The reference's log-probability of each token of each set: found in the folder, or computed."""
    processes, file = journey.runtime.processes, folder / "reference.json"
    made_of = {
        "weights": weights_hash(given.model),
        "tokens": {name: tokens.manifest["sha256"] for name, tokens in sets.items()},
    }
    before = processes.by_first(lambda: read_json(file) if file.exists() else None)
    if before is None or any(before.get(key) != value for key, value in made_of.items()):
        if begun and before is not None:
            raise ChangedRecipe(
                f"{file}: the weights that the stage began with have changed since, so what it compares "
                f"with is gone; put them back, or delete {folder.parent} to begin the stage anew"
            )
        journey.console.say("reference: computing what the model thinks of each pair before it learns")
        logprobs = {name: given.logprobs(tokens) for name, tokens in sets.items()}
        processes.by_first(lambda: _save(folder, logprobs, made_of, journey))
    return {name: _opened(folder, name) for name in sets}


def _save(
    folder: Path, logprobs: dict[str, NDArray[np.float32]], made_of: dict[str, Any], journey: Journey
) -> None:
    hashes = {}
    for name, logprob_n in logprobs.items():
        file = folder / f"{name}.reference.npy"
        with explained("written", file):
            save_array(file, logprob_n)
        hashes[file.name] = sha256_file(file)
    write_json_atomic(folder / "reference.json", {**made_of, "sha256": hashes}, journey.may_write)


def _opened(folder: Path, name: str) -> NDArray[np.float32]:
    """One array, verified. Raises DataError if it is missing or damaged."""
    file = folder / f"{name}.reference.npy"
    if not file.exists() or sha256_file(file) != read_json(folder / "reference.json")["sha256"][file.name]:
        raise DataError(
            f"{file} is damaged or missing; delete {folder.parent} and run again to begin the stage anew"
        )
    found: NDArray[np.float32] = np.load(file, mmap_mode="r")
    return found
