"""A dry run: the whole walk in a minute, on nothing that has to be fetched, before days are spent on it.

The recipe is read and checked as it is. Then it is made small: few and short steps, a network of two layers,
a few dozen rows of each file, and for what isn't there a stand-in of the same shape, made of bundled text.
What comes out is a recipe of its own, named NAME-dry-run, with its files beside it; walking through it calls
all the code that the real walk will call, but for what a GPU computes with. It finds tables that don't fit,
rows that can't be read, a stage that lacks what another should have left. It says nothing about how well
anything is learned, about memory, or about time.
"""

import json
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import tomli_w

from pilgrim.core.config import apply_overrides, load_toml
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import explained, read_jsonl_zst, write_atomic
from pilgrim.core.stages import TRAINED
from pilgrim.data.datasets import NAMED, DatasetSettings, Kind, rows_of
from pilgrim.data.sources import find
from pilgrim.stages.recipe import MixedSettings, ReadAs, Recipe, load_recipe

SUFFIX = "-dry-run"
MARK = "dry-run.toml"  # the small recipe, in the run's folder: what has it may be thrown away
ROWS = 40  # of each file
STAND_INS = 90  # so many times as many rows are in each bundled file
STEPS, BATCH = 2, 8  # so that 8 processes have a row each
PROBLEMS = "assets:rl/counting.jsonl.zst"
PAIRS = {"pairs": "assets:preferences/train.jsonl.zst", "pairs_val": "assets:preferences/heldout.jsonl.zst"}
# Bundled rows of what a data set of kind "rows" is read as; there are some of gsm8k as well, which are made.
AS_READ: dict[ReadAs, str] = {
    "pairs": PAIRS["pairs"],
    "counting": PROBLEMS,
    "spelling": PROBLEMS,
    "sentence": "assets:rl/sentences.jsonl.zst",
}
DEPTH, WIDTH, WINDOW, VOCABULARY = 2, 64, 32, 512
CONTEXT, ROOMY = 128, 512  # tokens; the latter where a pair or a problem of somebody's must fit whole

Tree = dict[str, Any]


def rehearse(file: Path, overrides: list[str], runs: Path) -> tuple[Path, list[str]]:
    """(the small recipe's file, what was replaced, in sentences). An earlier dry run's folder is emptied.

    Raises PilgrimError for what is wrong with the recipe, or if something else stands at that place.
    """
    recipe = load_recipe(file, overrides)
    tree = dict(apply_overrides(load_toml(file), overrides))
    tree["name"] = recipe.name + SUFFIX
    folder = runs / tree["name"]
    if folder.exists() and not (folder / MARK).exists():
        raise PilgrimError(f"{folder} is there and no dry run; give this recipe another name with name=…")
    shutil.rmtree(folder, ignore_errors=True)
    said = [_shrink(tree, recipe), *_stand_in(tree, recipe, folder / "stand-ins")]
    write_atomic(folder / MARK, tomli_w.dumps(tree))
    return folder / MARK, said


def _shrink(tree: Tree, recipe: Recipe) -> str:
    """Makes network and stages of the tree small, and says so."""
    window = {"window": WINDOW} if recipe.model.window else {}
    as_it_is = {key: tree["model"][key] for key in ("tied", "softcap") if key in tree.get("model", {})}
    context = min(ROOMY, recipe.model.context) if recipe.dpo or recipe.rl else CONTEXT
    tree["model"] = {"depth": DEPTH, "width": WIDTH, "context": context, **window, **as_it_is}
    tree["tokenizer"] = {"vocab_size": min(VOCABULARY, recipe.tokenizer.vocab_size)}
    tree["runtime"] = {**tree.get("runtime", {}), "compile": "off"}
    stages = [name for name in TRAINED if recipe.training(name)]
    for name in stages:
        settings, steps = recipe.training(name), {"steps": STEPS}
        if isinstance(settings, MixedSettings) and settings.by_epochs and settings.steps is None:
            steps = {}  # which are counted, here too
        left_out = ("grow", "micro_rows", "teacher", "eval_every", "checkpoint_every")
        table = {key: value for key, value in tree.get(name, {}).items() if key not in left_out}
        tree[name] = table | {"rows": BATCH, "warmup": 0} | steps
    if recipe.rl:
        tree["rl"] |= {"prompts": 2, "replies": 2, "reply_tokens": 8, "held_out_prompts": 2, "updates": 1}
    if recipe.midtrain and recipe.midtrain.context:
        tree["midtrain"]["context"] = 2 * context
    short = {"prompts": ["Once"], "questions": ["Hello!"], "sample_tokens": 4, "reply_tokens": 4}
    tree["eval"] = {**tree.get("eval", {}), **short, "watch_items": 4, "watch_full": False}
    return (
        f"dry run: {DEPTH} layers of width {WIDTH}, {STEPS} steps of each of {', '.join(stages)}, "
        f"a vocabulary of {tree['tokenizer']['vocab_size']}, no torch.compile, no teacher"
    )


# Files --------------------------------------------------------------------------------------------


