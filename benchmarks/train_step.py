"""How fast is a training step, how close is it to the machine's peak, and what does each switch do?

    python benchmarks/train_step.py                              d4: the CPU's preset, beside transformers
    python benchmarks/train_step.py --preset d12 --switches      a GPU's, and a line for each switch
    python benchmarks/train_step.py --preset d12 runtime.compile=off
    python benchmarks/train_step.py --quick                      a smoke test in a minute
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 python benchmarks/train_step.py       a CPU without its AMX

A step is forward, backward and the optimizers, on random ids. Presets:

    d4     4 layers, width 256, 16 rows of 512 tokens in documents of 128, vocabulary 4,096
    d12    recipes/d12.toml: 12 layers, width 768, 64 rows of 2,048 tokens, each one document
    d20    recipes/d20.toml: 20 layers, width 1280, the same rows

The recipes take 256 rows, over which the optimizers' time is spread four times as thin: --rows 256.

Columns. `mfu` is what the network needs (pilgrim/model/count.py, `flops_needed`) over the machine's measured
peak (pilgrim/core/peaks.py), `of spec` the same over what its maker promises. Behind each, `as PaLM` counts
as papers do: each token meets every key of its row (`flops_conventional`), whether or not it needs to.
`memory` is the most that tensors took on a GPU.

Beside ours, public baselines on the same rows: transformers' Qwen3ForCausalLM of the same shape, compiled,
under bf16 autocast, with torch's fused AdamW; and with `--nanochat DIR` nanochat's own network and optimizer
from a checkout, of the same depth, width and context, compiled, in bf16. FLOP/s are those of our network, so
for nanochat only tokens/s mean something. They run in turns on a CPU, one after the other on a GPU, whose
memory holds one of them. All times are medians; the machine may be busy, so read the ratios.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import beside_nanochat
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from pilgrim.core import machine, peaks
from pilgrim.core.config import Settings, apply_overrides, build
from pilgrim.core.errors import PilgrimError
from pilgrim.core.runtime import GB, Runtime, RuntimeSettings, start
from pilgrim.data.loader import Batch
from pilgrim.model.attention_choice import choose, refuse_impossible
from pilgrim.model.config import ModelConfig
from pilgrim.model.count import flops_conventional, flops_needed, parameters
from pilgrim.model.init import initialize
from pilgrim.model.memory import rows_that_fit
from pilgrim.model.precision import refuse_odd_sizes, train_in_fp8
from pilgrim.model.transformer import Transformer
from pilgrim.optim.groups import Optimizers, OptimSettings
from pilgrim.stages.recipe import Recipe, load_recipe
from pilgrim.train.step import accumulate, compiled_token_losses

RECIPES = Path(__file__).parents[1] / "recipes"
D4 = {
    "name": "d4",
    "tokenizer": {"vocab_size": 4096},
    "model": {"depth": 4, "width": 256, "context": 512},
    "optim": {"matrix_lr": 1e-3, "embedding_lr": 1e-3, "head_lr": 1e-3, "norm_lr": 1e-3},
}
SMALLER = ["model.depth=2", "model.context=128", "runtime.compile=off"]  # for --quick
USABLE = 0.8  # share of a GPU's free memory that the microbatch is fitted to, as the fit is an estimate
STEPS = 5  # in a turn
# Switches are found in these tables of a recipe: every setting with a few values is tried with each of them.
SWITCHED: dict[str, type[Settings]] = {"runtime": RuntimeSettings, "optim": OptimSettings}
NOT_SWITCHED = {"runtime.device"}
# Which kind of work an operation is, by what its name holds; the first that fits.
KINDS = (
    ("attention", ("scaled_dot_product", "flash", "fmha", "attention")),
    ("batched products: attention's on a CPU, and Muon's", ("bmm",)),
    ("optimizer, beside its products", ("Optimizer.step", "_foreach")),
    ("matrix products", ("aten::mm", "addmm", "gemm", "nvjet", "cutlass")),
    ("compiled elementwise work, loss and norms", ("CompiledFxGraph", "cpp_fused", "triton")),
)

Step = Callable[[], None]


@dataclass(frozen=True)
class Preset:
    """What is measured. On documents shorter than a row, attention has less to do."""

    rows: int
    document: int  # tokens
    file: Path | None = None  # the recipe; D4 without


PRESETS = {
    "d4": Preset(16, 128),
    "d12": Preset(64, 2048, RECIPES / "d12.toml"),
    "d20": Preset(64, 2048, RECIPES / "d20.toml"),
}


@dataclass(frozen=True)
class Case:
    """A recipe put on this machine, with the batch that it is measured with."""

    recipe: Recipe
    config: ModelConfig
    runtime: Runtime
    batch: Batch
    document: int
    micro_rows: int


Maker = Callable[[Case], Step]


@dataclass(frozen=True)
class Measured:
    """A step: its median time, and the most memory that the GPU held meanwhile (None on a CPU)."""

    seconds: float
    peak_bytes: int | None


def main() -> None:
    arguments = read_arguments()
    preset = PRESETS[arguments.preset]
    overrides = [*(SMALLER if arguments.quick else []), *arguments.overrides]
    rows = 2 if arguments.quick else arguments.rows or preset.rows
    turns = 1 if arguments.quick else arguments.turns
    case = put_on_this_machine(preset, overrides, rows)
    introduce(case)
    print(HEADER)
    if arguments.switches:
        measured_switches(preset, overrides, rows, turns)
        return
    makers: dict[str, Maker] = {"pilgrim": ours}
    if not arguments.no_baseline:
        makers["transformers"] = baseline
    if arguments.nanochat:
        makers["nanochat"] = partial(nanochat, arguments.nanochat)
    side_by_side(case, makers, turns)
    where_the_time_goes(ours(case), case.runtime)


def side_by_side(case: Case, makers: dict[str, Maker], turns: int) -> None:
    """A line for each, and how many times as fast the first is as the second."""
    if case.runtime.device.type == "cuda":
        tried = {name: try_out(name, make, case, turns) for name, make in makers.items()}
        found = {name: measured for name, measured in tried.items() if measured}
    else:
        found = in_turns({name: make(case) for name, make in makers.items()}, turns, case.runtime)
        for name, measured in found.items():
            print(line(name, case, measured))
    for name, measured in found.items():
        if name != "pilgrim" and "pilgrim" in found:
            print(f"pilgrim is {measured.seconds / found['pilgrim'].seconds:.2f}x as fast as {name}")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the recipe")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="d4")
    parser.add_argument("--rows", type=int, help="rows per step, instead of the preset's")
    parser.add_argument("--turns", type=int, default=5, help="how often ours and the baseline take turns")
    parser.add_argument("--switches", action="store_true", help="a line for each setting changed alone")
    parser.add_argument("--quick", action="store_true", help="two layers, two rows, one turn")
    parser.add_argument("--no-baseline", action="store_true", help="without transformers")
    parser.add_argument("--nanochat", type=Path, metavar="DIR", help="a checkout of nanochat, to time it too")
    return parser.parse_args()


# What is measured ----------------------------------------------------------------------------------


def put_on_this_machine(preset: Preset, overrides: list[str], rows: int) -> Case:
    """Raises PilgrimError for what is no setting, or what this machine refuses."""
    if preset.file:
        recipe = load_recipe(preset.file, overrides)
    else:
        recipe = build(Recipe, apply_overrides(D4, overrides), "d4").resolved()
    config = recipe.model.config(recipe.tokenizer.vocab_size)
    runtime = start(recipe.runtime, seed=1)
    refuse_impossible(runtime, config)
    if runtime.fp8:
        refuse_odd_sizes(config, rows * config.context)
    document = min(preset.document, config.context)
    batch = random_batch(config, rows, document)
    return Case(recipe, config, runtime, batch, document, micro_rows(config, runtime, rows))


def micro_rows(config: ModelConfig, runtime: Runtime, rows: int) -> int:
    """Rows at a time: all on a CPU, else the most that divide the batch and are estimated to fit."""
    if runtime.device.type != "cuda":
        return rows
    memory = USABLE * torch.cuda.mem_get_info()[0]
    most = rows_that_fit(config, memory, runtime.dtype, runtime.compile)
    return max(n for n in range(1, max(1, min(rows, most)) + 1) if rows % n == 0)


def random_batch(config: ModelConfig, rows: int, document: int) -> Batch:
    """Rows of random ids in documents of `document` tokens: what is in them does not change the work."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(config.vocab_size, (rows, config.context + 1), generator=generator)
    documents = (torch.arange(config.context) // document).to(torch.int32).expand(rows, -1).contiguous()
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), documents)


