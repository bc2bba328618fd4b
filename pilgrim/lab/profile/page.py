"""The page of a profile: index.html, one file that needs no network, for someone who wants to learn from
it.

It tells the story from the whole to its parts. One sentence and the three best fixes; the waterfall;
phases; the kernels with their roofline; layers; memory; what the compiler did; and how to look at the raw
recording. Every technical word is a button that opens its entry of the glossary, which is in the page, too.
It shares its style, its head and its safety (self_contained.py) with the report of a run.

Here the findings are turned into rows for the template, report_assets/profile.html.jinja; where things lie
in drawings is the business of pictures.py.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from pilgrim.core.files import write_atomic
from pilgrim.lab import report_origin as origin
from pilgrim.lab.profile import pictures, words
from pilgrim.lab.profile.console_summary import summary
from pilgrim.lab.profile.findings import Findings, Fix, Kernel, Layer, Memory
from pilgrim.lab.profile.glossary import CHAPTERS
from pilgrim.lab.profile.terms import find, identifier
from pilgrim.lab.report_run import read_object
from pilgrim.lab.report_text import number, percent, plain, shortened
from pilgrim.lab.self_contained import page

__all__ = ["render", "summary", "write_page"]

KERNELS = 24  # rows of the table
DOTS = 16  # kernels in the roofline
LAYERS = 60
NAME_CHARACTERS = 240  # of a kernel's name: templates of C++ can fill a screen
FIXES = 3
SOURCE = Path(__file__).resolve().parents[3]  # where docs/ lies, if this is a checkout

# A kind of memory, how it is called, and its entry in the glossary ("" if it has none).
KINDS = (
    ("parameters", "parameters", "parameters"),
    ("gradients", "gradients", "gradients"),
    ("optimizer", "optimizer state", "optimizer state"),
    ("activations", "activations", "activations"),
    ("other", "other", ""),
    ("fragmentation", "fragmentation", "fragmentation"),
)


def write_page(findings: Findings, folder: Path) -> Path:
    """Write `folder`/index.html and return its path. Raises a PilgrimError if it can't be written."""
    file = folder / "index.html"
    write_atomic(file, render(findings, folder))
    return file


def render(findings: Findings, folder: Path) -> str:
    """The page's HTML. `folder` is where it will lie: beside the trace, and from there links lead."""
    values: dict[str, Any] = {
        "f": findings,
        "sentence": words.sentence(findings),
        "cards": cards(findings),
        "fixes": [fix(advice, findings.step_s, folder) for advice in findings.fixes[:FIXES]],
        "stairs": [stair(step, findings) for step in words.stairs(findings)],
        "disagreement": words.disagreement(findings),
        "phases": phases(findings),
        "roof": pictures.roofline(findings, DOTS),
        "kernels": [kernel(k, findings) for k in findings.kernels[:KERNELS]],
        "layers": layers(findings.layers[:LAYERS]),
        "kinds": kinds(findings.memory),
        "held": held(findings.memory),
        "curve": pictures.memory_curve(findings.memory),
        "curve_height": pictures.CURVE,
        "files": [(plain(what), plain(name), link(name)) for what, name in findings.files.items()],
        "provenance": origin.facts(read_object(folder / "provenance.json")),
        "chapters": [(chapter.title, chapter.terms) for chapter in CHAPTERS],
        "left_out": left_out(findings),
    }
    filters: dict[str, Callable[..., Any]] = {
        "seconds": words.seconds,
        "flops": words.flops,
        "rate": words.rate,
        "size": words.size,
        "share": words.share,
        "identifier": identifier,
        "find": find,
        "coded": coded,
    }
    styles, scripts = ["report.css", "profile.css"], ["theme.js", "profile.js"]
    return page("profile.html.jinja", values, styles, scripts, filters)


def cards(f: Findings) -> list[tuple[str, str, str]]:
    """The four figures on top: what, how much, and beside what to see it."""
    low, high = min(f.step_s_each, default=f.step_s), max(f.step_s_each, default=f.step_s)
    of_spec = f"; {words.share(f.mfu_spec)} of the maker's figure" if f.mfu_spec is not None else ""
    return [
        (
            "A step",
            words.seconds(f.step_s),
            f"{f.steps} steps, {words.seconds(low)} to {words.seconds(high)}",
        ),
        ("Of the measured peak", words.share(f.mfu), f"{words.flops(f.peak_flops)} in {f.dtype}{of_spec}"),
        (
            "Tokens a second",
            number(words.per_second(float(f.tokens), f.step_s)),
            f"{number(f.tokens)} a step",
        ),
        ("Memory at the peak", words.size(held(f.memory)), f"of {words.size(f.memory.capacity)}"),
    ]