def _stand_in(tree: Tree, recipe: Recipe, folder: Path) -> list[str]:
    """Names small files in the tree in place of its own; says which."""
    said: list[str] = []
    of_data = tree.setdefault("data", {})
    for key in ("train", "val", "conversations", "conversations_val"):
        kind: Kind = "conversations" if key.startswith("conversations") else "text"
        if key == "conversations" and "chat_train" not in recipe.token_sets():
            continue  # nobody reads them
        of_data[key] = names = list(getattr(recipe.data, key))
        for place, name in enumerate(names):
            if not name.startswith(NAMED):
                names[place], whose = _few_rows(
                    [name], kind, folder / f"{key}-{place}.jsonl", None, len(said)
                )
                said.append(f"data.{key}: {whose}")
    if recipe.data.val_share:
        of_data["val_share"] = max(0.2, recipe.data.val_share)  # some of a few dozen rows
    as_read = recipe.rows_read()
    for name, settings in recipe.datasets.items():
        table = tree["datasets"][name]
        table["limit"] = min(ROWS, settings.limit or ROWS)
        if settings.files:
            kind = "text" if settings.kind == "spelling" else settings.kind
            file = folder / f"{name}.jsonl"
            small, whose = _few_rows(settings.files, kind, file, settings.hub, len(said), as_read.get(name))
            tree["datasets"][name] = {k: v for k, v in table.items() if k not in ("hub", "revision")}
            tree["datasets"][name]["files"] = [small]
            said.append(f"datasets.{name}: {whose}")
    if recipe.dpo:
        for key, bundled in PAIRS.items():
            names = tree["dpo"].get(key, ())
            tree["dpo"] |= (
                {key: [name if name.startswith(NAMED) else bundled for name in names]} if names else {}
            )
            said += [
                f"dpo.{key}: {bundled} instead of {name}" for name in names if not name.startswith(NAMED)
            ]
        if recipe.dpo.val_share:
            tree["dpo"]["val_share"] = max(0.5, recipe.dpo.val_share)
    for name, task in recipe.rl.tasks.items() if recipe.rl else ():
        of_task = tree["rl"]["tasks"][name]
        missing = [
            named for named in (task.prompts, task.held_out) if named and not _asks(named, task.kind, recipe)
        ]
        if missing:
            of_task = {"kind": "counting", "prompts": PROBLEMS, "tools": True}
            said.append(f"rl.tasks.{name}: the bundled {PROBLEMS} instead of {missing[0]}")
        share = {} if of_task.get("held_out") else {"held_out_share": max(0.5, task.held_out_share)}
        tree["rl"]["tasks"][name] = of_task | share
    return said


def _asks(named: str, kind: ReadAs, recipe: Recipe) -> bool:
    """Whether what a task names its problems by is here, or has stand-ins that can be asked."""
    if not named.startswith(NAMED):
        return _is_here(named)
    name = named.removeprefix(NAMED)
    settings = recipe.datasets[name]
    if settings.kind != "rows" or (settings.hub is None and _is_here(settings.files[0])):
        return True
    return _stands_for(recipe.rows_read()[name]) == kind


def _is_here(name: str) -> bool:
    return name.startswith("assets:") or Path(name).expanduser().is_file()


def _stands_for(kinds: Sequence[ReadAs]) -> ReadAs | None:
    """As what rows can be made up that are read as `kinds`: the first of which there are some."""
    return next((kind for kind in kinds if kind in AS_READ or kind == "gsm8k"), None)


def _few_rows(
    files: Sequence[str],
    kind: Kind,
    to: Path,
    hub: str | None,
    number: int,
    as_read: Sequence[ReadAs] | None = None,
) -> tuple[str, str]:
    """(a file with the first rows of the first of `files`, or others if that isn't here; which it has).

    Made rows are others for every `number`. `as_read` is as what rows are read that are taken as they are.
    """
    name = files[0]
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    if hub is None and _is_here(name):
        settings = DatasetSettings(kind=kind, files=(name,))
        rows = [row for _, row in islice(rows_of(find(name), name, settings, bool(as_read)), ROWS)]
        whose = f"the first {len(rows)} rows of {name}{more}"
    else:
        rows = _stand_ins(kind, number, as_read or ())
        whose = f"{len(rows)} made rows, {kind}, instead of {name}{more}{f' of {hub}' if hub else ''}"
    with explained("written", to):
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(to), whose


def _stand_ins(kind: Kind, number: int, as_read: Sequence[ReadAs]) -> list[dict[str, Any]]:
    """Rows of the shape of a kind: bundled ones, or sums.

    Those of another `number` are others: training documents that are validation's too would be left out.
    """
    first = number % STAND_INS * ROWS
    numbers = range(first, first + ROWS)
    if kind == "rows" and (stands_for := _stands_for(as_read)) in AS_READ:
        some = [row for _, row in read_jsonl_zst(find(AS_READ[stands_for]))]
        return [some[n % len(some)] for n in numbers]
    if kind in ("text", "conversations"):
        bundled = find(f"assets:{kind}/train.jsonl.zst")
        return [row for _, row in islice(read_jsonl_zst(bundled), numbers.start, numbers.stop)]
    if kind == "mmlu":
        return [
            {"question": f"What is {n} + 1?", "choices": [str(n), str(n + 1)], "answer": 1} for n in numbers
        ]
    return [
        {"question": f"What is {n} times 2?", "answer": f"{n}*2 = <<{n}*2={2 * n}>>{2 * n}.\n#### {2 * n}"}
        for n in numbers
    ]
