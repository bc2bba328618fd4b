"""Kills runs, and compares what comes out with a run that nobody has disturbed.

    python benchmarks/kill.py                     300 kills, one process and two, into runs/kill
    python benchmarks/kill.py --kills 20          fewer
    python benchmarks/kill.py --table             what was found so far

A *walk* is a whole journey of a tiny model, started again and again. Each start but the last dies (SIGKILL:
no warning, no cleaning up) at a point that was drawn beforehand. Afterwards everything that a run is for
must be the same to the bit as in an undisturbed run of as many processes: every row of metrics (as
hexadecimal floats), every measure and sample, and the weights of each stage.

Some points are hard to hit from outside: in the middle of writing a file, or when it is written and not
renamed yet. So the victim springs the trap itself. Python tells an *audit hook* of every file that is
opened and every rename before it happens (PEP 578); ours counts them and kills its own process at the one
that was drawn, or a moment later. The code under test is the real one, and knows nothing of it.

When one rank of two is killed, the other is treated as torchrun would (asked to stop, killed if it does
not), or it is lost in the same moment, as with a machine. Two kinds go through the real `pilgrim run`: its
supervisor is killed, and must take everything with it; or what it has started is killed, and it must start
that again by itself.

Walks are numbered and seeded, and each leaves its result in results.jsonl. So the program may be stopped,
or started several times at once, and goes on with the walks that are left.
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

from pilgrim.core.console import Console
from pilgrim.core.files import read_jsonl_zst
from pilgrim.core.processes import Processes
from pilgrim.core.runlog import read_rows
from pilgrim.data.sources import ASSETS
from pilgrim.infer.load import load_model
from pilgrim.stages.journey import run_journey

ROOT = Path(__file__).parents[1]
STAGES = ("tokenizer", "shards", "pretrain", "midtrain", "sft", "evaluate")
TRAINED = ("pretrain", "midtrain", "sft")
INSIDE = ("random", "write", "rename", "evaluation")  # kinds for which the victim springs the trap itself
OUTSIDE = ("supervisor", "job")  # kinds that go through `pilgrim run`
PATIENCE_S = 60.0  # for who was asked to stop
WRITING = os.O_WRONLY | os.O_RDWR
PRELOAD = ["pilgrim.stages.sft", "pilgrim.stages.evaluate", "pilgrim.lab.report"]

RECIPE = ROOT / "recipes/pocket.toml"
DOCUMENTS = {  # setting of [data] -> bundled file, and how many of its documents
    "train": ("text/train.jsonl.zst", 100),
    "val": ("text/val.jsonl.zst", 3),
    "conversations": ("conversations/train.jsonl.zst", 40),
    "conversations_val": ("conversations/heldout.jsonl.zst", 3),
}
TINY = [
    "name=tiny",
    "runtime.compile=off",
    "runtime.threads=1",
    "tokenizer.vocab_size=512",
    "model.depth=2",
    "model.width=32",
    "model.context=128",
    *(f"{stage}.{key}" for stage in TRAINED for key in ("rows=4", "warmup=1", "checkpoint_every=4")),
    *("pretrain.steps=16", "midtrain.steps=8", "sft.steps=8"),
    *("pretrain.eval_every=8", "midtrain.eval_every=8", "sft.eval_every=4"),
    *("eval.sample_tokens=4", "eval.reply_tokens=2"),
]


def tiny(folder: Path) -> list[str]:
    """Settings that make the pocket recipe a matter of seconds, and the little text that it then reads."""
    settings = [*TINY]
    for name, (asset, count) in DOCUMENTS.items():
        rows = [row for _, row in islice(read_jsonl_zst(ASSETS / asset), count)]
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings.append(f"data.{name}={json.dumps([str(file)])}")
    return settings


@dataclass(frozen=True)
class Kill:
    """Where one start of a walk dies: at the `nth` event of its kind in a stage, or `delay_s` later."""

    kind: str
    stage: str
    nth: int
    delay_s: float
    victim: int = 0  # the rank
    together: bool = False  # the other ranks die in the same moment


def plan(seed: int, processes: int, outside: str | None = None) -> list[Kill]:
    """The kills of one walk, in the order of the stages."""
    dice = random.Random(f"{seed}/{processes}")
    stages = ["tokenizer", "shards", "pretrain", "pretrain", "midtrain", "sft", "evaluate"]
    kills = [_draw(dice, stage, processes) for stage in stages]
    if outside:  # in a trained stage; who starts the job again by itself walks on to the end
        stage = dice.choice(TRAINED)
        kills = [kill for kill in kills if STAGES.index(kill.stage) <= STAGES.index(stage)]
        kills.append(Kill(outside, stage, dice.randint(1, 6), dice.uniform(0, 0.1)))
    return kills


def _draw(dice: random.Random, stage: str, processes: int) -> Kill:
    kind = dice.choice(INSIDE if stage in TRAINED else INSIDE[:3])
    nth = {"random": 1, "write": 10, "rename": 4, "evaluation": 4}[kind]
    if stage in TRAINED and kind == "random":
        nth = 6  # rows of metrics
    if stage not in TRAINED:
        nth = min(nth, 2)
    longest_s = {"random": 0.05, "write": 0.002, "rename": 0.0, "evaluation": 0.005}[kind]
    # Rank 0 writes most files, so the trap of another would hardly ever spring but on its own: checkpoints.
    victim = dice.randrange(processes) if kind == "write" and stage in TRAINED else 0
    nth = 1 if victim else dice.randint(1, nth)
    return Kill(kind, stage, nth, dice.uniform(0, longest_s), victim, dice.random() < 0.5)


# In the victim ------------------------------------------------------------------------------------


def set_trap(kill: Kill, run: Path) -> None:
    """From now on this process dies at the point that was drawn."""
    left = kill.nth

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if left > 0 and _is_the_place(kill, run, event, arguments):
            left -= 1
            if left == 0 and kill.delay_s:
                threading.Thread(target=_die, args=(kill.delay_s,), daemon=True).start()
            elif left == 0:
                _die(0.0)

    sys.addaudithook(hook)


def _is_the_place(kill: Kill, run: Path, event: str, arguments: tuple[object, ...]) -> bool:
    folder = str(run / kill.stage)
    if event == "os.rename":
        return kill.kind == "rename" and str(arguments[1]).startswith(folder)
    if event == "os.mkdir" and kill.stage not in TRAINED:
        return kill.kind == "random" and str(arguments[0]) == folder
    if event != "open" or not isinstance(arguments[2], int) or not arguments[2] & WRITING:
        return False
    path = str(arguments[0])
    match kill.kind:
        case "write":
            return path.startswith(folder)
        case "random":
            return path == f"{folder}/metrics.jsonl"
        case "evaluation":
            return path == f"{folder}/samples.jsonl"
        case _:
            return False


def _die(delay_s: float) -> None:
    time.sleep(delay_s)
    os.kill(os.getpid(), signal.SIGKILL)


def rank(me: Processes, port: int, recipe: Path, overrides: list[str], runs: Path, kill: Kill | None) -> None:
    """One process of a walk."""
    os.environ |= {"RANK": str(me.rank), "WORLD_SIZE": str(me.count), "LOCAL_RANK": str(me.local_rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with (runs / f"rank-{me.rank}.txt").open("a") as file:  # what it says in dying
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if kill and kill.victim == me.rank:
        set_trap(kill, runs / "tiny")
    run_journey(recipe, overrides, runs=runs, console=Console(quiet=True))


# One start ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Killer:
    """How walks are started: the recipe, and where processes come from."""

    context: ForkServerContext
    recipe: Path
    overrides: list[str]

    def start(self, runs: Path, processes: int, kill: Kill | None) -> bool:
        """Start the walk once; whether the trap has sprung. Otherwise the walk is done.

        Raises RuntimeError if it ended in any other way.
        """
        if kill and kill.kind in OUTSIDE:
            return self.start_supervised(runs, processes, kill)
        port = free_port()
        jobs = [
            self.context.Process(
                target=rank, args=(Processes(n, processes, n), port, self.recipe, self.overrides, runs, kill)
            )
            for n in range(processes)
        ]
        for job in jobs:
            job.start()
        wait([job.sentinel for job in jobs])
        if kill and kill.together and any(job.exitcode for job in jobs):
            for job in jobs:
                job.kill()
        elif any(job.exitcode for job in jobs):
            for job in jobs:
                job.terminate()
        for job in jobs:
            job.join(PATIENCE_S)
            job.kill()
            job.join()
        codes = [job.exitcode for job in jobs]
        if not any(codes):
            return False
        if kill is None or codes[kill.victim] != -signal.SIGKILL:
            told = "".join(file.read_text() for file in runs.glob("rank-*.txt"))
            raise RuntimeError(f"{runs}: a start for {kill} ended with {codes}\n{told[-5000:]}")
        return True

    def start_supervised(self, runs: Path, processes: int, kill: Kill) -> bool:
        """The same through `pilgrim run`, killed from outside."""
        command = [sys.executable, "-m", "pilgrim", "run", str(self.recipe), *self.overrides]
        command += ["--processes", str(processes)]
        metrics = runs / "tiny" / kill.stage / "metrics.jsonl"
        with (runs / "supervisor.txt").open("a") as file:
            process = subprocess.Popen(
                command,
                cwd=runs.parent,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=file,
            )
            while process.poll() is None and not _has_rows(metrics, kill.nth):
                time.sleep(0.005)
            time.sleep(kill.delay_s)
            if kill.kind == "supervisor":
                process.kill()
            else:
                for child in children(process.pid):
                    os.kill(child, signal.SIGKILL)
            code = process.wait(300)
        if kill.kind == "supervisor" and code == -signal.SIGKILL:
            wait_for_lock(runs / "tiny" / ".lock")
            return True
        if code != 0:
            raise RuntimeError(f"{runs}: {kill} ended with {code}\n{(runs / 'supervisor.txt').read_text()}")
        events = read_rows(runs / "tiny" / "events.jsonl")
        return any(row["kind"] == "crashed" for row in events)


def _has_rows(file: Path, n: int) -> bool:
    return file.exists() and file.read_bytes().count(b"\n") >= n


def children(pid: int) -> list[int]:
    """The processes that this one has started. Linux tells."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_for_lock(file: Path) -> None:
    """Returns when nobody holds it: who was killed is gone."""
    with file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