def ours(case: Case) -> Step:
    """pilgrim's whole step: forward, backward, Muon and AdamW."""
    runtime = case.runtime
    model = Transformer(case.config).to(runtime.device)
    initialize(model, runtime.generator("initialize"))
    optimizers = Optimizers(model, case.recipe.optim, runtime.dtype, runtime.compile)
    model.recompute = case.recipe.runtime.checkpoint_activations
    if runtime.fp8:
        train_in_fp8(model.model.layers)
    losses = compiled_token_losses(runtime, choose(runtime, case.config, case.micro_rows).backend)

    def step() -> None:
        accumulate(model, case.batch, case.micro_rows, losses, runtime)
        optimizers.step(1.0, 0.95)

    return step


def baseline(case: Case) -> Step:
    """The same network by transformers, with AdamW; causal attention over whole rows, without documents."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config, runtime = case.config, case.runtime
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
    micros = len(case.batch.inputs_bt) // case.micro_rows

    def loss_of(ids: Tensor, targets: Tensor) -> Tensor:
        logits = model(input_ids=ids).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    compiled = torch.compile(loss_of, dynamic=False) if runtime.compile else loss_of

    def step() -> None:
        for micro in case.batch.micro(case.micro_rows):
            here = micro.to(runtime.device)
            with torch.autocast(runtime.device.type, torch.bfloat16, enabled=runtime.dtype == torch.bfloat16):
                loss = compiled(here.inputs_bt, here.targets_bt) / micros
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def nanochat(repo: Path, case: Case) -> Step:
    """nanochat's network of this depth and context, and its optimizer, from a checkout, in bf16.

    It is another network (ReLU² MLP, value embeddings), so compare tokens/s, not FLOP/s.
    """
    gpt = beside_nanochat.nanochat_gpt(repo)
    config, runtime = case.config, case.runtime
    model = beside_nanochat.build(gpt, config.depth, config.context, config.vocab_size)
    model.to_empty(device=runtime.device)
    model.init_weights()
    optimizer = model.setup_optimizer(
        **beside_nanochat.rates(case.batch.inputs_bt.numel(), 1.0), weight_decay=0.0
    )
    compiled = torch.compile(model, dynamic=False) if runtime.compile else model

    def step() -> None:
        for micro in case.batch.micro(case.micro_rows):
            here = micro.to(runtime.device)
            compiled(here.inputs_bt, here.targets_bt).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


# Switches ------------------------------------------------------------------------------------------


def switches() -> Iterator[tuple[str, str]]:
    """(setting, value) for every setting of the tables that has a few values, as an override writes them."""
    for table, settings in SWITCHED.items():
        for name, values in few_values(settings):
            if f"{table}.{name}" not in NOT_SWITCHED:
                yield from ((f"{table}.{name}", value) for value in values)


def few_values(settings: type[Settings]) -> Iterator[tuple[str, list[str]]]:
    for name, field in settings.model_fields.items():
        if get_origin(field.annotation) is Literal:
            yield name, [str(value) for value in get_args(field.annotation)]
        elif field.annotation is bool:
            yield name, ["true", "false"]


def measured_switches(preset: Preset, overrides: list[str], rows: int, turns: int) -> None:
    """A line for the settings as they are, and one for each that is changed alone."""
    as_it_is = put_on_this_machine(preset, overrides, rows)
    first = try_out("as it is", ours, as_it_is, turns)
    for setting, value in switches():
        label = f"{setting}={value}"
        try:
            case = put_on_this_machine(preset, [*overrides, label], rows)
        except PilgrimError as error:
            print(f"{label:>28} refused: {error}")
            continue
        if same(case, as_it_is):
            print(f"{label:>28} the same as it is")
        else:
            try_out(label, ours, case, turns, first)


def same(a: Case, b: Case) -> bool:
    """Whether two cases compute the same: "auto" has become what the other one says."""
    return _decided(a) == _decided(b)


def _decided(case: Case) -> tuple[object, ...]:
    """What makes a step: the runtime, and those settings that it does not decide."""
    undecided = case.recipe.runtime.model_dump(exclude={field.name for field in fields(Runtime)})
    return replace(case.runtime, notes=()), undecided, case.recipe.optim, case.config


def try_out(
    label: str, make: Maker, case: Case, turns: int, first: Measured | None = None
) -> Measured | None:
    """Measure one step alone and print its line, beside `first`'s time; None if memory did not suffice."""
    torch.compiler.reset()
    gc.collect()
    if case.runtime.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        [measured] = in_turns({label: make(case)}, turns, case.runtime).values()
    except torch.OutOfMemoryError:
        print(f"{label:>28} out of memory with {case.micro_rows} rows at a time")
        return None
    ratio = f"  {first.seconds / measured.seconds:.2f}x" if first else ""
    print(line(label, case, measured) + ratio)
    return measured


