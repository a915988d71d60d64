"""`CursorProtocol`: a provider in a handful of facts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream._contract import Ask, Finished, Head, Position, Resume, StreamState
from resumable_stream._events import Delta, Outcome, StreamEvent
from resumable_stream.protocols import CursorProtocol
from resumable_stream.protocols._json import JSONPath
from resumable_stream.testing import Fault, ServerEvent

URL = "https://api.example.com/v1/runs?x=1"


def state(method: str = "GET", **known: Any) -> StreamState:
    made = StreamState(method, URL, {"prompt": "p"})
    for name, value in known.items():
        setattr(made, name, value)
    return made


def event(data: Any, kind: str = "message", id: str | None = None) -> StreamEvent:
    return StreamEvent(event=kind, data=data if isinstance(data, str) else json.dumps(data), id=id or "", own_id=id)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"send": "cookie:x"},
        {"send": "query"},
        {"send": "query:"},
        {"send": ""},
        {"method": "PUT"},
        {"send": "body:after"},
        {"framing": "raw"},
        {"sequence": "auto"},
        {"read": ""},
        {"read": "a..b"},
        {"read": ".a"},
        {"end": 5},
        {"text": "a."},
    ],
)
def test_an_option_that_is_none_is_told_at_once(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        CursorProtocol(**{"read": "seq", "send": "query:after", **options})


def test_it_has_the_name_it_was_given() -> None:
    assert CursorProtocol(read="id", send="query:a").name == "CursorProtocol"
    assert repr(CursorProtocol(read="id", send="query:a", name="Acme", end="x")) == "<Acme: resumable, has_end>"


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "data", "position"),
    [
        ("seq", {"seq": 5}, Position("5", 5, "5")),
        ("seq", {"seq": 0}, Position("0", 0, "0")),
        ("seq", {"seq": -1}, Position("-1", -1, "-1")),
        ("a.b", {"a": {"b": "tok"}}, Position("tok", None, "tok")),
        ("seq", {"seq": None}, Position(None)),
        ("seq", {"seq": True}, Position(None)),
        ("seq", {}, Position(None)),
        ("seq", [1], Position(None)),
        ("seq.x", {"seq": 5}, Position(None)),
        ("seq", "no json", Position(None)),
        ("seq", "", Position(None)),
        (lambda event: event.data[:2], "abcd", Position("ab", None, "ab")),
        (lambda event: None, "abcd", Position(None)),
        (lambda event: 7, "abcd", Position("7", 7, "7")),
    ],
)
def test_where_the_cursor_stands(read: Any, data: Any, position: Position) -> None:
    assert CursorProtocol(read=read, send="query:a").position(event(data)) == position


def test_the_sse_id_may_be_the_cursor() -> None:
    protocol = CursorProtocol(read="id", send="query:a")
    assert protocol.position(event("x", id="7")) == Position("7", None, "7")
    assert protocol.position(event("x")) == Position(None)


def test_decimal_text_counts_where_numbers_are_promised() -> None:
    assert CursorProtocol(read="id", send="query:a", sequence="contiguous").position(event("x", id="7")) == Position("7", 7, "7")
    for id in ("x7", "-7", "7.0", "٣", "9" * 30):
        assert CursorProtocol(read="id", send="query:a", sequence="contiguous").position(event("x", id=id)).sequence is None


def test_a_batch_is_placed_like_its_events() -> None:
    protocol = CursorProtocol(read="seq", send="query:a", sequence="contiguous")
    rows = [{"seq": 1}, {"x": 1}, {"seq": 2, "t": "a"}, "[DONE]", {"seq": 3}]
    single = [protocol.position(event(row)) for row in rows]
    batch = [event(row) for row in rows]
    protocol.place(batch)
    assert [(item.sequence, item.cursor if item.moves is not False else None) for item in batch] == [
        (each.sequence, each.cursor) for each in single
    ]
    assert [item.moves is False for item in batch] == [False, True, False, True, False]
    assert batch[4].cursor == "3"


# --- the quick way into JSON ----------------------------------------------------------------------------------------

values = st.one_of(
    st.integers(-(10**25), 10**25), st.floats(allow_nan=False), st.text(max_size=8), st.none(), st.booleans(), st.just([1])
)
keys = st.sampled_from(["type", "delta", "seq", "item", "x"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.lists(st.tuples(keys, values), max_size=5),
            st.sampled_from([(",", ":"), (", ", ": ")]),
        ),
        max_size=12,
    )
)
def test_the_quick_way_finds_what_the_slow_one_does(rows: Any) -> None:
    """Prefixes are learned from earlier payloads of the same type, so the order matters: a run of them goes through one path."""
    path = JSONPath("seq")
    for kind, items, separators in rows:
        data = json.dumps(dict(items), separators=separators)
        found, expected = path(event(data, kind)), json.loads(data).get("seq")
        assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "data",
    [
        '{"a": {"seq": 9}, "seq": 1}',
        '{"a": "\\"seq\\": 9", "seq": 2}',
        '{"seq": 3, "seq": 4}',
        '{"seq": 5',
        '{"seq": 6]',
        '{"seq":7}',
        '{"seq": 8 }',
        '{"seq":\n9}',
        '{"seq": 1e3}',
        '{"seq": 10, "nested": {"seq": 11}}',
        ' {"seq": 12}',
        '{"seq": 0123}',
        '{"seq": "13"}',
        '{"t": "☃", "seq": 14}',
        '[{"seq": 15}]',
        '{"seq": 16} ',
    ],
)
def test_the_quick_way_is_not_fooled(data: str) -> None:
    path = JSONPath("seq")
    for learned in ('{"seq": 1}', '{"seq": 2, "t": "x"}', '{"a": "b", "seq": 3}'):
        path(event(learned))
    try:
        parsed = json.loads(data)
    except ValueError:
        parsed = None
    expected = parsed.get("seq") if isinstance(parsed, dict) else None
    if data == '{"seq": 5' or data == '{"seq": 6]' or data == '{"seq": 0123}':
        # Broken JSON: the number in front of the break may be read; it must not be a wrong one.
        assert path(event(data)) in (None, 5, 6)
    elif data == '{"seq": 3, "seq": 4}':
        assert path(event(data)) in (3, 4)
    else:
        assert path(event(data)) == expected


# --- asking ---------------------------------------------------------------------------------------------------------


def test_the_cursor_goes_where_it_belongs() -> None:
    known = state(cursor="5", sequence=5)
    header = CursorProtocol(read="seq", send="header:X-After").resume_request(known)
    query = CursorProtocol(read="seq", send="query:after").resume_request(known)
    assert header is not None and (header.headers, header.params, header.json, header.repeat) == (
        {"X-After": "5"},
        {},
        None,
        "all",
    )
    assert query is not None and (query.headers, query.params, query.json, query.repeat) == ({}, {"after": "5"}, None, "all")
    body = CursorProtocol(read="seq", send="body:after", method="POST").resume_request(state("POST", cursor="5", sequence=5))
    assert body is not None and (body.method, body.json, body.repeat) == ("POST", {"after": 5}, "all")


def test_before_any_cursor_nothing_is_sent() -> None:
    for send, method in (("header:x", "GET"), ("query:x", "GET"), ("body:x", "POST")):
        request = CursorProtocol(read="seq", send=send, method=method).resume_request(state(method))  # type: ignore[arg-type]
        assert request is not None and (request.headers, request.params, request.json) == ({}, {}, None)


def test_a_post_becomes_a_get_only_at_another_url() -> None:
    assert CursorProtocol(read="seq", send="query:a").resume_request(state("POST")) is None
    request = CursorProtocol(read="seq", send="query:a", url="/v1/runs/{stream_id}", stream_id="id").resume_request(
        state("POST", stream_id="r/1 é", cursor="4")
    )
    assert request is not None
    assert (request.method, request.url, request.params, request.repeat) == (
        "GET",
        "https://api.example.com/v1/runs/r%2F1%20%C3%A9",
        {"a": "4"},
        None,
    )


def test_an_id_that_is_not_known_yet_is_no_url() -> None:
    assert CursorProtocol(read="seq", send="query:a", url="/runs/{stream_id}").resume_request(state("POST")) is None
    assert CursorProtocol(read="seq", send="query:a", url=lambda state: None).resume_request(state()) is None


def test_the_id_is_found_in_the_first_events_or_in_the_head() -> None:
    known = state()
    protocol = CursorProtocol(read="seq", send="query:a", stream_id="response.id")
    protocol.identify(known, event({"response": {}}))
    assert known.stream_id is None
    protocol.identify(known, event({"response": {"id": "r1"}}))
    assert known.stream_id == "r1"
    by_head = state()
    CursorProtocol(read="seq", send="query:a", stream_id="header:X-Run-ID").identify(by_head, Head(200, {"x-run-id": "h1"}, URL))
    assert by_head.stream_id == "h1"


def test_an_inclusive_server_is_asked_for_the_next_number() -> None:
    protocol = CursorProtocol(read="seq", send="query:from", inclusive=True, sequence="contiguous")
    request = protocol.resume_request(state(cursor="5", sequence=5))
    assert request is not None and request.params == {"from": "6"}
    opaque = CursorProtocol(read="id", send="query:from", inclusive=True).resume_request(state(cursor="tok"))
    assert opaque is not None and opaque.params == {"from": "tok"}


@pytest.mark.parametrize(("end", "verdict"), [("auto", Ask), ("close", Finished), ("never", Resume), ("x", Resume)])
def test_what_a_clean_close_means(end: Any, verdict: type) -> None:
    assert isinstance(CursorProtocol(read="seq", send="query:a", end=end).on_clean_close(state()), verdict)


def test_the_text_of_an_event() -> None:
    assert list(CursorProtocol(read="seq", send="query:a", text="d.t").deltas(event({"d": {"t": "hi"}}))) == [Delta("text", "hi")]
    for data in ({"d": {}}, {"d": {"t": 5}}, {"d": {"t": ""}}, "x"):
        assert list(CursorProtocol(read="seq", send="query:a", text="d.t").deltas(event(data))) == []
    assert list(CursorProtocol(read="seq", send="query:a").deltas(event("whole"))) == [Delta("text", "whole")]


def test_ndjson_is_read_too() -> None:
    protocol = CursorProtocol(read="seq", send="query:a", framing="ndjson", end=lambda event: bool(event.json().get("done")))
    assert (protocol.framing, protocol.accept) == ("ndjson", "application/x-ndjson")
    assert protocol.end(event({"done": True})) is Outcome.COMPLETED
    assert CursorProtocol(read="seq", send="query:a").framing == "sse"


async def test_a_location_is_followed(row: Any, flaky_server: Any) -> None:
    """RFC 9110 section 10.2.2: a 201 or 200 names what the POST has made. A GET there, with the cursor, is no second POST."""
    log = [ServerEvent(data=json.dumps({"seq": n, "t": str(n)})) for n in range(1, 7)]
    server = flaky_server(
        [*log, ServerEvent(data="[DONE]")],
        [Fault.cut(after_events=2)],
        location="/runs/7",
        cursor_param="after",
        cursor_of=lambda frame: str(json.loads(frame.partition(b"data: ")[2])["seq"]) if b"seq" in frame else None,
    )
    stream = row.connect("POST", server.url, json={}, protocol=CursorProtocol(read="seq", send="query:after", text="t"))
    async with stream:
        assert await stream.read_text() == "123456"
    assert [(request.method, request.path, request.query) for request in server.requests] == [
        ("POST", "/stream", {}),
        ("GET", "/runs/7", {"after": "2"}),
    ]


@pytest.mark.parametrize("options", [{"url": "/mine"}, {"url": lambda state: "/mine"}])
def test_a_place_of_the_callers_own_goes_before_a_location(options: dict[str, Any]) -> None:
    protocol = CursorProtocol(read="id", send="query:after", **options)
    known = StreamState("POST", "https://api.example.com/v1/s")
    protocol.identify(known, Head(200, {"location": "/theirs"}, known.url))
    request = protocol.resume_request(known)
    assert request is not None and request.url == "https://api.example.com/mine"


def test_a_post_that_may_be_sent_again_is() -> None:
    """`method="POST"` says that the same request goes on; a Location would be another place."""
    protocol = CursorProtocol(read="id", send="body:after", method="POST")
    known = StreamState("POST", "https://api.example.com/v1/s", {})
    protocol.identify(known, Head(200, {"location": "/theirs"}, known.url))
    request = protocol.resume_request(known)
    assert request is not None and (request.method, request.url) == ("POST", known.url)
