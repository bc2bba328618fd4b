"""The sections of a report that tell of the model: cards, journey, samples, evaluation.

Each function takes what was read from the run's folder and returns rows that the template only has to
put in place. Where something is left out to keep the page small, a sentence about it goes into `notes`,
which the page shows at its end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import escape

from pilgrim.lab.report_curves import is_number, spread
from pilgrim.lab.report_run import Row, Stage, all_done, mapping, total_seconds
from pilgrim.lab.report_text import compact, duration, number, percent, plain, shortened

REEL_FRAMES = 60  # evaluations shown for each prompt
REEL_PROMPTS = 12
REEL_BYTES = 800_000  # all samples together; fewer frames are kept until they fit
TEXT_CHARACTERS = 2000  # of one sample or one reply
EXAMPLES = 60
SOURCES = 30  # shown of a text

WHAT_STAGES_DO = {
    "tokenizer": "Finds the byte sequences that are worth a token of their own.",
    "shards": "Turns every document into token ids, and sets the validation documents aside.",
    "pretrain": "Learns to continue text, one token at a time.",
    "midtrain": "Meets conversations among the text while the learning rate falls.",
    "sft": "Learns to take turns, to stop, and its own name.",
    "dpo": "Learns which of two replies people prefer.",
    "rl": "Learns from the rewards that its own replies earn.",
    "evaluate": "Is measured on text and prompts that it never saw.",
}

# What a stage's DONE.json tells about it: key, label, how to write it.
SUMMARY_FACTS: dict[str, list[tuple[str, str, Callable[[object], str]]]] = {
    "tokenizer": [
        ("vocab_size", "tokens in the vocabulary", number),
        ("bytes_per_token", "bytes a token", lambda value: number(value, 2)),
    ],
    "shards": [
        ("train_documents", "documents to learn from", number),
        ("train_tokens", "tokens to learn from", compact),
        ("val_documents", "documents held out", number),
        ("val_bytes", "bytes held out", compact),
    ],
    "evaluate": [],
}
TRAINED_FACTS: list[tuple[str, str, Callable[[object], str]]] = [
    ("steps", "steps", number),
    ("tokens", "tokens", compact),
    ("loss", "final loss", lambda value: number(value, 3)),
    ("bpb", "bits per byte", lambda value: number(value, 3)),
]

# Behaviour measured on held-out prompts: name, and which way is better.
BEHAVIOURS = {
    "ended": ("Ends its reply by itself", "higher is better"),
    "looped": ("Repeats itself in a loop", "lower is better"),
    "named": ("Gives its name when asked", "higher is better"),
}


# The head of the page, and the journey


def machine(hardware: Row) -> str:
    """Processor, cores and GPU on one line; empty if unknown."""
    parts = [plain(hardware["processor"])] if hardware.get("processor") else []
    if is_number(hardware.get("cores")):
        parts.append(f"{number(hardware['cores'])} cores")
    if name := mapping(hardware.get("gpu")).get("name"):
        parts.append(plain(name))
    return ", ".join(parts)


def final_bpb(stages: Sequence[Stage], result: Row) -> tuple[float | None, str]:
    """The bits per byte that stand for the run and where they come from: the final evaluation's, else
    those of the latest stage that measured any."""
    for name, measured in mapping(result.get("bpb")).items():
        if is_number(bpb := mapping(measured).get("bpb")):
            return bpb, f"final evaluation on {plain(name)}"
    for stage in reversed(stages):
        if is_number(bpb := stage.summary.get("bpb")):
            return bpb, f"after {stage.name}"
        for row in reversed(stage.evals):
            if is_number(bpb := row.get("bpb")):
                return bpb, f"{stage.name}, step {number(row.get('step'))}"
    return None, ""


def trained_tokens(stage: Stage) -> float | None:
    """Tokens that a stage trained on, so far if it is under way; None if it is no stage that trains."""
    counts = [row.get("tokens") for row in [*stage.metrics[-1:], stage.summary]]
    return next((count for count in reversed(counts) if is_number(count)), None)


def headline(stages: Sequence[Stage], result: Row) -> list[tuple[str, str, str]]:
    """The cards: (label, value, where it comes from)."""
    bpb, bpb_from = final_bpb(stages, result)
    tokens = {stage.name: count for stage in stages if (count := trained_tokens(stage)) is not None}
    parameters = [
        stage.summary["parameters"] for stage in stages if is_number(stage.summary.get("parameters"))
    ]
    total_s = total_seconds(stages)
    time_from = "" if total_s is None else "all stages" if all_done(stages) else "so far"
    pretrained = next(stage.summary for stage in stages if stage.name == "pretrain")
    speed, promised = pretrained.get("tokens_per_s"), pretrained.get("mfu_spec")
    of_promised = f"; {percent(promised)} of what its maker promises" if is_number(promised) else ""
    cards = [
        ("Bits per byte", number(bpb, 3), bpb_from),
        ("Parameters", compact(parameters[-1] if parameters else None), ""),
        ("Time", duration(total_s), time_from),
        ("Tokens trained on", compact(sum(tokens.values()) if tokens else None), ", ".join(tokens)),
        ("Tokens a second", number(speed), "in pretrain" if is_number(speed) else ""),
    ]
    if is_number(share := pretrained.get("mfu")):
        peak = f"in pretrain, of the machine's fastest matrix product{of_promised}"
        cards.append(("Share of the peak (MFU)", percent(share), peak))
    behaviour = mapping(result.get("behaviour"))
    for key, (label, _) in BEHAVIOURS.items():
        measured = mapping(behaviour.get(key))
        of = f"of {number(measured['n'])} prompts" if is_number(measured.get("n")) else ""
        cards.append((label, percent(measured.get("share")), of))
    return cards


def stations(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """What the journey shows of each stage: state, time, its share, and the facts of its summary."""
    total = total_seconds(stages)
    out = []
    for stage in stages:
        known = SUMMARY_FACTS.get(stage.name, TRAINED_FACTS) if stage.state == "done" else []
        share = stage.elapsed_s / total if stage.elapsed_s is not None and total else None
        out.append(
            {
                "name": stage.name,
                "state": stage.state,
                "time": duration(stage.elapsed_s),
                "share": share,
                "what": WHAT_STAGES_DO.get(stage.name, ""),
                "facts": [(write(stage.summary.get(key)), label) for key, label, write in known],
            }
        )
    return out


def arrivals(stages: Sequence[Stage]) -> list[tuple[str, list[str]]]:
    """Each stage that trains with what it reached; nothing while it is under way."""
    return [
        (stage.name, _arrival(stage.summary) if stage.state == "done" else [])
        for stage in stages
        if stage.trained
    ]


def _arrival(summary: Row) -> list[str]:
    return [
        number(summary.get("steps")),
        compact(summary.get("tokens")),
        number(summary.get("loss"), 3),
        number(summary.get("bpb"), 4),
        duration(summary.get("train_s")),
        number(summary.get("tokens_per_s")),
        percent(summary.get("mfu")),
    ]


def strip(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The bar of stages: x and width in percent by time, with a width for the shortest that can be seen."""
    timed = [(stage, stage.elapsed_s) for stage in stages if stage.elapsed_s]
    total = sum(seconds for _, seconds in timed)
    widths = [max(100 * seconds / total, 0.7) for _, seconds in timed]
    scale = 100 / sum(widths) if widths else 1.0
    out, x = [], 0.0
    for (stage, seconds), width in zip(timed, widths, strict=True):
        share = seconds / total
        out.append({"stage": stage.name, "x": x, "width": width * scale, "share": share, "seconds": seconds})
        x += width * scale
    return out


