"""The server by OpenAI's own client: the same text as the engine, whole and as a stream."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import RUNTIME, Served, random_run, serving

from pilgrim.infer.engine import Engine
from pilgrim.infer.load import load_engine, load_tokenizer
from pilgrim.infer.sampling import Sampling
from pilgrim.serve.settings import ServeSettings
from pilgrim.text.calls import CALL, END_OF_CALL, END_OF_RESPONSE, RESPONSE
from pilgrim.text.chat import Message, render_prompt
from pilgrim.text.tokenizer import Tokenizer

PROMPT = "Once upon a time"
HELLO: Any = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    with serving({"tiny": run}) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer(run: Path) -> Tokenizer:
    return load_tokenizer(run)


@pytest.fixture(scope="module")
def engine(run: Path, tokenizer: Tokenizer) -> Engine:
    return load_engine(run / "sft", tokenizer, RUNTIME)


def written(engine: Engine, tokenizer: Tokenizer, prompts: list[list[int]], **dials: Any) -> list[str]:
    """What the engine writes."""
    stops = {tokenizer.eot_id, tokenizer.im_end_id}
    return [
        tokenizer.decode(reply.ids) for reply in engine.generate(prompts, Sampling(**dials), stop_ids=stops)
    ]


# The same as the engine -------------------------------------------------------------------------------


def test_completions_are_what_the_engine_writes(served: Served, engine: Engine, tokenizer: Tokenizer) -> None:
    prompts = [PROMPT, "And then", ""]
    ids = [[tokenizer.eot_id, *tokenizer.encode(prompt)] for prompt in prompts]
    expected = written(engine, tokenizer, ids, temperature=1, top_p=0.9, seed=5, max_tokens=20)
    dials: dict[str, Any] = {"model": "tiny", "max_tokens": 20, "seed": 5, "top_p": 0.9}
    found = served.client.completions.create(prompt=prompts, **dials)
    assert [choice.text for choice in found.choices] == expected
    by_ids = served.client.completions.create(prompt=ids, **dials)
    assert [choice.text for choice in by_ids.choices] == expected
    texts = [""] * 3
    for chunk in served.client.completions.create(prompt=prompts, stream=True, **dials):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == expected


def test_chats_are_what_the_engine_writes(served: Served, engine: Engine, tokenizer: Tokenizer) -> None:
    prompt = render_prompt([Message("system", "Be kind."), Message("user", "Hello\nyou")], tokenizer)
    never = dict.fromkeys((CALL, END_OF_CALL, RESPONSE, END_OF_RESPONSE), float("-inf"))
    stops = (tokenizer.eot_id, tokenizer.im_end_id)
    sampling = Sampling(temperature=0.7, top_k=50, min_p=0.01, repetition_penalty=1.1, seed=3, max_tokens=30)
    requests = [engine.submit(prompt, sampling, stops, i, logit_bias=never) for i in range(3)]
    while not engine.idle:
        engine.step()
    expected = [tokenizer.decode(request.ids) for request in requests]
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "you"}]
    messages: Any = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]
    ours = {"top_k": 50, "min_p": 0.01, "repetition_penalty": 1.1}
    dials: dict[str, Any] = {"temperature": 0.7, "n": 3, "seed": 3, "max_completion_tokens": 30}
    found = served.client.chat.completions.create(model="tiny", messages=messages, extra_body=ours, **dials)
    assert [choice.message.content for choice in found.choices] == expected
    assert found.usage and found.usage.prompt_tokens == len(prompt)
    assert found.usage.completion_tokens == sum(r.written for r in requests)
    texts = [""] * 3
    with served.client.chat.completions.create(
        model="tiny", messages=messages, extra_body=ours, stream=True, **dials
    ) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == expected


def test_weights_of_fewer_bits_are_served(run: Path, tokenizer: Tokenizer) -> None:
    rounded = load_engine(run / "sft", tokenizer, RUNTIME, weights="int8", cache="int8")
    (expected,) = written(rounded, tokenizer, [[tokenizer.eot_id]], temperature=0, max_tokens=20)
    with serving({"tiny": run}, weights="int8", cache="int8") as server:
        found = server.client.completions.create(model="tiny", prompt="", temperature=0, max_tokens=20)
    assert found.choices[0].text == expected


def test_a_seed_gives_the_same_whatever_else_is_asked(served: Served) -> None:
    async def everything() -> list[str]:
        url = f"http://{served.host}:{served.port}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as client:
            asked = [
                client.completions.create(
                    model="tiny", prompt=PROMPT[: 1 + i % 9], seed=7 if i % 5 == 0 else i, max_tokens=25
                )
                for i in range(30)
            ]
            return [(await each).choices[0].text for each in [asyncio.ensure_future(a) for a in asked]]

    together = asyncio.run(everything())
    alone = [
        served.client.completions.create(model="tiny", prompt=PROMPT[: 1 + i % 9], seed=7, max_tokens=25)
        .choices[0]
        .text
        for i in range(0, 30, 5)
    ]
    assert together[::5] == alone


def test_without_a_seed_each_is_another(served: Served) -> None:
    texts = {served.client.completions.create(model="tiny", prompt=PROMPT).choices[0].text for _ in range(4)}
    assert len(texts) == 4


# Ends -------------------------------------------------------------------------------------------------


def test_stop_strings_cut_the_text_whole_and_streamed(served: Served) -> None:
    dials: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 40}
    whole = served.client.completions.create(**dials).choices[0]
    assert whole.finish_reason == "length"
    stop = whole.text[10:14]
    cut = whole.text[: whole.text.index(stop)]
    found = served.client.completions.create(stop=[stop, "never said"], logprobs=1, **dials).choices[0]
    assert (found.text, found.finish_reason) == (cut, "stop")
    assert found.logprobs and found.logprobs.text_offset
    assert max(found.logprobs.text_offset) < len(cut)  # no token of the stop string is told
    pieces = list(served.client.completions.create(stop=stop, stream=True, **dials))
    assert "".join(chunk.choices[0].text for chunk in pieces) == cut
    assert [c.choices[0].finish_reason for c in pieces if c.choices[0].finish_reason] == ["stop"]


def test_a_reply_never_leaves_the_context(served: Served) -> None:
    found = served.client.completions.create(model="tiny", prompt="x" * 250, max_tokens=10**6, seed=1)
    assert found.usage
    assert found.usage.prompt_tokens == 251
    assert found.usage.completion_tokens <= 5
    assert found.choices[0].finish_reason in ("length", "stop")


def test_usage_comes_last_in_a_stream_if_asked_for(served: Served) -> None:
    with served.client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        *others, last = chunks
    assert all(chunk.usage is None and chunk.choices for chunk in others)
    assert others[0].choices[0].delta.role == "assistant"
    assert not last.choices
    assert last.usage and last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens


# Log-probabilities ------------------------------------------------------------------------------------


def test_logprobs_of_a_chat_spell_the_reply(served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "temperature": 0, "max_tokens": 12}
    found = served.client.chat.completions.create(logprobs=True, top_logprobs=3, **asked).choices[0]
    assert found.logprobs and found.logprobs.content
    data = b"".join(bytes(token.bytes or []) for token in found.logprobs.content)
    assert data.decode(errors="replace") == found.message.content
    for token in found.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= 0
    streamed: list[Any] = []
    with served.client.chat.completions.create(logprobs=True, top_logprobs=3, stream=True, **asked) as chunks:
        for chunk in chunks:
            if chunk.choices[0].logprobs:
                streamed += chunk.choices[0].logprobs.content or []
    assert [token.bytes for token in streamed] == [token.bytes for token in found.logprobs.content]


def test_logit_bias_forces_and_forbids(served: Served, tokenizer: Tokenizer) -> None:
    (token,) = tokenizer.encode("Q")
    found = served.client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=5, logit_bias={str(token): 100}
    )
    assert found.choices[0].text == "QQQQQ"


def test_echo_scores_the_prompt_as_the_slow_way_does(
    served: Served, engine: Engine, tokenizer: Tokenizer
) -> None:
    """Each token's log-probability is that of a reply of one token to what stands before it."""
    ids = tokenizer.encode("Hi, you!")
    found = served.client.completions.create(
        model="tiny", prompt=[ids], echo=True, logprobs=2, max_tokens=0
    ).choices[0]
    assert found.text == "Hi, you!"
    assert found.logprobs and found.logprobs.token_logprobs and found.logprobs.text_offset
    first, *rest = found.logprobs.token_logprobs
    assert first is None  # as nothing stands before it
    for place, nats in enumerate(rest, start=1):
        bias = {ids[place]: 1000.0}
        request = engine.submit(
            ids[:place], Sampling(temperature=0, max_tokens=1), logit_bias=bias, top_logprobs=0
        )
        (event,) = engine.step()
        assert event.scores and request.ids == [ids[place]]
        assert nats == pytest.approx(event.scores.log_prob, abs=1e-5)
    assert found.logprobs.text_offset == list(range(8))
    assert found.finish_reason == "length"


