from typing import Any

import pytest

from pilgrim.infer.satisfiable import can_end

NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object"}, True),
        (True, True),
        ({"$ref": "#"}, False),
        ({"$defs": {"node": NODE}, "$ref": "#/$defs/node"}, True),
        ({"$defs": {"node": {**NODE, "required": ["next"]}}, "$ref": "#/$defs/node"}, False),
        ({"$defs": {"node": {**NODE, "required": ["next"]}}, "type": "string"}, True),
        ({"type": "array", "items": {"$ref": "#"}}, True),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, False),
        ({"type": "array", "items": {"$ref": "#"}, "prefixItems": [True], "minItems": 1}, True),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, True),
        ({"anyOf": [{"$ref": "#"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 2}]}, False),
        ({"allOf": [{"type": "object"}, {"$ref": "#"}]}, False),
        # Without a type, a string would do.
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, True),
        ({"$ref": "#/nowhere"}, True),
        ({"$defs": {"a/b": {"$ref": "#/$defs/a~1b"}}, "$ref": "#/$defs/a~1b"}, False),
        ({"required": 7, "type": "object", "properties": 3, "anyOf": 4}, True),
    ],
)
def test_what_requires_itself_never_ends(schema: Any, expected: bool) -> None:
    assert can_end(schema) is expected


def test_references_that_meet_again_and_again_take_no_time() -> None:
    """Followed one by one, these would be 2 to the power of 40 ways."""
    both = {
        f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"$ref": f"#/$defs/d{i + 1}"}]} for i in range(40)
    }
    assert can_end({"$defs": {**both, "d40": {"type": "null"}}, "$ref": "#/$defs/d0"})
