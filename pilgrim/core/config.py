"""Recipes: a TOML file and `key=value` overrides become one frozen, checked object.

TOML gives a tree of dicts. Overrides such as `model.depth=6` replace leaves of that tree. `build` then
validates the tree against a `Settings` class (pydantic): every key must be known, every value must
have the right type (`true` is no integer, `"4"` is no number), and the classes' own validators say
which settings contradict each other. Whatever is wrong is told in one sentence with the place, the
value and the cure. A built object never changes; `dump_toml` writes it with every default filled in,
and reading that file gives an equal object again. That is how a run folder keeps what it was run with.
"""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pilgrim.core.errors import SettingsError


class Settings(BaseModel):
    """A table of a recipe. Fields are documented with `Field(description=...)`.

    A field that may be None must have None as its default: TOML has no null, so None is written by
    leaving the key out, and only a default of None reads that back. Values that follow from others
    are `@computed_field` properties; `dump_toml` shows them as comments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            if (
                NoneType in get_args(field.annotation)
                and field.get_default(call_default_factory=False) is not None
            ):
                raise TypeError(f"{cls.__name__}.{name} may be None, so None must be its default")


S = TypeVar("S", bound=Settings)


class Tree(dict[str, Any]):
    """A settings tree that remembers which keys came from the command line, to blame the right place."""

    def __init__(self, values: Mapping[str, Any], overridden: frozenset[tuple[str, ...]]) -> None:
        super().__init__(values)
        self.overridden = overridden


def load_toml(file: Path) -> dict[str, Any]:
    """Reads a TOML file. Raises SettingsError, naming file and line, when that can't be done."""
    try:
        text = file.read_bytes().decode("utf-8")
        return tomllib.loads(text)
    except FileNotFoundError:
        near = difflib.get_close_matches(file.name, [path.name for path in file.parent.glob("*.toml")], 1)
        cure = f"did you mean {file.with_name(near[0])}?" if near else "check the path"
        raise SettingsError(f"{file} does not exist; {cure}") from None
    except OSError as error:
        raise SettingsError(f"{file} can't be read: {error.strerror}; give the path of a TOML file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SettingsError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        place = re.fullmatch(r"(?P<what>.*) \(at (?P<where>.*)\)", str(error), re.DOTALL)
        what, where = (place["what"], place["where"]) if place else (str(error), "somewhere")
        if where == "end of document":
            where = f"line {text.count(chr(10)) + 1}"
        hint = "text is written in quotes, a table as [table]"
        raise SettingsError(f"{file}, {where}: not valid TOML ({what}); {hint}") from None


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `tree` with `["model.depth=6", "name=try2"]` applied.

    Values are read as TOML (`6`, `0.5`, `true`, `[1, 2]`, `"6"`); what is not TOML is taken as text.
    Whether the keys exist is checked by `build`, which then names the command line as their origin.
    """
    result = _copy(tree)
    overridden = set(tree.overridden) if isinstance(tree, Tree) else set()
    for override in overrides:
        key, equals, text = override.partition("=")
        path = tuple(part.strip() for part in key.split("."))
        if not equals or not all(path):
            raise SettingsError(
                f"command line: {override!r} is not of the form key=value, as in model.depth=6"
            )
        table = result
        for depth, part in enumerate(path[:-1], start=1):
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                above = ".".join(path[:depth])
                raise SettingsError(
                    f"command line: {key} can't be set, as {above} = {_show(table)} is a value, no table; "
                    f"write {above}=..."
                )
        table[path[-1]] = _parse_value(text.strip())
        overridden.add(path)
    return Tree(result, frozenset(overridden))


def build(cls: type[S], tree: Mapping[str, Any], origin: str) -> S:
    """Checks `tree` and makes a `cls` of it; `origin` is the file it was read from.

    Raises SettingsError with one sentence, such as
    `recipes/x.toml: model.dpeth is not a setting; did you mean model.depth?`
    """
    # Strict JSON mode is exactly what TOML needs: a list may become a tuple and a string a path or a
    # date, but no string becomes a number and no boolean an integer.
    try:
        return cls.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]  # a typo explains the rest
    error = (unknown or errors)[0]
    path = _path_in_tree(error, tree)
    raise SettingsError(f"{_origin(error, path, tree, origin)}: {_sentence(error, path, cls)}")


def dump_toml(settings: Settings) -> str:
    """The settings as TOML, defaults included, None left out; derived values follow as comments.

    `build(type(settings), tomllib.loads(dump_toml(settings)), ...) == settings`.
    """
    stored = settings.model_dump(mode="json", exclude_none=True, round_trip=True)
    everything = settings.model_dump(mode="json", exclude_none=True)
    known = dict(_flatten(stored))
    derived = [f"# {key} = {_show(value)}\n" for key, value in _flatten(everything) if key not in known]
    text = tomli_w.dumps(stored)
    return text + "\n# Derived from the settings above:\n" + "".join(derived) if derived else text


def differences(old: Settings, new: Settings) -> list[str]:
    """One line for each setting that differs: `["model.depth: 4 -> 6", "name: not set -> \\"try2\\""]`."""
    before, after = (
        dict(_flatten(settings.model_dump(mode="json", exclude_none=True, round_trip=True)))
        for settings in (old, new)
    )
    lines = []
    for key in [*before, *(key for key in after if key not in before)]:
        was, is_now = (_show(side[key]) if key in side else "not set" for side in (before, after))
        if was != is_now:
            lines.append(f"{key}: {was} -> {is_now}")
    return lines


def _copy(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, dict) else value for key, value in tree.items()}


def _parse_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show(value: Any) -> str:
    """A value as one would write it in TOML, cut when long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in path)


