"""What reinforcement learning did: a few curves of its steps, and rollouts to be read.

A step's row of metrics.jsonl has what its round was like and how far the model has moved (train/rollouts.py,
train/policy.py); an evaluation's row has the share of held-out problems that were solved. The replies
themselves lie in `rollouts/`, a file for each round: of the first and the last one, the best and the worst
are shown.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pilgrim.core.runlog import read_rows
from pilgrim.lab.report_charts import CURVE_POINTS
from pilgrim.lab.report_curves import curve, is_number
from pilgrim.lab.report_figures import Figure, drawn_line
from pilgrim.lab.report_run import Row, Stage
from pilgrim.lab.report_text import number, plain, shortened

SHOWN = 3  # replies of either kind, of either round
CHARACTERS = 800  # of one


class Line(NamedTuple):
    """A curve: which rows, which key, how it is drawn."""

    label: str
    rows: str
    key: str
    kind: str


FIGURES: tuple[tuple[str, str, tuple[Line, ...]], ...] = (
    (
        "Reward",
        "mean of a round; share of held-out problems solved",
        (Line("reward", "metrics", "reward", "line"), Line("held out, solved", "evals", "solved", "dots")),
    ),
    ("Length", "tokens of a reply", (Line("drawn tokens", "metrics", "reply_tokens", "line"),)),
    (
        "Groups and endings",
        "shares of a round",
        (
            Line("groups all alike", "metrics", "groups_dropped", "line"),
            Line("replies cut off", "metrics", "cut_off", "line"),
        ),
    ),
    ("Entropy", "nats per token", (Line("entropy", "metrics", "entropy", "line"),)),
    (
        "Drift",
        "nats per token, from who wrote to who learns",
        (Line("mean |log ratio|", "metrics", "drift", "line"), Line("KL", "metrics", "drift_kl", "line")),
    ),
    ("Clipped", "share of tokens", (Line("clipped", "metrics", "clipped", "line"),)),
    ("Pull", "KL to the reference, nats per token", (Line("KL", "metrics", "kl", "line"),)),
)


def curves(stages: Sequence[Stage]) -> list[Figure]:
    """The figures of the stage rl; none without it."""
    trained = [stage for stage in stages if stage.trained]
    figures = []
    for place, (title, unit, lines) in enumerate(FIGURES):
        drawn, words = [], []
        for index, stage in enumerate(trained):
            if stage.name != "rl":
                continue
            for line in lines:
                rows: list[Row] = getattr(stage, line.rows)
                points = curve(rows, line.key, CURVE_POINTS).points
                if points:
                    drawn.append(drawn_line(index, line.label, line.kind, points))
                    words.append(f"{line.label} from {points[0][1]:.4g} to {points[-1][1]:.4g}")
        if drawn:
            figures.append(Figure(f"reward-{place}", title, unit, f"{title}: {'; '.join(words)}.", drawn))
    return figures


def to_read(run_folder: Path) -> list[dict[str, Any]]:
    """[{"when", "kind", "replies": [{"prompt", "reply", "reward", "ended"}]}] of the first and last round."""
    files = sorted((run_folder / "rl" / "rollouts").glob("step-*.jsonl"))
    found = []
    for file in dict.fromkeys([*files[:1], *files[-1:]]):
        rows = [row for row in read_rows(file) if is_number(row.get("reward"))]
        rows.sort(key=lambda row: -row["reward"])
        best, worst = rows[:SHOWN], rows[SHOWN:][-SHOWN:]
        for kind, some in (("best", best), ("worst", worst)):
            when = f"after {number(int(file.stem.removeprefix('step-')))} steps"
            found.append({"when": when, "kind": kind, "replies": [_shown(row) for row in some]})
    return [group for group in found if group["replies"]]


def _shown(row: Row) -> dict[str, Any]:
    return {
        "prompt": shortened(plain(row.get("prompt")), CHARACTERS),
        "reply": shortened(plain(row.get("reply")), CHARACTERS),
        "reward": number(row["reward"], 2),
        "ended": row.get("ended"),
    }
