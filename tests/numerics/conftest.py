"""What several comparisons share."""

import platform
from pathlib import Path

import pytest
import torch

from pilgrim.core import native

NARROWER = {"AVX2": ("-march=x86-64-v3", "-fopenmp"), "what every compiler knows": ()}


@pytest.fixture(params=NARROWER)
def narrower(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C is compiled anew, for a processor that can do less than this one."""
    if request.param == "AVX2" and platform.machine() != "x86_64":
        pytest.skip("AVX2 is of x86 processors")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "CHOICES", (NARROWER[request.param],))


@pytest.fixture(scope="session")
def fp8_products() -> None:
    """Skips where torch multiplies no fp8, as on CPUs without AMX. (pilgrim refuses fp8 there, too.)"""
    x8 = torch.ones(16, 16).to(torch.float8_e4m3fn)
    try:
        torch._scaled_mm(x8, x8.t(), torch.ones(()), torch.ones(()), out_dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"torch multiplies no fp8 on this machine: {str(error).splitlines()[0]}")
