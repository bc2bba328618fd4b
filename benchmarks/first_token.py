"""How long from typing `pilgrim chat` to the first token? And how long does the command line take to import?

    python benchmarks/first_token.py runs/pocket

Starts a fresh process each time, as a person does: Python, imports, tokenizer, checkpoint (verified), prompt.
The first token is the first byte of the reply on standard output. Prints the median and the range.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder with a trained model")
    parser.add_argument("--times", type=int, default=7)
    arguments = parser.parse_args()
    told("import pilgrim.cli", imported, arguments.times)
    told("start to first chat token", lambda: first_token(arguments.run), arguments.times)


def told(what: str, measure: Callable[[], float], times: int) -> None:
    seconds = sorted(measure() for _ in range(times))
    median = statistics.median(seconds)
    print(f"{what}: median {median:.2f} s of {times} ({seconds[0]:.2f} to {seconds[-1]:.2f})")


def imported() -> float:
    """Seconds that `import pilgrim.cli` takes in a fresh interpreter, measured inside it."""
    code = "import time; t = time.perf_counter(); import pilgrim.cli; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)


def first_token(run: str) -> float:
    """Seconds from starting the process to the first byte of its reply."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pilgrim", "chat", run]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as chat:
        assert chat.stdin and chat.stdout
        chat.stdin.write(b"Tell me a story about a dog.\n")
        chat.stdin.close()
        if not chat.stdout.read(1):
            raise SystemExit(f"{' '.join(command)} said nothing; try it by hand")
        elapsed_s = time.perf_counter() - began
        chat.stdout.read()
    return elapsed_s


if __name__ == "__main__":
    main()
