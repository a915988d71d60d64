"""The SSE decoder against the standard: by example, by a plain reference implementation, and beside httpx-sse."""

from __future__ import annotations

import codecs
import copy
import pickle
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx_sse._decoders as httpx_sse
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resumable_stream._errors import EventTooLarge
from resumable_stream._events import StreamEvent
from resumable_stream.framing import SSEDecoder

from ..cutting import cut, every_cut

BOM = b"\xef\xbb\xbf"
Row = tuple[str, str, str, str | None, int | None]  # event, data, id, own_id, retry


# --- what must come out ---


@dataclass
class Result:
    events: list[Row] = field(default_factory=list)
    last_event_id: str = ""
    retry: int | None = None


def reference(body: bytes) -> Result:
    """WHATWG HTML section 9.2.6, in its order and with nothing clever. The whole body at once."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff")
    lines, line, previous = [], "", ""
    for char in text:
        if char == "\n" and previous == "\r":
            pass
        elif char in "\r\n":
            lines.append(line)
            line = ""
        else:
            line += char
        previous = char

    result = Result()
    data, kind, id_buffer = "", "", ""
    own_id: str | None = None
    retry: int | None = None
    for line in lines:
        if line == "":
            result.last_event_id = id_buffer
            if data:
                result.events.append((kind or "message", data.removesuffix("\n"), id_buffer, own_id, retry))
            data, kind, own_id, retry = "", "", None, None
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "data":
                data += value + "\n"
            elif name == "id" and "\0" not in value:
                id_buffer = own_id = value
            elif name == "retry" and value and set(value) <= set("0123456789"):
                retry = result.retry = int(value.lstrip("0") or "0")
    return result


def decode(pieces: Iterable[bytes]) -> Result:
    decoder = SSEDecoder()
    events = [event for piece in pieces for event in decoder.feed(piece)]
    assert decoder.eof() == []
    assert decoder.error is None
    return Result([row(event) for event in events], decoder.last_event_id, decoder.retry)


def row(event: StreamEvent) -> Row:
    return (event.event, event.data, event.id, event.own_id, event.retry)


def message(data: str, id: str = "", own_id: str | None = None, *, event: str = "message", retry: int | None = None) -> Row:
    return (event, data, id, own_id, retry)


# --- by example ---

# name: body, events, last event id at the end, retry at the end
EXAMPLES: dict[str, tuple[bytes, list[Row], str, int | None]] = {
    "nothing": (b"", [], "", None),
    "only blank lines": (b"\n\n\r\n\r\r\n\n", [], "", None),
    "one line": (b"data: a\n\n", [message("a")], "", None),
    "lines are joined with LF": (b"data: a\ndata: b\ndata:\ndata: c\n\n", [message("a\nb\n\nc")], "", None),
    "CRLF": (b"event: x\r\ndata: a\r\n\r\n", [message("a", event="x")], "", None),
    "CR": (b"event: x\rdata: a\r\rdata: b\r\r", [message("a", event="x"), message("b")], "", None),
    "mixed line ends": (b"data: a\r\ndata: b\rdata: c\n\r\ndata: d\r\n\r", [message("a\nb\nc"), message("d")], "", None),
    "CR LF LF is a line and a blank line": (b"data: a\r\n\ndata: b\n\n", [message("a"), message("b")], "", None),
    "LF CR ends a line and a block": (b"data: a\n\rdata: b\n\n", [message("a"), message("b")], "", None),
    "byte-order mark": (BOM + b"data: first\n\n", [message("first")], "", None),
    "only one byte-order mark": (BOM + BOM + b"data: a\n\ndata: b\n\n", [message("b")], "", None),
    "byte-order mark inside": (b"data: a\n\n" + BOM + b"data: b\n\n", [message("a")], "", None),
    "byte-order mark in a value": (b"data: " + BOM + b"\n\n", [message("\ufeff")], "", None),
    "half a byte-order mark": (BOM[:2] + b"data: a\n\ndata: b\n\n", [message("b")], "", None),
    "comments": (b":\n: a\n:data: b\ndata: c\n: d\n\n:\n\n", [message("c")], "", None),
    "field without a colon": (b"data\n\ndata\ndata\n\nid\n\n", [message(""), message("\n")], "", None),
    "one space is removed": (
        b"data:a\n\ndata:  b\n\ndata:\tc\n\ndata : d\n\n",
        [message(x) for x in ("a", " b", "\tc")],
        "",
        None,
    ),
    "a space is no blank line": (b"data: a\n \ndata: b\n\n", [message("a\nb")], "", None),
    "empty data is an event": (b"data\n\ndata:\n\ndata: \n\n", [message("")] * 3, "", None),
    "no data is no event": (b"event: x\n\ndata: a\n\n", [message("a")], "", None),
    "unknown fields": (b"foo: x\nDATA: y\n data: z\ndata: a\n\n", [message("a")], "", None),
    "empty event type": (b"event:\ndata: a\n\nevent: x\nevent\ndata: b\n\n", [message("a"), message("b")], "", None),
    "the last event type counts": (
        b"event: x\nevent: y\ndata: a\n\ndata: b\n\n",
        [message("a", event="y"), message("b")],
        "",
        None,
    ),
    "ids stick": (b"id: 1\ndata: a\n\ndata: b\n\n", [message("a", "1", "1"), message("b", "1")], "1", None),
    "no event for a heartbeat after an id": (b"id: 1\ndata: a\n\n: ping\n\n\n\n", [message("a", "1", "1")], "1", None),
    "empty id resets": (b"id: 1\ndata: a\n\nid:\ndata: b\n\nid\n\n", [message("a", "1", "1"), message("b", "", "")], "", None),
    "id alone moves and delivers nothing": (b"id: 9\n\ndata: a\n\nid: 10\n\n", [message("a", "9")], "10", None),
    "id with NUL": (b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\nid: \0\n\n", [message("a", "1", "1"), message("b", "1")], "1", None),
    "the last id without NUL counts": (b"id: 1\nid: 2\nid: 3\0\ndata: a\n\n", [message("a", "2", "2")], "2", None),
    "id keeps its spaces": (b"id:  1 \ndata: a\n\n", [message("a", " 1 ", " 1 ")], " 1 ", None),
    "retry": (b"retry: 1500\n\nretry:0007\ndata: a\n\ndata: b\n\n", [message("a", retry=7), message("b")], "", 7),
    "retry is ASCII digits": ("retry: -5\nretry: +5\nretry: 5.0\nretry: ٣\nretry: 1 \nretry:\nretry\n\n".encode(), [], "", None),
    "retry with more digits than sense": (b"retry: " + b"9" * 5000 + b"\n\n", [], "", 10**15),
    "retry with many zeros": (b"retry: " + b"0" * 5000 + b"12\n\nretry: 000\n\n", [], "", 0),
    "retry counts without its blank line": (b"data: a\n\nretry: 12\nda", [message("a")], "", 12),
    "half an event": (b"id: 1\ndata: a\n\nid: 2\ndata: b\n", [message("a", "1", "1")], "1", None),
    "half an event, mid-line": (b"data: a\n\nid: 2\nevent: x\ndata: b", [message("a")], "", None),
    "not line ends": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\n\n".encode(),
        [message("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg")],
        "",
        None,
    ),
    "NUL in data": (b"data: a\0b\n\n", [message("a\0b")], "", None),
    "UTF-8": ("event: ü\nid: é\ndata: 日本 😀\n\n".encode(), [message("日本 😀", "é", "é", event="ü")], "é", None),
    "invalid UTF-8": (b"data: \xff\xc3(\xe2\x82\xf0\x9f\x98\n\n", [message("\ufffd\ufffd(\ufffd\ufffd")], "", None),
    "invalid UTF-8 in a name": (b"data\xff: a\ndata: b\n\n", [message("b")], "", None),
    "invalid UTF-8 in id and type": (
        b"id: \xff\nevent: \xfe\ndata: b\n\n",
        [message("b", "\ufffd", "\ufffd", event="\ufffd")],
        "\ufffd",
        None,
    ),
    "surrogates are invalid": (b"data: \xed\xa0\x80\n\n", [message("\ufffd" * 3)], "", None),
    "openai chat": (b'data: {"id":"c1"}\n\ndata: [DONE]\n\n', [message('{"id":"c1"}'), message("[DONE]")], "", None),
    "openai chat behind openrouter": (b": OPENROUTER PROCESSING\n\ndata: {}\n\n", [message("{}")], "", None),
    "anthropic": (b"event: ping\ndata: {}\n\n" * 2, [message("{}", event="ping")] * 2, "", None),
    "langgraph": (b"event: end\r\ndata: 1\r\nid: 7-0\r\n\r\n", [message("1", "7-0", "7-0", event="end")], "7-0", None),
    "mcp priming": (b"id: 1\nretry: 500\ndata:\n\n", [message("", "1", "1", retry=500)], "1", 500),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_for_every_cut(name: str) -> None:
    body, events, last_event_id, retry = EXAMPLES[name]
    expected = Result(events, last_event_id, retry)
    if retry != 10**15:
        assert reference(body) == expected, "the reference is wrong, or the example"
    if len(body) > 1000:
        assert decode([body]) == decode(cut(body, 7)) == expected
        return
    for pieces in every_cut(body):
        assert decode(pieces) == expected, pieces


# d: data, e: event, i: id, n: id with NUL, r: retry, c: comment
ORDERS = ["d", "ed", "de", "id", "di", "eid", "edi", "ied", "ide", "dei", "die"]
ORDERS += ["ddd", "eidd", "rd", "ird", "cd", "ced", "eed", "iid", "ei", "nd", "dn", "end", "ned"]


@pytest.mark.parametrize(("newline", "space"), [(b"\n", b" "), (b"\n", b""), (b"\r\n", b" "), (b"\r", b" ")])
def test_fields_in_any_order(newline: bytes, space: bytes) -> None:
    for order in ORDERS:
        check_order(order, newline, space)


def check_order(order: str, newline: bytes, space: bytes) -> None:
    # Several events of each, so that what the first one taught the decoder is used on the next.
    body = b""
    for number in (b"1", b"2", b""):
        for letter in order:
            name, value = {
                "d": (b"data", b"value " + number),
                "e": (b"event", b"kind"),
                "i": (b"id", number),
                "n": (b"id", b"\0" + number),
                "r": (b"retry", number),
                "c": (b"", b"comment"),
            }[letter]
            body += name + b":" + space + value + newline
        body += newline
    expected = reference(body)
    blocks = [block + newline * 2 for block in body.split(newline * 2)[:-1]]
    assert decode(blocks) == expected, f"{order}: one event in each chunk"
    for pieces in every_cut(body):
        assert decode(pieces) == expected, (order, pieces)


def test_event_type_is_not_carried_over_to_other_lines() -> None:
    decoder = SSEDecoder()
    chunks = [
        b"event: x\ndata: 1\n\n",
        b"event: y\ndata: 2\n\n",
        b"event: x\ndata: 3\n\n",
        b":\ndata: 4\n\n",
        b"\r\ndata: 5\r\n\r\n",
    ]
    chunks += [b"event: x\r\ndata: 6\r\n\r\n", b"event: \ndata: 7\n\n", b"data: 8\n\n"]
    events = [event.event for chunk in chunks for event in decoder.feed(chunk)]
    assert events == ["x", "y", "x", "message", "message", "x", "message", "message"]


def test_blank_line_is_no_event_type() -> None:
    decoder = SSEDecoder()
    decoder.feed(b": start\n\n")
    assert [row(event) for event in decoder.feed(b"\r\ndata: a\r\n\r\n")] == [message("a")]


def test_cr_at_the_end_of_a_chunk_delivers_at_once() -> None:
    decoder = SSEDecoder()
    assert [event.data for event in decoder.feed(b"data: a\r\r")] == ["a"]
    assert not decoder.partial
    assert decoder.feed(b"\n") == []
    assert [event.data for event in decoder.feed(b"data: b\r\n\r")] == ["b"]
    assert [event.data for event in decoder.feed(b"\ndata: c\n\n")] == ["c"]


def test_id_is_kept_from_the_stream_before() -> None:
    decoder = SSEDecoder(last_event_id="7")
    assert decoder.last_event_id == "7"
    assert [row(event) for event in decoder.feed(b"data: a\n\nid: 8\ndata: b\n\n")] == [message("a", "7"), message("b", "8", "8")]


def test_id_moves_on_the_blank_line_and_not_before() -> None:
    decoder = SSEDecoder()
    decoder.feed(b"id: 1\ndata: a\n")
    assert decoder.last_event_id == ""
    decoder.feed(b"\nid: 2\n")
    assert decoder.last_event_id == "1"
    decoder.feed(b"\n")
    assert decoder.last_event_id == "2"


@pytest.mark.parametrize(
    ("body", "partial"),
    [
        (b"", False),
        (b"data: a\n\n", False),
        (b"data: a\n\n\n", False),
        (b"data: a\r\r", False),
        (b"data: a\r\n\r", False),
        (b"data: a\n", True),
        (b"data: a\r", True),
        (b"data: a", True),
        (b"d", True),
        (b"event: x\n", True),
        (b"event\n", True),
        (b"id: 1\n", True),
        (b"id: 1\n\n", False),
        (b"retry: 5\n", False),
        (b": comment\n", False),
        (b": comment", False),
        (BOM, False),
        (BOM + b": comment", False),
        (BOM + b"data", True),
        (b"data: a\n: comment", True),
        (b"\r", False),
    ],
)
def test_partial_says_whether_an_event_was_cut(body: bytes, partial: bool) -> None:
    for size in (1, 2, 100):
        decoder = SSEDecoder()
        for piece in cut(body, size):
            decoder.feed(piece)
        assert decoder.partial is partial
        assert decoder.eof() == []
        assert decoder.partial is partial


@pytest.mark.parametrize(
    "body", [b"data: a\n\n", b"data: a\n\n" * 40, b"retry: 5\ndata: a\n\n", b"id: 1\nevent: e\ndata: a\n\n" * 40]
)
def test_events_are_as_their_constructor_makes_them(body: bytes) -> None:
    # The decoder writes the fields itself, because that is quicker; a field added to the constructor must be added there.
    made = StreamEvent()
    fields = {name for name in StreamEvent.__slots__ if name in object.__dir__(made)}
    decoder = SSEDecoder()
    decoder.feed(b": start\n\n")
    for event in decoder.feed(body):
        for name in fields:
            StreamEvent.__dict__[name].__get__(event)  # an unset slot raises
        assert event == StreamEvent(event.event, event.data, event.id, event.retry, event.own_id)
        assert event.cursor == (event.id or None)
        assert type(event).__name__ == "StreamEvent"
        for copied in (copy.copy(event), pickle.loads(pickle.dumps(event))):
            assert type(copied) is StreamEvent
            assert (copied, copied.own_id) == (event, event.own_id)


# --- runs of one shape, which are read column by column ---

SHAPES = {
    "data": b"data: %d value",
    "unspaced": b"data:%d value",
    "event": b"event: delta\ndata: {%d}",
    "types": b"event: delta %d\ndata: x",
    "id": b"id: %d\ndata: x",
    "langgraph": b"event: messages\ndata: {}\nid: %d-0",
    "empty ids": b"data: %d\nid:\nevent:",
    "multiline": b"data: {\ndata:   %d\ndata: }\nid: 1",
    "comment inside": b": %d\ndata: x",
    "heartbeats": b": ping %d",
    "ids only": b"id: %d",
    "types only": b"event: %d",
    "retry": b"retry: %d\ndata: x",
    "long": b"data: %d" + b"x" * 150,
    "long unspaced": b"data:%d" + b"x" * 150,
    "non-ASCII": "data: é日本😀 %d".encode(),
    "long non-ASCII": "data: é日本😀 %d".encode() * 1 + "ä".encode() * 80,
}
STRANGERS = {
    "none": b"",
    "comment": b": ping\n\n",
    "other shape": b"event: other\nid: 5\ndata: x\n\n",
    "no space": b"data:x\n\n",
    "two spaces": b"data:  x\n\n",
    "NUL": b"id: \0\ndata: x\n\n",
    "invalid UTF-8": b"data: \xff\n\n",
    "invalid id": b"id: \xff\ndata: x\n\n",
    "empty type": b"event\ndata: x\n\n",
    "retry": b"retry: 10\ndata: x\n\n",
    "blank": b"\n",
    "unknown": b"foo: 1\n\n",
    "prefix in the value": b"data: \rdata: data: x\n\n",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_runs_equal_the_reference(shape: str) -> None:
    events = [SHAPES[shape] % number + b"\n\n" for number in range(32)]
    for stranger in STRANGERS.values():
        for place in (0, 15, 32):
            body = b"".join([*events[:place], stranger, *events[place:]])
            expected = reference(body)
            assert decode([body]) == expected
            assert decode([body[:11], body[11:]]) == expected
        body = body.replace(b"\n", b"\r\n")
        assert decode([body]) == decode(cut(body, 401)) == expected


def test_runs_in_which_some_types_are_empty() -> None:
    body = b"event: a\ndata: 1\n\nevent: \ndata: 2\n\n" * 20
    assert [event for event, *_ in decode([body]).events] == ["a", "message"] * 20


@pytest.mark.parametrize("places", [(0,), (63,), (64,), (300,), (511,), (512,), (10, 74, 75, 640), range(0, 700, 7)])
def test_exceptions_in_a_long_run(places: Iterable[int]) -> None:
    """As many lines as the others, but another field in the same place: fewer events are read as columns from there on."""
    events = [b"id: %d\nevent: x\ndata: %d\n\n" % (number, number) for number in range(700)]
    for place in places:
        events[place] = b"event: y\nretry: %d\ndata: z\n\n" % place
    body = b"".join(events)
    assert decode([body]) == decode([body[:9], body[9:]]) == reference(body)


def test_runs_longer_than_a_slice() -> None:
    body = b"".join(b'event: delta\nid: %d\ndata: {"text": "%d"}\n\n' % (n, n) for n in range(4000))
    assert len(body) > 2 * 65536
    events = decode([body]).events
    assert events == [("delta", f'{{"text": "{n}"}}', str(n), str(n), None) for n in range(4000)]
    assert decode(cut(body, 65536)).events == events


# --- one event in each chunk: the next of the same shape is only cut into its texts ---

ALONE = [
    b"data: d\n\n",
    b"event: x\ndata: d\n\n",
    b"id: 1\ndata: d\n\n",
    b"id: 1\nevent: x\ndata: d\n\n",
    b"event: x\nid: 1\ndata: d\n\n",
    b"data: d\nid: 1\n\n",
    b"id: \nevent: \ndata: \n\n",
    "id: é\nevent: 日本\ndata: 😀\n\n".encode(),
]
ALONE += [body.replace(b"\n", b"\r\n") for body in ALONE]
ALIKE = [
    *STRANGERS.values(),
    b"id: 2\nevent: x\ndata: e\n\ndata: f\n\n",
    b"data: e\n\nid: 2\nevent: x\ndata: f\n\n",
    b"id: 2\nretry: 5\nevent: x\ndata: e\n\n",
    b"id: 2\nevent: x\ndata: e\nevent: x\ndata: f\n\n",
    b"id: 2\nevent: x\ndata: e\rretry: 5\n\n",
    b"id: 2\revent: y\nevent: x\ndata: e\n\n",
    b"id: 2\r\nevent: x\r\ndata: e\rretry: 5\r\n\r\n",
    b"id: 2\rretry: 5\r\nevent: x\r\ndata: e\r\n\r\n",
    b"id: 2\nevent: x\ndata: e\r\n\r\n",
    b"id: 2\r\nevent: x\r\ndata: e\n\n",
    b"id:2\nevent: x\ndata: e\n\n",
    b"id: \0\nevent: x\ndata: e\n\n",
    b"id: 2\nevent: x\ndata: \0\n\n",
    b"id: 2\nevent: x\ndata: \xff\n\n",
    b"id: \xe2\x80\xa8\nevent: x\ndata: \xe2\x80\xa8\n\n",
    b"id: 2\nevent: xy\ndata: e\n\n",
    b"id: 2\nevent: x\ndata: e\n\n\n",
    b"id: 2\nevent: x\n\n",
    b"id: 2\nevent: x\ndata: e\n",
    b"id: 2\nevent: x\ndata: e",
    b"id: 2\nevent: x\ndata: \n\n",
    b"id: id: 2\nevent: x\ndata: event: x\n\n",
    b"",
    b"\n",
    b": id: 2\nevent: x\ndata: e\n\n",
]


@pytest.mark.parametrize("first", ALONE)
def test_events_that_come_alone_equal_the_reference(first: bytes) -> None:
    for second in ALONE + ALIKE:
        for third in (first, second, ALONE[3]):
            pieces = [first, first, second, third]
            assert decode(pieces) == reference(b"".join(pieces))


def test_an_event_over_the_limit_that_comes_alone() -> None:
    decoder = SSEDecoder(event_bytes=100, line_bytes=60)
    alone = b"id: 1\ndata: " + b"x" * 54 + b"\n\n"
    assert [len(event.data) for _ in range(2) for event in decoder.feed(alone)] == [54, 54]
    assert decoder.feed(alone.replace(b"x\n", b"xx\n")) == []
    assert decoder.error is not None


# --- by chance ---

TOKENS = [b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"\n", b"\n", b"\r", b"\r\n", b"\n\n", b"\0", b"a", b"12", b"-5"]
TOKENS += [
    BOM,
    BOM[:2],
    b"\xff",
    b"\xc3",
    b"\xe2\x80",
    b"\xa8",
    b"\xf0\x9f\x98\x80",
    b"\xed\xa0",
    "\u2028".encode(),
    b"\x0b",
    b"x" * 120,
]
TOKENS += [b"data: x\n\n", b"event: e\ndata: x\n\n", b"id: 3\ndata: x\n\n", b"data: x\r\n\r\n", b"id: 4\n\n", b": c\n\n"]

# Any bytes of any order; and blocks that repeat, with a few bytes thrown in.
soups = st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join)
repeats = st.builds(
    lambda block, times, noise, place: (block * times)[:place] + noise + (block * times)[place:],
    st.lists(st.sampled_from(TOKENS), min_size=1, max_size=8).map(lambda tokens: b"".join(tokens) + b"\n\n"),
    st.integers(0, 40),
    st.sampled_from([b"", *TOKENS]),
    st.integers(0, 400),
)


@settings(max_examples=250, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=st.one_of(soups, repeats), seed=st.integers(0, 2**32), longest=st.sampled_from([1, 2, 5, 30, 300]))
def test_any_bytes_in_any_chunks_equal_the_reference(body: bytes, seed: int, longest: int) -> None:
    expected = reference(body)
    assert decode([body]) == expected
    chance = random.Random(seed)
    pieces, place = [], 0
    while place < len(body):
        size = chance.randint(0, longest)
        pieces.append(body[place : place + size])
        place += size
    assert decode(pieces) == expected


# --- limits ---


def drain(decoder: SSEDecoder, pieces: Iterable[bytes]) -> list[str]:
    return [event.data for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize(
    ("lines", "limits", "delivered", "limit"),
    [
        ([b"data: 0123456789", b""], {"line_bytes": 16}, ["0123456789"], None),
        ([b"data: 0123456789", b""], {"line_bytes": 15}, [], 15),
        ([b"data: a", b"", b"data: b", b"", b": 01234567890", b"", b"data: c", b""], {"line_bytes": 12}, ["a", "b"], 12),
        ([b"data: a", b"", b"data: b", b"0123456789", b"", b"data: c", b""], {"line_bytes": 9}, ["a"], 9),
        ([b"data: 01234567", b""], {"event_bytes": 8}, ["01234567"], None),
        ([b"data: 012345678", b""], {"event_bytes": 8}, [], 8),
        ([b"data: 012", b"data: 4567", b"", b"data: a", b""], {"event_bytes": 8}, ["012\n4567", "a"], None),
        ([b"data: a", b"", b"data: 012", b"data: 45678", b"", b"data: b", b""], {"event_bytes": 8}, ["a"], 8),
        ([b"data"] * 5 + [b""], {"event_bytes": 4}, ["\n" * 4], None),
        ([b"data"] * 6 + [b""], {"event_bytes": 4}, [], 4),
        ([b"event: 0123456789", b"id: 0123456789", b": 0123456789", b"data: a", b""], {"event_bytes": 1}, ["a"], None),
        (["data: éé".encode(), b""], {"event_bytes": 4}, ["éé"], None),
        (["data: ééé".encode(), b""], {"event_bytes": 4}, [], 4),
        ([b"data: \xff\xff\xff\xff", b""], {"event_bytes": 4}, ["\ufffd" * 4], None),
        # The event is too large before the line is: the first fault counts.
        (
            [b"data: a", b"", b"data: 12", b"data: 34", b"", b"data: 0123456789", b""],
            {"event_bytes": 4, "line_bytes": 12},
            ["a"],
            4,
        ),
        ([b"data: a", b"", b"data: 12", b"", b"data: 0123456789", b""], {"event_bytes": 4, "line_bytes": 12}, ["a", "12"], 12),
    ],
)
def test_limits_hold_wherever_the_chunks_end(
    lines: list[bytes], limits: dict[str, int], delivered: list[str], limit: int | None, newline: bytes
) -> None:
    body = b"".join(line + newline for line in lines)
    for pieces in every_cut(body):
        decoder = SSEDecoder(**limits)
        assert drain(decoder, pieces) == delivered, pieces
        assert (decoder.error is None) is (limit is None)
        if limit is not None:
            assert isinstance(decoder.error, EventTooLarge)
            assert decoder.error.limit == limit
            assert str(limit) in str(decoder.error)
            error = decoder.error
            assert drain(decoder, [b"data: x\n\n", b"", b"\n", b"y" * 100, b"\r\n\r\n", b"data: x\n\n" * 50]) == []
            assert decoder.error is error


def test_error_names_the_size_and_the_limit() -> None:
    decoder = SSEDecoder(line_bytes=1000)
    decoder.feed(b"data: a\n\ndata: " + b"x" * 2000)
    assert str(decoder.error) == "line of at least 2006 bytes, the limit is 1000"
    decoder = SSEDecoder(event_bytes=1000)
    decoder.feed(b"data: a\n\n" + b"data: xxxxxxxxx\n" * 150)
    assert str(decoder.error) == "event of at least 1499 bytes, the limit is 1000"


def test_nothing_behind_the_fault_is_delivered() -> None:
    decoder = SSEDecoder(event_bytes=500)
    assert decoder.feed(b"data: " + b"x" * 300 + b"\n") == []
    assert decoder.feed(b"data: " + b"x" * 250 + b"\n\n" + b"data: a\n\n" * 20) == []
    assert decoder.error is not None


def test_event_before_the_fault_is_whole() -> None:
    # The event was begun by an earlier chunk, and ends in the one that also brings the line that is too long.
    decoder = SSEDecoder(line_bytes=100)
    assert decoder.feed(b"id: 1\ndata: a\nda") == []
    assert [row(event) for event in decoder.feed(b"ta: b\n\n" + b"x" * 101)] == [message("a\nb", "1", "1")]
    assert decoder.error is not None


def test_limit_stops_a_line_that_never_ends() -> None:
    decoder = SSEDecoder(line_bytes=5000, event_bytes=5000)
    for _ in range(100):
        decoder.feed(b"x" * 99)
    assert decoder.error is not None
    assert len(decoder._pending) < 5100


def test_limit_stops_an_event_that_never_ends() -> None:
    decoder = SSEDecoder(event_bytes=5000)
    fed = 0
    while decoder.error is None:
        decoder.feed(b"data\n" * 100)
        fed += 100
    assert 5000 < fed <= 5200, "an empty data line counts for its line end"


# --- work: counted, not timed ---


class Counting(SSEDecoder):
    """Counts the bytes that were put together and the lines that were read one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.assembled = 0
        self.lines = 0

    def _assemble(self, data: bytes) -> bytes | None:
        block = super()._assemble(data)
        self.assembled += len(block or b"")
        return block

    def _read_lines(self, lines: list[bytes], blank: bytes, end: int | None, events: list[StreamEvent]) -> None:
        self.lines += len(lines)
        super()._read_lines(lines, blank, end, events)


