"""C code of ours, compiled when it is first needed and kept for the next time.

What is kept carries a hash of the source, what it was told, the compiler, and the processor, whose every
instruction it may use: a cache folder that several machines share has one for each kind.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from pilgrim.core.compiling import processor, users_cache
from pilgrim.core.errors import PilgrimError
from pilgrim.core.files import explained

HEADERS = Path(__file__).parent
FLAGS = ("-O3", "-shared", "-fPIC", "-fno-math-errno", f"-I{HEADERS}")
# The first that a compiler takes: with threads, and for the very processor; Apple's has no OpenMP by itself.
CHOICES = (
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)


@cache
def library(source: Path, **told: int) -> ctypes.CDLL:
    """The compiled code of a C file, in which each name of `told` has its value.

    Raises PilgrimError if there is no compiler, or if it refuses the code.
    """
    named = os.environ.get("CC", "cc")
    compiler = shutil.which(named)
    if compiler is None:
        raise PilgrimError(f"there is no C compiler {named}; install gcc or clang, or name another in CC")
    defines = [f"-D{name}={value}" for name, value in told.items()]
    shared = [header.read_text() for header in sorted(HEADERS.glob("*.h"))]
    made_of = (source.read_text(), *shared, *defines, compiler, _version(compiler), processor())
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:20]
    folder = users_cache("native") or Path(tempfile.mkdtemp(prefix="pilgrim-"))
    file = folder / f"{source.stem}-{digest}.so"
    if not file.exists():
        _compile(compiler, source, defines, file)
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise PilgrimError(f"{file} can't be loaded ({error}); delete it, and it is compiled anew") from None


def _compile(compiler: str, source: Path, defines: list[str], file: Path) -> None:
    """Whoever compiles the same at the same time writes the same; the last one's stays."""
    being_written = file.with_suffix(f".{os.getpid()}")
    said = ""
    for choice in CHOICES:
        command = [compiler, *FLAGS, *choice, *defines, str(source), "-o", str(being_written), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            with explained("written", file):
                being_written.replace(file)
            return
        said = done.stderr.strip() or said  # of the last choice, which asks for nothing special
    being_written.unlink(missing_ok=True)  # of a disk that got full
    raise PilgrimError(
        f"{compiler} can't compile {source.name}: {said.splitlines()[0] if said else 'no word why'}"
    )


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
