"""What the events of most providers have in common."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_stream._events import Delta
from resumable_stream.protocols._shape import Text, deltas_of, objects_in, said

TEXTS = {"text": Text("text", "delta"), "tool": Text("tool", "arguments", index="at")}


@pytest.mark.parametrize(
    ("type", "body", "index", "expected"),
    [
        ("text", {"delta": "é"}, 0, (Delta("text", "é"),)),
        ("text", {"delta": "é", "at": 3}, 2, (Delta("text", "é", 2),)),
        ("tool", {"arguments": "{", "at": 3}, 2, (Delta("tool", "{", 3),)),
        ("tool", {"arguments": "{"}, 2, (Delta("tool", "{"),)),
        ("tool", {"delta": "{"}, 0, ()),
        ("other", {"delta": "é"}, 0, ()),
        (["text"], {"delta": "é"}, 0, ()),
        (None, {"delta": "é"}, 0, ()),
    ],
)
def test_a_table_says_where_the_text_stands(type: Any, body: dict[str, Any], index: Any, expected: tuple[Delta, ...]) -> None:
    assert deltas_of(TEXTS, type, body, index) == expected


@pytest.mark.parametrize("value", [None, "", 5, True, [], {}, ["x"]])
def test_what_is_not_a_text_is_no_content(value: Any) -> None:
    assert said("text", value) == ()


@pytest.mark.parametrize(("index", "expected"), [(3, 3), (0, 0), (None, 0), ("3", 0), (True, 0), (1.5, 0), ([], 0)])
def test_what_is_not_a_number_is_part_0(index: Any, expected: int) -> None:
    assert said("text", "x", index) == (Delta("text", "x", expected),)


def test_only_the_objects_of_a_list_count() -> None:
    assert objects_in([{"a": 1}, 5, None, {}]) == [{"a": 1}, {}]
    assert objects_in({"a": 1}) == objects_in(None) == objects_in("x") == []
