"""A run's folder as one page: report.html, which needs no network and no other file.

The page is read from what the stages left behind, never from the stages themselves: JSONL rows,
DONE.json, what the evaluations found, the recipe and the provenance. A stage that does not exist yet, a
value that was not measured and a last line torn by a kill are all normal; they appear as a dash.

    read      each stage's folder becomes a `Stage`
    reduce    rows become curves of at most CURVE_POINTS points and samples become reels of a few dozen
              frames, so that the page stays under 3 MB however long the run was; it says what it left out
    render    Jinja2 fills report_assets/report.html.jinja; style and scripts are put inside

What a model says is untrusted; self_contained.py tells of the walls between it and the reader's browser.
"""

from pathlib import Path
from typing import Any

from jinja2.utils import htmlsafe_json_dumps

from pilgrim.core.files import write_atomic
from pilgrim.lab import report_accuracy as accuracy
from pilgrim.lab import report_charts as charts
from pilgrim.lab import report_core
from pilgrim.lab import report_faults as faults
from pilgrim.lab import report_mixture as mixture
from pilgrim.lab import report_origin as origin
from pilgrim.lab import report_rewards as rewards
from pilgrim.lab import report_sections as sections
from pilgrim.lab.report_answers import chat_answers
from pilgrim.lab.report_run import all_done, mapping, read_object, read_recipe, read_stages, total_seconds
from pilgrim.lab.report_stages import stage_changes
from pilgrim.lab.report_text import highlight_toml, moment, plain, shortened
from pilgrim.lab.self_contained import page

RECIPE_CHARACTERS = 40_000


def write_report(run_folder: Path) -> Path:
    """Write `run_folder`/report.html from whatever the run has left so far, and return its path.

    Raises a PilgrimError if a file is damaged (other than by a torn last line) or can't be written.
    """
    report = run_folder / "report.html"
    write_atomic(report, render(run_folder))
    return report


def render(run_folder: Path) -> str:
    """The page's HTML."""
    recipe = read_recipe(run_folder)
    stages = read_stages(run_folder, recipe)
    result = read_object(run_folder / "evaluate" / "result.json")
    provenance = read_object(run_folder / "provenance.json")
    recipe_text = (run_folder / "recipe.toml").read_text(encoding="utf-8") if recipe is not None else ""
    questions = mapping(mapping(recipe).get("eval")).get("questions", [])
    notes: list[str] = []  # what the page leaves out, in sentences
    core = read_object(run_folder / "evaluate" / "core.json")
    payload = charts.payload(stages, notes)
    task_charts, drawn = accuracy.watched(stages, notes)
    source_charts, more_drawn = mixture.by_source(stages, notes)
    reward_charts, rewards_drawn = rewards.curves(stages)
    payload["charts"] += drawn + more_drawn + rewards_drawn
    values: dict[str, Any] = {
        "name": plain(run_folder.resolve().name),
        "when": moment(provenance.get("time")),
        "machine": sections.machine(mapping(provenance.get("hardware"))),
        "complete": all_done(stages),
        "cards": sections.headline(stages, result),
        "total_s": total_seconds(stages),
        "strip": sections.strip(stages),
        "stations": sections.stations(stages),
        "charts": [(chart, charts.in_words(chart, stages)) for chart in charts.charts_of(stages)],
        "faults": faults.told(stages),
        "arrivals": sections.arrivals(stages),
        "task_charts": task_charts,
        "source_charts": source_charts,
        "reward_charts": reward_charts,
        "rollouts": rewards.to_read(run_folder),
        "read_of_each": mixture.read_of_each(stages),
        "payload": htmlsafe_json_dumps(payload, allow_nan=False, separators=(",", ":")),
        "reels": sections.reels(stages, questions, notes),
        "compression": sections.compression(mapping(result.get("bpb"))),
        "behaviours": sections.behaviours(mapping(result.get("behaviour"))),
        "sources": sections.sources(mapping(result.get("bpb"))),
        "texts": sections.texts(read_object(run_folder / "evaluate" / "text.json")),
        "known_answers": report_core.known_answers(core),
        "to_read": report_core.to_read(core, notes),
        "chat_answers": chat_answers(run_folder / "evaluate", notes),
        "stage_changes": stage_changes(read_object(run_folder / "evaluate" / "stages.json")),
        "examples": sections.examples(result.get("examples"), notes),
        "recipe": highlight_toml(shortened(recipe_text, RECIPE_CHARACTERS)),
        "provenance": origin.facts(provenance),
        "events": origin.events(stages, notes),
        "notes": notes,
    }
    return page("report.html.jinja", values, ["report.css"], ["theme.js", "chart.js", "report.js"])
