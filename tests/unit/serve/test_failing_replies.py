"""A reply that fails on the server's side ends alone, with an error; the others are the same to the token."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import RUNTIME, random_run

from pilgrim.core.errors import PilgrimError
from pilgrim.infer.constrained import tool_call
from pilgrim.infer.engine import Event
from pilgrim.infer.load import load_engine, load_tokenizer
from pilgrim.infer.sampling import Sampling
from pilgrim.infer.tools import END_OF_CALL
from pilgrim.serve.driver import Driver, Job, Ticket
from pilgrim.serve.metrics import Metrics
from pilgrim.serve.refusals import Refusal
from pilgrim.serve.writing import Piece, Tools, Writer
from pilgrim.text.tokenizer import Tokenizer

SAMPLING = Sampling(temperature=1, max_tokens=30, seed=3)
AT = 5  # the token at which things go wrong


class Planted(Exception):
    """What nobody foresaw."""


class BadForm:
    """It allows whatever comes, until it fails."""

    complete, finished, trouble = True, False, None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.fed, self.size = 0, tokenizer.vocab_size

    def allowed(self) -> torch.Tensor:
        return torch.ones(self.size, dtype=torch.bool)

    def feed(self, token_id: int) -> None:
        self.fed += 1
        if self.fed == AT:
            raise Planted


class BadEnd(Writer):
    def until(self, token_id: int) -> bool:
        if len(self._tokens) == AT:
            raise Planted
        return super().until(token_id)


class BadEvents(Writer):
    def take(self, event: Event) -> None:
        if len(self._scores) == AT:
            raise Planted
        super().take(event)


class BadPieces(Writer):
    def piece(self) -> Piece:
        if len(self._tokens) == AT:
            raise Planted
        return super().piece()


class Tired(Writer):
    def until(self, token_id: int) -> bool:
        raise PilgrimError("the sandbox can't run here; leave it out")


def broken_tool(_: str) -> str:
    raise Planted


def calling(tokenizer: Tokenizer) -> Job:
    """It has to write a call, and ends that soon; then the tool fails."""
    writer = Writer(tokenizer, tools=Tools(ours={"calculator": broken_tool}))
    form = tool_call({"calculator": None}, tokenizer)
    return Job([5], SAMPLING, writer, (), logit_bias={END_OF_CALL: 100.0}, grammar=form)


def usual(tokenizer: Tokenizer, writer: Writer | None = None, index: int = 0, form: Any = None) -> Job:
    prompt = [tokenizer.eot_id, *tokenizer.encode("Once upon a time"[: 4 + index])]
    return Job(prompt, SAMPLING, writer or Writer(tokenizer), (), index, top_logprobs=1, grammar=form)


FAULTS: Mapping[str, Callable[[Tokenizer], Job]] = {
    "form": lambda tokenizer: usual(tokenizer, form=BadForm(tokenizer)),
    "end": lambda tokenizer: usual(tokenizer, BadEnd(tokenizer)),
    "events": lambda tokenizer: usual(tokenizer, BadEvents(tokenizer)),
    "pieces": lambda tokenizer: usual(tokenizer, BadPieces(tokenizer)),
    "tool": calling,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "tiny", stages={"sft": (5,)})


async def text_of(ticket: Ticket) -> str:
    try:
        return "".join([piece.text async for _, piece in ticket.pieces()])
    finally:
        ticket.close()


async def written(run: Path, bad: Callable[[Tokenizer], Job] | None) -> list[str | BaseException]:
    """What three clients get, twice; before the first three comes a bad one, if there is one."""
    tokenizer = load_tokenizer(run)
    engine = load_engine(run / "sft", tokenizer, RUNTIME)
    driver = Driver(engine, 8, Metrics(lambda: ()).watch("tiny"), "tiny")
    try:
        found: list[str | BaseException] = []
        for jobs in ([bad(tokenizer)] if bad else [], []):
            jobs = [*jobs, *(usual(tokenizer, index=i) for i in range(3))]
            tickets = [driver.submit([job]) for job in jobs]
            found += await asyncio.gather(*map(text_of, tickets), return_exceptions=True)
        assert driver.taken == 0 and engine.idle and engine.cache_used == 0
        return found
    finally:
        driver.stop()
        await asyncio.to_thread(driver.join)


@pytest.mark.parametrize("name", FAULTS)
def test_one_reply_fails_and_no_other(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = asyncio.run(written(run, None))
    failed, *others = asyncio.run(written(run, FAULTS[name]))
    assert isinstance(failed, Refusal) and failed.status == 500
    assert failed.body["error"]["type"] == "server_error" and "of its own" in failed.message
    assert others == expected
    assert "Planted" in capsys.readouterr().err


def test_what_a_person_can_mend_is_told(run: Path) -> None:
    failed, *others = asyncio.run(written(run, lambda tokenizer: usual(tokenizer, Tired(tokenizer))))
    assert isinstance(failed, Refusal) and failed.message.startswith("the sandbox can't run here")
    assert others == asyncio.run(written(run, None))
