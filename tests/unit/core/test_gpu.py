"""What keeps a GPU from training, judged from facts: no GPU is needed to test it."""

import pytest
import torch

from pilgrim.core import machine
from pilgrim.core.gpu import Holder, Occupancy, crowded, driver_trouble, holders_from, no_bf16, unsupported
from pilgrim.core.runtime import compile_trouble

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
CUDA_126 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 12080). Please update your GPU driver by "
    "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            TOO_OLD,
            "the NVIDIA driver knows CUDA up to 12.8, and this torch is built for CUDA 13.0; "
            "update the driver, or install a torch built for CUDA 12.8 or older",
        ),
        (
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed",
            "no NVIDIA driver is found; install one, if there is an NVIDIA GPU",
        ),
        ("No CUDA GPUs are available", "look at nvidia-smi and at CUDA_VISIBLE_DEVICES"),
        (
            "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
            "NumCudaDevices() that might have already set an error? Error 803: system has unsupported "
            "display driver / cuda driver combination",
            "are of different versions, as after an update; restart the machine",
        ),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", "restart the machine"),
        ("something new\nat line 3", "CUDA does not start (something new); see whether nvidia-smi works"),
    ],
)
def test_what_torch_says_of_the_driver_becomes_a_sentence(said: str, told: str) -> None:
    found = driver_trouble(said, "13.0")
    assert told in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("capability", "archs"),
    [
        ((12, 0), CUDA_13),  # RTX 5090
        ((8, 9), CUDA_13),  # RTX 4090: runs what was made for 8.6
        ((8, 9), CUDA_126),
        ((9, 0), ["sm_90a"]),
        ((12, 1), ["compute_120"]),  # translated when it is loaded
        ((10, 3), ["sm_100f"]),  # the family
        ((9, 0), ["gfx942"]),  # AMD's names are not ours to judge
        ((9, 0), []),
    ],
)
def test_a_gpu_that_torch_has_code_for(capability: tuple[int, int], archs: list[str]) -> None:
    assert unsupported("GPU", capability, archs) is None


def test_a_gpu_that_torch_has_no_code_for() -> None:
    new = unsupported("NVIDIA GeForce RTX 5090", (12, 0), CUDA_126)
    assert new is not None
    assert new.startswith("NVIDIA GeForce RTX 5090 has compute capability 12.0, and this torch is not built")
    assert "8.6, 9.0" in new and "docs/hardware.md" in new
    old = unsupported("NVIDIA GeForce GTX 1080", (6, 1), CUDA_13)
    assert old is not None and "which is too old for this torch (built for 7.5, 8.0" in old
    assert unsupported("GPU", (9, 0), ["sm_100a"]) is not None
    assert unsupported("GPU", (10, 3), ["sm_100a"]) is not None, "an a binds to exactly that GPU"
    assert unsupported("GPU", (8, 0), ["sm_86"]) is not None, "code for 8.6 does not run on 8.0"


def test_bf16_begins_with_ampere() -> None:
    assert no_bf16("NVIDIA A100-SXM4-40GB", (8, 0)) is None
    told = no_bf16("Tesla T4", (7, 5))
    assert told == "Tesla T4 has compute capability 7.5, and bf16 begins with 8.0 (RTX 30, A100)"


def test_memory_held_by_others_is_told_with_their_names() -> None:
    holders = (Holder(7, "Xorg", 200_000_000), Holder(1234, "python", 19_800_000_000))
    gpu = Occupancy("NVIDIA GeForce RTX 4090", 24_000_000_000, 3_400_000_000, 600_000_000, holders)
    told = crowded(gpu)
    assert told is not None and told.startswith(
        "other processes hold 20.0 of the 24.0 GB of NVIDIA GeForce RTX 4090 "
        "(python, process 1234: 19.8 GB, Xorg, process 7: 0.2 GB), and two that compute share its time; "
    )
    assert told.endswith("CUDA_VISIBLE_DEVICES")
    unnamed = crowded(Occupancy("GPU", 24_000_000_000, 3_400_000_000, 600_000_000))
    assert unnamed is not None and "of GPU, and two" in unnamed


def test_a_desktop_and_what_is_ours_are_not_mentioned() -> None:
    assert crowded(Occupancy("GPU", 24_000_000_000, 22_000_000_000, 600_000_000)) is None
    assert crowded(Occupancy("GPU", 24_000_000_000, 2_000_000_000, 21_500_000_000)) is None


def test_the_processes_that_nvidia_smi_tells() -> None:
    told = (
        "1234, /home/me/.venv/bin/python, 18880\n99, python, 400\n"
        "77, /opt/odd, name/tool, 12\n5, Xorg, [N/A]\n\nNo running processes found\n"
    )
    assert holders_from(told, own_pid=99) == (
        Holder(1234, "python", 18880 * 2**20),
        Holder(77, "tool", 12 * 2**20),
    )


@pytest.mark.parametrize(
    ("device", "has_triton", "has_compiler", "told"),
    [
        ("cuda", False, True, "triton is not installed"),
        ("cuda", True, False, "no working C++ compiler is found"),
        ("cuda", True, True, None),
        ("cpu", False, True, None),
        ("cpu", False, False, "no working C++ compiler is found"),
    ],
)
def test_what_keeps_torch_from_compiling(
    device: str, has_triton: bool, has_compiler: bool, told: str | None
) -> None:
    found = compile_trouble(device, has_triton, has_compiler, "/venv/torch/__init__.py")
    assert (found is None) if told is None else (found is not None and told in found)
    spaced = compile_trouble(device, has_triton, has_compiler, "/my venv/torch/__init__.py")
    assert spaced is not None or device == "cuda"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_is_judged_as_it_is() -> None:
    assert machine.cuda_error() is None
    assert machine.gpu_trouble() is None
    gpu = machine.gpu_occupancy()
    assert 0 < gpu.free_bytes <= gpu.total_bytes
    assert gpu.name == torch.cuda.get_device_name()