@pytest.mark.parametrize("size", [1, 3, 1000, 70_000])
@pytest.mark.parametrize(
    "body",
    [
        b"data: " + b"x" * 9000 + b"\n\n",
        b"data: x\n" * 1500 + b"\n",
        b": ping\n\n" * 1200,
        b"data: a\n\nid: 1\ndata: b\n\n" * 400,
        b"data: a\r\r" * 1000,
        b"\n" * 9000,
        b"event: x\n" * 1000,
    ],
)
def test_every_byte_and_line_is_handled_once(body: bytes, size: int) -> None:
    decoder = Counting()
    for piece in cut(body, size):
        decoder.feed(piece)
    assert decoder.assembled <= len(body)
    assert decoder.lines <= body.count(b"\n") + body.count(b"\r")


@pytest.mark.parametrize("size", [8, 1000, 70_000])
def test_many_short_data_lines_do_not_weigh_more_than_their_text(size: int) -> None:
    decoder = SSEDecoder()
    for piece in cut(b"data: x\n" * 20_000, size):
        decoder.feed(piece)
        assert len(decoder._data) < 1200
    (event,) = decoder.feed(b"\n")
    assert event.data == "\n".join(["x"] * 20_000)


def test_one_large_event() -> None:
    data = "0123456789abcdef" * 65536
    body = b"event: image\ndata: " + data.encode() + b"\n\n"
    for size in (1024, 65536, len(body)):
        assert decode(cut(body, size)).events == [message(data, event="image")]


