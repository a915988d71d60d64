"""`LastEventID`: options, what it promises, and the requests it makes. How it resumes is in tests/core."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_stream._core.interfaces import Ask, Finished, Head, Interrupted, Position, Resume, Settled, StreamState
from resumable_stream._errors import GapError, UpstreamError
from resumable_stream._events import Gap, Outcome, StreamEvent
from resumable_stream.protocols import (
    NDJSON,
    ByteRange,
    CursorProtocol,
    LastEventID,
    ReplayFromZero,
    ResumeProtocol,
    detect,
    named,
)

from ..core.simulation import Reply, ev, play

URL = "https://api.example.com/v1/stream?x=1"


def state(method: str = "GET", **known: Any) -> StreamState:
    made = StreamState(method, URL)
    for name, value in known.items():
        setattr(made, name, value)
    return made


def event(data: str = "d", *, id: str | None = None, event: str = "message") -> StreamEvent:
    return StreamEvent(event=event, data=data, id=id or "", own_id=id)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"sequence": "maybe"}, {"sequence": True}, {"end": 5}, {"end": None}, {"end": ""}, {"resume": 5}, {"resume": ""},
     {"cursor_param": ""},
     {"cursor_param": 5}, {"gap_events": "gap"}],
)  # fmt: skip
def test_an_option_that_is_none_is_told_at_once(options: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        LastEventID(**options)
    assert next(iter(options)) in str(caught.value)


@pytest.mark.parametrize(
    ("protocol", "text"),
    [
        (LastEventID(), "<LastEventID: resumable>"),
        (LastEventID(end="x", sequence="contiguous"), "<LastEventID: resumable, numbered, has_end>"),
        (LastEventID(end="never"), "<LastEventID: resumable>"),
        (LastEventID(end=bool), "<LastEventID: resumable, has_end>"),
        (ReplayFromZero(end="x"), "<ReplayFromZero: resumable, has_end>"),
        (ByteRange(), "<ByteRange: resumable, numbered, has_end>"),
        (NDJSON(), "<NDJSON: promises nothing>"),
        (ResumeProtocol(), "<ResumeProtocol: resumable>"),
    ],
)
def test_a_protocol_prints_what_it_promises(protocol: ResumeProtocol, text: str) -> None:
    assert repr(protocol) == text


def test_a_generation_that_ends_with_its_connection_says_so() -> None:
    assert LastEventID(end="close").promises.tied
    assert not LastEventID().promises.tied


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_get_is_the_same_request_with_the_cursor() -> None:
    request = LastEventID().resume_request(state(cursor="c"))
    assert request is not None
    assert (request.method, request.url, request.headers, request.params, request.repeat) == (
        "GET",
        URL,
        {"Last-Event-ID": "c"},
        {},
        "all",
    )


def test_without_a_cursor_no_header_is_sent() -> None:
    request = LastEventID().resume_request(state())
    assert request is not None and request.headers == {} and request.params == {}


def test_the_cursor_may_go_into_the_query() -> None:
    request = LastEventID(cursor_param="after").resume_request(state(cursor="c d"))
    assert request is not None
    assert (request.headers, request.params) == ({}, {"after": "c d"})


def test_a_post_needs_a_place() -> None:
    assert LastEventID().resume_request(state("POST", cursor="c")) is None
    request = LastEventID().resume_request(state("POST", cursor="c", location="https://api.example.com/runs/1"))
    assert request is not None
    assert (request.method, request.url, request.repeat) == ("GET", "https://api.example.com/runs/1", None)


@pytest.mark.parametrize(
    ("resume", "url"),
    [
        ("/runs/1", "https://api.example.com/runs/1"),
        ("again?y=2", "https://api.example.com/v1/again?y=2"),
        ("https://api.example.com/z", "https://api.example.com/z"),
        (lambda state: f"/runs/{state.stream_id}", "https://api.example.com/runs/7"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_resume_is_resolved_against_the_first_url(method: str, resume: Any, url: str) -> None:
    request = LastEventID(resume=resume).resume_request(state(method, stream_id="7"))
    assert request is not None
    assert (request.method, request.url) == ("GET", url)


def test_a_callable_may_not_know_yet() -> None:
    assert LastEventID(resume=lambda state: None).resume_request(state("POST")) is None


def test_a_get_that_ends_by_closing_is_not_repeated() -> None:
    assert LastEventID(end="close").resume_request(state(cursor="c")) is None
    assert LastEventID(end="close", resume="/runs/1").resume_request(state(cursor="c")) is not None


@pytest.mark.parametrize("method", ["POST", "GET"])
@pytest.mark.parametrize("header", ["location", "content-location"])
def test_the_head_of_a_post_names_the_place(method: str, header: str) -> None:
    known = state(method)
    LastEventID().identify(known, Head(201, {header: "../runs/1"}, "https://api.example.com/v1/stream"))
    assert known.location in ("../runs/1", "https://api.example.com/runs/1") if method == "POST" else known.location is None


def test_location_goes_before_content_location() -> None:
    known = state("POST")
    LastEventID().identify(known, Head(200, {"location": "/a", "content-location": "/b"}, URL))
    assert known.location in ("/a", "https://api.example.com/a")


# --- events ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "verdict"), [("auto", Ask), ("close", Finished), ("never", Resume), ("x", Resume), (bool, Resume)]
)
def test_what_a_clean_close_means(end: Any, verdict: type) -> None:
    assert isinstance(LastEventID(end=end).on_clean_close(state()), verdict)


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (lambda event: True, Outcome.COMPLETED),
        (lambda event: Outcome.FAILED, Outcome.FAILED),
        (lambda event: Settled(Outcome.INCOMPLETE), Settled(Outcome.INCOMPLETE)),
        (lambda event: False, None),
        (lambda event: None, None),
        (lambda event: event.data == "d", Outcome.COMPLETED),
        ("d", Outcome.COMPLETED),
        ("e", None),
        ("auto", None),
    ],
)
def test_what_ends_it(end: Any, outcome: Any) -> None:
    assert LastEventID(end=end).end(event()) == outcome


def test_the_literal_words_of_the_option_are_no_markers() -> None:
    for word in ("auto", "close", "never"):
        assert LastEventID(end=word).end(event(word)) is None


def test_gap_events_carry_where_they_are() -> None:
    lost = event("{}", event="gap")
    lost.cursor = "5"
    assert LastEventID().gap(lost) == Gap(after="5")
    assert LastEventID().gap(event("gap")) is None
    assert LastEventID(gap_events=["x"]).gap(event(event="gap")) is None


def test_the_default_position_is_the_own_id() -> None:
    assert LastEventID().position(event(id="7")) == Position("7", None, "7")
    assert LastEventID().position(event()) == Position(None, None, None)


NOISE = [b"data: %d\n\n" % number for number in range(40)]
# What may matter, and what must come of it.
REMARKABLE = {
    b"data: [DONE]\n\n": Outcome.COMPLETED,
    b"data: [DONE]\r\n\r\n": Outcome.COMPLETED,
    b"data:[DONE]\n\n": Outcome.COMPLETED,
    b"event: error\ndata: x\n\n": UpstreamError,
    b"event:error\ndata\n\n": UpstreamError,
    b'data: {"error": {"message": "m"}}\n\n': UpstreamError,
    b'data: { "error": 1}\n\n': UpstreamError,
    b"event: gap\ndata: {}\n\n": GapError,
    b"event: session_lost\ndata: y\n\n": GapError,
}


@pytest.mark.parametrize("block", REMARKABLE)
@pytest.mark.parametrize("at", [0, 1, 3, 38, 39, 40])
def test_looking_only_at_what_may_matter_misses_nothing(block: bytes, at: int) -> None:
    """A shortcut for speed may skip events that cannot matter, however the body is cut into chunks."""
    body = b"".join([*NOISE[:at], block, *NOISE[at:]])
    for size in (1, 3, 7, 50, len(body)):
        result = play(Reply([body[start : start + size] for start in range(0, len(body), size)]), method="POST")
        expected = REMARKABLE[block]
        if isinstance(expected, Outcome):
            assert (len(result.events), result.outcome) == (at + 1, expected), size
        else:
            assert isinstance(result.error, expected), size
            assert len(result.events) == at, size


@pytest.mark.parametrize("marker", ["a\nb", "fertig ☃", "x", "39 ", "é"])
def test_a_marker_of_any_shape_is_found(marker: str) -> None:
    body = b"".join([*NOISE, ev(marker), *NOISE])
    for size in (1, 7, 64, len(body)):
        result = play(
            Reply([body[start : start + size] for start in range(0, len(body), size)]),
            method="POST",
            protocol=LastEventID(end=marker),
        )
        assert (len(result.events), result.outcome) == (41, Outcome.COMPLETED), size


def test_a_callable_is_asked_about_each_event() -> None:
    seen: list[str] = []
    play(Reply([b"".join(NOISE)]), method="POST", protocol=LastEventID(end=lambda event: seen.append(event.data)))
    assert seen == [str(number) for number in range(40)]


# --- detection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "found"),
    [
        ("text/event-stream", LastEventID),
        ("text/event-stream; charset=UTF-8", LastEventID),
        ("TEXT/EVENT-STREAM", LastEventID),
        ("application/x-ndjson", NDJSON),
        ("application/jsonl", NDJSON),
        ("application/octet-stream", ByteRange),
        ("audio/mpeg", ByteRange),
        ("text/plain", ByteRange),
        ("text/html", None),
        ("application/json", None),
        ("application/problem+json", None),
    ],
)
def test_the_type_of_the_answer_chooses(type: str, found: Any) -> None:
    protocol = detect(state(), Head(200, {"content-type": type}, URL))
    assert protocol is None if found is None else isinstance(protocol, found)


def test_a_checkpoints_protocol_is_found_by_name() -> None:
    for protocol in (LastEventID(), ByteRange(), NDJSON()):
        assert type(named(protocol.name)) is type(protocol)
    assert named("Mine") is None
    assert named("") is None
    assert named("ResumeProtocol") is None


# --- the small ones -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["auto", "never"])
@pytest.mark.parametrize("make", [NDJSON, ReplayFromZero])
def test_what_cannot_ask_for_more_needs_an_end(make: Any, end: str) -> None:
    with pytest.raises(ValueError, match="end"):
        make(end=end)


def test_json_lines_cannot_resume() -> None:
    assert not NDJSON().promises.resumable
    assert NDJSON().resume_request(state(cursor="c")) is None
    assert isinstance(NDJSON(end="x").on_clean_close(state()), Interrupted)
    assert NDJSON().on_clean_close(state()) == Finished(Outcome.ENDED)


def test_a_replay_is_the_same_get_or_another_place() -> None:
    request = ReplayFromZero(end="x").resume_request(state(cursor=None))
    assert request is not None and (request.method, request.url, request.repeat, request.headers) == ("GET", URL, "all", {})
    assert ReplayFromZero(end="x").resume_request(state("POST")) is None
    elsewhere = ReplayFromZero(end="x", resume=lambda state: f"/runs/{state.stream_id}").resume_request(
        state("POST", stream_id="9")
    )
    assert elsewhere is not None and (elsewhere.method, elsewhere.url) == ("GET", "https://api.example.com/runs/9")


@pytest.mark.parametrize(
    "protocol", [LastEventID(), CursorProtocol(read="seq", send="query:a"), ReplayFromZero(end="x"), NDJSON(), ByteRange()]
)
def test_one_instance_serves_many_streams(protocol: ResumeProtocol) -> None:
    """Nothing of a stream is kept in the protocol."""
    before = {name: repr(value) for name, value in vars(protocol).items() if name != "_read"}
    known = state(cursor="5", sequence=5)
    protocol.resume_request(known)
    if protocol.framing == "sse":
        items = [event('{"seq": 1}', id="1")]
        protocol.place(items)
        for item in items:
            protocol.end(item), protocol.error(item), protocol.gap(item)
    protocol.on_clean_close(state(cursor="0"))
    assert {name: repr(value) for name, value in vars(protocol).items() if name != "_read"} == before
