"""The table of kernels: which ones take the time, how close to the machine's limits, and what they are for.

Kernels of one name (products: of one name and shape) make one line. Names are the machine's and the
compiler's, such as `triton_red_fused_mean_mul_pow_rsqrt_3`, so each gets a sentence in plain words. It is
found by the function of ours that the kernel comes from, if that is known, and else by the words in its name.
The tables that this needs are at the end.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache

import torch

from pilgrim.lab.profile import eager
from pilgrim.lab.profile.costs import PRODUCTS, tensors_of
from pilgrim.lab.profile.findings import Kernel
from pilgrim.lab.profile.generated import Call
from pilgrim.lab.profile.trace import Task
from pilgrim.lab.profile.waterfall import Priced

MOST = 40  # lines of the table


def kernels(
    tasks: Sequence[Priced], steps: int, calls: Mapping[Task, Call], sources: eager.Sources
) -> tuple[Kernel, ...]:
    """The kinds of kernels that take most time, largest first."""
    kinds: dict[str, list[Priced]] = defaultdict(list)
    for p in tasks:
        kinds[title(p)].append(p)
    found = [_kernel(name, same, steps, calls, sources) for name, same in kinds.items()]
    return tuple(sorted(found, key=lambda kernel: -kernel.seconds)[:MOST])


def _kernel(
    name: str, same: list[Priced], steps: int, calls: Mapping[Task, Call], sources: eager.Sources
) -> Kernel:
    seconds = sum(p.task.busy_us for p in same) / 1e6 / steps
    bounds: dict[str, float] = defaultdict(float)
    places: dict[str, float] = defaultdict(float)
    for p in same:
        bounds[p.bound] += p.task.busy_us
        if place := source(p.task, calls, sources):
            places[place] += p.task.busy_us
    line = max(places, key=lambda place: places[place]) if places else None
    return Kernel(
        name,
        seconds,
        len(same) / steps,
        _sum([p.flops for p in same], steps) if same[0].product else 0.0,
        _sum([p.bytes for p in same], steps),
        max(bounds, key=lambda bound: bounds[bound]),
        line and f"{line}{f' and {len(places) - 1} more' if len(places) > 1 else ''}",
        meaning(same[0], line),
    )


def _sum(values: list[float | None], steps: int) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / steps if len(known) == len(values) else None


def source(task: Task, calls: Mapping[Task, Call], sources: eager.Sources) -> str | None:
    """The line of ours that it comes from."""
    call = calls.get(task)
    if call and call.source:
        return call.source
    return sources.of(task.op) if task.op else None


def title(p: Priced) -> str:
    """The kernel's name, without the graph's number; a product with its shapes, as speed depends on them."""
    name = re.sub(r"^graph_\d+_", "", p.task.name)
    if p.product and p.task.op and p.task.op.name.rpartition("::")[2] in PRODUCTS:
        factors = [dims for dims, _ in tensors_of(p.task.op)][:2]
        return f"{name} {' · '.join('×'.join(map(str, dims)) for dims in factors)}"
    return name


# In plain words -------------------------------------------------------------------------------------


def meaning(p: Priced, source: str | None) -> str:
    """What the kernel does, for someone who never saw its name."""
    name = p.task.name.lower()
    what = next((words for pattern, words in NAMES if re.search(pattern, name)), None)
    if p.task.op and what is None:
        what = next((words for pattern, words in NAMES if re.search(pattern, p.task.op.name.lower())), None)
    if what is None or "fused" in name:
        parts = fused_parts(name)
        what = (
            f"one loop, written by the compiler, for: {', '.join(parts)}" if parts else what or "other work"
        )
    purpose = purpose_of(source) if source else None
    return f"{what}. {purpose}" if purpose else what


def purpose_of(source: str) -> str | None:
    """What the line's function, else its class, else its file is for."""
    file, function = source.partition(":")[0], source.partition(" and ")[0].rpartition(" in ")[2]
    return next(
        (words for key in (function, function.partition(".")[0], "") if (words := PURPOSES.get((file, key)))),
        None,
    )


def fused_parts(name: str) -> list[str]:
    """The operations in a fused kernel's name, in plain words and without those that move no numbers."""
    fused = re.search(r"(?:cpp|triton_\w+?)_fused_(.+?)_\d+$", name)
    if not fused:
        return []
    words = (WORDS.get(op) for op in split_operations(fused[1]))
    return list(dict.fromkeys(word for word in words if word))


def split_operations(text: str) -> list[str]:
    """ "_to_copy_add_rsqrt" -> ["_to_copy", "add", "rsqrt"]: the longest known names, from the left."""
    words, known, at = text.split("_"), _operations(), 0
    found = []
    while at < len(words):
        for end in range(len(words), at, -1):
            if (candidate := "_".join(words[at:end])) in known:
                break
        else:
            candidate, end = words[at], at + 1
        found += [candidate] if candidate else []
        at = end
    return found


@cache
def _operations() -> frozenset[str]:
    names = torch._C._dispatch_get_all_op_names()
    return frozenset(n.removeprefix("aten::").partition(".")[0] for n in names if n.startswith("aten::"))