# --- beside httpx-sse ---


def by_httpx_sse(body: bytes) -> list[tuple[str, str, str, int | None]]:
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(body)
    lines, events = httpx_sse.SSELineDecoder(), httpx_sse.SSEDecoder()
    found = (events.decode(line) for line in [*lines.decode(text), *lines.flush()])
    return [(sse.event, sse.data, sse.id, sse.retry) for sse in found if sse is not None]


def by_us(body: bytes) -> list[tuple[str, str, str, int | None]]:
    return [(event, data, id, retry) for event, data, id, _, retry in decode([body]).events]


VALUE = st.sampled_from(["", "a", " b", "{}", "é", "日本", "a:b", "\0", "\u2028"])
FIELD = st.one_of(
    st.tuples(st.sampled_from(["data", "event", "id", "unknown", ""]), VALUE),
    st.tuples(st.just("retry"), st.sampled_from(["1", "1500", "", "x"])),
)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    blocks=st.lists(st.lists(FIELD, max_size=4), min_size=1, max_size=6),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    colon=st.sampled_from([":", ": "]),
)
def test_agrees_with_httpx_sse_away_from_its_faults(blocks: list[list[tuple[str, str]]], newline: str, colon: str) -> None:
    # Every block has data, there is no byte-order mark, and retry is never signed.
    lines = []
    for block in blocks:
        lines += [name + colon + value for name, value in [*block, ("data", "x")]] + [""]
    body = newline.join([*lines, ""]).encode()
    assert by_us(body) == by_httpx_sse(body)


