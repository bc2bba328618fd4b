"""The kernel for caches of 8 bits by Triton's interpreter, against its formula: a program of its own.

Triton decides as it is imported whether its functions are compiled for a GPU or run step by step in numpy,
by the environment variable TRITON_INTERPRET. So tests start this file with it. It ends with an error at the
first difference. (The interpreter's products know fp16, but not bf16.)
"""

import itertools

import torch

from pilgrim.infer import paged_kernel
from pilgrim.infer.cache_bits import CacheBits, Rounded, rounded
from pilgrim.infer.paged_attention import Span

BITS: tuple[CacheBits, ...] = ("int8", "fp8")
PASSES = [
    [Span(0, 40, [5, 2]), Span(100, 1, [1, 4, 0, 7]), Span(37, 21, [8, 3])],  # prompt, reply, chunk
    [Span(20, 1, [3]), Span(63, 1, [8, 6]), Span(64, 1, [7, 1, 0])],  # replies only
]
BLOCK = 32
CASES = list(itertools.product(BITS, (None, 40), ((6, 2, 24), (20, 1, 16)), (torch.float32, torch.float16)))


def main() -> None:
    from pilgrim.infer import rounded_kernel  # wants triton

    draw = torch.Generator().manual_seed(1)
    for number, (bits, window, (h, g, d), dtype) in enumerate(CASES):
        spans = PASSES[number // 2 % len(PASSES)]
        keys, values = (
            Rounded(*rounded(torch.randn(10 * BLOCK, g, d, generator=draw) * 2, bits), bits, torch.float32)
            for _ in range(2)
        )
        q = torch.randn(1, h, sum(span.new for span in spans), d, generator=draw).to(dtype)
        layout = paged_kernel.layout_of(spans, q.device)
        fast = rounded_kernel.mix(q, keys, values, layout, window, BLOCK)
        slow = paged_kernel.reference(q, keys, values, layout, window, BLOCK)
        allowed = 2e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(fast, slow, rtol=allowed, atol=allowed)
    print(f"{len(CASES)} cases agree")


if __name__ == "__main__":
    main()