# Sentences ----------------------------------------------------------------------------------------

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text in quotes",
    "tuple_type": "a list such as [1, 2]",
    "list_type": "a list such as [1, 2]",
    "dict_type": "a table",
    "model_type": "a table of settings",
    "model_attributes_type": "a table of settings",
}


def _path_in_tree(error: ErrorDetails, tree: Mapping[str, Any]) -> tuple[str | int, ...]:
    """The error's place without the union tags that pydantic mixes into it."""
    path: list[str | int] = []
    here: Any = tree
    for part in error["loc"]:
        if isinstance(here, dict) and part in here:
            here = here[str(part)]
        elif isinstance(here, list) and isinstance(part, int):
            here = here[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue
        path.append(part)
    return tuple(path)


def _origin(error: ErrorDetails, path: tuple[str | int, ...], tree: Mapping[str, Any], origin: str) -> str:
    """The file, the command line, or both, by where the values at the error's place came from."""
    overridden = tree.overridden if isinstance(tree, Tree) else frozenset()
    from_line = [key in overridden for key in _leaves(tree) if key[: len(path)] == path[: len(key)]]
    if from_line and all(from_line):
        return "command line"
    if any(from_line) and error["type"] == "value_error":
        return f"{origin} with the command line"  # a contradiction in which both may have a part
    return origin


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key)


def _sentence(error: ErrorDetails, path: tuple[str | int, ...], cls: type[Settings]) -> str:
    key, value = _dotted(path), error["input"]
    match error["type"]:
        case "extra_forbidden":
            return f"{key} is not a setting; {_nearest(cls, path)}"
        case "missing":
            field = _model_at(cls, path[:-1]).model_fields.get(str(path[-1]))
            what = f" ({field.description})" if field and field.description else ""
            return f"{key} is missing{what}; add it"
        case "value_error" | "assertion_error":
            message = str(error["ctx"]["error"])
            return message if isinstance(value, dict) else f"{key} = {_show(value)}: {message}"
        case "literal_error":
            expected = f"one of {error['ctx']['expected']}"
        case kind if kind in _EXPECTED:
            expected = _EXPECTED[kind]
        case _:
            expected = re.sub(r"^Input should (be|have) ", "", error["msg"])
    return f"{key} = {_show(value)} should be {expected}{_quotes_hint(error['type'], value)}"


def _quotes_hint(kind: str, value: Any) -> str:
    """`"0.5"` where a number belongs: say how to write it."""
    if not isinstance(value, str) or kind not in ("int_type", "float_type"):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    written = int(number) if math.isfinite(number) and number == int(number) else number
    return f"; write {written}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside `Model | None`, `tuple[Model, ...]` or `dict[str, Model]`, if any."""
    if isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)


def _model_at(cls: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The class of the table at `path`; list positions and dict keys stay within the class of the entries."""
    for part in path:
        field = cls.model_fields.get(str(part))
        cls = (field and _model_in(field.annotation)) or cls
    return cls


def _all_keys(cls: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield f"{prefix}{name}"
        if isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from _all_keys(field.annotation, f"{prefix}{name}.")


def _nearest(cls: type[Settings], path: tuple[str | int, ...]) -> str:
    """`did you mean model.depth?`: the nearest name in the same table, else the same name elsewhere."""
    leaf = str(path[-1])
    siblings = list(_model_at(cls, path[:-1]).model_fields)
    if near := difflib.get_close_matches(leaf, siblings, n=1):
        return f"did you mean {_dotted((*path[:-1], near[0]))}?"
    everywhere = list(_all_keys(cls))
    namesakes = [key for key in everywhere if key.rpartition(".")[2] == leaf]
    if near := namesakes or difflib.get_close_matches(_dotted(path), everywhere, n=1, cutoff=0.7):
        return f"did you mean {near[0]}?"
    return f"known here: {', '.join(siblings) or 'nothing'}"
