"""Rounds: ask, write, grade, keep, learn; and again with the weights that came of it.

    prompts --engine--> replies --grade--> rewards --file--> rows --groups--> advantages --pack--> batches

Each round is written whole to `rollouts/step-NNNNNN.jsonl`, named after the batches handed out before it,
before the first of its batches is handed out. A run that was stopped in the middle of a round reads it from
there; one that was stopped between rounds writes the same round again, as what is drawn depends on seed and
position, and on the weights. So a position is: how many batches so far, how many of the present round, which
prompts are next.

Of several processes all have all replies (rl_writer.py). So all make the same batches, of which the loop
gives each its share.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from pilgrim.core.errors import DataError, PilgrimError
from pilgrim.core.files import read_jsonl_zst, write_atomic
from pilgrim.data.loader import Batch, Position
from pilgrim.model.attention import packed_attention
from pilgrim.model.attention_choice import untimed
from pilgrim.model.transformer import Transformer
from pilgrim.stages.rl_tasks import Posed, Prompts
from pilgrim.stages.rl_writer import CUT_OFF, Writer
from pilgrim.train.losses import linear_logprobs
from pilgrim.train.rollouts import Rollout, batch_of, from_row, learned_from, told


class Rounds:
    """Batches without end (data/loader.py: WholeBatches), each round written by the model of that moment."""

    def __init__(self, writer: Writer, tasks: list[Posed], folder: Path, context: int) -> None:
        """`folder` is where rounds are kept; `context` the length of a batch's rows."""
        self.writer, self.settings, self.runtime = writer, writer.settings, writer.runtime
        self.prompts = Prompts(tasks, self.runtime)
        self.tasks, self.folder, self.context = tasks, folder, context
        self.reference: Transformer | None = None  # that is pulled towards
        self.model: Transformer | None = None  # that learns
        self._warned = False

    def at(self, context: int) -> "Rounds":
        """Rows have one length."""
        return self

    def rows(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        """The same as `batches`: what belongs together isn't cut into rows."""
        return self.batches(position)

    def batches(self, position: Position | None) -> Iterator[tuple[Batch, Position]]:
        """Yield (a batch, the position after it), forever; each is made when it is asked for."""
        start = position or {"batches": 0, "of_round": 0, "prompts": [0] * len(self.tasks)}
        number, done, next_prompts = start["batches"], start["of_round"], list(start["prompts"])
        while True:
            begun = number - done  # batches before this round
            if done:
                rollouts = self.runtime.processes.by_first(lambda at=begun: self._read(at))  # type: ignore[misc]
            else:
                rollouts = self._round(number, next_prompts)
            made = self._batches_of(rollouts)
            for batch in made[done:]:
                number, done = number + 1, done + 1
                after = {"batches": number, "of_round": done % len(made), "prompts": list(next_prompts)}
                yield batch, after
            done = 0

    def _round(self, number: int, next_prompts: list[int]) -> list[Rollout]:
        """Write a round, and keep it. `next_prompts` is moved along."""
        assert self.model is not None
        self.writer.load(self.model)
        settings, processes = self.settings, self.runtime.processes
        seed = self.runtime.seed_for("rollouts", number)
        stream = self.prompts.after(next_prompts)
        found: list[Rollout] = []
        for attempt in range(settings.tries):
            kept = len(learned_from(found, settings.divide_by_std))
            if kept == settings.prompts:
                break
            asked = [next(stream) for _ in range(settings.prompts - kept)]
            first = 1 + found[-1].group if attempt else 0
            found += self.writer.rollouts(asked, settings.replies, seed, first)
            self._refuse_none(found)
        self._tell_failures(found, number)
        if self.reference is not None:
            found = self._with_reference(found)
        processes.by_first(lambda: self._keep(found, number))
        return found

    def _batches_of(self, rollouts: list[Rollout]) -> list[Batch]:
        """A round as batches: its groups dealt to `updates` parts, `passes` times. At least one, maybe
        empty."""
        settings, end = self.settings, self.writer.tokenizer.eot_id
        groups = learned_from(rollouts, settings.divide_by_std)
        parts = [groups[i :: settings.updates] for i in range(min(settings.updates, len(groups)))] or [[]]
        facts = told(rollouts)
        batches = [batch_of([pair for group in part for pair in group], self.context, end) for part in parts]
        telling = [
            replace(batch, told={**facts, "learned_tokens": batch.trained_tokens}) for batch in batches
        ]
        return telling * settings.passes

    def _tell_failures(self, rollouts: list[Rollout], number: int) -> None:
        """Tell what could not be graded, and the first time that a round teaches nothing."""
        failed = _failed(rollouts)
        if failed:
            counts = {"replies": len(failed), "of": len(rollouts)}
            self.writer.log.event("reward_failed", step=number, why=failed[0].why, **counts)
            self.writer.console.say(
                f"{failed[0].why}: {len(failed)} of {len(rollouts)} replies of this round have no reward, "
                "and are not learned from"
            )
        if not learned_from(rollouts, self.settings.divide_by_std):
            mean = told(rollouts)["reward"]
            self.writer.log.event("nothing_to_learn", step=number, reward=mean)
            if not self._warned:
                self._warned = True
                self.writer.console.say(
                    f"step {number}: all replies to the same prompt had the same reward (mean {mean:.3g}), "
                    "so nothing is learned from them; if that goes on, give problems that are "
                    + ("harder" if mean > 0.5 else "easier, or more replies")
                )

    def _refuse_none(self, rollouts: list[Rollout]) -> None:
        """Raises PilgrimError if no reply of the round has a reward."""
        if any(r.reward is not None for r in rollouts):
            return
        if failed := _failed(rollouts):
            raise PilgrimError(
                f"{failed[0].why}, and no reply of the round has a reward; mend the function, and run again"
            )
        raise PilgrimError(
            f"none of {len(rollouts)} replies ended within rl.reply_tokens = {self.settings.reply_tokens}; "
            'allow more, or write rl.cut_off = "graded"'
        )

    @torch.no_grad()
    def _with_reference(self, rollouts: list[Rollout]) -> list[Rollout]:
        """The reference model's log-probabilities added; each process works out some."""
        assert self.reference is not None
        mine = [self._reference_of(r) for r in self.runtime.processes.dealt(rollouts)]
        return self.runtime.processes.collected(mine)

    def _reference_of(self, rollout: Rollout) -> Rollout:
        assert self.reference is not None
        model, device = self.reference, self.runtime.device
        batch = batch_of([(rollout, 0.0)], self.context, 0).to(device)
        backend = untimed(self.runtime, model.config)
        attend = packed_attention(batch.documents_bt, self.runtime.dtype, model.windows, backend)
        hidden = model(batch.inputs_bt, attend, dtype=self.runtime.dtype)
        logprobs_n, _ = linear_logprobs(
            hidden.flatten(0, 1),
            model.lm_head.weight,
            batch.targets_bt.flatten(),
            model.config.softcap,
            self.settings.temperature,
        )
        first = len(rollout.prompt_ids) - 1
        values = logprobs_n[first : first + len(rollout.ids)].tolist()
        return replace(rollout, reference=values)

    # On the disk -------------------------------------------------------------------------------------

    def _file(self, number: int) -> Path:
        return self.folder / f"step-{number:06d}.jsonl"

    def _keep(self, rollouts: list[Rollout], number: int) -> None:
        rows = [json.dumps(asdict(rollout), ensure_ascii=False, allow_nan=False) for rollout in rollouts]
        # Half a surrogate pair, as an error of a reward function may hold, becomes its JSON escape.
        text = ("\n".join(rows) + "\n").encode("utf-8", "backslashreplace")
        fence = self.writer.log.fence
        write_atomic(self._file(number), text, fence.check if fence else lambda: None)
        for file in self.folder.glob("step-*.jsonl"):  # of a course that was left when the run went back
            if file > self._file(number):
                file.unlink()

    def _read(self, number: int) -> list[Rollout]:
        file = self._file(number)
        if not file.exists():
            raise DataError(
                f"{file} is missing, and the run was stopped in the middle of learning from it; put it back, "
                "or delete the newest checkpoint of the stage to go back before it"
            )
        try:
            return [from_row(row) for _, row in read_jsonl_zst(file)]
        except TypeError as error:
            raise DataError(f"{file} is no file of rollouts ({error}); put the right one back") from None


def _failed(rollouts: list[Rollout]) -> list[Rollout]:
    """Those whose grading went wrong."""
    return [r for r in rollouts if r.reward is None and r.why != CUT_OFF]