def test_echo_with_a_reply(served: Served) -> None:
    dials: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    plain = served.client.completions.create(prompt=["ab", "cde"], **dials)
    echoed = served.client.completions.create(prompt=["ab", "cde"], echo=True, logprobs=1, **dials)
    for prompt, one, other in zip(["ab", "cde"], plain.choices, echoed.choices, strict=True):
        assert other.text == prompt + one.text
        assert other.logprobs and other.logprobs.tokens and other.logprobs.token_logprobs
        assert other.logprobs.tokens[: len(prompt)] == list(prompt)
        assert None not in other.logprobs.token_logprobs  # <|endoftext|> stands before the first
    texts = ["", ""]
    for chunk in served.client.completions.create(prompt=["ab", "cde"], echo=True, stream=True, **dials):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in echoed.choices]


# Models, health, counters -----------------------------------------------------------------------------


def test_models_are_runs_stages_and_checkpoints(served: Served) -> None:
    ids = [model.id for model in served.client.models.list()]
    assert ids == [
        "tiny", "tiny:sft", "tiny:sft@5", "tiny:pretrain", "tiny:pretrain@20", "tiny:pretrain@10"
    ]  # fmt: skip
    assert served.client.models.retrieve("tiny:pretrain@10").id == "tiny:pretrain@10"
    texts = {
        name: served.client.completions.create(model=name, prompt=PROMPT, temperature=0)
        for name in ("tiny", "tiny:pretrain", "tiny:pretrain@10", "tiny:pretrain@20")
    }
    assert {found.system_fingerprint for found in texts.values()} == {
        "tiny:sft@5", "tiny:pretrain@20", "tiny:pretrain@10"
    }  # fmt: skip
    assert texts["tiny:pretrain"].choices[0].text == texts["tiny:pretrain@20"].choices[0].text
    assert len({found.choices[0].text for found in texts.values()}) == 3
    assert len(served.models.loaded) <= 2  # of three


