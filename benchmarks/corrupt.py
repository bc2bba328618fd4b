"""Damage a checkpoint in a thousand ways: is each found, and does the run go on from the step before?

    python benchmarks/corrupt.py                  1,000 corruptions
    python benchmarks/corrupt.py --times 10000 --seed 7

Three steps of small tensors are saved. Then the newest is damaged in a way and a place that a seeded die
picks, in a fresh copy each time, and the newest whole step is asked for. Found means: the damage was told in
a sentence, and what was loaded is an earlier step, to the bit. Prints a line for each kind.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pilgrim.core.checkpoint import Checkpoint, CheckpointStore
from pilgrim.core.errors import CheckpointError

STEPS = (100, 200, 300)
Kind = Callable[[random.Random, Path], None]  # is given the newest step's folder, and changes something there


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, missed = corrupted(Path(folder), arguments.times, arguments.seed)
    for kind in KINDS:
        print(f"{kind:45} {found[kind]:5} found, {missed[kind]} missed")
    print(f"{'together':45} {found.total():5} found, {missed.total()} missed")
    raise SystemExit(bool(missed))


def corrupted(folder: Path, times: int, seed: int) -> tuple[Counter[str], Counter[str]]:
    """How many of `times` corruptions were found and how many weren't, by kind."""
    base, dice = folder / "base", random.Random(seed)
    store = CheckpointStore(base, keep_last=len(STEPS))
    for step in STEPS:
        store.save(step, tensors(step), state(step))
    found: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    for _ in range(times):
        kind = dice.choice(list(KINDS))
        shutil.copytree(base, folder / "copy")
        KINDS[kind](dice, folder / "copy" / f"step_{STEPS[-1]:06d}")
        (found if is_found(folder / "copy") else missed)[kind] += 1
        shutil.rmtree(folder / "copy")
    return found, missed


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(step)
    return {
        "model": {f"{i}.weight": torch.randn(16, 8, generator=draw) for i in range(4)},
        "optimizer": {f"{i}.weight/mean": torch.randn(16, 8, generator=draw) for i in range(4)},
    }


def state(step: int) -> dict[str, object]:
    return {"step": step, "position": {"epoch": 1, "row": step * 4}, "best_bpb": 1.25 / step}


def is_found(folder: Path) -> bool:
    told: list[str] = []
    try:
        loaded = CheckpointStore(folder).load_latest(told.append)
    except CheckpointError:
        return False  # nothing was left to go on from
    return bool(told) and loaded is not None and loaded.step < STEPS[-1] and is_whole(loaded)


def is_whole(loaded: Checkpoint) -> bool:
    expected = tensors(loaded.step)
    return loaded.state == state(loaded.step) and all(
        loaded.tensors[stem].keys() == named.keys()
        and all(torch.equal(loaded.tensors[stem][name], tensor) for name, tensor in named.items())
        for stem, named in expected.items()
    )


# The kinds ----------------------------------------------------------------------------------------


def a_file(dice: random.Random, step: Path) -> Path:
    return dice.choice(sorted(step.iterdir()))


def before(step: Path) -> Path:
    return step.with_name(f"step_{STEPS[-2]:06d}")


def edited(change: Callable[[random.Random, bytearray], None]) -> Kind:
    """A kind that changes the bytes of one file."""

    def kind(dice: random.Random, step: Path) -> None:
        file = a_file(dice, step)
        data = bytearray(file.read_bytes())
        change(dice, data)
        assert data != file.read_bytes()
        file.write_bytes(data)

    return kind


def flip_one_bit(dice: random.Random, data: bytearray) -> None:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)


def flip_many_bits(dice: random.Random, data: bytearray) -> None:
    for at in dice.sample(range(len(data)), 16):
        data[at] ^= 1 << dice.randrange(8)


def overwrite_a_block(dice: random.Random, data: bytearray) -> None:
    begin = dice.randrange(len(data))
    for at in range(begin, min(len(data), begin + 512)):
        data[at] ^= dice.randrange(1, 256)


def cut_off(dice: random.Random, data: bytearray) -> None:
    del data[dice.randrange(len(data)) :]


def let_the_end_be_zeros(dice: random.Random, data: bytearray) -> None:
    """As a file system may leave it, if the size was written and the data not."""
    begin = dice.randrange(len(data) - 1)
    data[begin:] = bytes(len(data) - begin)


def append(dice: random.Random, data: bytearray) -> None:
    data += dice.randbytes(dice.randint(1, 4096))


def insert(dice: random.Random, data: bytearray) -> None:
    at = dice.randrange(len(data))
    data[at:at] = dice.randbytes(dice.randint(1, 64))


def empty(dice: random.Random, step: Path) -> None:
    a_file(dice, step).write_bytes(b"")


def missing(dice: random.Random, step: Path) -> None:
    a_file(dice, step).unlink()


def a_folder_instead(dice: random.Random, step: Path) -> None:
    file = a_file(dice, step)
    file.unlink()
    file.mkdir()


def two_files_swapped(dice: random.Random, step: Path) -> None:
    one, other = dice.sample(sorted(step.iterdir()), 2)
    one.rename(step / "put-aside")
    other.rename(one)
    (step / "put-aside").rename(other)


def a_file_of_the_step_before(dice: random.Random, step: Path) -> None:
    file = a_file(dice, step)
    shutil.copy(before(step) / file.name, file)


def the_manifest_of_the_step_before(dice: random.Random, step: Path) -> None:
    shutil.copy(before(step) / "manifest.json", step)


def all_but_the_manifest_of_the_step_before(dice: random.Random, step: Path) -> None:
    for file in before(step).iterdir():
        if file.name != "manifest.json":
            shutil.copy(file, step)


def folders_swapped(dice: random.Random, step: Path) -> None:
    step.rename(step.with_name("put-aside"))
    before(step).rename(step)
    step.with_name("put-aside").rename(before(step))


def a_copy_of_the_step_before(dice: random.Random, step: Path) -> None:
    shutil.rmtree(step)
    shutil.copytree(before(step), step)


def an_entry_of_the_manifest(dice: random.Random, step: Path) -> None:
    """Valid JSON that says something else: an entry lost, or one file's hash for another's."""
    manifest = json.loads((step / "manifest.json").read_text())
    one, other = dice.sample(sorted(manifest["files"]), 2)
    if dice.random() < 0.5:
        del manifest["files"][one]
    else:
        manifest["files"][one] = manifest["files"][other]
    (step / "manifest.json").write_text(json.dumps(manifest))


KINDS: dict[str, Kind] = {
    "one bit flipped": edited(flip_one_bit),
    "16 bits flipped": edited(flip_many_bits),
    "a block overwritten": edited(overwrite_a_block),
    "cut off": edited(cut_off),
    "the end zeros": edited(let_the_end_be_zeros),
    "grown at the end": edited(append),
    "grown in the middle": edited(insert),
    "empty": empty,
    "missing": missing,
    "a folder instead of a file": a_folder_instead,
    "two files swapped": two_files_swapped,
    "a file of the step before": a_file_of_the_step_before,
    "the manifest of the step before": the_manifest_of_the_step_before,
    "all but the manifest of the step before": all_but_the_manifest_of_the_step_before,
    "the folders of two steps swapped": folders_swapped,
    "a copy of the step before under its name": a_copy_of_the_step_before,
    "an entry of the manifest": an_entry_of_the_manifest,
}


if __name__ == "__main__":
    main()
