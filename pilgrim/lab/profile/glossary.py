"""The words of a profile, in plain ones. Only text lives here; terms.py finds and prints it.

Each term says what it is, where a profile of pilgrim shows it, and what to do about it. The order is the
one in which a reader meets them: first what is measured, then the stairs of the waterfall, the machine, the
compiler, memory, and last the art of measuring. Three to eight lines in a terminal is the limit: who wants
more finds it in the tour.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """An entry of the glossary."""

    name: str
    also: tuple[str, ...]  # other names by which it is found
    what: str
    see: str  # where a profile shows it
    do: str
    related: tuple[str, ...] = ()  # names of other terms


@dataclass(frozen=True)
class Chapter:
    """Terms that belong together."""

    title: str
    terms: tuple[Term, ...]


MEASURES = Chapter(
    "What is measured",
    (
        Term(
            "step",
            ("step time",),
            "One update of the weights: rows of tokens go forward through the network, gradients come back, "
            "and the optimizer moves the weights. When a model writes, a step is one token for each reply.",
            "The first number of every profile: the median over the profiled steps.",
            "Compare it only with steps over as many tokens, on the same machine.",
            ("phase", "noise"),
        ),
        Term(
            "phase",
            ("data", "forward", "backward", "optimizer", "sync phase"),
            "A part of a step: data (fetch a batch), forward (from tokens to the loss), backward (the "
            "gradients, about twice forward's work), optimizer (the update), sync (waiting for the device "
            "and other processes).",
            "The bar of phases; in the trace they are called pilgrim.forward and so on.",
            "Look first at the phase that is longer than it should be: backward much above twice forward, "
            "an optimizer above a tenth, data above nothing.",
            ("step", "data wait", "sync"),
        ),
        Term(
            "FLOP/s",
            ("flops", "flop", "tflops", "floating-point operation"),
            "Floating-point operations a second. A product of matrices of n×k and k×m numbers needs 2·n·k·m "
            "of them, and nearly all of a network's arithmetic is such products, so only they are counted.",
            "The peak, each kernel's speed, and the horizontal part of the roofline.",
            "Nothing by itself: a speed means something beside the peak of the same number format.",
            ("peak", "MFU"),
        ),
        Term(
            "peak",
            ("measured peak", "spec", "speed of light"),
            "The most that a machine multiplies in a second. Makers print one figure; a large product on "
            "your own machine reaches less, because of power, heat and clocks. pilgrim measures it, in the "
            "run's format.",
            "The top of the waterfall, the flat line of the roofline; the maker's figure stands beside it.",
            "If it is far below the maker's, look at power limits, cooling, and who else uses the machine.",
            ("FLOP/s", "MFU", "bandwidth"),
        ),
        Term(
            "MFU",
            ("model FLOPs utilization", "utilization", "achieved"),
            "Model FLOPs utilization: the operations that the model's mathematics needs for a step, divided "
            "by what the machine could have done in that time at its peak. Work that is done twice counts "
            "once. From the PaLM paper (2022).",
            "In the sentence on top, and as the last stair, `achieved`.",
            "Don't chase 100%: large models on one GPU reach 40 to 60%, small ones and CPUs less. Read the "
            "stairs above it.",
            ("peak", "waterfall"),
        ),
        Term(
            "bandwidth",
            ("GB/s", "memory bandwidth"),
            "How many bytes a second pass between the processor and its memory. It grew more slowly than "
            "arithmetic for decades, so most kernels wait for memory, not for multipliers.",
            "Measured with a large copy, read and write both counted: the roofline's slope. Kernels show "
            "their own, above the measured one if their data came from a cache.",
            "Move fewer bytes: fusion, bf16 in place of fp32, no copies.",
            ("memory-bound", "fusion"),
        ),
        Term(
            "arithmetic intensity",
            ("intensity", "operational intensity"),
            "How many operations a kernel does for each byte it moves. Adding two tensors does a fraction "
            "of one; a product of large matrices does hundreds, because each number takes part in many "
            "products.",
            "The horizontal axis of the roofline.",
            "Raise it: fuse kernels, so that a number is read once for several operations, or make products "
            "larger.",
            ("roofline", "fusion"),
        ),
        Term(
            "roofline",
            (),
            "A picture of the two limits of a kernel: bytes times bandwidth (the slope) and the "
            "multipliers' peak (the flat roof). Where they meet, a kernel stops being bound by memory. From "
            "Williams, Waterman and Patterson (2009).",
            "The plot beside the kernels: a dot for each one that multiplies, as large as its time.",
            "A dot at the roof is as fast as it gets. Far below: too small, or badly shaped. On the slope: "
            "move it right, by fusion.",
            ("arithmetic intensity", "memory-bound", "compute-bound"),
        ),
    ),
)

STAIRS = Chapter(
    "The stairs of the waterfall",
    (
        Term(
            "waterfall",
            ("stairs", "losses"),
            "From a step that multiplies at the measured peak from its beginning to its end, down to what "
            "the model needed. Every bit of time goes to exactly one cause, so that the stairs sum to 100%.",
            "The stairs below the sentence; their order says which cause is asked about first.",
            "Work on the highest stair. Taking one away shortens the step by as much, at best, and makes "
            "the share of the others larger.",
            ("MFU", "peak"),
        ),
        Term(
            "data wait",
            ("data_wait", "loader stall", "input stall"),
            "The device has nothing to do, because the next batch isn't there yet: it is being read, cut "
            "into rows, or copied.",
            "The first stair, and the phase `data`.",
            "Make batches ahead in the background, keep shards on a local disk, and leave one processor "
            "core free.",
            ("prefetch", "pinned memory"),
        ),
        Term(
            "idle",
            ("device idle", "bubble"),
            "The device has nothing to do for another reason than data or launches: the host waits for a "
            "result, writes a log, or works between the phases.",
            "A stair; in the trace, gaps on the device's track under none of the phases.",
            "Search for what asks the device for a number (.item(), print) and do it less often.",
            ("sync", "stream"),
        ),
        Term(
            "launch overhead",
            ("launch_overhead", "dispatch overhead", "cpu-bound", "host-bound"),
            "The device waits for the host to call the next kernel, or spends its time on kernels that are "
            "over as soon as they begin. Python and torch need some microseconds for each call.",
            "A stair, and kernels marked `launch` with thousands of launches.",
            "Fewer, larger kernels: compile (`runtime.compile`), more rows in a microbatch; on a GPU, CUDA "
            "graphs.",
            ("kernel", "fusion", "CUDA graph"),
        ),
        Term(
            "exposed communication",
            ("exposed_communication", "communication", "all-reduce", "nccl"),
            "Several devices add up their gradients. As long as they compute meanwhile, that costs nothing; "
            "what is not hidden behind computing is exposed.",
            "A stair; zero with one device. In the trace: nccl kernels with nothing beside them.",
            "Talk less often (larger batches), send less (bf16), or begin while backward is still under way.",
            ("stream", "sync"),
        ),
        Term(
            "memory-bound",
            ("memory_bound", "memory bound", "bandwidth-bound", "memory-bound work"),
            "A kernel that does so little arithmetic for each byte that it waits for memory: norms, "
            "activations, additions, optimizer updates, and products with few rows.",
            "Usually the highest stair; kernels bound by `memory`, at the roofline's slope or left of it.",
            "Move fewer bytes: compile, so that neighbours are fused; compute in bf16; take losses and "
            "attention that never write their large tables down.",
            ("bandwidth", "fusion", "arithmetic intensity"),
        ),
        Term(
            "elementwise inefficiency",
            ("elementwise_inefficiency", "elementwise"),
            "Kernels without products that take longer than their bytes explain: exponentials and "
            "conversions, steps through memory that skip, or too few threads.",
            "A stair; kernels whose GB/s stay far below the measured copy.",
            "See which kernel it is. On a CPU: more threads (`runtime.threads`). Else: contiguous tensors, "
            "fusion.",
            ("bandwidth", "memory-bound"),
        ),
        Term(
            "recomputation",
            ("recompute",),
            "Activations that were thrown away to save memory, and are computed again in backward. It costs "
            "up to a third of a step, and the MFU doesn't count it as work.",
            "A stair, as far as it can be told apart: within a compiled graph it can't.",
            "If memory has room (see the micro-batch that fits), switch activation checkpointing off.",
            ("activation checkpointing", "activations"),
        ),
        Term(
            "extra products",
            ("extra_products",),
            "Matrix products that the model's arithmetic doesn't count, at the peak's speed: those of the "
            "Muon optimizer, and attention scores that are computed and then masked away.",
            "A stair; in the table, products whose source line is in optim/ or in attention.",
            "The optimizer's are the same for a small batch as for a large one, so more rows a step dilute "
            "them.",
            ("MFU", "matmul inefficiency"),
        ),
        Term(
            "matmul inefficiency",
            ("matmul_inefficiency", "tile quantization", "padding"),
            "Products that reach less than the measured peak. Multipliers work on tiles of fixed size, many "
            "at once: a small or odd shape leaves some of them empty.",
            "A stair; dots below the flat roof of the roofline.",
            "Larger products (more rows, a wider model), sizes that are multiples of 64 or 128, a "
            "vocabulary too.",
            ("occupancy", "roofline"),
        ),
        Term(
            "compute-bound",
            ("compute bound", "math-bound"),
            "A kernel that is limited by arithmetic rather than by memory. For a product that is the good "
            "case: it can only get faster with less arithmetic, or in a format that is multiplied faster.",
            "Kernels bound by `compute`, to the right in the roofline.",
            "bf16 instead of fp32; on newer GPUs fp8; and shapes that fill the tiles.",
            ("roofline", "matmul inefficiency"),
        ),
    ),
)

MACHINE = Chapter(
    "Device and host",
    (
        Term(
            "kernel",
            ("operation", "op"),
            "A program that the device runs in one go over whole tensors: a product, a norm, an addition. "
            "On a CPU an operation of torch or a function that the compiler wrote plays that part.",
            "The table of kernels, summed up by kind, with the line of source that asks for it.",
            "Ask three things: how much of the step is it, what bounds it, and does it have to happen at "
            "all?",
            ("launch", "roofline"),
        ),
        Term(
            "launch",
            ("launches",),
            "The host's call that starts a kernel. It goes to a queue, so the host is usually well ahead of "
            "the device, and both work at once.",
            "The column `launches`: how often a kind of kernel ran in a step.",
            "If one multiplies with the layers or microbatches, fusing or larger microbatches make it fewer.",
            ("kernel", "launch overhead"),
        ),
        Term(
            "occupancy",
            ("sm", "warp", "streaming multiprocessor"),
            "How full a GPU is: threads at work, as a share of those it has places for. It hides waiting: "
            "while some threads wait for memory, others compute. Full occupancy is no aim in itself, and "
            "the best products run with little.",
            "Not in this profile, since only hardware counters tell it (NVIDIA's Nsight Compute). A kernel "
            "far below the roofline is the hint.",
            "More rows for small kernels; for your own kernels, fewer registers a thread.",
            ("kernel", "matmul inefficiency"),
        ),
        Term(
            "fusion",
            ("fused", "fuse"),
            "Several operations in one kernel, so that what is between them stays in registers and is not "
            "written to memory and read again.",
            "Kernels named …fused… come from torch.compile; their names list what they hold.",
            "`runtime.compile=on` fuses what lies between products. Graph breaks end a fusion: mend those "
            "first.",
            ("memory-bound", "graph break"),
        ),
        Term(
            "stream",
            ("streams", "overlap"),
            "A queue of kernels that a GPU runs one after the other. Several streams run side by side, and "
            "that is how copying and communication hide behind computing.",
            "In the trace, each stream is a track of its own.",
            "If two things could overlap and don't, see whether they are in one stream, or one waits for "
            "the other.",
            ("sync", "exposed communication"),
        ),
        Term(
            "sync",
            ("synchronization", "synchronize", "host sync", ".item()"),
            "The host stops until the device has done all that it was given. Every look at a number does "
            "that: .item(), .cpu(), printing, an `if` on a tensor. The queue is then empty, and the device "
            "waits in turn.",
            "The phase `sync`, gaps in the trace, and the fix that counts such waits.",
            "Keep numbers on the device and look at them every few steps; copy asynchronously from pinned "
            "memory.",
            ("idle", "pinned memory"),
        ),
        Term(
            "CUDA graph",
            ("cuda graphs", "cudagraph"),
            "A recording of many kernel launches which the GPU then replays with one call. Shapes and "
            "addresses must stay the same.",
            "One launch in place of thousands in the trace; little launch overhead.",
            "Worth it where launch overhead is a high stair and shapes don't change, as when writing token "
            "by token.",
            ("launch overhead",),
        ),
        Term(
            "pinned memory",
            ("pinned", "page-locked"),
            "Memory of the host that the system may not move. From there a GPU fetches a batch by itself, "
            "while the host and the GPU's kernels go on.",
            "Copies from host to device (memcpy HtoD) that run beside kernels, not between them.",
            "Nothing to set: batches for a GPU are pinned. In code of your own: pin_memory() and "
            "non_blocking=True.",
            ("prefetch", "stream"),
        ),
        Term(
            "prefetch",
            ("prefetching",),
            "Making the next batch while the device still works on this one.",
            "The phase `data` is next to nothing, and so is the stair `data wait`.",
            "If it isn't: a faster disk, more cores, or batches that take less work to make.",
            ("data wait", "pinned memory"),
        ),
    ),
)

COMPILER = Chapter(
    "Compilation",
    (
        Term(
            "compilation",
            ("compile", "torch.compile", "inductor"),
            "torch.compile watches a function once, takes down its tensor operations as a graph, and writes "
            "kernels for it, with neighbours fused. It takes from seconds to minutes before the first step.",
            "The section Compilation: graphs, breaks, recompilations, and the seconds spent.",
            "Worth it for all but the shortest runs. If it is off, `pilgrim doctor` says why.",
            ("fusion", "graph", "graph break"),
        ),
        Term(
            "graph",
            ("compiled graph",),
            "The tensor operations between two places where the compiler had to stop: what it optimizes at "
            "once.",
            "Their number under Compilation; few and large is good.",
            "Forward and backward of one function make a graph each. Many more mean graph breaks.",
            ("graph break", "compilation"),
        ),
        Term(
            "graph break",
            ("graph breaks", "break"),
            "A line that the compiler could not take down (a print, a number read from a tensor, foreign "
            "code). The graph ends there, Python does that line, a new graph begins, and nothing is fused "
            "across.",
            "Listed under Compilation with cause and place.",
            "Take the line out of the compiled function, or say it in tensor operations (torch.where for "
            "if).",
            ("recompilation", "fusion", "sync"),
        ),
        Term(
            "recompilation",
            ("recompilations", "recompile", "guard", "guards"),
            "Compiled code is valid for the shapes and values it was made for; guards check them at each "
            "call. When one fails, the function is compiled anew, which costs seconds in the middle of a "
            "run.",
            "Listed under Compilation with the guard that failed.",
            "Feed the same shapes at each step: rows that microbatches divide, no shorter last batch.",
            ("graph break", "warm-up"),
        ),
        Term(
            "warm-up",
            ("warmup", "warm up"),
            "The first steps are slower: code is compiled, caches fill, the allocator asks for memory, "
            "clocks rise. They say nothing of the thousands that follow.",
            "They are run before measuring and left out; what compiling took is told.",
            "If profiled steps still get faster one after the other, warm up longer.",
            ("noise", "recompilation"),
        ),
    ),
)

MEMORY = Chapter(
    "Memory",
    (
        Term(
            "peak memory",
            ("memory", "memory curve", "out of memory", "oom"),
            "The most bytes held at once during a step, usually where forward ends: all activations are "
            "there, and the first gradients appear. It decides what fits.",
            "The section Memory: the bar by kind, and the curve over a step.",
            "Too high: fewer rows in a microbatch, then activation checkpointing, then a smaller optimizer "
            "state.",
            ("activations", "micro-batch"),
        ),
        Term(
            "parameters",
            ("weights",),
            "The numbers that are learned: 4 bytes each in fp32, in which pilgrim keeps them.",
            "The first kind in the bar of memory.",
            "Nothing but a smaller model makes them fewer; with gradients and optimizer they weigh three to "
            "four times as much.",
            ("gradients", "optimizer state"),
        ),
        Term(
            "gradients",
            ("gradient",),
            "For each parameter, the direction in which the loss rises: as many bytes as the parameters. "
            "They grow during backward and are given back after the update.",
            "A kind in the bar of memory; a slope in the curve.",
            "They are needed. Accumulating over microbatches adds into the same ones and costs no more.",
            ("parameters", "micro-batch"),
        ),
        Term(
            "optimizer state",
            ("momentum",),
            "What the optimizer remembers: about one number for each parameter with Muon, two with AdamW.",
            "A kind in the bar of memory, held all the time.",
            "If it matters, keep it in bf16 or 8 bits.",
            ("parameters",),
        ),
        Term(
            "activations",
            ("activation",),
            "What forward leaves behind for backward: the inputs of each layer. They grow with rows, "
            "length, width and depth, and are given back one after the other as backward passes.",
            "A kind in the bar of memory, and the mountain in its curve.",
            "Fewer rows in a microbatch; a chunked loss; activation checkpointing; bf16.",
            ("activation checkpointing", "micro-batch"),
        ),
        Term(
            "activation checkpointing",
            ("checkpointing", "gradient checkpointing"),
            "Keep only the input of each block, and compute what is inside again when backward comes there: "
            "less memory for about a third more arithmetic.",
            "As recomputation in the waterfall, and as a flatter mountain in the memory curve.",
            "Switch it on only when the micro-batch you need doesn't fit.",
            ("recomputation", "activations"),
        ),
        Term(
            "micro-batch",
            ("microbatch", "micro_rows", "gradient accumulation"),
            "The rows that go through the network together. A step's rows may be cut into several, whose "
            "gradients are added up: the same step for less memory.",
            "The section Memory says how many rows were used, and how many would fit.",
            "Larger ones make larger products and fewer launches, until the machine is busy. It changes "
            "speed only, not what is learned.",
            ("activations", "launch overhead"),
        ),
        Term(
            "fragmentation",
            ("fragmented", "reserved memory"),
            "Memory that the allocator holds and no tensor uses: gaps between tensors that are too small "
            "for the next one. An out-of-memory error with gigabytes free is this.",
            "A kind in the bar of memory, on a GPU only.",
            "Keep shapes the same from step to step; or set "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
            ("peak memory",),
        ),
    ),
)

MEASURING = Chapter(
    "Measuring",
    (
        Term(
            "trace",
            ("perfetto", "kineto", "timeline", "profiler"),
            "The recording itself: every operation, launch and kernel with its beginning and end. All of a "
            "profile but its memory curve is computed from it.",
            "The file beside the page; ui.perfetto.dev draws it, and nothing is uploaded.",
            "Look at one step: w and s zoom, a and d move. Gaps on the device's track are lost time.",
            ("kernel", "stream"),
        ),
        Term(
            "noise",
            ("confidence interval", "interval", "variance"),
            "Times differ from step to step and from run to run: other programs, clocks, temperature. A "
            "difference within the noise says nothing.",
            "The spread beside the step time; the 95% interval in `pilgrim profile --diff A B`.",
            "Profile more steps (`--steps`), on a machine that does nothing else, and repeat what looks "
            "like a gain.",
            ("warm-up", "step"),
        ),
    ),
)

CHAPTERS = (MEASURES, STAIRS, MACHINE, COMPILER, MEMORY, MEASURING)
