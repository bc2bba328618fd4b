"""What this machine can do at best: measured, and as makers promise it."""

import time
from pathlib import Path

import pytest
import torch

from pilgrim.core.peaks import SPECS, Spec, measure, spec_of


def spec(name: str) -> Spec:
    found = spec_of(name)
    assert found is not None, name
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_peak_is_measured_in_seconds(dtype: torch.dtype) -> None:
    state, began = torch.get_rng_state(), time.perf_counter()
    peaks = measure(torch.device("cpu"), dtype)
    assert time.perf_counter() - began < 5
    assert 1e9 < peaks.matmul_flops < 1e14, "a processor multiplies at some GFLOP/s at least"
    assert 1e8 < peaks.copy_bytes_per_s < 1e13
    assert torch.equal(torch.get_rng_state(), state), "measuring draws nothing that a run would miss"


def test_a_peak_is_no_slower_than_a_product_timed_by_hand() -> None:
    peak = measure(torch.device("cpu"), torch.float32).matmul_flops
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        _ = a @ b.T
        times.append(time.perf_counter() - began)
    by_hand = 2 * 2048**3 / min(times)
    assert 0.5 * by_hand < peak < 4 * by_hand, "other programs may run meanwhile, but not by a factor"


@pytest.mark.parametrize(
    ("name", "bf16_tflops", "gb_per_s"),
    [
        ("NVIDIA GeForce RTX 3090", 71, 936),
        ("NVIDIA GeForce RTX 4090", 165.2, 1008),
        ("NVIDIA GeForce RTX 5090", 209.5, 1792),
        ("NVIDIA A100-SXM4-80GB", 312, 2039),
        ("NVIDIA A100 80GB PCIe", 312, 1935),
        ("NVIDIA H100 80GB HBM3", 989.4, 3352),
        ("NVIDIA H100 PCIe", 756, 2039),
        ("NVIDIA H100 NVL", 835.5, 3900),
        ("NVIDIA H200", 989.5, 4800),
        ("NVIDIA B200", 2250, 7700),
        ("NVIDIA RTX 6000 Ada Generation", 364.2, 960),
    ],
)
def test_a_card_is_found_by_the_name_that_torch_gives(name: str, bf16_tflops: float, gb_per_s: float) -> None:
    found = spec(name)
    assert found.peak(torch.bfloat16) == pytest.approx(bf16_tflops * 1e12)
    assert found.bytes_per_s == pytest.approx(gb_per_s * 1e9)
    assert found.source


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4080 SUPER",
        "NVIDIA GH200 480GB",
        "NVIDIA H20",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A10G",
        "NVIDIA L40",
        "Intel(R) Xeon(R) Processor",
        "",
    ],
)
def test_what_only_resembles_a_card_is_not_in_the_table(name: str) -> None:
    assert spec_of(name) is None


def test_hardware_without_a_format_promises_nothing_in_it() -> None:
    assert spec("Tesla T4").peak(torch.bfloat16) is None
    assert spec("Tesla T4").peak(torch.float16) == pytest.approx(65e12)
    assert spec("Apple M3 Max").peak(torch.float32) is None


@pytest.mark.parametrize("found", SPECS, ids=lambda found: found.name)
def test_the_table_holds_together(found: Spec) -> None:
    """A figure with sparsity, or one summed in fp16, would break these ratios."""
    assert found.name and found.source and found.bytes_per_s > 0
    flops = found.flops
    if "bf16" in flops:
        assert flops["bf16"] == flops["fp16"]
        assert flops["bf16"] == pytest.approx(2 * flops["tf32"], rel=0.03)
    if "fp8" in flops:
        assert flops["fp8"] == pytest.approx(2 * flops["bf16"], rel=0.03)
    if found.name.startswith("RTX") and found.name.split()[1].isdigit() and "Ada" not in found.name:
        assert flops["bf16"] == pytest.approx(2 * flops["fp32"], rel=0.03), (
            "GeForce: sums in fp32 at half speed"
        )


def test_no_card_is_in_the_table_twice() -> None:
    assert len({found.name.lower() for found in SPECS}) == len(SPECS)


def test_the_documents_show_this_table() -> None:
    """docs/hardware.md has a row for each device: copy what this prints when it differs."""

    def figure(value: float | None, unit: float) -> str:
        return "–" if value is None else f"{value / unit:g}"

    rows = [
        f"| {found.name} | {figure(found.flops.get('bf16'), 1e12)} | {figure(found.flops.get('fp8'), 1e12)} "
        f"| {figure(found.flops.get('fp32'), 1e12)} | {figure(found.bytes_per_s, 1e9)} | {found.source} |"
        for found in SPECS
    ]
    page = (Path(__file__).parents[3] / "docs/hardware.md").read_text()
    assert "\n".join(rows) in page, "\n" + "\n".join(rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_comes_near_its_makers_promise_and_not_beyond() -> None:
    device = torch.device("cuda")
    peaks, promised = measure(device, torch.bfloat16), spec_of(torch.cuda.get_device_name())
    if promised is None or promised.peak(torch.bfloat16) is None:
        pytest.skip("this GPU is not in our table")
    assert 0.4 < peaks.matmul_flops / promised.flops["bf16"] < 1.1
    assert 0.5 < peaks.copy_bytes_per_s / promised.bytes_per_s < 1.1
