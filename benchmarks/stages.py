"""What does each stage change, over several seeds? `python benchmarks/stages.py runs/one runs/two runs/three`

The runs are of one recipe with different seeds. Each is asked what `pilgrim eval RUN --stages` asks, unless
it was already (`--again` asks anew), and a Markdown table is printed: for each stage and measure the mean
over the seeds, its 95% interval, and the change since the stage before, paired by seed.

One run's intervals tell of the items that were asked. These tell of training: had the seeds been others, what
might have come out? With k runs the interval is mean ± t · s / √k, where s is the standard deviation over the
runs and t Student's for k - 1 degrees of freedom (4.30 for three runs: three are few). The change of a stage
is worked out in every run and then averaged, so what one seed has more than another from the start falls out.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pilgrim.core.console import Console
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import read_json
from pilgrim.stages.by_stage import FILE, SUITES, evaluate_stages, shown

# Student's t: 95% lie within ± this, for 1, 2, 3 … degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)


def mean_and_reach(values: Sequence[float]) -> tuple[float, float]:
    """The mean over runs, and how far its 95% interval reaches to both sides."""
    return fmean(values), T95[len(values) - 2] * stdev(values) / len(values) ** 0.5


def results_of(runs: Sequence[Path], suites: Sequence[str], items: int | None, again: bool) -> list[Any]:
    """Of each run, what its stages.json says. Raises PilgrimError if they were not asked the same."""
    found = []
    for run in runs:
        file = run / "evaluate" / FILE
        if again or not file.exists():
            Console().say(f"{run}:")
            evaluate_stages(run, suites, limit=items)
        found.append(read_json(file))
    for run, result in zip(runs, found, strict=True):
        if asked(result) != asked(found[0]):
            raise PilgrimError(
                f"{run} was asked other questions, or has other stages, than {runs[0]}; add --again"
            )
    return found


def asked(result: Mapping[str, Any]) -> list[Any]:
    """What two runs must have in common to be averaged."""
    sizes = [
        [m["name"], {stage: value["n"] for stage, value in m["values"].items()}] for m in result["measures"]
    ]
    return [result["stages"], sizes]


def table(results: Sequence[Mapping[str, Any]], main_only: bool) -> list[str]:
    """Markdown: a row for each measure and stage."""
    lines = [
        f"| measure | stage | mean of {len(results)} seeds | 95% interval | change since the stage before | "
        "95% interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for place, first in enumerate(results[0]["measures"]):
        if main_only and not first["main"]:
            continue
        measures = [result["measures"][place] for result in results]
        for stage in first["values"]:
            mean, reach = mean_and_reach([m["values"][stage]["value"] for m in measures])
            cells = [first["name"], stage, shown(mean, first["kind"]), around(mean, reach, first["kind"])]
            if stage in first["changes"]:
                mean, reach = mean_and_reach([m["changes"][stage]["difference"] for m in measures])
                sure = "**" if abs(mean) > reach > 0 else ""
                cells.append(f"{sure}{shown(mean, first['kind'], '+')}{sure}")
                cells.append(around(mean, reach, first["kind"], "+"))
            else:
                cells += ["–", "–"]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def around(mean: float, reach: float, kind: str, sign: str = "") -> str:
    """The interval. Runs that are all alike have none that could be known; a share ends at 0 and 1."""
    if reach == 0:
        return "all alike"
    low, high = mean - reach, mean + reach
    if kind == "share" and not sign:
        low, high = max(0.0, low), min(1.0, high)
    return f"{shown(low, kind, sign)} to {shown(high, kind, sign)}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, of one recipe and several seeds")
    parser.add_argument("--suite", choices=(*SUITES, "all"), default="all")
    parser.add_argument("--items", type=int, help="of each task this many; left out: all")
    parser.add_argument("--again", action="store_true", help="ask also those that were asked before")
    parser.add_argument("--main", action="store_true", help="leave out single sources and tasks")
    arguments = parser.parse_args()
    if not 2 <= len(arguments.runs) <= len(T95) + 1:
        sys.exit(f"{len(arguments.runs)} runs have no mean with an interval; give 2 to {len(T95) + 1}")
    suites = SUITES if arguments.suite == "all" else (arguments.suite,)
    try:
        results = results_of(arguments.runs, suites, arguments.items, arguments.again)
    except PilgrimError as error:
        sys.exit(str(error))
    print("\n".join(table(results, arguments.main)))
    print("\nBold: 0 lies outside of the interval.")


if __name__ == "__main__":
    main()
