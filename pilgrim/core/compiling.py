"""torch.compile as it is used here: whole functions, fixed shapes, and kept for the next time.

- *Whole*: a function is compiled in one piece or not at all. Where torch could not follow the code, it would
  otherwise cut it in two and run what is between uncompiled (a "graph break"), slower and without a word.
- *Fixed shapes*: code is made for the very shapes that come. There are few: a microbatch, and with growing
  rows some more of them. Code for any shape would be slower.
- *Kept*: what was compiled is stored under a hash of what it was made from, and the next process that needs
  the same finds it. torch does that in the temporary folder, which many systems empty when they start; here
  it is the user's cache folder. A first start of the pocket recipe takes a minute or two in the compiler,
  the next some seconds.

What was made from is not all. Code for a CPU fits its instructions, which torch's hash leaves out (seen in
2.13): code for AVX-512 that is found by a machine with AVX2 computes half of the numbers and says nothing.
Home folders are shared, and disks moved to other machines; so each kind of processor has a folder.
"""

import hashlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

# Compiled versions of one function: as many as there are shapes, and stages of a run make some of their own.
# torch's own limit of 8 is meant for code that sees a new shape every time.
VERSIONS = 64
VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`function`, compiled when it is first called. Raises torch's errors where that can't be done whole."""
    keep_compiled()
    torch._dynamo.config.recompile_limit = VERSIONS
    return torch.compile(function, dynamic=False, fullgraph=True)  # type: ignore[return-value]


def keep_compiled() -> Path:
    """Let torch keep what it compiles in the user's cache folder, and return it.

    A folder that somebody has named by torch's own variable stays. Where the cache folder can't be written,
    it is torch's, in the temporary folder.
    """
    # When it is imported, torch's compiler sets the variable itself, to its own choice.
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    nobody_chose = os.environ.get(VARIABLE, default_cache_dir()) == default_cache_dir()
    if nobody_chose and (folder := users_cache(f"torchinductor/{processor()}")):
        os.environ[VARIABLE] = str(folder)
    return Path(cache_dir())


def processor() -> str:
    """Sixteen hexadecimal digits, which are others for another kind of processor, or other instructions.

    These are told apart where the system lists them, and by what torch makes use of.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = ("model name", "flags", "Features", "CPU part")
    found = {line.partition(":")[0].strip(): line for line in reversed(lines)}
    parts = [platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability()]
    return hashlib.sha256("\n".join([*parts, *(found.get(n, "") for n in names)]).encode()).hexdigest()[:16]


def users_cache(name: str) -> Path | None:
    """Our folder of that name among the user's caches; None if nothing can be written there."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "pilgrim" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
