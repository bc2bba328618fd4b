"""Replies by several processes: each writes some, and all have all of them.

What a reply draws depends on its number among the prompts, so it is the same whoever writes it.
"""

from collections.abc import Collection, Sequence

from pilgrim.core.processes import Processes
from pilgrim.infer.engine import Engine, Reply
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.tools import ToolUse


def dealt_replies(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Collection[int],
    processes: Processes,
    tools: ToolUse | None = None,
) -> list[Reply]:
    """What `engine.generate` gives, by all processes together. Every one of them must call this."""
    numbers = processes.dealt(range(len(prompts)))
    mine = engine.generate([prompts[i] for i in numbers], sampling, stop_ids, tools, numbers)
    return processes.collected(mine)
