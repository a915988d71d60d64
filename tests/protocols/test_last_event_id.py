"""`LastEventID`: options, what it promises, and the requests it makes. How it resumes is in tests/core."""

from __future__ import annotations

import json
from typing import Any

import pytest

from resumable_stream._contract import Ask, Finished, Head, Interrupted, Position, Reporting, Resume, Settled, StreamState
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
from resumable_stream.testing import Fault, ServerEvent

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


@pytest.mark.parametrize("block", [b'data: {\ndata:   "errors": 0\ndata: }\n\n', b'data: {\ndata:   "error": null\ndata: }\n\n'])
def test_an_object_over_several_lines_that_is_no_error_is_an_event(block: bytes) -> None:
    result = play(Reply([block, b"data: [DONE]\n\n"]), method="POST")
    assert (len(result.events), result.outcome) == (2, Outcome.COMPLETED)


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
    b'data: {\ndata:   "error": {\ndata:     "message": "m"\ndata:   }\ndata: }\n\n': UpstreamError,
    b'data: {\ndata: "error": "m"\ndata: }\n\n': UpstreamError,
    b'data: {\ndata: \t"error": "m"}\n\n': UpstreamError,
    b'data: {\ndata:          "error": "m"}\n\n': UpstreamError,
    b'data: {  "error": "m"}\n\n': UpstreamError,
    b"event: gap\ndata: {}\n\n": GapError,
    b"event: session_lost\ndata: y\n\n": GapError,
}


@pytest.mark.parametrize("block", REMARKABLE)
def test_looking_only_at_what_may_matter_misses_nothing(block: bytes) -> None:
    """A shortcut for speed may skip events that cannot matter, however the body is cut into chunks."""
    for at in (0, 1, 3, 38, 39, 40):
        body = b"".join([*NOISE[:at], block, *NOISE[at:]])
        for size in (1, 3, 7, 50, len(body)):
            result = play(Reply([body[start : start + size] for start in range(0, len(body), size)]), method="POST")
            expected = REMARKABLE[block]
            if isinstance(expected, Outcome):
                assert (len(result.events), result.outcome) == (at + 1, expected), (at, size)
            else:
                assert isinstance(result.error, expected), (at, size)
                assert len(result.events) == at, (at, size)


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
            protocol.end(item), protocol.error(item), Reporting.of(protocol).gap(item)
    protocol.on_clean_close(state(cursor="0"))
    assert {name: repr(value) for name, value in vars(protocol).items() if name != "_read"} == before


# --- JSON, and an id of the stream


async def test_json_with_the_text_in_a_field_and_a_location_needs_one_option(row: Any, flaky_server: Any) -> None:
    """
    The commonest endpoint of one's own: JSON events with ids, and a POST that is answered with a `Location`
    (RFC 9110 section 10.2.2). Neither protocol of plain events read it before.
    """
    log = [ServerEvent(id=str(n), data=json.dumps({"part": {"text": word}})) for n, word in enumerate("abcdef", 1)]
    server = flaky_server([*log, ServerEvent(data="[DONE]")], [Fault.cut(after_events=2)], location="/runs/7")
    stream = row.connect("POST", server.url, json={}, protocol=LastEventID(text="part.text"))
    async with stream:
        assert await stream.read_text() == "abcdef"
    assert stream.outcome is Outcome.COMPLETED
    assert [(request.method, request.path, request.last_event_id) for request in server.requests] == [
        ("POST", "/stream", None),
        ("GET", "/runs/7", "2"),
    ]


@pytest.mark.parametrize("stream_id", ["header:X-Run-Id", "run.id"])
async def test_the_id_of_the_stream_fills_the_place_to_resume_at(row: Any, flaky_server: Any, stream_id: str) -> None:
    log = [ServerEvent(id=str(n), data=json.dumps({"run": {"id": "r 7"}, "n": n})) for n in range(1, 7)]
    server = flaky_server([*log, ServerEvent(data="[DONE]")], [Fault.cut(after_events=2)], headers={"x-run-id": "r 7"})
    protocol = LastEventID(stream_id=stream_id, resume="/runs/{stream_id}/events")
    stream = row.connect("POST", server.url, json={}, protocol=protocol)
    assert len(await row.read(stream)) == 7
    assert stream.stream_id == "r 7"
    assert server.requests[1].path == "/runs/r%207/events"


def test_a_place_that_needs_an_id_waits_for_it() -> None:
    protocol = LastEventID(stream_id="run", resume="/runs/{stream_id}")
    assert protocol.resume_request(state("POST", cursor="c")) is None
    assert "did not contain the stream id" in protocol.why_not(state("POST", cursor="c"))


def test_text_may_be_a_callable_that_is_not_asked_about_the_marker() -> None:
    protocol = LastEventID(text=lambda event: event.json()["t"])
    assert [delta.text for delta in protocol.deltas(StreamEvent(data='{"t": "x"}'))] == ["x"]
    assert protocol.deltas(StreamEvent(data='{"t": null}')) == ()
    assert protocol.deltas(StreamEvent(data="[DONE]")) == ()


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"text": 7}, TypeError, "text must be a dotted path"),
        ({"text": ""}, ValueError, "dotted path"),
        ({"stream_id": 7}, TypeError, "header:NAME"),
        ({"stream_id": "header:"}, ValueError, "name of a header"),
        ({"resume": "/runs/{stream_id}"}, ValueError, "stream_id="),
    ],
)
def test_an_option_for_json_that_makes_no_sense_is_refused(options: dict[str, Any], kind: Any, text: str) -> None:
    with pytest.raises(kind, match=text):
        LastEventID(**options)


def test_options_for_json_are_part_of_what_a_checkpoint_asks_for_again() -> None:
    """Another process that names no protocol would deliver JSON as text."""
    digests = {LastEventID(**each).options for each in ({}, {"text": "a"}, {"text": "b"}, {"stream_id": "a"}, {"text": str})}
    assert len(digests) == 5
    assert LastEventID().options == ""


def test_what_is_detected_for_a_post_does_not_promise_more_than_it_knows() -> None:
    """Printed of a POST without a Location, "resumable" was a promise that nothing could keep."""
    found = detect(state("POST"), Head(200, {"content-type": "text/event-stream"}, URL))
    assert repr(found) == "<LastEventID: resumable if the answer names a Location>"
    assert repr(detect(state("GET"), Head(200, {"content-type": "text/event-stream"}, URL))) == "<LastEventID: resumable>"
