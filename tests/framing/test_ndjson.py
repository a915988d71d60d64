"""JSON lines."""

from __future__ import annotations

import pytest

from resumable_stream._errors import EventTooLarge
from resumable_stream._events import StreamEvent
from resumable_stream.framing import NDJSONDecoder

from ..cutting import every_cut

BOM = b"\xef\xbb\xbf"


# name: body, lines before the end, lines that the end delivers, partial after the end
EXAMPLES: dict[str, tuple[bytes, list[str], list[str], bool]] = {
    "nothing": (b"", [], [], False),
    "lines": (b'{"a":1}\n[2]\n"3"\n', ['{"a":1}', "[2]", '"3"'], [], False),
    "CRLF": (b'{"a":1}\r\n{"b":2}\r\n', ['{"a":1}', '{"b":2}'], [], False),
    "blank lines": (b"\n1\n\r\n \t\n\n2\n \n", ["1", "2"], [], False),
    "byte-order mark": (BOM + b"1\n2\n", ["1", "2"], [], False),
    "byte-order mark and no more": (BOM, [], [], False),
    "the text stays as it is": (b' {"a": 1} \n', [' {"a": 1} '], [], False),
    "only LF ends a line": ('"a\u2028b\x85c"\n"a\rb"\n'.encode(), ['"a\u2028b\x85c"', '"a\rb"'], [], False),
    "a line need not be JSON": (b"oops\n{\n1\n", ["oops", "{", "1"], [], False),
    "UTF-8": ('"é日本😀"\n'.encode(), ['"é日本😀"'], [], False),
    "invalid UTF-8": (b'"\xff\xe2\x82"\n', ['"\ufffd\ufffd"'], [], False),
    "the last line has no LF": (b'{"a":1}\n{"b":2}', ['{"a":1}'], ['{"b":2}'], False),
    "the only line has no LF": (BOM + b'{"b":2}\r', [], ['{"b":2}'], False),
    "the last line is cut": (b'{"a":1}\n{"b":', ['{"a":1}'], [], True),
    "the last line is cut in a character": (b'1\n"\xc3', ["1"], [], True),
    "the last line is white space": (b"1\n \r", ["1"], [], False),
    "the last line nests too deep": (b"[" * 100_000, [], [], True),
    "the last line is a number with too many digits": (b"9" * 5000, [], [], True),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_for_every_cut(name: str) -> None:
    body, lines, at_the_end, partial = EXAMPLES[name]
    for pieces in every_cut(body) if len(body) < 1000 else [[body]]:
        decoder = NDJSONDecoder()
        assert [event for piece in pieces for event in decoder.feed(piece)] == [StreamEvent(data=line) for line in lines], pieces
        assert decoder.partial is (partial or bool(at_the_end))
        assert decoder.eof() == [StreamEvent(data=line) for line in at_the_end]
        assert decoder.partial is partial
        assert decoder.error is None


def test_events_look_like_plain_messages() -> None:
    (event,) = NDJSONDecoder().feed(b'{"a":1}\n')
    assert (event.event, event.id, event.own_id, event.retry, event.cursor) == ("message", "", None, None, None)
    assert event.json() == {"a": 1}


@pytest.mark.parametrize(
    ("body", "limit", "lines"),
    [
        (b"12345\n123456\n1\n", 5, ["12345"]),
        (b"1\n2\n" + b"x" * 100, 5, ["1", "2"]),
        (b"123456", 5, []),
        (b"1\n\n123456\n" + b"y" * 20, 5, ["1"]),
    ],
)
def test_limit_holds_wherever_the_chunks_end(body: bytes, limit: int, lines: list[str]) -> None:
    for pieces in every_cut(body):
        decoder = NDJSONDecoder(line_bytes=limit)
        assert [event.data for piece in pieces for event in decoder.feed(piece)] == lines, pieces
        assert isinstance(decoder.error, EventTooLarge)
        assert decoder.error.limit == limit
        assert f"the limit is {limit}" in str(decoder.error)
        assert decoder.feed(b"1\n2\n") == []
        assert decoder.eof() == []


def test_a_long_line_is_put_together_once() -> None:
    decoder = NDJSONDecoder()
    for _ in range(1000):
        assert decoder.feed(b"1" * 1000) == []
    assert len(decoder._pending) == 1_000_000
    (event,) = decoder.feed(b"\n")
    assert len(event.data) == 1_000_000
    assert not decoder.partial
