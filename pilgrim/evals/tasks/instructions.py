"""IFEval: does a reply do what it was told, in ways that a program can check?
(Zhou et al. 2023, https://arxiv.org/abs/2311.07911)

Each question holds one to three instructions ("at least 300 words", "no commas", "end with these words"),
and the file names them with their arguments. What each means is in instruction_checks.py. Two readings of a
reply:

    strict   as it is
    loose    also without its first line, its last, both, and without its asterisks: chatbots like to begin
             with "Sure, here is …", and to write in bold; done if any of these eight texts does it

And two accuracies: by question, where all of its instructions must be followed, and by instruction.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pilgrim.core.errors import DataError
from pilgrim.evals.chat_items import ChatItem, Verdict, text
from pilgrim.evals.tasks.instruction_checks import CHECKS, Check
from pilgrim.infer.tools import spoken


def read_ifeval(row: Mapping[str, Any], line: int, place: str) -> ChatItem:
    """ "key", "prompt", "instruction_id_list" and "kwargs", a table of arguments for each instruction."""
    names, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments):
        raise DataError(
            f'{place}: "instruction_id_list" and "kwargs" must be two lists of the same length; mend the row'
        )
    if not names:
        raise DataError(f"{place}: there is no instruction to check; drop the row")
    checks = [_check(name, given, place) for name, given in zip(names, arguments, strict=True)]
    expected = ", ".join(map(str, names))
    key = row.get("key")
    return ChatItem(
        line, text(row, "prompt", place), expected, lambda reply: graded(reply, checks, names), id=str(key)
    )


def _check(name: object, arguments: object, place: str) -> Check:
    """The function that checks one instruction. Raises DataError if it can't be made."""
    if not isinstance(name, str) or name not in CHECKS:
        raise DataError(f"{place}: the instruction {name!r} is none that this program knows; drop the row")
    if not isinstance(arguments, dict):
        raise DataError(f'{place}: the "kwargs" of {name} are {arguments!r}, but must be an object; mend it')
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        check = CHECKS[name](**given)
        check("Arguments of a wrong type show here.")
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{place}: {name} can't be checked with {given} ({error}); mend the row") from None
    return check


def graded(reply: str, checks: Sequence[Check], names: Sequence[str]) -> Verdict:
    """Right is: every instruction, strictly. `parts` has "strict" and "loose", one value an instruction."""
    said = spoken(reply)
    strict = tuple(_follows(check, said) for check in checks)
    loose = tuple(any(_follows(check, variant) for variant in variants(said)) for check in checks)
    missed = ", ".join(name for name, done in zip(names, strict, strict=True) if not done)
    return Verdict(
        all(strict), "", f"not followed: {missed}" if missed else "", {"strict": strict, "loose": loose}
    )


def variants(reply: str) -> list[str]:
    """The eight texts of the loose reading."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(some).strip() for some in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [some.replace("*", "") for some in cut]


def _follows(check: Check, reply: str) -> bool:
    return bool(reply.strip()) and check(reply)
