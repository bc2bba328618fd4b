"""How many processes a run gets: one for each GPU, and one where there is none.

torch knows best which GPUs are visible (drivers, CUDA_VISIBLE_DEVICES, slices of a GPU), but it takes
seconds and hundreds of megabytes to import, and whoever starts processes has to stay small. So it is asked
in a process of its own, and only where a machine shows signs of GPUs.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pilgrim.core.errors import SettingsError

SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # drivers of NVIDIA, AMD, and of either below Windows
ASK_TORCH = "import torch; print(torch.cuda.device_count())"


def visible_gpus() -> int:
    """The GPUs that torch would use."""
    if not (any(Path(sign).exists() for sign in SIGNS) or shutil.which("nvidia-smi")):
        return 0
    told = subprocess.run([sys.executable, "-c", ASK_TORCH], capture_output=True, text=True)
    return int(told.stdout.split()[-1]) if told.returncode == 0 else 0  # its reason is told by the run itself


def how_many(
    asked: int | None, recipe: Mapping[str, Any], count_gpus: Callable[[], int] = visible_gpus
) -> int:
    """The processes for a recipe, given as the tree of its TOML file; `asked` is the person's own number.

    Raises SettingsError if more are asked for than there are GPUs to compute on.
    """
    runtime = recipe.get("runtime")
    device = runtime.get("device", "auto") if isinstance(runtime, Mapping) else "auto"
    if asked == 1 or device in ("cpu", "mps"):
        return asked or 1
    gpus = count_gpus()
    if asked is not None and gpus and asked > gpus:
        raise SettingsError(
            f"--processes {asked}: each needs a GPU of its own, and {gpus} can be used here; "
            f"write --processes {gpus}, or runtime.device=cpu"
        )
    return asked or gpus or 1
