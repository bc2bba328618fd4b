"""Who writes rollouts: an engine with the weights of now asks problems, and grades what it has answered.

Several processes each write and grade some of the replies, and all have all of them. A reply is drawn by its
number and the round's seed, so it is the same whoever writes it, and whatever is written beside it (in fp32).
"""

from collections.abc import Sequence

from pilgrim.core.console import Console
from pilgrim.core.errors import DataError
from pilgrim.core.runlog import RunLog
from pilgrim.core.runtime import Runtime
from pilgrim.evals.rewards.problems import Graded, Problem
from pilgrim.infer.engine import Engine
from pilgrim.infer.rollouts import Written, write
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.tools import END_OF_CALL, ToolUse
from pilgrim.model.transformer import Transformer
from pilgrim.stages.rl_settings import RlSettings
from pilgrim.stages.rl_tasks import Posed
from pilgrim.text.chat import render_prompt
from pilgrim.text.tokenizer import Tokenizer
from pilgrim.train.parallel import plain_copy
from pilgrim.train.rollouts import Rollout

CUT_OFF = "cut off"  # why a reply that reached its limit has no reward

Asked = tuple[Posed, Problem]


class Writer:
    """An engine that has the weights of now, and what it needs to write and to grade rollouts."""

    def __init__(
        self,
        settings: RlSettings,
        tokenizer: Tokenizer,
        runtime: Runtime,
        log: RunLog,
        console: Console,
    ) -> None:
        self.settings, self.tokenizer, self.runtime = settings, tokenizer, runtime
        self.log, self.console = log, console
        self.tools = ToolUse(tokenizer)
        self.engine: Engine | None = None

    def load(self, model: Transformer) -> None:
        """Write with these weights from now on. All processes must call this."""
        plain = plain_copy(model, self.runtime)
        if self.engine is None:
            self.engine = Engine(plain, self.runtime, self.settings.at_once)
        else:
            self.engine.load(plain)

    def rollouts(self, asked: Sequence[Asked], each: int, seed: int, first: int) -> list[Rollout]:
        """`each` replies to every problem, graded, by all processes. Prompts are numbered from `first` on.

        Raises DataError for a prompt that leaves no room for a reply.
        """
        numbers = self.runtime.processes.dealt(range(len(asked) * each))
        jobs = [(first * each + n, *asked[n // each]) for n in numbers]
        prompts = [self._prompt(problem) for _, _, problem in jobs]
        written: list[Written | None] = [None] * len(jobs)
        for with_tools in (False, True):  # what calls may be answered is the same for all of a pass
            some = [i for i, (_, task, _) in enumerate(jobs) if task.settings.tools == with_tools]
            found = self._write([prompts[i] for i in some], [jobs[i][0] for i in some], seed, with_tools)
            for i, one in zip(some, found, strict=True):
                written[i] = one
        mine = [
            self._graded(number, each, task, problem, prompt, one)
            for (number, task, problem), prompt, one in zip(jobs, prompts, written, strict=True)
            if one is not None
        ]
        return self.runtime.processes.collected(mine)

    def _write(self, prompts: list[list[int]], indices: list[int], seed: int, tools: bool) -> list[Written]:
        assert self.engine is not None
        settings = self.settings
        sampling = Sampling(temperature=settings.temperature, max_tokens=settings.reply_tokens, seed=seed)
        stops = (self.tokenizer.im_end_id, self.tokenizer.eot_id)
        return write(
            self.engine, prompts, sampling, stops, indices, self.tools if tools else None, settings.calls
        )

    def _prompt(self, problem: Problem) -> list[int]:
        assert self.engine is not None
        ids = render_prompt(problem.messages, self.tokenizer)
        if len(ids) >= self.engine.config.context:
            raise DataError(
                f"{problem.place}: {len(ids)} tokens leave no room for a reply in a context of "
                f"{self.engine.config.context}; shorten the prompt, or drop the row"
            )
        return ids

    def _graded(
        self, number: int, each: int, task: Posed, problem: Problem, prompt: list[int], written: Written
    ) -> Rollout:
        ids = written.ids[:-1] if written.ended else written.ids
        reply = self.tokenizer.decode(ids)
        if not written.ended and self.settings.cut_off == "left_out":
            graded = Graded(None, CUT_OFF)
        else:
            graded = problem.grade(reply)
        return Rollout(
            task=task.name,
            line=problem.line,
            group=number // each,
            prompt=problem.asked,
            reply=reply,
            reward=graded.reward,
            solved=graded.solved,
            ended=written.ended,
            calls=sum(
                drawn and i == END_OF_CALL for i, drawn in zip(written.ids, written.drawn, strict=True)
            ),
            why=graded.why,
            prompt_ids=prompt,
            ids=written.ids,
            drawn=written.drawn,
            logprobs=written.logprobs,
            reference=[],
        )