# Samples


@dataclass(frozen=True)
class Frame:
    """What a prompt led to at one evaluation."""

    stage: str
    step: int
    bpb: float | None
    text: str
    milestone: bool = False  # among the few that are printed on paper


@dataclass(frozen=True)
class Reel:
    """The frames of one prompt, in the order of the journey."""

    prompt: str
    chat: bool  # a question that is answered, not an opening that is continued
    frames: list[Frame]

    @property
    def legs(self) -> list[tuple[str, float]]:
        """Each stage with the middle of its frames, in percent of the way from the first to the last."""
        places: dict[str, list[int]] = {}
        for index, frame in enumerate(self.frames):
            places.setdefault(frame.stage, []).append(index)
        way = max(1, len(self.frames) - 1)
        return [(stage, 50 * (found[0] + found[-1]) / way) for stage, found in places.items()]


def reels(stages: Sequence[Stage], questions: Sequence[str], notes: list[str]) -> list[Reel]:
    """For each fixed prompt what the model made of it, evaluation by evaluation, through all stages.

    `questions` are the prompts that were put to the model as a turn of a conversation.
    """
    found: dict[str, list[Frame]] = {}
    for stage in stages:
        bpb = {row["step"]: row.get("bpb") for row in stage.evals if is_number(row.get("step"))}
        for row in stage.samples:
            prompt, text, step = plain(row.get("prompt", "")), plain(row.get("text", "")), row.get("step")
            if is_number(step):
                frame = Frame(stage.name, int(step), bpb.get(step), shortened(text, TEXT_CHARACTERS))
                found.setdefault(shortened(prompt, TEXT_CHARACTERS), []).append(frame)
    shown = dict(list(found.items())[:REEL_PROMPTS])
    longest = max((len(frames) for frames in shown.values()), default=0)
    size = sum(
        len(escape(prompt + frame.text).encode()) for prompt, frames in shown.items() for frame in frames
    )
    keep = min(REEL_FRAMES, max(4, longest * REEL_BYTES // size)) if size else REEL_FRAMES
    if longest > keep or len(found) > REEL_PROMPTS:
        notes.append(
            f"Of {number(len(found))} prompts with up to {number(longest)} samples each, the first "
            f"{number(len(shown))} are shown, with {number(keep)} samples each, evenly spread."
        )
    chats = {plain(question) for question in questions}
    return [Reel(prompt, prompt in chats, picked(frames, keep)) for prompt, frames in shown.items()]


def picked(frames: Sequence[Frame], keep: int) -> list[Frame]:
    """`keep` of the frames; three of them, from first to last, are milestones."""
    chosen = [frames[index] for index in spread(len(frames), keep)]
    milestones = set(spread(len(chosen), 3))
    return [replace(frame, milestone=index in milestones) for index, frame in enumerate(chosen)]


# Evaluation


def behaviours(measured: Row) -> list[dict[str, Any]]:
    """Rows of the behaviour chart: the known ones first (a dash where not measured), then any others."""
    names = [*BEHAVIOURS, *(name for name in measured if name not in BEHAVIOURS)]
    out = []
    for name in names if measured else []:
        label, better = BEHAVIOURS.get(name, (plain(name), ""))
        row = {key: mapping(measured.get(name)).get(key) for key in ("share", "n", "low", "high")}
        numbers = {key: value if is_number(value) else None for key, value in row.items()}
        out.append({"label": label, "better": better, **numbers})
    return out


def compression(measured: Row) -> list[dict[str, Any]]:
    """Bits per byte by text, with the share of its size that the text would keep, and its size."""
    return [_bits(plain(name), mapping(row)) for name, row in measured.items()]


def _bits(name: str, row: Row) -> dict[str, Any]:
    return {
        "text": name,
        "bpb": number(row.get("bpb"), 4),
        "standard_error": number(row.get("standard_error"), 4),
        "share": row["bpb"] / 8 if is_number(row.get("bpb")) else None,
        "bytes": number(row.get("bytes")),
        "targets": number(row.get("targets")),
        "documents": number(row.get("documents")),
    }


def sources(measured: Row) -> dict[str, Any] | None:
    """Bits per byte by source, a column for each stage; None if no text had several sources."""
    of_stage = {plain(stage): mapping(mapping(row).get("sources")) for stage, row in measured.items()}
    names = list(dict.fromkeys(name for found in of_stage.values() for name in found))
    if len(names) < 2:
        return None
    rows = []
    for name in names[:SOURCES]:
        cells = [_bits("", mapping(found.get(name))) for found in of_stage.values()]
        rows.append({"source": plain(name), "cells": cells, "size": cells[-1]})
    return {"stages": list(of_stage), "rows": rows, "left_out": max(0, len(names) - SOURCES)}


def texts(result: Row) -> dict[str, Any] | None:
    """Bits per byte of the files that `pilgrim eval --text` measured, each followed by its sources."""
    rows = []
    for file, found in mapping(result.get("files")).items():
        parts = mapping(mapping(found).get("sources"))
        rows.append(_bits(plain(file), mapping(found)) | {"whole": True})
        if len(parts) > 1:
            inside = list(parts.items())[:SOURCES]
            rows += [_bits(plain(name), mapping(part)) | {"whole": False} for name, part in inside]
    return {"stage": plain(result.get("stage", "")), "rows": rows} if rows else None


def examples(rows: object, notes: list[str]) -> list[Row]:
    """The example dialogues: kind, prompt, reply, and whether the reply ended by itself (None: not known)."""
    known = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    if len(known) > EXAMPLES:
        notes.append(f"The first {EXAMPLES} of {number(len(known))} example dialogues are shown.")
    return [
        {
            "kind": plain(row.get("kind")).replace("_", " "),
            "prompt": shortened(plain(row.get("prompt")), TEXT_CHARACTERS),
            "reply": shortened(plain(row.get("reply")), TEXT_CHARACTERS),
            "ended": row.get("ended"),
        }
        for row in known[:EXAMPLES]
    ]