# One walk -----------------------------------------------------------------------------------------


def walk(killer: Killer, runs: Path, processes: int, kills: Sequence[Kill]) -> list[Kill]:
    """Walk to the end through all the kills; returns those that struck."""
    struck = []
    runs.mkdir(parents=True)
    for kill in kills:
        sprung = killer.start(runs, processes, kill)
        struck += [kill] if sprung else []
        if not sprung or kill.kind == "job":
            break
    killer.start(runs, processes, None)  # says nothing but "done before" if it is
    return struck


def essence(run: Path) -> dict[str, str]:
    """What must be the same to the bit, as one hash for each kind of thing."""
    found = {}
    for stage in TRAINED:
        folder = run / stage
        for name in ("metrics", "evals", "samples"):
            rows = [[_exact(value) for value in row.values()] for row in read_rows(folder / f"{name}.jsonl")]
            found[f"{stage}/{name}"] = _hash(json.dumps(rows).encode())
        weights = load_model(folder, on_damage=_refuse).weights()
        data = b"".join(name.encode() + weights[name].numpy().tobytes() for name in sorted(weights))
        found[f"{stage}/weights"] = _hash(data)
    return found


def _exact(value: object) -> object:
    return value.hex() if isinstance(value, float) else value


def _hash(data: bytes) -> str:
    return sha256(data).hexdigest()


