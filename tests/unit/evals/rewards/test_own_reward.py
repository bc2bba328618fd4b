"""A user's reward function: numbers, errors, endless loops, and files that can't be read."""

from pathlib import Path

import pytest

from pilgrim.core.errors import DataError
from pilgrim.evals.rewards.own import OwnReward

GOOD = """
import os, sys, math

def reward(prompt, reply, row):
    print("what is printed harms nobody")
    if reply == "raise":
        return {}["key"]
    if reply == "nan":
        return math.nan
    if reply == "text":
        return "much"
    if reply == "none":
        return None
    if reply == "endless":
        return 10**400
    if reply == "hang":
        while True:
            pass
    if reply == "exit":
        os._exit(3)
    return len(reply) + len(prompt) + row["bonus"]
"""


@pytest.fixture
def own(tmp_path: Path) -> OwnReward:
    (tmp_path / "reward.py").write_text(GOOD)
    return OwnReward(tmp_path / "reward.py", 1.0)


def test_a_function_is_asked_and_goes_on_after_everything_that_can_go_wrong(own: OwnReward) -> None:
    file, place = own.file, "p.jsonl, line 7"
    whys = {
        "raise": f"{file}, line 7: reward raised KeyError: 'key' on {place}",
        "nan": f"{file}: reward returned nan, no finite number, on {place}",
        "text": f"{file}: reward returned 'much', no finite number, on {place}",
        "none": f"{file}: reward returned None, no finite number, on {place}",
        "endless": f"{file}: reward raised OverflowError: int too large to convert to float on {place}",
        "hang": f"{file}: reward took more than 1 s on {place}",
        "exit": f"{file}: reward ended its process on {place}",
    }
    for reply, why in whys.items():
        graded = own.grade("??", reply, {"bonus": 1}, place)
        assert (graded.reward, graded.why) == (None, why)
        assert own.grade("??", "good", {"bonus": 0.5}, place).reward == 6.5
    own.close()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def reward(:", r"reward.py, line 1: SyntaxError"),
        ("import nothing_of_that_name", r"reward.py, line 1: ModuleNotFoundError"),
        ("def rewards(): pass", "there is no function called reward"),
        ("import os; os._exit(1)", "importing it ended its process"),
    ],
)
def test_a_file_without_a_function_is_refused_at_once(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "reward.py").write_text(text)
    with pytest.raises(DataError, match=why):
        OwnReward(tmp_path / "reward.py", 1.0)
