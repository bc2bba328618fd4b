"""How fast is a training step, how close is it to what the machine could multiply, and where is the rest?

    python benchmarks/train_step.py --preset d4
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python benchmarks/train_step.py       the same without AMX
    python benchmarks/train_step.py --quick                                   a smoke test in a minute

Prints tokens/s, GFLOP/s of the multiplications that training needs (pilgrim/model/count.py,
`flops_multiplied`), and their share of the best 2048³ matrix product of the same run. Beside it, in turns, a
public baseline of the same shape on the same rows: transformers' Qwen3ForCausalLM, compiled, under bf16
autocast, with torch's fused AdamW. Medians over all turns; the machine may be busy, so read the ratio.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pilgrim.core.runtime import Runtime, RuntimeSettings, start
from pilgrim.data.loader import Batch
from pilgrim.model.config import ModelConfig, ModelSettings
from pilgrim.model.count import flops_multiplied, parameters
from pilgrim.model.init import initialize
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.train.step import accumulate, compiled_token_losses

PRESETS = {"d4": (ModelSettings(depth=4, width=256, context=512), 4096, 16)}  # shape, vocabulary, rows
# Which kind of work an operation is, by what its name holds; the first that fits.
KINDS = (
    ("attention", ("scaled_dot_product",)),
    ("optimizer", ("Optimizer.step", "bmm", "_foreach")),
    ("matrix products", ("aten::mm", "addmm")),
    ("compiled elementwise work, loss and norms", ("CompiledFxGraph", "cpp_fused")),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="d4")
    parser.add_argument("--rows", type=int, help="rows per step, instead of the preset's")
    parser.add_argument("--turns", type=int, default=5, help="how often ours and the baseline take turns")
    parser.add_argument("--quick", action="store_true", help="two layers, two rows, one turn")
    parser.add_argument("--no-baseline", action="store_true", help="ours alone")
    arguments = parser.parse_args()
    settings, vocabulary, rows = PRESETS[arguments.preset]
    turns, rows = arguments.turns, arguments.rows or rows
    if arguments.quick:
        settings, rows, turns = settings.model_copy(update={"depth": 2, "context": 128}), 2, 1
    config = settings.config(vocabulary)
    runtime = start(RuntimeSettings(compile="off" if arguments.quick else "auto"), seed=1)
    batch = random_batch(config, rows)

    steps = {"pilgrim": ours(config, batch, runtime)}
    if not arguments.no_baseline:
        steps["transformers"] = baseline(config, batch, runtime)
    peak = peak_gflops(runtime)
    seconds = in_turns(steps, turns)
    tell(config, batch, runtime, peak, seconds)
    where_the_time_goes(steps["pilgrim"])


def random_batch(config: ModelConfig, rows: int) -> Batch:
    """Rows of random ids in documents of 128 tokens: what is in them does not change the work."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(config.vocab_size, (rows, config.context + 1), generator=generator)
    documents = (torch.arange(config.context) // 128).to(torch.int32).expand(rows, -1).contiguous()
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), documents)


def ours(config: ModelConfig, batch: Batch, runtime: Runtime) -> Callable[[], None]:
    """pilgrim's whole step: forward, backward, Muon and AdamW."""
    model = Transformer(config).to(runtime.device)
    initialize(model, runtime.generator("initialize"))
    rates = OptimSettings(matrix_lr=1e-3, embedding_lr=1e-3, head_lr=1e-3, norm_lr=1e-3)
    optimizers = Optimizers(model, rates, runtime.dtype, runtime.compile)
    losses = compiled_token_losses(runtime)

    def step() -> None:
        accumulate(model, batch, len(batch.inputs_bt), losses, runtime)
        optimizers.step(1.0, 0.95)

    return step


def baseline(config: ModelConfig, batch: Batch, runtime: Runtime) -> Callable[[], None]:
    """The same network by transformers, with AdamW; causal attention over whole rows, without documents."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model: torch.nn.Module = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_size,
            intermediate_size=config.mlp_width,
            max_position_embeddings=config.context,
            use_cache=False,
        )
    )
    model.to(runtime.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids, targets = batch.inputs_bt.to(runtime.device), batch.targets_bt.to(runtime.device)

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=ids).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    compiled = torch.compile(loss_of, dynamic=False) if runtime.compile else loss_of

    def step() -> None:
        with torch.autocast(runtime.device.type, torch.bfloat16, enabled=runtime.dtype == torch.bfloat16):
            loss = compiled(ids, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def peak_gflops(runtime: Runtime) -> float:
    """The best of many 2048³ matrix products in the run's number format."""
    a = torch.randn(2048, 2048, device=runtime.device).to(runtime.dtype)
    b = torch.randn(2048, 2048, device=runtime.device).to(runtime.dtype)
    best = min(timed(lambda: torch.nn.functional.linear(a, b)) for _ in range(20))
    return float(2 * 2048**3 / best / 1e9)


def in_turns(steps: dict[str, Callable[[], None]], turns: int) -> dict[str, float]:
    """Median seconds of one step of each, measured in turns after two steps to compile and warm up."""
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        for name, step in steps.items():
            seconds[name] += [timed(step) for _ in range(5)]
    return {name: statistics.median(found) for name, found in seconds.items()}


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def tell(config: ModelConfig, batch: Batch, runtime: Runtime, peak: float, seconds: dict[str, float]) -> None:
    tokens = batch.inputs_bt.numel()
    flops = flops_multiplied(config, config.context).training * tokens
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "as the machine has")
    print(
        f"{parameters(config).total / 1e6:.1f}M parameters, {tokens} tokens a step, "
        f"rows of {config.context}, "
        f"{runtime.dtype}, {torch.get_num_threads()} threads, instructions: {isa}"
    )
    print(f"best 2048³ matrix product: {peak:,.0f} GFLOP/s")
    print(f"{'':>14} {'ms a step':>10} {'tokens/s':>9} {'GFLOP/s':>8} {'of best':>8}")
    for name, s in seconds.items():
        gflops = flops / s / 1e9
        print(f"{name:>14} {s * 1e3:>10.1f} {tokens / s:>9,.0f} {gflops:>8,.0f} {gflops / peak:>8.1%}")
    if len(seconds) == 2:
        print(f"pilgrim is {seconds['transformers'] / seconds['pilgrim']:.2f}x as fast as the baseline")


def where_the_time_goes(step: Callable[[], None]) -> None:
    """A share of the step's processor time by kind of work."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(3):
            step()
    spent: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        kind = next((k for k, marks in KINDS if any(m in event.key for m in marks)), "the rest")
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    for kind, time_us in sorted(spent.items(), key=lambda pair: -pair[1]):
        print(f"{time_us / total:>8.1%}  {kind}")


if __name__ == "__main__":
    main()