def _refuse(sentence: str) -> None:
    raise RuntimeError(f"a damaged checkpoint was left behind: {sentence}")


# Many walks ---------------------------------------------------------------------------------------


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Whether this program, and no other one, is at work on it."""
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def campaign(killer: Killer, folder: Path, seed: int, wanted: int) -> None:
    """Walk until `wanted` kills have struck, half of the walks with two processes."""
    number = 0
    while struck_so_far(folder) < wanted:
        one_walk(killer, folder, seed, number)
        number += 1


def one_walk(killer: Killer, folder: Path, seed: int, number: int) -> None:
    """Do walk `number`, unless it is done or somebody else is at it, and note its result."""
    processes = 1 + number % 2
    outside = OUTSIDE[number // 2 % 5 % 2] if number // 2 % 5 < 2 else None  # in two walks of five
    with claimed(folder / f"walk-{number:03d}.lock") as ours:
        if not ours or any(row["walk"] == number for row in read_rows(folder / "results.jsonl")):
            return
        reference = undisturbed(killer, folder, processes)
        runs = folder / f"walk-{number:03d}" / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        struck = walk(killer, runs, processes, plan(seed + number, processes, outside))
        found = essence(runs / "tiny")
        differs = sorted(name for name in reference if found[name] != reference[name])
        row = {"walk": number, "processes": processes, "differs": differs}
        line = json.dumps(row | {"kills": [asdict(kill) for kill in struck]})
        with (folder / "results.jsonl").open("a") as file:
            file.write(line + "\n")
        print(f"walk {number}, {processes} processes: {len(struck)} kills, differs: {differs or 'nothing'}")
        if not differs:
            shutil.rmtree(runs.parent)


def undisturbed(killer: Killer, folder: Path, processes: int) -> dict[str, str]:
    """The essence of a run that nobody kills; made once."""
    file = folder / f"undisturbed-{processes}.json"
    with (folder / f"undisturbed-{processes}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            runs = folder / f"undisturbed-{processes}" / "runs"
            shutil.rmtree(runs, ignore_errors=True)
            runs.mkdir(parents=True)
            killer.start(runs, processes, None)
            file.write_text(json.dumps(essence(runs / "tiny")))
    reference: dict[str, str] = json.loads(file.read_text())
    return reference


def struck_so_far(folder: Path) -> int:
    return sum(len(row["kills"]) for row in read_rows(folder / "results.jsonl"))


def table(folder: Path) -> str:
    """Kills by kind and stage, as Markdown, and what differed."""
    rows = read_rows(folder / "results.jsonl")
    kills = [(row["processes"], kill["kind"], kill["stage"]) for row in rows for kill in row["kills"]]
    lines = ["| processes | kind | " + " | ".join(STAGES) + " | all |", "| --- " * (3 + len(STAGES)) + "|"]
    for processes in (1, 2):
        for kind in (*INSIDE, *OUTSIDE):
            count = Counter(stage for p, k, stage in kills if (p, k) == (processes, kind))
            cells = [str(count[stage] or "") for stage in STAGES]
            lines.append(f"| {processes} | {kind} | " + " | ".join(cells) + f" | {count.total()} |")
    differing = sum(bool(row["differs"]) for row in rows)
    return "\n".join(
        [*lines, "", f"{len(kills)} kills in {len(rows)} walks; {differing} walks ended differently"]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=300, help="how many must have struck in the end")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/kill"))
    parser.add_argument("--table", action="store_true", help="only show what was found so far")
    given = parser.parse_args()
    if not given.table:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        folder = given.folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        campaign(Killer(context, RECIPE, tiny(folder)), folder, given.seed, given.kills)
    print(table(given.folder))
    sys.exit(any(row["differs"] for row in read_rows(given.folder / "results.jsonl")))


if __name__ == "__main__":
    main()