# Measuring -----------------------------------------------------------------------------------------


def in_turns(steps: dict[str, Step], turns: int, runtime: Runtime) -> dict[str, Measured]:
    """Each step's median, measured in turns after two steps to compile and warm up; and its memory."""
    peak_bytes = {name: warmed_up(step, runtime) for name, step in steps.items()}
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(turns):
        for name, step in steps.items():
            seconds[name] += [timed(step, runtime) for _ in range(STEPS)]
    return {name: Measured(statistics.median(found), peak_bytes[name]) for name, found in seconds.items()}


def warmed_up(step: Step, runtime: Runtime) -> int | None:
    """Compile; then the most bytes that a GPU holds in a step, which includes what else is there."""
    step()
    if runtime.device.type != "cuda":
        step()
        return None
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def timed(work: Callable[[], object], runtime: Runtime) -> float:
    peaks.synchronize(runtime.device)
    began = time.perf_counter()
    work()
    peaks.synchronize(runtime.device)
    return time.perf_counter() - began


# Telling -------------------------------------------------------------------------------------------

HEADER = (
    f"{'':>28} {'ms a step':>10} {'tokens/s':>10} {'TFLOP/s':>8} {'mfu':>7} {'as PaLM':>7} {'of spec':>7} "
    f"{'as PaLM':>7} {'memory':>8}"
)