FAULTS = {
    "after an id every blank line is an event": (
        b"id: 1\ndata: a\n\n: ping\n\n",
        [("message", "a", "1", None), ("message", "", "1", None)],
        [("message", "a", "1", None)],
    ),
    "the first event after a byte-order mark is lost": (
        BOM + b"data: first\n\ndata: second\n\n",
        [("message", "second", "", None)],
        [("message", "first", "", None), ("message", "second", "", None)],
    ),
    "retry may be negative": (
        b"retry: -5\ndata: a\n\n",
        [("message", "a", "", -5)],
        [("message", "a", "", None)],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_httpx_sse_are_not_ours(fault: str) -> None:
    # httpx-sse 0.4.3. When this fails in the first assertion, it was mended: strike the entry.
    body, theirs, ours = FAULTS[fault]
    assert by_httpx_sse(body) == theirs
    assert by_us(body) == ours


def test_own_id_tells_what_httpx_sse_cannot() -> None:
    # Its fourth fault: the id is the sticky one, and nothing says whether the event carried it.
    assert [id for _, _, id, _ in by_httpx_sse(b"id: 1\ndata: a\n\ndata: b\n\n")] == ["1", "1"]
    assert [(id, own_id) for _, _, id, own_id, _ in decode([b"id: 1\ndata: a\n\ndata: b\n\n"]).events] == [
        ("1", "1"),
        ("1", None),
    ]
