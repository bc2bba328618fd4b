"""torchrun, with our settings: the process between the supervisor and the ranks.

`torchrun` is a command around torch.distributed.launcher. It finds a free port at which the ranks can meet,
tells each who it is, starts them, and watches. As soon as one ends badly it asks the others to stop
(SIGTERM), and kills those that are still there half a minute later. When torchrun itself is asked to stop,
it asks all of them, and we have it wait longer. All of that is torch's; here are the settings:

- a rank's stderr goes to a file, rank 0's to the console too, and only rank 0 writes to standard output;
- nothing is restarted within the job (max_restarts=0). On gloo a restarted group met the leftovers of the one
  before; so the whole job ends, torchrun with it, and the supervisor starts all of it anew;
- how each rank ended is written to a file for the supervisor.

A module of its own and a process of its own, because importing torch takes seconds and hundreds of megabytes,
which the supervisor, who waits for days, shall not hold.
"""

import json
import logging
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pilgrim.core import machine
from pilgrim.core.errors import PilgrimError, SettingsError
from pilgrim.core.files import read_json
from pilgrim.core.stages import TRAINED
from pilgrim.launch.lifeline import PARENT, die_with_parent
from pilgrim.launch.verdict import CRASHED, DONE, MEND, REPORT
from pilgrim.launch.worker import ERROR_FILE
from pilgrim.stages.recipe import Recipe, load_recipe

# What torch says on stderr of a rank that ended; the supervisor says it better.
TALKATIVE = ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api")
STOP_S = 60  # from a stop that was asked for to SIGKILL; a rank has saved its checkpoint by then, or hangs


class Logs(LogsSpecs):
    """Where the ranks' streams go: into one folder, as rank-N.stderr.txt, and rank 0's to the console too."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder

    @property
    def root_log_dir(self) -> str:
        return str(self.folder)

    def reify(self, envs: Mapping[int, dict[str, str]]) -> LogsDest:
        """Called by torch when the ranks are about to start; `envs` has each one's environment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ranks = {local: env["RANK"] for local, env in envs.items()}
        errors = {local: str(self.folder / f"rank-{rank}.error.json") for local, rank in ranks.items()}
        for local, file in errors.items():
            envs[local][ERROR_FILE] = file
        stderrs = {local: str(self.folder / f"rank-{rank}.stderr.txt") for local, rank in ranks.items()}
        return LogsDest(
            stdouts={local: "" if rank == "0" else os.devnull for local, rank in ranks.items()},
            stderrs=stderrs,
            tee_stdouts={},
            tee_stderrs={local: stderrs[local] for local, rank in ranks.items() if rank == "0"},
            error_files=errors,
        )


def refuse_more_than_rows(recipe: Recipe, processes: int) -> None:
    """Raises SettingsError if a step of some stage has not a row for each process."""
    for stage in TRAINED:
        settings = recipe.training(stage)
        if settings is None:
            continue
        assert settings.rows is not None
        rows = min([settings.rows, *(few for _, few in (settings.grow and settings.grow.rows) or ())])
        if rows < processes:
            raise SettingsError(
                f"--processes {processes}: a step of {stage} has {rows} rows, and each process needs one; "
                f"write --processes {rows}, or {stage}.rows={processes}"
            )


def launch(processes: int, folder: Path, arguments: Sequence[str]) -> int:
    """Run `pilgrim *arguments` as `processes` ranks, with their logs in `folder`; returns an exit code.

    How ranks ended goes to `folder`/report.json, if one ended badly.
    """
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ[PARENT] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, machine.cores() // processes)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(STOP_S))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        role="",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        logs_specs=Logs(folder),
        log_line_prefix_template="${role_name}",  # that is, nothing before a line
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pilgrim", *arguments)
        return DONE
    except SignalException as asked:
        report = failed_in_stopping(folder)
        code = CRASHED if report else 128 + int(asked.sigval)
    except ChildFailedError as failed:
        report = [ended(rank, failure) for rank, failure in failed.failures.items()]
        code = CRASHED
    (folder / REPORT).write_text(json.dumps(report), encoding="utf-8")
    return code


def ended(rank: int, failure: ProcessFailure) -> dict[str, object]:
    """How one rank ended, as plain JSON; `verdict.read_endings` reads it."""
    file = Path(failure.error_file)
    told = read_json(file) if file.exists() else {}
    time = told.get("time", failure.timestamp)
    # Whoever was done, and just about to end, may have been killed with the others: its note counts.
    code = told.get("code", failure.exitcode)
    return {"rank": rank, "code": code, "error": told.get("message"), "time": time}


def failed_in_stopping(folder: Path) -> list[dict[str, object]]:
    """The ranks that were asked to stop and met an error instead, such as a full disk. torch doesn't tell."""
    found = []
    for file in sorted(folder.glob("rank-*.error.json")):
        told = read_json(file)
        found.append({key: told[key] for key in ("rank", "code", "time")} | {"error": told["message"]})
    return found


def main(processes: int, folder: Path, arguments: Sequence[str]) -> int:
    """What a person must mend is told once, here, rather than by every rank."""
    die_with_parent()
    _, recipe, *rest = arguments
    overrides = list(takewhile(lambda word: not word.startswith("--"), rest))
    try:
        refuse_more_than_rows(load_recipe(Path(recipe), overrides), processes)
        return launch(processes, folder, arguments)
    except PilgrimError as error:
        print(error, file=sys.stderr)
        return MEND


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