WORDS = {
    "_to_copy": "changing the number format",
    "add": "adding",
    "sub": "subtracting",
    "rsub": "subtracting",
    "mul": "multiplying number by number",
    "div": "dividing",
    "neg": "changing signs",
    "reciprocal": "dividing",
    "pow": "squaring",
    "sqrt": "roots",
    "rsqrt": "dividing by a root",
    "exp": "exponentials",
    "log": "logarithms",
    "sin": "sines and cosines",
    "cos": "sines and cosines",
    "tanh": "a squashing function",
    "sigmoid": "a squashing function",
    "silu": "SwiGLU's gate",
    "silu_backward": "the gate's gradient",
    "sum": "summing up",
    "mean": "means",
    "amax": "largest values",
    "lerp": "running means",
    "linalg_vector_norm": "norms",
    "cat": "joining tensors",
    "clone": "copying",
    "copy": "copying",
    "flip": "turning halves around",
    "embedding": "looking up rows of a table",
    "embedding_dense_backward": "adding gradients to rows of a table",
    "gather": "looking up single numbers",
    "scatter_add": "adding to single numbers",
    "index": "looking up",
    "index_put": "writing to looked-up places",
    "where": "choosing",
    "masked_fill": "masking",
    "constant_pad_nd": "padding",
    "_softmax": "softmax",
    "native_layer_norm": "a norm",
}

# The first pattern that is found in a kernel's name, or in that of the operation behind it.
NAMES = (
    (r"nccl|c10d::|gloo", "sends numbers between processes"),
    (r"memcpy htod", "copies from the host to the GPU"),
    (r"memcpy dtoh", "copies from the GPU to the host"),
    (r"memcpy", "copies within the GPU's memory"),
    (r"memset|fill_|zero_", "fills memory with one value"),
    (
        r"flash.*bwd|attention.*backward|fmha.*(bwd|backward)",
        "attention's gradients, without keeping the scores",
    ),
    (r"flash|attention|fmha", "attention: scores, softmax and mixing in one kernel"),
    (r"_scaled_mm", "a product of matrices in 8-bit numbers"),
    (r"bmm", "products of many small matrices at once"),
    (r"addmm|gemm|::mm|matmul|nvjet|cutlass|xmma|triton_tem", "a product of matrices"),
    (r"_foreach_copy|copy_|copy_kernel|direct_copy", "copies, and changes the number format on the way"),
    (r"_foreach_norm|vector_norm", "lengths of vectors, for the gradient's norm"),
    (r"cat(array|$|_)", "joins tensors into one"),
    (r"embedding_dense_backward", "adds gradients to the rows of the embedding"),
    (r"embedding|index_select|indexselect", "looks up rows of a table"),
    (r"softmax", "softmax: scores to probabilities"),
    (r"cumsum|searchsorted|topk|sort|multinomial", "draws the next token from its probabilities"),
    (r"index_put", "writes into the cache of keys and values"),
    (r"reduce|::(sum|mean|amax|max|argmax|all|any)\b", "reduces many numbers to few"),
    (r"silu|gelu", "the MLP's gate"),
    (r"rand|uniform|normal_", "draws random numbers"),
    (
        r"::(eq|ne|gt|ge|lt|le|bitwise_\w+|tril|triu|where|masked_fill_?)$",
        "compares, or chooses by a condition",
    ),
    (r"flip|roll", "turns numbers around"),
    (r"::index|gather|scatter", "looks up, or writes to looked-up places"),
    (r"exp|log|pow|sqrt|sin|cos|elementwise|vectorized|::(add|mul|div|sub|neg|lerp)", "number by number"),
)

# What a function of ours is for; "" stands for all of a file.
PURPOSES = {
    ("pilgrim/model/layers.py", "rotate"): "Turns queries and keys by their position (RoPE)",
    ("pilgrim/model/layers.py", "rotary_angles"): "The angles of positions (RoPE)",
    ("pilgrim/model/layers.py", "joint_linear"): "The MLP's first two maps, as one",
    ("pilgrim/model/layers.py", "_product"): "A linear map of the layers",
    ("pilgrim/model/layers.py", "Linear"): "A linear map of the layers, or casting its weights",
    ("pilgrim/model/layers.py", "RMSNorm"): "A norm",
    ("pilgrim/model/layers.py", "MLP"): "The MLP",
    ("pilgrim/model/attention.py", ""): "Attention",
    ("pilgrim/model/attention_spans.py", ""): "Attention: who may look at whom",
    ("pilgrim/model/attention_kernels.py", ""): "Attention",
    ("pilgrim/model/fp8.py", ""): "Products in 8-bit numbers",
    ("pilgrim/model/transformer.py", ""): "Embedding, and adding up the residual stream",
    ("pilgrim/train/losses.py", ""): "The loss: scores of all words, softmax, and their gradients",
    ("pilgrim/train/step.py", ""): "The step: adding up gradients, and their norm",
    ("pilgrim/optim/muon.py", "orthogonalize"): "Muon: makes a matrix's directions equally strong",
    ("pilgrim/optim/muon.py", ""): "Muon's update of the matrices",
    ("pilgrim/optim/adamw.py", ""): "AdamW's update of embedding, head and norms",
    ("pilgrim/infer/cache.py", ""): "The cache of keys and values",
    ("pilgrim/infer/paged_attention.py", ""): "Attention over the cache",
    ("pilgrim/infer/paged_kernel.py", ""): "Attention over the cache",
    ("pilgrim/infer/sampling.py", ""): "Drawing the next token",
    ("pilgrim/infer/engine.py", ""): "Writing a reply",
    ("pilgrim/data/loader.py", ""): "Making a batch",
}
