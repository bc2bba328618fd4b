"""All that only a GPU can check, as one command that leaves a folder: `make gpu-check`.

    python benchmarks/gpu_check.py                   everything, one to two hours on a large card
    python benchmarks/gpu_check.py doctor tests      only these

Each check is a command whose output goes to a file of its own in runs/gpu-check; one that fails stops none of
the others. summary.txt says how each one ended and how long it took. The folder is what a report about a
new machine should hold.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path("runs/gpu-check")
PYTHON = sys.executable
STEP = [PYTHON, "benchmarks/train_step.py"]
PILGRIM = [PYTHON, "-m", "pilgrim"]
BUNDLED = [  # instead of the text that the recipes d12 and d20 want: enough for some steps
    'data.train=["assets:text/train.jsonl.zst"]',
    "data.val_share=0.02",
    'data.conversations=["assets:conversations/train.jsonl.zst"]',
    'data.conversations_val=["assets:conversations/heldout.jsonl.zst"]',
    "pretrain.steps=60",
    "pretrain.eval_every=30",
]

CHECKS = {
    "nvidia-smi": ["nvidia-smi"],
    "doctor": [*PILGRIM, "doctor"],
    "tests": [PYTHON, "-m", "pytest", "-m", "gpu", "-rA"],
    "step-d4": [*STEP, "--preset", "d4"],
    "step-d12": [*STEP, "--preset", "d12"],
    "step-d12-switches": [*STEP, "--preset", "d12", "--switches"],
    "step-d20": [*STEP, "--preset", "d20"],
    "step-d20-switches": [*STEP, "--preset", "d20", "--switches"],
    "checkpoint": [PYTHON, "benchmarks/checkpoint.py", "d12", "d20"],
    "resume": [PYTHON, "benchmarks/bitwise_resume.py", "recipes/pocket.toml"],
    "run-pocket": [*PILGRIM, "run", "recipes/pocket.toml", "name=gpu-check-pocket"],
    "run-d12": [
        *[*PILGRIM, "run", "recipes/d12.toml", "--until", "pretrain"],
        *["name=gpu-check-d12", "tokenizer.vocab_size=8192", *BUNDLED],
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(CHECKS)}; left out: all of them"
    )
    names = parser.parse_args().names or list(CHECKS)
    if unknown := [name for name in names if name not in CHECKS]:
        parser.error(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    (ROOT / FOLDER).mkdir(parents=True, exist_ok=True)
    lines = [checked(name, CHECKS[name]) for name in names]
    (ROOT / FOLDER / "summary.txt").write_text("".join(f"{line}\n" for line in lines))
    print(f"all of it is in {FOLDER}/")
    sys.exit(any(" ok " not in line for line in lines))


def checked(name: str, command: list[str]) -> str:
    """Run one check, its output into its file; the line for the summary."""
    file = FOLDER / f"{name}.txt"
    began = time.perf_counter()
    with (ROOT / file).open("w") as out:
        try:
            ended = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode
        except FileNotFoundError:
            out.write(f"{command[0]} is not installed\n")
            ended = 127
    how = "ok" if ended == 0 else f"failed ({ended})"
    line = f"{name:<18} {how} {time.perf_counter() - began:>8.0f} s  {file}"
    print(line, flush=True)
    return line


if __name__ == "__main__":
    main()
