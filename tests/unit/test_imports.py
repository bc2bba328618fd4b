"""What importing does: nothing slow, and nothing at all beyond defining names."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pilgrim

PACKAGE = Path(pilgrim.__file__).parent

# Each takes a noticeable part of a second to import, and no command line needs it to show its help.
HEAVY = {"torch", "numpy", "pydantic", "tokenizers", "safetensors", "jinja2", "rich", "transformers"}
HEAVY |= {"fastapi", "uvicorn", "prometheus_client"}

# What can only be imported where torch's build has brought triton along.
WANT_TRITON = set() if importlib.util.find_spec("triton") else {"rounded_kernel.py"}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after running `code`."""
    program = (
        f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(names)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    assert not modules_after("import pilgrim.cli") & HEAVY


def test_help_loads_no_torch() -> None:
    code = "import sys\nfrom pilgrim.cli import app\nsys.argv = ['pilgrim', 'run', '--help']\n"
    assert "torch" not in modules_after(code + "app(standalone_mode=False)")


def test_importing_draws_no_random_numbers_and_starts_no_threads() -> None:
    """Every module of the package: importing it must leave the process as it was."""
    names = [
        ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.name not in ("__init__.py", "__main__.py", *WANT_TRITON)
    ]
    code = (
        "import importlib, multiprocessing, random, threading, torch\n"
        "import rich.console\n"  # which draws one number itself
        "before = random.getstate(), torch.get_rng_state().tolist(), torch.get_num_threads()\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "after = random.getstate(), torch.get_rng_state().tolist(), torch.get_num_threads()\n"
        "assert before == after\n"
        "assert threading.active_count() == 1 and not multiprocessing.active_children()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_package_carries_its_data_files() -> None:
    """An editable install and a wheel both must bring what the code reads beside itself."""
    assert (PACKAGE / "py.typed").is_file()
    assert (PACKAGE / "text" / "chat_template.jinja").is_file()
    assert list((PACKAGE / "assets").rglob("*.zst"))
    assert list((PACKAGE / "lab").rglob("*.jinja"))
