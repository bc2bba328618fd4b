"""Does a run that was killed end in the same bits as one that was left alone, on this machine?

    python benchmarks/bitwise_resume.py recipes/pocket.toml

Pretrains the recipe for STEPS steps with `runtime.deterministic = true`, twice: once undisturbed, and once
killed (SIGKILL) in the middle and started again. Says whether `metrics.jsonl` and the tensors of the last
checkpoint are the same, byte by byte, and ends with 1 if they are not. On a CPU that needs no setting.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

STEPS, KILLED_AFTER = 60, 25  # the kill comes some steps after a checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    whole, killed = Path("runs/bitwise-whole"), Path("runs/bitwise-killed")
    for run in (whole, killed):
        if run.exists():
            parser.error(f"{run} exists; remove it")
    finish(command(given.recipe, whole.name, given.overrides))
    kill(command(given.recipe, killed.name, given.overrides), killed / "pretrain" / "metrics.jsonl")
    finish(command(given.recipe, killed.name, given.overrides))
    different = compare(whole / "pretrain", killed / "pretrain")
    print(f"different: {', '.join(different)}" if different else f"the same bits after {STEPS} steps")
    sys.exit(bool(different))


def command(recipe: Path, name: str, overrides: list[str]) -> list[str]:
    settings = ["runtime.deterministic=true", f"pretrain.steps={STEPS}", f"pretrain.eval_every={STEPS // 2}"]
    settings += ["pretrain.checkpoint_every=10", "pretrain.warmup=5", *overrides, f"name={name}"]
    pilgrim = [sys.executable, "-m", "pilgrim", "run"]
    return [*pilgrim, str(recipe), "--until", "pretrain", *settings]


def finish(command: list[str]) -> None:
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def kill(command: list[str], metrics: Path) -> None:
    """Start it, and kill it once it has made some steps."""
    print(" ".join(command), flush=True)
    process = subprocess.Popen(command)
    while process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= KILLED_AFTER:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.02)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit(f"the run ended before it could be killed ({process.returncode})")


def compare(a: Path, b: Path) -> list[str]:
    """The files that differ, or are in one of them only."""
    last = f"checkpoints/step_{STEPS:06d}"
    names = {Path("metrics.jsonl"), Path("evals.jsonl")}
    names |= {path.relative_to(stage) for stage in (a, b) for path in (stage / last).glob("*.safetensors")}
    return [str(name) for name in sorted(names) if contents(a / name) != contents(b / name)]


def contents(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


if __name__ == "__main__":
    main()
