"""Which attention a stage trains with: on a GPU timed once in a run, for a machine and a shape, and kept.

Two backends (model/attention_kernels.py) round differently. So what was timed is remembered in the run's
folder: a resumed run goes on with the one it began with, even if a second timing would prefer another.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pilgrim.core import machine
from pilgrim.core.files import read_json, write_json_atomic
from pilgrim.core.runlog import RunLog
from pilgrim.core.runtime import Runtime
from pilgrim.model.attention_choice import Choice, activated, choose, trouble
from pilgrim.model.config import ModelConfig
from pilgrim.stages.journey import Journey

ATTENTION = "attention.json"  # which backend was the fastest


def chosen_attention(journey: Journey, config: ModelConfig, rows: int, log: RunLog, notes: Path) -> Choice:
    """The attention backend for microbatches of `rows` rows, found in `notes` or timed, and kept there.

    Several processes take what the first finds.
    """
    found = journey.runtime.processes.by_first(lambda: _found_attention(journey, config, rows, log, notes))
    return activated(found)


def _found_attention(journey: Journey, config: ModelConfig, rows: int, log: RunLog, notes: Path) -> Choice:
    runtime, file = journey.runtime, notes / ATTENTION
    key = attention_key(runtime, config, rows)
    known: list[dict[str, Any]] = read_json(file) if file.exists() else []
    before = next((entry for entry in known if entry["for"] == key), None)
    if before is not None and trouble(before["backend"], runtime, config) is None:
        return Choice(before["backend"], before["milliseconds"], before["left_out"])
    choice = choose(runtime, config, rows)
    if choice.milliseconds or choice.left_out or runtime.attention != "auto":  # else a rule has decided
        log.event("attention", **asdict(choice))
        journey.console.say(choice.note)
    if choice.milliseconds:
        others = [entry for entry in known if entry["for"] != key]
        write_json_atomic(file, [*others, {"for": key, **asdict(choice)}])
    return choice


def attention_key(runtime: Runtime, config: ModelConfig, rows: int) -> dict[str, Any]:
    """All that a timing of attention depends on, as plain JSON."""
    return {
        "machine": (machine.gpu() or {}).get("name", runtime.device.type),
        "torch": str(torch.__version__),
        "asked": [runtime.attention, str(runtime.dtype), runtime.compile, runtime.deterministic],
        "shape": [rows, config.context, config.heads, config.kv_heads, config.head_size, *config.windows],
    }