def introduce(case: Case) -> None:
    config, runtime = case.config, case.runtime
    isa = os.environ.get("ONEDNN_MAX_CPU_ISA", "as the machine has")
    print(
        f"{parameters(config).total / 1e6:.1f}M parameters, {case.batch.inputs_bt.numel()} tokens a step, "
        f"{len(case.batch.inputs_bt)} rows of {config.context}, {case.micro_rows} at a time, documents of "
        f"{case.document}, {runtime.dtype}, compile {'on' if runtime.compile else 'off'}"
    )
    for note in runtime.notes:
        print(note)
    name = machine.device_name(runtime.device)
    measured = peaks.measured(runtime.device, runtime.dtype)
    print(
        f"{name}: best matrix product {measured.matmul_flops / 1e12:,.3f} TFLOP/s, "
        f"copy {measured.copy_bytes_per_s / GB:,.1f} GB/s; {torch.get_num_threads()} threads, "
        f"instructions: {isa}"
    )
    spec = peaks.spec_of(name)
    promised = spec.peak(runtime.dtype) if spec else None
    print(
        f"its maker promises {promised / 1e12:,.1f} TFLOP/s ({spec.source})"
        if spec and promised
        else "what its maker promises is not in our table"
    )


def line(name: str, case: Case, measured: Measured) -> str:
    config, runtime, tokens = case.config, case.runtime, case.batch.inputs_bt.numel()
    per_s = tokens / measured.seconds
    peak = peaks.measured(runtime.device, runtime.dtype).matmul_flops
    spec = peaks.spec_of(machine.device_name(runtime.device))
    promised = spec.peak(runtime.dtype) if spec else None
    needed = per_s * flops_needed(config, case.document).training
    as_palm = per_s * flops_conventional(config, config.context).training
    shares = (
        needed / peak,
        as_palm / peak,
        promised and needed / promised,
        promised and as_palm / promised,
    )
    memory = f"{measured.peak_bytes / GB:.1f} GB" if measured.peak_bytes else "–"
    return (
        f"{name:>28} {measured.seconds * 1e3:>10.1f} {per_s:>10,.0f} {needed / 1e12:>8,.3g} "
        + " ".join(f"{'–' if share is None else f'{share:.1%}':>7}" for share in shares)
        + f" {memory:>8}"
    )


def where_the_time_goes(step: Step, runtime: Runtime) -> None:
    """A share of the step's processor time by kind of work; of the GPU's, where one computes."""
    on_gpu = runtime.device.type == "cuda"
    step()
    step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        for _ in range(3):
            step()
        peaks.synchronize(runtime.device)
    spent: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        kind = next((k for k, marks in KINDS if any(m in event.key for m in marks)), "the rest")
        spent[kind] += own_time_us(event, on_gpu)
    total = sum(spent.values())
    for kind, time_us in sorted(spent.items(), key=lambda pair: -pair[1]):
        print(f"{time_us / total:>8.1%}  {kind}")


def own_time_us(event: Any, on_gpu: bool) -> float:
    """Of a GPU's work its kernels count, and not the calls that launched them."""
    if not on_gpu:
        return float(event.self_cpu_time_total)
    return float(event.self_device_time_total) if event.device_type.name == "CUDA" else 0.0


if __name__ == "__main__":
    try:
        main()
    except PilgrimError as error:
        sys.exit(str(error))
