"""Numbers of 8 bits and their scales; that attention reads them right is tested beside."""

import math

import pytest
import torch

from pilgrim.core.errors import SettingsError
from pilgrim.infer.cache_bits import CacheBits, bytes_per_vector, refuse, round_trip, rounded, unrounded

BOTH = pytest.mark.parametrize("bits", ["int8", "fp8"])


def test_e4m3_is_read_as_torch_reads_it() -> None:
    """Every byte but the two NaNs, which are never stored."""
    stored = torch.tensor([i for i in range(256) if i & 127 != 127], dtype=torch.uint8)
    expected = stored.view(torch.float8_e4m3fn).float()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        found = unrounded(stored.view(torch.int8), torch.ones(()), "fp8", dtype)
        assert found.dtype == dtype and torch.equal(found.float(), expected)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_stored_is_what_the_formula_leaves(bits: CacheBits, dtype: torch.dtype) -> None:
    sizes = torch.logspace(-20, 20, 500)[:, None]  # bf16 scales reach as far as fp32's
    x = (torch.randn(500, 64, generator=torch.Generator().manual_seed(1)) * sizes).to(dtype)
    x[3], x[4, 1:] = 0, 0
    x = torch.where(sizes < 1e-8, 0, x)
    numbers, scales = rounded(x, bits)
    assert numbers.dtype == torch.int8 and scales.dtype == torch.bfloat16
    read, expected = unrounded(numbers, scales, bits, dtype), round_trip(x, bits)
    assert torch.equal(read, expected)
    largest = x.double().abs().amax(-1, keepdim=True)
    error = (round_trip(x.double(), bits) - x.double()).abs()
    # Half a step of 127, or half of e4m3's last place, which for numbers near 0 is a fixed one.
    allowed = (
        largest / 127 * 0.505 if bits == "int8" else (x.double().abs() / 16).maximum(largest / 448 / 512)
    )
    assert (error <= allowed + 1e-30).all()


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_noticed(bits: CacheBits, bad: float) -> None:
    x = torch.ones(2, 8)
    x[1, 5] = bad
    read = unrounded(*rounded(x, bits), bits, torch.float32)
    assert read[0].tolist() == pytest.approx([1] * 8, rel=0.01) and not read[1].isfinite().any()


def test_bytes_of_a_vector() -> None:
    found = [bytes_per_vector(64, bits, torch.bfloat16) for bits in ("full", "int8", "fp8")]
    assert found == [128, 66, 66]


def test_a_device_that_can_not_is_refused_in_a_sentence() -> None:
    refuse("fp8", torch.device("cpu"))
    refuse("int8", torch.device("mps"))
    with pytest.raises(SettingsError, match='cache = "fp8": needs a CPU'):
        refuse("fp8", torch.device("mps"))
