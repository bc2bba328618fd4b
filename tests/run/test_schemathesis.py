"""Schemathesis reads /openapi.json and asks whatever it can think of; the server must never fall over.

Checked of each answer: no server error, a status and a content type that the description names, and a body
that fits its schema there. What contradicts the description must be refused. (Not checked here is that what
fits it is served: prompts may be too long, token ids unknown.) For longer:

    st run http://127.0.0.1:8000/openapi.json
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from serving import Served, random_run, serving

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    run = random_run(tmp_path_factory.mktemp("runs") / "tiny", 64, {"sft": (5,)})
    with serving({"tiny": run}) as server:
        yield server


@pytest.fixture(scope="module")
def api(served: Served) -> Any:
    """The description, in which only a model that is there is asked for."""
    _, _, data = served.ask("GET", "/openapi.json")
    description = json.loads(data)
    for name in ("AskedChat", "AskedCompletion", "AskedResponse"):
        description["components"]["schemas"][name]["properties"]["model"] = {"enum": ["tiny"]}
    found = schemathesis.openapi.from_dict(description)
    found.config.update(base_url=f"http://127.0.0.1:{served.port}")
    return found


@pytest.mark.parametrize("fits", [True, False], ids=["what fits", "what contradicts"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_whatever_is_asked_is_answered(api: Any, path: str, fits: bool) -> None:
    modes = schemathesis.GenerationMode

    @seed(1)
    @settings(
        max_examples=20,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=api[path]["POST"].as_strategy(modes.POSITIVE if fits else modes.NEGATIVE))
    def ask(case: Any) -> None:
        case.call_and_validate(checks=CHECKS, timeout=30)

    ask()
