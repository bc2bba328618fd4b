"""How low does the pocket pretraining get, and how long does it train? Several seeds, one table.

    python benchmarks/pocket.py                      three seeds of recipes/pocket.toml, pretraining only
    python benchmarks/pocket.py --seeds 5 pretrain.steps=300

Runs `pilgrim run recipes/pocket.toml --until pretrain` once for each seed (into runs/bench-pocket-SEED, or on
from there) and prints bits per byte on the bundled validation text, every document and byte counted, with the
seconds spent in training steps: forward, backward and update, the first step's compilation included.

What to compare with, from nanochat (July 2026) on the same text with two AVX-512-BF16 cores without AMX and
4.3 minutes: 1.126 with its own learning rates, 1.025 with four times higher ones.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 1 on")
    parser.add_argument("overrides", nargs="*", help="settings that differ from the recipe, as key=value")
    arguments = parser.parse_args()
    found = [pretrain(seed, arguments.overrides) for seed in range(1, arguments.seeds + 1)]
    print(f"{'seed':>4} {'bits per byte':>14} {'train minutes':>14} {'tokens/s':>9}")
    for seed, row in enumerate(found, start=1):
        print(f"{seed:>4} {row['bpb']:>14.4f} {row['train_s'] / 60:>14.2f} {row['tokens_per_s']:>9,.0f}")
    bpb = [row["bpb"] for row in found]
    spread = f", standard deviation {statistics.stdev(bpb):.4f}" if len(bpb) > 1 else ""
    print(f"mean of {len(bpb)} seeds: {statistics.mean(bpb):.4f} bits per byte{spread}")


def pretrain(seed: int, overrides: list[str]) -> dict[str, float]:
    """The summary of one seed's pretraining."""
    name = f"bench-pocket-{seed}"
    command = [sys.executable, "-m", "pilgrim", "run", str(ROOT / "recipes" / "pocket.toml")]
    subprocess.run(
        [*command, "--until", "pretrain", f"name={name}", f"seed={seed}", *overrides], check=True, cwd=ROOT
    )
    summary: dict[str, float] = json.loads((ROOT / "runs" / name / "pretrain" / "DONE.json").read_text())[
        "summary"
    ]
    return summary


if __name__ == "__main__":
    main()