def test_a_base_model_does_not_chat(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="is a base model") as caught:
        served.client.chat.completions.create(model="tiny:pretrain", messages=HELLO)
    assert caught.value.param == "model"


def test_health_and_metrics(served: Served) -> None:
    assert served.ask("GET", "/health")[2] == b'{"status":"ok"}'
    served.client.completions.create(model="tiny", prompt="private words", max_tokens=3)
    text = served.ask("GET", "/metrics")[2].decode()
    assert 'pilgrim_requests_total{endpoint="/v1/completions",status="200"}' in text
    assert 'pilgrim_replies_open{model="tiny:sft@5"} 0.0' in text
    assert 'pilgrim_cache_used{model="tiny:sft@5"} 0.0' in text
    assert "private" not in text


# Who may ask ------------------------------------------------------------------------------------------


def test_a_key_is_wanted_where_there_is_one(run: Path) -> None:
    with serving({"tiny": run}, ServeSettings(port=0, api_key="a secret")) as served:
        served.client.models.list()
        for headers in ({}, {"Authorization": "Bearer a secres"}, {"Authorization": "Basic a secret"}):
            status, found, data = served.ask("GET", "/v1/models", headers=headers)
            assert status == 401
            assert found["www-authenticate"] == "Bearer"
            assert json.loads(data)["error"]["code"] == "invalid_api_key"
        assert served.ask("GET", "/metrics")[0] == 401
        assert served.ask("GET", "/health")[0] == 200


def test_another_name_for_this_machine_is_refused(served: Served) -> None:
    """A web page may give 127.0.0.1 a name of its own."""
    for host, status in (("evil.example", 403), ("localhost:1", 200), ("[::1]:80", 200), ("", 403)):
        assert served.ask("GET", "/v1/models", headers={"Host": host})[0] == status


def test_no_other_origin_is_let_in(served: Served) -> None:
    _, headers, _ = served.ask("GET", "/v1/models", headers={"Origin": "http://evil.example"})
    assert not [name for name in headers if name.startswith("access-control")]
    asking = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert served.ask("OPTIONS", "/v1/completions", headers=asking)[0] == 405


def test_chats_are_written_down_only_if_told(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    with serving({"tiny": run}, ServeSettings(port=0, log_chats=file)) as served:
        found = served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
        list(served.client.completions.create(model="tiny", prompt="x", max_tokens=5, stream=True))
    first, second = map(json.loads, file.read_text().splitlines())
    assert first["asked"]["messages"] == HELLO
    assert first["replies"] == [found.choices[0].message.content]
    assert second["asked"]["prompt"] == "x"


@pytest.mark.parametrize("stream", [False, True])
def test_what_can_not_be_written_down_is_told_and_frees_its_place(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stream: bool
) -> None:
    gone = tmp_path / "gone" / "chats.jsonl"
    with serving({"tiny": run}, ServeSettings(port=0, log_chats=gone)) as served:
        with pytest.raises(openai.APIError, match="could not be written down") as caught:
            found = served.client.completions.create(model="tiny", prompt="x", max_tokens=5, stream=stream)
            list(found)
        assert str(tmp_path) not in str(caught.value)
        (model,) = served.models.loaded
        assert model.driver.taken == 0
    assert str(gone) in capsys.readouterr().err


def test_a_foreign_page_is_refused_before_its_body_is_read(run: Path, tmp_path: Path) -> None:
    """It could send the server as much as it likes, though it never learns the answer."""
    with serving({"tiny": run}, ServeSettings(port=0, chats=tmp_path / "chats.sqlite")) as served:
        for foreign in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
            status, _, data = served.ask("POST", "/api/import", b"no JSON", foreign)
            assert status == 403 and "own page" in json.loads(data)["error"]["message"]
        status, _, data = served.ask("POST", "/api/import", b"no JSON")
        assert status == 400 and json.loads(data)["error"]["type"] == "invalid_request_error"
        status, _, data = served.ask("GET", "/api/chats/7")
        assert status == 404 and json.loads(data)["error"]["message"].startswith("chat 7 does not exist")
