"""The work that is profiled: steps of training as the loop makes them, or of writing as the engine does.

A step hands its work to the device and does not wait for it; `finish` waits. Both are annotated with the
names of the phases ("pilgrim.data", "pilgrim.forward", …), by which the analysis finds them in a trace.

Nothing is written: no metrics, no checkpoint. Training goes on from the state it is given, so weights change
in memory as they would in a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from pilgrim.core.peaks import synchronize
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import batches
from pilgrim.data.prefetch import Prefetch
from pilgrim.infer.drawing import Place
from pilgrim.infer.engine import Engine
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.scheduler import Request
from pilgrim.infer.scheduler import Work as Reading
from pilgrim.model.count import flops_needed
from pilgrim.model.lora import numbers
from pilgrim.model.transformer import Transformer
from pilgrim.train.grow import phase_at
from pilgrim.train.keeping import State
from pilgrim.train.loop import Loop, Parts


@dataclass(frozen=True)
class Load:
    """What the last step had to do, and what is held all the time for it."""

    tokens: int
    flops: float  # that the model's mathematics asks for (model/count.py)
    gradients: frozenset[int]  # addresses of the gradients after backward


@dataclass(frozen=True)
class Held:
    """Bytes that are held between steps."""

    parameters: int
    optimizer: int
    cache: int  # of keys and values


class Work(Protocol):
    """Something that can be profiled."""

    model: nn.Module

    @property
    def rows(self) -> int: ...  # that go through the network together

    @property
    def all_rows(self) -> int: ...  # of a step

    @property
    def stage_steps(self) -> int: ...  # of the whole stage; 0: it has none

    def prepare(self) -> None: ...

    def step(self) -> Load: ...

    def finish(self) -> None: ...

    def held(self) -> Held: ...

    def close(self) -> None: ...


class TrainingSteps:
    """Steps of a trained stage, made by the loop's own code, at the place in the schedules where it stands.

    A stage that is done makes its last step again.
    """

    def __init__(self, parts: Parts, state: State) -> None:
        self.model: nn.Module = parts.model
        self._parts, self._loop = parts, Loop(parts)
        self._loop.state = state
        self._at = state.step = min(state.step, self._loop.steps - 1)
        self._phase = phase_at(self._loop.phases, self._at)
        made = batches(parts.rows.at(self._phase.context), self._phase.rows, state.position)
        self._processes = parts.runtime.processes
        shares = ((batch.share(self._processes), position) for batch, position in made)
        self._batches = Prefetch(shares, parts.runtime.device)
        self._gradients: frozenset[int] = frozenset()
        for optimizer in parts.optimizers.all:
            optimizer.register_step_pre_hook(self._look_at_gradients)

    @property
    def rows(self) -> int:
        return self._loop.gradients.rows(self._phase)

    @property
    def all_rows(self) -> int:
        return self._processes.share(self._phase.rows)

    @property
    def stage_steps(self) -> int:
        return self._loop.steps

    def prepare(self) -> None:
        """Fit the microbatch, and compile."""
        self._loop.prepare()

    def step(self) -> Load:
        self._gradients, self._loop.state.step = frozenset(), self._at
        with record_function("pilgrim.data"):
            batch, self._loop.state.position = next(self._batches)
        self._loop.step(batch)
        # As for the MFU that training shows: each row is taken for one document (stages/speed.py).
        model = self._parts.model
        per_token = flops_needed(model.config, self._phase.context, numbers(model)).training
        tokens = batch.tokens // self._processes.count  # this process's, on average
        return Load(tokens, float(tokens * per_token), self._gradients)

    def finish(self) -> None:
        with record_function("pilgrim.sync"):
            synchronize(self._parts.runtime.device)
        self._loop.window.rows.clear()

    def held(self) -> Held:
        state = self._parts.optimizers.tensors().values()
        return Held(_bytes(self.model.parameters()), _bytes(state), 0)

    def close(self) -> None:
        self._batches.__exit__(None, None, None)

    def _look_at_gradients(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        self._gradients |= {p.grad.untyped_storage().data_ptr() for p in parameters if p.grad is not None}


REPLIES = 32  # written together


class GenerationSteps:
    """Steps of writing: one token for each of many replies, in the middle of them.

    Reading the prompts is done before, and not part of a step.
    """

    def __init__(
        self, model: Transformer, runtime: Runtime, prompts: Sequence[Sequence[int]], steps: int
    ) -> None:
        """`steps`: how many will be asked for at most. The prompts are repeated up to half the context."""
        context = model.config.context
        long = max(1, min(context // 2, context - 2 - steps))
        # In one pass, so that all of them begin to write at the same time.
        self._engine = _Annotated(model, runtime, rows=REPLIES, tokens_per_pass=REPLIES * long)
        self.model: nn.Module = self._engine.model
        self.rows = self.all_rows = self._engine.rows
        self.stage_steps = 0
        self._runtime = runtime
        # Each begins elsewhere: the cache would hold what is alike only once.
        self._prompts = [(list(prompts[i % len(prompts)]) * 2 * long)[i : i + long] for i in range(REPLIES)]
        self._sampling = Sampling(max_tokens=steps + 1, seed=runtime.seed_for("profile"))
        self._requests: list[Request] = []
        self._left = 0

    def _begin(self) -> None:
        for request in self._requests:
            self._engine.cancel(request)
        submit = self._engine.submit
        self._requests = [submit(p, self._sampling, index=i) for i, p in enumerate(self._prompts)]
        self._engine.step()
        self._left = min(request.room for request in self._requests)

    def prepare(self) -> None:
        self._begin()

    def close(self) -> None:
        pass

    def step(self) -> Load:
        if self._left == 0:
            self._begin()
        self._left -= 1
        self._engine.step()
        keys = max(len(request.tokens) for request in self._requests)
        per_token = flops_needed(self._engine.config, 2 * keys - 1).forward
        return Load(self.rows, float(self.rows * per_token), frozenset())

    def finish(self) -> None:
        with record_function("pilgrim.sync"):
            synchronize(self._runtime.device)

    def held(self) -> Held:
        return Held(_bytes(self.model.parameters()), 0, self._engine.cache_bytes)


class _Annotated(Engine):
    """The engine, with its two halves of a step named: the network's pass, and drawing from its scores.

    Drawing is where the host waits for the device, as it needs the drawn ids to go on: "sync".
    """

    def _pass(self, work: Sequence[Reading]) -> tuple[list[Place], Tensor]:
        with record_function("pilgrim.forward"):
            return super()._pass(work)

    def _draw(self, scores_bv: Tensor, places: Sequence[Place]) -> list[int]:
        with record_function("pilgrim.sync"):
            return super()._draw(scores_bv, places)


def _bytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