def fix(advice: Fix, step_s: float, folder: Path) -> dict[str, Any]:
    """A piece of advice, with the step time that it predicts and a way to its document."""
    setting = " ".join(f"{key}={value}" for key, value in words.settings_of(advice).items())
    return {
        "title": plain(advice.title),
        "why": plain(advice.why),
        "setting": setting,  # what can be copied
        "rest": plain(advice.setting.removeprefix(setting).strip(", ")),
        "gain": advice.gain,
        "after_s": step_s * (1 - advice.gain),
        "docs": plain(advice.docs),
        "href": document(advice.docs, folder),
    }


def document(docs: str, folder: Path) -> str | None:
    """The way from the page to a document of this checkout; None where there is none (an installed wheel)."""
    path, _, anchor = docs.partition("#")
    file = SOURCE / path
    if not path.startswith("docs/") or not file.is_file():
        return None
    way = quote(os.path.relpath(file, folder.resolve()))
    return f"{way}#{quote(anchor)}" if anchor else way


def link(name: str) -> str | None:
    """A file beside the page as a link; None for anything that is no plain name."""
    return f"./{quote(name)}" if Path(name).name == name else None


def stair(step: words.Stair, f: Findings) -> dict[str, Any]:
    """A row of the waterfall: its bar in percent of the width, and its words."""
    largest = words.largest_loss(f)
    tone = "good" if step.name == "achieved" else "worst" if largest and largest.name == step.name else "loss"
    low, high = sorted((min(max(step.bottom, 0.0), 1.0), min(max(step.top, 0.0), 1.0)))
    if step.name == "achieved":
        low, high = 0.0, max(step.top, 0.0)
    return {
        "title": plain(step.title),
        "term": "MFU" if step.name == "achieved" else step.title,
        "short": step.short,
        "tone": tone if step.share > 0 else "none",
        "x": 100 * low,
        "width": 100 * (high - low),
        "percent": f"{100 * step.share:.1f}%",
        "seconds": words.seconds(step.share * f.step_s),
    }


def phases(f: Findings) -> list[dict[str, Any]]:
    """The bar of phases: place and width in percent, time, share."""
    timed = [(phase.name, phase.seconds) for phase in f.phases]
    whole = sum(seconds for _, seconds in timed)
    seconds_of = dict(timed)
    return [
        {
            "name": plain(part.name),
            "x": part.x,
            "width": part.width,
            "seconds": seconds_of[part.name],
            "share": seconds_of[part.name] / whole,
        }
        for part in pictures.bar(timed)
    ]


def kernel(k: Kernel, f: Findings) -> dict[str, Any]:
    """A row of the table. Speeds are None where operations or bytes aren't known."""
    speed, moved = words.per_second(k.flops or None, k.seconds), words.per_second(k.bytes, k.seconds)
    return {
        "name": shortened(plain(k.name), NAME_CHARACTERS),
        "meaning": plain(k.meaning),
        "source": plain(k.source) if k.source else "",
        "seconds": k.seconds,
        "share": f.share_of(k),
        "launches": words.count(k.launches),
        "flops": speed,
        "of_peak": speed / f.peak_flops if speed is not None and f.peak_flops > 0 else None,
        "bytes": moved,
        "of_copy": moved / f.copy_bytes_per_s if moved is not None and f.copy_bytes_per_s > 0 else None,
        "bound": plain(k.bound),
    }


def layers(found: tuple[Layer, ...]) -> list[dict[str, Any]]:
    """Bars of forward and backward, in percent of the longest layer."""
    longest = max((layer.forward_s + (layer.backward_s or 0.0) for layer in found), default=0.0)
    return [
        {
            "name": plain(layer.name),
            "forward_s": layer.forward_s,
            "backward_s": layer.backward_s,
            "parts": pictures.bar(
                [("forward", layer.forward_s), ("backward", layer.backward_s or 0.0)], longest
            ),
        }
        for layer in found
    ]


def kinds(memory: Memory) -> list[dict[str, Any]]:
    """The bar of memory at the step's peak. What isn't known has no bytes (None) and no piece in the bar."""
    amounts = {name: getattr(memory, name) for name, _, _ in KINDS}
    parts = {part.name: part for part in pictures.bar([(name, float(n or 0)) for name, n in amounts.items()])}
    return [
        {"name": name, "title": title, "term": term, "bytes": amounts[name], "part": parts.get(name)}
        for name, title, term in KINDS
    ]


def held(memory: Memory) -> int:
    """Bytes that tensors hold at the step's peak."""
    return memory.parameters + memory.gradients + memory.optimizer + memory.activations + memory.other


def coded(text: str) -> Markup:
    """Text with what stands `between backticks` set as code."""
    pieces = enumerate(text.split("`"))
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else p for n, p in pieces)


def left_out(f: Findings) -> list[str]:
    """Sentences about what the page doesn't show."""
    notes = []
    rest = f.kernels[KERNELS:]
    if rest and f.step_s > 0:
        lost = percent(sum(k.seconds for k in rest) / f.step_s)
        notes.append(f"{number(len(rest))} more kinds of kernels, {lost} of the step, are in profile.json.")
    if len(f.layers) > LAYERS:
        notes.append(f"The first {LAYERS} of {number(len(f.layers))} layers are shown.")
    return notes
