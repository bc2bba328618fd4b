"""Findings made by hand, for tests of what is made from them: page, console text, comparison."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pilgrim.lab.profile.findings import Compilation, Findings, Fix, Kernel, Layer, Loss, Memory, Phase

GIB = 2**30
ATTACK = "</script><script>alert(1)</script><b onload=x>\"'&\x1b[31m\x00"


def made_up(**changes: Any) -> Findings:
    """A step on an invented GPU: 412 ms, of which half goes to memory."""
    fields: dict[str, Any] = {
        "recipe": "pocket",
        "stage": "pretrain",
        "machine": "NVIDIA GeForce RTX 5090",
        "dtype": "bf16",
        "steps": 10,
        "step_s": 0.412,
        "step_s_each": (0.410, 0.412, 0.411, 0.415, 0.409, 0.412, 0.418, 0.410, 0.412, 0.413),
        "tokens": 65_536,
        "flops": 0.21 * 0.412 * 204e12,
        "peak_flops": 204e12,
        "copy_bytes_per_s": 1.52e12,
        "spec_flops": 209.5e12,
        "mfu": 0.21,
        "mfu_spec": 0.2045,
        "losses": (
            Loss("data_wait", 0.012),
            Loss("idle", 0.031),
            Loss("launch_overhead", 0.073),
            Loss("exposed_communication", 0.0),
            Loss("memory_bound", 0.5),
            Loss("elementwise_inefficiency", 0.02),
            Loss("recomputation", 0.0),
            Loss("extra_products", 0.034),
            Loss("matmul_inefficiency", 0.12),
        ),
        "phases": (
            Phase("data", 0.005),
            Phase("forward", 0.121),
            Phase("backward", 0.224),
            Phase("optimizer", 0.046),
            Phase("sync", 0.012),
            Phase("other", 0.004),
        ),
        "layers": (
            Layer("model.embed_tokens", 0.002, 0.004),
            *(Layer(f"model.layers.{n}", 0.0095, 0.0188) for n in range(12)),
            Layer("head, loss, and what is between layers", 0.021, None),
        ),
        "kernels": KERNELS,
        "memory": Memory(
            parameters=int(0.6 * GIB),
            gradients=int(0.6 * GIB),
            optimizer=int(0.9 * GIB),
            activations=int(11.5 * GIB),
            other=int(0.2 * GIB),
            fragmentation=int(0.4 * GIB),
            capacity=32 * GIB,
            curve=tuple(
                (0.412 * n / 200, int(GIB * (1.5 + 12 * min(n / 70, max(0.0, (170 - n) / 100)))))
                for n in range(201)
            ),
            micro_rows=16,
            micro_rows_that_fit=36,
        ),
        "compilation": Compilation(
            enabled=True,
            graphs=4,
            breaks=("call to print, at pilgrim/train/losses.py:41 in token_losses",),
            recompilations=("rows changed from 16 to 9, at pilgrim/train/losses.py:22 in token_losses",),
            seconds=41.2,
        ),
        "fixes": (
            Fix(
                "Mend 1 graph break",
                "torch.compile stopped at a print; nothing is fused across it.",
                "take that line out of the compiled function, or write it in tensor operations",
                0.183,
                "docs/hardware.md#torchcompile",
            ),
            Fix(
                "Take more rows at once",
                "A step of 32 rows goes through in microbatches of 16; 32 would fit.",
                "pretrain.micro_rows=32",
                0.062,
                "docs/hardware.md#how-much-memory",
            ),
            Fix(
                "Make batches ahead of time",
                "The step waits 1.2% of its time for the next batch.",
                "data.prefetch=4",
                0.012,
                "docs/nowhere.md",
            ),
        ),
        "files": {"trace": "trace.json.gz", "memory snapshot": "memory_snapshot.pickle"},
        "notes": ("The profiler itself cost 3% of the step; that is taken off.",),
    }
    return Findings(**{**fields, **changes})


KERNELS = (
    Kernel(
        "nvjet_tst_256x128_64x4_1x2_h_bz_coopA_TNT",
        0.131,
        144,
        19.2e12,
        31e9,
        "compute",
        "pilgrim/model/layers.py:28 in forward",
        "a product of matrices",
    ),
    Kernel(
        "triton_poi_fused__to_copy_add_mul_silu_4",
        0.082,
        24,
        None,
        104e9,
        "memory",
        "pilgrim/model/layers.py:61 in forward",
        "SwiGLU's gate, multiplying number by number, changing the number format",
    ),
    Kernel(
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, "
        "std::array<char*, 3ul> >(int, at::native::CUDAFunctor_add<float>, std::array<char*, 3ul>)",
        0.044,
        2316.5,
        None,
        3e9,
        "launch",
        None,
        "number by number",
    ),
    Kernel(
        "pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<Flash_bwd_kernel_traits<128>>",
        0.037,
        12,
        1.9e12,
        9e9,
        "memory",
        "pilgrim/model/attention.py:90 in attend",
        "attention's gradients, without keeping the scores",
    ),
    Kernel("cutlass_80_simt_sgemm_32x32", 0.009, 4, 0.12e12, 2.2e9, "memory", None, "a product of matrices"),
    Kernel("ncclDevKernel_AllReduce", 0.0, 0, None, None, "unknown", None, "sends numbers"),
)


@pytest.fixture
def example() -> Callable[..., Findings]:
    """Makes findings like those of a GPU; fields by keyword replace its own."""
    return made_up


@pytest.fixture
def bare() -> Findings:
    """Everything that may be unknown or empty is."""
    return made_up(
        step_s_each=(),
        spec_flops=None,
        mfu_spec=None,
        losses=(),
        mfu=1.0,
        phases=(),
        layers=(),
        kernels=(),
        memory=replace(made_up().memory, fragmentation=None, curve=()),
        compilation=Compilation(enabled=False, graphs=0, breaks=(), recompilations=(), seconds=0.0),
        fixes=(),
        files={},
        notes=(),
    )


@pytest.fixture
def attack() -> str:
    return ATTACK


@pytest.fixture
def hostile() -> Findings:
    """Every text is an attack."""
    return made_up(
        recipe=ATTACK,
        stage=ATTACK,
        machine=ATTACK,
        dtype=ATTACK,
        losses=(Loss(ATTACK, 0.79),),
        phases=(Phase(ATTACK, 0.412),),
        layers=(Layer(ATTACK, 0.4, None),),
        kernels=tuple(Kernel(ATTACK + str(n), 0.1, 1, 1e12, 1e9, ATTACK, ATTACK, ATTACK) for n in range(40)),
        compilation=Compilation(
            enabled=True, graphs=1, breaks=(ATTACK,), recompilations=(ATTACK,), seconds=1.0
        ),
        fixes=(Fix(ATTACK, ATTACK, ATTACK, 0.1, ATTACK), Fix(ATTACK, ATTACK, ATTACK, 0.1, "docs/" + ATTACK)),
        files={ATTACK: ATTACK, "trace": "javascript:alert(1)"},
        notes=(ATTACK,),
    )
