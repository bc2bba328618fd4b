"""Whether JSON after a schema can ever come to an end.

A schema may refer to itself: a tree's node has children, which are nodes. That is fine as long as one can
stop somewhere, such as at a list of no children. If instead every person *must* have a mother, who is a
person, then no JSON is ever complete, and a model would write until it is cut.

The question is answered from the bottom: at first no reference is known to end. Whatever needs none of those
that are not known to, ends, and is known from then on; until nothing is added any more. Of "anyOf" and
"oneOf" one way out is enough.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any] | bool


def can_end(schema: Schema) -> bool:
    """Whether some finite JSON could match. Looks at required parts only, and at no other contradiction."""
    open_ones, ending = dict.fromkeys(_references(schema)), set[str]()
    while True:
        found = False
        for reference in list(open_ones):
            if _ends(_referred(reference, schema), ending):
                ending.add(reference)
                del open_ones[reference]
                found = True
        if not found:
            return _ends(schema, ending)


def _references(schema: Any) -> Iterator[str]:
    """All of them that point into the schema itself."""
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            yield reference
    for part in schema.values() if isinstance(schema, Mapping) else _items(schema):
        yield from _references(part)


def _ends(schema: Any, ending: Collection[str]) -> bool:
    if not isinstance(schema, Mapping):
        return True
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#") and reference not in ending:
        return False
    needed = [*_items(schema.get("allOf")), *_required_properties(schema), *_required_items(schema)]
    if not all(_ends(each, ending) for each in needed):
        return False
    choices = [_items(schema.get(key)) for key in ("anyOf", "oneOf")]
    return all(any(_ends(each, ending) for each in some) for some in choices if some)


def _required_properties(schema: Mapping[str, Any]) -> list[Any]:
    properties = schema.get("properties")
    # Without a type, something else than an object matches, too.
    if schema.get("type") != "object" or not isinstance(properties, Mapping):
        return []
    return [properties[name] for name in _items(schema.get("required")) if _named(name, properties)]


def _named(name: Any, properties: Mapping[str, Any]) -> bool:
    return isinstance(name, str) and name in properties


def _required_items(schema: Mapping[str, Any]) -> list[Any]:
    least, before = schema.get("minItems"), _items(schema.get("prefixItems"))
    if schema.get("type") != "array" or not isinstance(least, int | float):
        return []
    rest = [schema["items"]] if "items" in schema and least > len(before) else []
    return [*before[: int(min(least, len(before)))], *rest]


def _referred(reference: str, root: Schema) -> Any:
    """What a pointer such as "#/$defs/node" names; True, which ends, if it names nothing."""
    found: Any = root
    for key in reference.removeprefix("#").split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, Mapping) or key not in found:
            return True
        found = found[key]
    return found


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
