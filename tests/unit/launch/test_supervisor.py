"""The supervisor, with jobs of a line or two in place of a walk: what it starts again, and what not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pilgrim.core.runlog import read_rows
from pilgrim.launch import supervisor
from pilgrim.launch.supervisor import Job, Tries, progress, supervise

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, with a package `pilgrim` beside it whose `python -m pilgrim` executes its argument."""
    (tmp_path / "pilgrim").mkdir()
    (tmp_path / "pilgrim" / "__init__.py").touch()
    (tmp_path / "pilgrim" / "__main__.py").write_text("import sys; exec(sys.argv[1])")
    monkeypatch.chdir(tmp_path)  # `-m` looks here first
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.0)
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    return folder


def supervised(run: Path, job: str, tries: int = 3) -> tuple[int, list[str]]:
    told: list[str] = []
    return supervise(Job([job], 1, run), tries, told.append), told


COUNT = "open('count', 'a').write('x'); n = len(open('count').read());"
STEP = "d = Path('runs/x/pretrain/checkpoints'); d.mkdir(parents=True, exist_ok=True);"
SAVE = "from pathlib import Path;" + STEP + "(d / 'LATEST').write_text(f'step_{n:06d}');"


def attempts() -> int:
    return len(Path("count").read_text())


@pytest.mark.parametrize("code", [0, 2, 130, 143])
def test_these_endings_are_final(run: Path, code: int) -> None:
    assert supervised(run, f"{COUNT} sys.exit({code})") == (code, [])
    assert attempts() == 1
    assert not (run / "events.jsonl").exists()


def test_a_crash_is_followed_by_another_try(run: Path) -> None:
    code, told = supervised(run, f"{COUNT} sys.exit(0 if n == 3 else 7)")
    assert (code, attempts()) == (0, 3)
    ended = "the run ended with exit code 7"
    assert told == [
        f"{ended}; it starts again from the last checkpoint in 0 s (try 2 of 3)",
        f"{ended}; it starts again from the last checkpoint in 0 s (try 3 of 3)",
    ]
    assert [
        (row["kind"], row["code"], row["failed_in_a_row"]) for row in read_rows(run / "events.jsonl")
    ] == [
        ("crashed", 7, 1),
        ("crashed", 7, 2),
    ]


def test_the_same_crash_again_and_again_is_not(run: Path) -> None:
    code, told = supervised(run, f"{COUNT} os.kill(os.getpid(), 9)".replace("os.", "__import__('os')."))
    assert (code, attempts()) == (1, 3)
    assert told[-1].startswith("the run was killed (SIGKILL)")
    assert told[-1].endswith("after 3 crashes without a new checkpoint in between, it is not started again")
    assert read_rows(run / "events.jsonl")[-1]["kind"] == "gave_up"


def test_one_try(run: Path) -> None:
    code, told = supervised(run, f"{COUNT} sys.exit(9)", tries=1)
    assert (code, attempts()) == (1, 1)
    assert told == ["the run ended with exit code 9; it is not started again (--tries 1)"]


def test_a_checkpoint_in_between_begins_the_count_anew(run: Path) -> None:
    """Saves up to its tenth start; then it dies thrice at the same place."""
    code, _ = supervised(run, f'{COUNT} exec("if n <= 10: {SAVE}"); sys.exit(1)')
    assert (code, attempts()) == (1, 12)


def test_going_back_and_forth_is_no_progress(run: Path) -> None:
    checkpoints = run / "sft" / "checkpoints"
    checkpoints.mkdir(parents=True)
    tries = Tries(3, run)
    for step, failed in ((40, 1), (20, 2), (40, 3), (60, 1)):
        (checkpoints / "LATEST").write_text(f"step_{step:06d}\n")
        tries.count()
        assert tries.failed == failed
    (run / "sft" / "DONE.json").touch()
    tries.count()
    assert tries.failed == 1
    assert set(progress(run).values()) == {60, 1}


def test_pauses_double_up_to_a_minute() -> None:
    tries = Tries(20, Path("nowhere"))
    pauses = []
    for _ in range(8):
        tries.count()
        pauses.append(tries.pause_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]


def test_an_error_is_told_with_its_last_line(run: Path) -> None:
    """A real rank leaves a note of it."""
    job = f"""
sys.path.insert(0, {str(ROOT)!r}); del sys.modules['pilgrim']
from pilgrim.launch.worker import working
with working():
    raise ZeroDivisionError('by zero')
"""
    code, told = supervised(run, job, tries=1)
    assert code == 1
    assert told == [
        "the run ended with exit code 1: ZeroDivisionError: by zero; it is not started again (--tries 1)"
    ]


# Signals, to a supervisor in a process of its own -------------------------------------------------

SUPERVISE = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from pilgrim.launch.supervisor import Job, supervise
sys.exit(supervise(Job([sys.argv[1]], 1, Path("runs/x")), 3, print))
"""
OBEYS = """
import signal
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda n, _: (print('heard', n, flush=True), sys.exit(128 + n)))
print('up', flush=True); signal.pause()
"""
DEAF = OBEYS.replace("sys.exit(128 + n)", "signal.pause()")


def started(job: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, job],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its group is its own, like a terminal's foreground
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_reaches_the_job_once(run: Path, number: int, code: int) -> None:
    with started(OBEYS) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, number)  # as a terminal does
        output, _ = process.communicate(timeout=30)
    assert (output, process.returncode) == (f"heard {int(number)}\n", code)


def test_a_second_signal_ends_a_job_that_does_not_obey(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started(DEAF) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.stdout.readline() == "heard 15\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.1)  # the first second belongs to the first signal
        process.terminate()
        assert process.wait(30) == 143


def test_what_is_asked_for_while_it_waits_is_heard(run: Path) -> None:
    """Between two tries there is no process to tell."""
    with started("print('up', flush=True); sys.exit(5)") as process:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert "starts again" in next(line for line in lines if "starts again" in line)
        process.terminate()
        assert process.wait(30) == 143
