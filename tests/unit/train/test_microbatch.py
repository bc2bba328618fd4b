"""Microbatches as large as memory holds, by a line through two measurements, and halved where that errs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pilgrim.core.errors import StartAgain
from pilgrim.core.processes import Processes
from pilgrim.core.runlog import read_rows
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.model.transformer import Transformer
from pilgrim.train.fit import MICRO_TOKENS, MicroBatch, OutOfMemory, blank, fit, measure
from pilgrim.train.gradients import Gradients
from pilgrim.train.grow import Phase
from pilgrim.train.keeping import State
from pilgrim.train.loop import Loop, Parts
from pilgrim.train.losses import Losses, token_losses
from pilgrim.train.step import TokenLosses, accumulate

MakeParts = Callable[..., Parts]


def at_most(rows: int) -> Callable[[TokenLosses], TokenLosses]:
    """A hook for make_parts(losses=…): a device with memory for so many rows at once."""

    def hook(losses: TokenLosses) -> TokenLosses:
        def limited(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
            found = losses(model, batch, dtype)
            if batch.inputs_bt.shape[0] > rows:
                raise torch.OutOfMemoryError("out of memory")
            return found

        return limited

    return hook


def outcome(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "metrics.jsonl").read_bytes(), (folder / "evals.jsonl").read_bytes()


# The rule -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "context", "expected"),
    [(4, 512, 4), (64, 512, 32), (34, 1024, 2), (3, 32_768, 1), (7, 16_384, 1), (6, 8192, 2)],
)
def test_by_tokens_a_microbatch_divides_the_batch(rows: int, context: int, expected: int) -> None:
    assert MicroBatch().rows(rows, context) == expected
    assert expected == 1 or expected * context <= MICRO_TOKENS


def test_what_is_given_is_taken() -> None:
    assert MicroBatch(given=2).rows(64, 16) == 2
    assert MicroBatch(given=64).rows(64, 4096) == 64  # more than the rule would dare


def test_what_was_measured_is_for_all_lengths_of_rows() -> None:
    micro = MicroBatch(tokens=8 * 2048)
    assert [micro.rows(32, context) for context in (512, 1024, 2048, 4096)] == [32, 16, 8, 4]


@pytest.mark.parametrize("given", [None, 32])
def test_halving_goes_down_to_one_row(given: int | None) -> None:
    micro, seen = MicroBatch(given), []
    while micro.halve(96, 16):
        seen.append(micro.rows(96, 16))
    assert seen == ([48, 24, 12, 6, 3, 1] if given is None else [16, 8, 4, 2, 1])


# The line -----------------------------------------------------------------------------------------


def test_a_line_through_two_measurements() -> None:
    """10 bytes fixed and 3 a row: 40 bytes hold 10 rows, 39 hold 9."""
    assert [fit(13, 16, budget, 64).rows for budget in (40, 39, 16, 15, 13)] == [10, 9, 2, 1, 1]
    assert fit(13, 16, 10_000, 64).rows == 64
    found = fit(13, 16, 40, 64)
    assert (found.fixed, found.row, found.budget) == (10, 3, 40)


def test_rows_that_seem_to_cost_nothing_are_no_division_by_zero() -> None:
    assert fit(13, 13, 40, 8).rows == 8


def test_when_one_row_does_not_fit_there_is_a_cure() -> None:
    with pytest.raises(OutOfMemory) as error:
        fit(13e9, 16e9, 12.5e9, 64)
    sentence = str(error.value)
    assert sentence.startswith("Memory does not suffice: one row needs 13.0 GB, and 12.5 GB may be used; ")
    assert "runtime.checkpoint_activations = true" in sentence and "\n" not in sentence


def test_the_optimizers_know_what_they_will_need(make_parts: MakeParts) -> None:
    optimizers = make_parts("a").optimizers
    before = optimizers.missing_bytes()
    model = (parts := make_parts("b")).model
    accumulate(model, blank(2, 16), 2, parts.losses, parts.runtime)
    parts.optimizers.step(1.0, 0.9)
    held = sum(t.numel() * t.element_size() for t in parts.optimizers.tensors().values())
    assert parts.optimizers.missing_bytes() == 0
    assert before == pytest.approx(held, rel=0.05)  # beside it: one number a row, and the count of steps


# Out of memory ------------------------------------------------------------------------------------


def test_out_of_memory_halves_and_gives_the_same(make_parts: MakeParts) -> None:
    """A device for one row gives what micro_rows = 1 gives, to the bit, and says what it did."""
    Loop(calm := make_parts("calm", micro_rows=1)).run()
    Loop(tight := make_parts("tight", micro_rows=4, losses=at_most(1))).run()
    assert outcome(tight.folder) == outcome(calm.folder)
    events = [row for row in read_rows(tight.folder / "events.jsonl") if row["kind"] == "out_of_memory"]
    assert [(e["step"], e["micro_rows"], e["now"]) for e in events] == [(0, 4, 2), (0, 2, 1)]


def test_out_of_memory_in_the_second_part_leaves_nothing_of_the_first(make_parts: MakeParts) -> None:
    """Its gradients are there already when the second part fails; they must not count twice."""
    calls = []

    def second_fails(losses: TokenLosses) -> TokenLosses:
        def hooked(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
            calls.append(batch.inputs_bt.shape[0])
            if len(calls) == 2:
                raise torch.OutOfMemoryError
            return losses(model, batch, dtype)

        return hooked

    Loop(calm := make_parts("calm", micro_rows=1)).run()
    Loop(tight := make_parts("tight", micro_rows=2, losses=second_fails)).run()
    assert outcome(tight.folder) == outcome(calm.folder)
    assert calls[:4] == [2, 2, 1, 1]


def test_a_resumed_run_stays_halved(make_parts: MakeParts) -> None:
    """Even where there is memory again: the order of additions, and so the bits, must not change."""
    seen: list[int] = []

    def watched(losses: TokenLosses) -> TokenLosses:
        def hooked(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
            seen.append(batch.inputs_bt.shape[0])
            if len(seen) == 13:  # in step 7, of two microbatches each
                raise KeyboardInterrupt
            return losses(model, batch, dtype)

        return hooked

    with pytest.raises(KeyboardInterrupt):
        Loop(make_parts("a", micro_rows=4, losses=lambda losses: at_most(2)(watched(losses)))).run()
    del seen[:]
    Loop(make_parts("a", micro_rows=4, losses=watched, steps=6)).run()
    assert set(seen) == {2}
    Loop(again := make_parts("b", micro_rows=4)).run()
    assert again.micro.tokens is None


def test_another_word_of_the_recipe_counts(make_parts: MakeParts) -> None:
    Loop(make_parts("a", micro_rows=4, losses=at_most(2), steps=5)).run()
    parts = make_parts("a", micro_rows=1, steps=8)
    Loop(parts).run()
    assert (parts.micro.tokens, parts.micro.rows(4, 16)) == (None, 1)


def test_out_of_memory_at_one_row_ends_in_a_sentence(make_parts: MakeParts) -> None:
    parts = make_parts("a", losses=at_most(0))
    with pytest.raises(OutOfMemory, match="one row of 16 tokens is too much; write "):
        Loop(parts).run()
    assert all(p.grad is None for p in parts.model.parameters())


def test_the_state_knows_the_microbatch(make_parts: MakeParts) -> None:
    state = Loop(make_parts("a", micro_rows=4, losses=at_most(2))).run()
    assert (state.micro_tokens, state.micro_rows) == (2 * 16, 4)
    assert State().micro_tokens is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_line_predicts_what_more_rows_need(new_model: Callable[..., Transformer]) -> None:
    runtime = Runtime(torch.device("cuda"), torch.float32, compile=False, seed=1)
    model = new_model(width=256, depth=4, head_size=64, context=512).to("cuda")
    found = measure(model, token_losses, runtime, 0, 16, 512)
    assert found.rows == 16
    accumulate(model, blank(16, 512), 16, token_losses, runtime)
    torch.cuda.reset_peak_memory_stats()
    accumulate(model, blank(16, 512), 16, token_losses, runtime)
    assert torch.cuda.max_memory_allocated() == pytest.approx(found.fixed + 16 * found.row, rel=0.1)


def test_one_of_several_processes_notes_what_would_fit_and_ends(make_parts: MakeParts) -> None:
    """The others are waiting for it in the middle of adding up; started again, all take half."""
    parts = make_parts("a", micro_rows=4, losses=at_most(2))

    def gradients(count: int, micro: MicroBatch) -> Gradients:
        runtime = replace(parts.runtime, processes=Processes(1, count))
        return Gradients(parts.model, parts.losses, micro, runtime, parts.log, parts.console)

    phase = Phase(0, 9, rows=8, context=16, lr=1.0)
    with pytest.raises(StartAgain, match=r"process 1 .* at step 7 with 4 rows at once; .* with 2"):
        gradients(2, MicroBatch(4)).of(blank(4, 16), phase, 7)
    again = MicroBatch(4)
    relaunched = gradients(1, again)
    relaunched.recall()
    assert relaunched.rows(phase) == 2
    assert read_rows(parts.folder / "events.jsonl")[-1]["micro_tokens"] == 2 * 16
