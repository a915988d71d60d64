"""What the server answers over HTTP: every row of the table, in every view, to every method."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_stream import Outcome
from resumable_stream.framing import SSEDecoder
from resumable_stream.server import Cursor, Ending, Head
from resumable_stream.server.log import Gone, Unknown
from resumable_stream.server.wire import (
    MOST_RETRY_MS,
    RETRY_MS,
    Answer,
    Asked,
    Closing,
    Facts,
    Follow,
    Missing,
    Standing,
    State,
    Unavailable,
    View,
    accepted,
    answer_to_message,
    answer_to_reader,
    asked,
    bad_request,
    busy,
    caught_up,
    check_header,
    check_origins,
    closing,
    cors_headers,
    encode_headers,
    end_event,
    ended,
    event_block,
    forbidden,
    forgotten,
    healthy,
    heartbeat,
    inbox_full,
    key_reused,
    method_not_allowed,
    not_found,
    outcome_header,
    path_of,
    preflight,
    retry_bounds,
    retry_line,
    said,
    snapshot_event,
    told_to_stop,
    too_large,
    unavailable,
)

SSE = Head(content_type="text/event-stream; charset=utf-8", framing="sse", headers=(("x-request-id", "req_1"),))
NDJSON = Head(content_type="application/x-ndjson", framing="ndjson")
RAW = Head(content_type="audio/mpeg", framing="raw")
DONE = Ending(outcome=Outcome.COMPLETED)
LOST = Ending(outcome=Outcome.FAILED, reason="producer_lost", error="its process died")

RUNS = Standing(head=SSE, epoch="k7q2", n=4, b=120, snapshot={"text": "Hel"})
ENDED = Standing(head=SSE, epoch="k7q2", n=4, b=120, ending=DONE, snapshot={"text": "Hello"})
FAILED = Standing(head=SSE, epoch="k7q2", n=4, b=120, ending=LOST, snapshot={"text": "Hel"})
TRIMMED = Standing(head=SSE, epoch="k7q2", n=4, b=120, oldest=3, oldest_b=60)
BROWSER = {"Sec-Fetch-Dest": "empty", "User-Agent": "Mozilla/5.0"}
LOCATION = "/streams/msg_42"


def ask(
    method: str = "GET", view: str | None = None, place: str | int | None = None, headers: dict[str, str] | None = None
) -> Asked:
    """A request with a place as a URL would have it: a cursor, or in the raw view a byte."""
    query = [] if view is None else [f"view={view}"]
    if place is not None:
        query.append(f"from={place}" if isinstance(place, int) else f"after={place}")
    request = asked(Facts(method, headers or {}, "&".join(query)))
    assert isinstance(request, Asked), request
    return request


def answer(request: Asked, state: State, **options: Any) -> Answer:
    return answer_to_reader(request, state, **{"stream_id": "msg_42", "location": LOCATION, "random": 0.463, **options})


def body_of(got: Answer) -> Any:
    assert got.header("content-type") == "application/json"
    return json.loads(got.body)


# --- the table ----------------------------------------------------------------------------------------------------------

Kind = Literal["live", "empty 200", "204", "204 failed", "404", "410", "503", "come back", "state"]


@dataclass(frozen=True)
class Row:
    """One row of the table: where the reader is, and what each view answers."""

    name: str
    state: State
    events: str | None
    raw: int | None
    ids: Kind
    verbatim: Kind
    browser: bool = False


ROWS = [
    Row("unknown", Unknown(), None, None, "404", "404"),
    Row("unknown or foreign, with a cursor", Unknown(), "k7q2.2", None, "404", "404"),
    Row("missing where streams have owners, with a cursor", Missing(), "k7q2.2", None, "404", "404"),
    Row("missing where streams have no owners", Missing(private=False), None, None, "404", "404"),
    Row("lost where streams have no owners", Missing(private=False), "k7q2.2", None, "410", "410"),
    Row("running, from the start", RUNS, None, None, "live", "live"),
    Row("running, from event 0", RUNS, "k7q2.0", 0, "live", "live"),
    Row("running, in the middle", RUNS, "k7q2.2", 60, "live", "live"),
    Row("running, at the tail", RUNS, "k7q2.4", 120, "live", "live"),
    Row("running, ahead of the log", RUNS, "k7q2.5", 121, "410", "410"),
    Row("ended, from the start", ENDED, None, None, "live", "live"),
    Row("ended, in the middle", ENDED, "k7q2.2", 60, "live", "live"),
    Row("ended, the end seen only verbatim", ENDED, "k7q2.4", 120, "live", "204"),
    Row("ended, the end seen", ENDED, "k7q2.5", 120, "204", "204"),
    Row("failed, the end seen", FAILED, "k7q2.5", 120, "204 failed", "204 failed"),
    Row("failed, in the middle", FAILED, "k7q2.2", 60, "live", "live"),
    Row("ended, ahead of the log", ENDED, "k7q2.6", 121, "410", "410"),
    Row("of another epoch", RUNS, "zz77.2", None, "410", "410"),
    Row("ended, of another epoch", ENDED, "zz77.5", None, "410", "410"),
    Row("trimmed, from the start", TRIMMED, None, None, "410", "410"),
    Row("trimmed, before the oldest", TRIMMED, "k7q2.1", 59, "410", "410"),
    Row("trimmed, right before the oldest", TRIMMED, "k7q2.2", 60, "live", "live"),
    Row("gone, says the log", Gone(3, 4, "trimmed", "k7q2", SSE), "k7q2.1", 5, "410", "410"),
    Row("draining", Unavailable("draining"), "k7q2.2", 60, "503", "503"),
    Row("draining, a browser", Unavailable("draining"), "k7q2.2", 60, "come back", "503", browser=True),
]
VIEWS: list[View] = ["events", "snapshot", "verbatim", "raw"]
METHODS = ["GET", "HEAD", "POST"]


def expected(row: Row, view: View, method: str) -> Kind:
    kind = row.ids if view in ("events", "snapshot") else row.verbatim
    place = row.raw if view == "raw" else row.events
    if kind == "come back" and method != "GET":
        return "503"
    # A HEAD without a cursor asks how the stream stands, and a snapshot needs no history.
    if isinstance(row.state, Standing) and place is None and method == "HEAD" and view != "raw":
        return "state"
    if view == "raw" and row.raw is None:
        # No place is byte 0, which knows no epoch.
        return "410" if row.state is TRIMMED else "live" if isinstance(row.state, Standing) else "404"
    if view == "snapshot" and row.events is None and row.state is TRIMMED:
        return "410"
    return kind


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("view", VIEWS)
def test_a_reader_is_answered(row: Row, view: View) -> None:
    for method in METHODS:
        check_row(row, view, method, expected(row, view, method))


def check_row(row: Row, view: View, method: str, kind: Kind) -> None:
    request = ask(method, view, row.raw if view == "raw" else row.events, BROWSER if row.browser else None)
    got = answer(request, row.state)
    check_answer(got, row, view, kind)
    if method == "HEAD":
        assert got.body == b"" and got.then is None
    if kind in ("404", "410", "503"):
        assert got.header("cache-control") == "no-store"
    else:
        assert got.header("cache-control") == "no-cache, no-transform"
        assert got.header("x-accel-buffering") == "no"
    assert got.header("x-content-type-options") == "nosniff"
    encode_headers(got.headers)


def check_answer(got: Answer, row: Row, view: View, kind: Kind) -> None:
    with_ids = view in ("events", "snapshot")
    match kind:
        case "live" | "state":
            assert isinstance(row.state, Standing)
            assert got.status == 200
            assert got.header("content-type") == ("text/event-stream" if with_ids else SSE.content_type)
            assert (got.header("stream-id"), got.header("content-location")) == ("msg_42", LOCATION)
            over = row.state.ending is not None
            assert got.header("stream-closed") == ("true" if over else None)
            assert (got.header("stream-outcome") is not None) == over
            if kind == "state":
                assert (got.header("stream-tail"), got.header("stream-bytes")) == ("k7q2.4", "120")
            else:
                # A client takes the answer with this header for a provider's own stream.
                assert got.header("stream-epoch") == (None if with_ids else "k7q2")
                assert got.header("x-request-id") == (None if with_ids else "req_1")
        case "204" | "204 failed":
            assert (got.status, got.body, got.then) == (204, b"", None)
            outcome = "completed" if kind == "204" else "failed; reason=producer_lost"
            assert (got.header("stream-closed"), got.header("stream-outcome")) == ("true", outcome)
        case "404":
            assert got.status == 404
            assert got.body in (b'{"error":"not_found"}', b"")
        case "410":
            assert got.status == 410
        case "503":
            assert got.status == 503
            assert 1 <= int(got.header("retry-after") or 0) <= 5
        case "come back":
            assert (got.status, got.then) == (200, None)
            assert got.header("content-type") == "text/event-stream"
            assert got.body == b"retry: 9630\n\n"
            # Without the name a client may take the empty stream for a complete one.
            assert got.header("stream-id") == "msg_42"
        case _:
            raise AssertionError(kind)


@pytest.mark.parametrize("view", VIEWS)
def test_a_reader_without_a_place_begins_at_the_start(view: View) -> None:
    follow = answer(ask(view=view), RUNS).then
    assert follow is not None and follow.view == view
    assert follow.after == Cursor("k7q2", 4 if view == "snapshot" else 0)
    assert follow.from_byte == (0 if view == "raw" else None)


@pytest.mark.parametrize("view", ["events", "snapshot", "verbatim"])
def test_a_reader_with_a_cursor_continues_behind_it(view: View) -> None:
    got = answer(ask(view=view, place="k7q2.2"), RUNS)
    assert got.then is not None and got.then.after == Cursor("k7q2", 2)
    # No second snapshot, which would come after text that the reader has.
    assert got.body == (b"" if view == "verbatim" else b"retry: 731\n\n")


def test_a_reader_with_a_byte_continues_there() -> None:
    got = answer(ask(view="raw", place=60), RUNS)
    assert got.then is not None and got.then.from_byte == 60


def test_a_snapshot_is_the_first_event() -> None:
    got = answer(ask(view="snapshot"), RUNS)
    assert got.body == b'retry: 731\n\nid: k7q2.4\nevent: snapshot\ndata: {"text":"Hel"}\n\n'


def test_a_snapshot_needs_no_history() -> None:
    state = Standing(head=SSE, epoch="k7q2", n=4, b=120, oldest=3, oldest_b=60, snapshot={"text": "Hel"})
    got = answer(ask(view="snapshot"), state)
    assert (got.status, got.then and got.then.after) == (200, Cursor("k7q2", 4))


def test_without_a_snapshot_the_events_are_replayed() -> None:
    got = answer(ask(view="snapshot"), Standing(head=SSE, epoch="k7q2", n=4, b=120))
    assert (got.body, got.then and got.then.after) == (b"retry: 731\n\n", Cursor("k7q2", 0))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("view", ["events", "snapshot"])
def test_raw_bytes_cannot_be_shown_as_events(view: View, method: str) -> None:
    got = answer(ask(method, view), Standing(head=RAW, epoch="k7q2", n=1, b=9))
    assert got.status == 400
    assert method == "HEAD" or "raw bytes" in body_of(got)["message"]


def test_raw_bytes_are_verbatim_where_no_view_is_named() -> None:
    got = answer(ask(place="k7q2.1"), Standing(head=RAW, epoch="k7q2", n=1, b=9))
    assert got.then == Follow(view="verbatim", after=Cursor("k7q2", 1))
    assert got.header("content-type") == "audio/mpeg"


def test_an_empty_stream_that_ended_is_a_200_to_who_asks_first() -> None:
    empty = Standing(head=SSE, epoch="k7q2", n=0, b=0, ending=DONE)
    assert [answer(ask(view=view), empty).status for view in VIEWS] == [200] * 4
    assert answer(ask(view="verbatim", place="k7q2.0"), empty).status == 204
    assert answer(ask(view="events", place="k7q2.0"), empty).status == 200
    assert answer(ask(view="events", place="k7q2.1"), empty).status == 204


def test_ndjson_is_events_or_lines() -> None:
    lines = Standing(head=NDJSON, epoch="k7q2", n=1, b=9)
    assert answer(ask(), lines).header("content-type") == "text/event-stream"
    assert answer(ask(view="verbatim"), lines).header("content-type") == "application/x-ndjson"


@pytest.mark.parametrize(
    ("state", "place", "told"),
    [
        (RUNS, "zz77.9", {"why": "other_epoch", "oldest": "k7q2.0", "tail": "k7q2.4"}),
        (RUNS, "k7q2.9", {"why": "went_back", "oldest": "k7q2.0", "tail": "k7q2.4"}),
        (TRIMMED, "k7q2.1", {"why": "trimmed", "oldest": "k7q2.2", "tail": "k7q2.4"}),
        (Gone(3, 4, "trimmed", "k7q2", SSE), None, {"why": "trimmed", "oldest": "k7q2.2", "tail": "k7q2.4"}),
        (Missing(private=False), "k7q2.9", {"why": "went_back", "oldest": None, "tail": "k7q2.0"}),
    ],
)
def test_410_says_what_is_left(state: State, place: str | None, told: dict[str, object]) -> None:
    got = answer(ask(place=place), state)
    assert body_of(got) == {"error": "history_gone", **told}


def test_what_410_calls_the_oldest_reads_all_that_is_left() -> None:
    oldest = body_of(answer(ask(), TRIMMED))["oldest"]
    got = answer(ask(place=oldest), TRIMMED)
    assert got.then is not None and got.then.after == Cursor("k7q2", 2)


def test_410_of_a_feed_names_the_way_on() -> None:
    feed = Standing(head=replace(SSE, feed=True), epoch="k7q2", n=4, b=120, oldest=3)
    assert body_of(answer(ask(place="k7q2.1"), feed))["snapshot"] == 1


def test_who_may_not_read_learns_no_more_than_of_an_unknown_stream() -> None:
    for method in METHODS:
        for view in VIEWS[:3]:
            for place in (None, "k7q2.2"):
                answers = {answer(ask(method, view, place), state) for state in (Unknown(), Missing())}
                assert len(answers) == 1


def test_the_status_and_headers_of_an_upstream_are_passed_on() -> None:
    headers = (
        ("openai-version", "1"),
        ("Content-Length", "7"),
        ("transfer-encoding", "chunked"),
        ("Set-Cookie", "a=b"),
        ("Stream-Id", "forged"),
        ("Access-Control-Allow-Origin", "*"),
        ("Cache-Control", "public"),
    )
    head = Head(content_type="text/event-stream", framing="sse", status=203, headers=headers)
    got = answer(ask(view="verbatim"), Standing(head=head, epoch="k7q2", n=0, b=0))
    assert got.status == 203
    names = [name.lower() for name, _ in got.headers]
    assert len(set(names)) == len(names)
    assert got.header("openai-version") == "1" and got.header("stream-id") == "msg_42"
    assert not {"content-length", "transfer-encoding", "set-cookie", "access-control-allow-origin"} & set(names)


def test_heartbeats_are_sent_with_ids_and_otherwise_on_request() -> None:
    asks = {"Stream-Heartbeat": "20"}
    lines, raw = (Standing(head=head, epoch="k7q2", n=1, b=9) for head in (NDJSON, RAW))

    def beats(state: Standing, view: str, headers: dict[str, str] | None = None) -> tuple[bytes, float | None]:
        follow = answer(ask(view=view, headers=headers), state).then
        assert follow is not None
        return follow.heartbeat, follow.every

    assert beats(RUNS, "events") == (b":\n\n", 15.0)
    assert beats(RUNS, "events", asks) == (b":\n\n", 20.0)
    assert beats(lines, "events") == (b":\n\n", 15.0)
    assert beats(RUNS, "verbatim") == (b"", None)
    assert beats(RUNS, "verbatim", asks) == (b":\n\n", 20.0)
    assert beats(lines, "verbatim", asks) == (b"\n", 20.0)
    assert beats(raw, "verbatim", asks) == (b"", None)
    follow = answer(ask(), RUNS, heartbeat_every=None).then
    assert follow is not None and (follow.heartbeat, follow.every) == (b"", None)


# --- requests -----------------------------------------------------------------------------------------------------------


def test_the_header_wins_over_the_url() -> None:
    request = asked(Facts("GET", {"LAST-EVENT-ID": "k7q2.9"}, "after=k7q2.3"))
    assert isinstance(request, Asked) and request.after == Cursor("k7q2", 9)


def test_an_empty_header_is_no_place() -> None:
    request = asked(Facts("GET", {"last-event-id": ""}, "after=k7q2.3"))
    assert isinstance(request, Asked) and request.after == Cursor("k7q2", 3)


def test_what_a_request_says_nothing_of_has_its_default() -> None:
    assert asked(Facts("get")) == Asked()


def test_all_that_a_request_may_say() -> None:
    headers = {"Prefer": "wait=5, Respond-Async; x=1", "Idempotency-Key": '"msg_42"', "Stream-Heartbeat": "9999", **BROWSER}
    request = asked(Facts("post", headers, "view=snapshot&control=1&t=token&t=again"))
    assert request == Asked(
        method="POST", view="snapshot", control=True, heartbeat=300.0, respond_async=True, key="msg_42", browser=True
    )


def test_a_byte_is_a_place_in_the_raw_view() -> None:
    assert asked(Facts("GET", {}, "from=7")) == Asked(view="raw", from_byte=7)
    assert asked(Facts("GET", {}, "view=raw")) == Asked(view="raw", from_byte=0)


@pytest.mark.parametrize(
    ("query", "headers", "part", "expected"),
    [
        ("view=other", {}, "query parameter 'view'", "events, verbatim, snapshot, raw"),
        ("view=", {}, "query parameter 'view'", "events"),
        ("after=", {}, "query parameter 'after'", "k7q2.1247"),
        ("after=7", {}, "query parameter 'after'", "k7q2.1247"),
        ("after=k7q2.007", {}, "query parameter 'after'", "k7q2.1247"),
        ("after=k7q2.9007199254740992", {}, "query parameter 'after'", "k7q2.1247"),
        ("after=k7q2.1&after=k7q2.2", {}, "query parameter 'after'", "given once"),
        ("", {"Last-Event-ID": "5"}, "header 'Last-Event-ID'", "k7q2.1247"),
        ("after=k7q2.1", {"Last-Event-ID": "k7q2.1, k7q2.2"}, "header 'Last-Event-ID'", "k7q2.1247"),
        ("from=-1", {}, "query parameter 'from'", "whole number"),
        ("from=1.5", {}, "query parameter 'from'", "whole number"),
        ("from=%D9%A1", {}, "query parameter 'from'", "whole number"),
        ("from=1&view=events", {}, "query parameter 'from'", "view=raw"),
        ("from=1&after=k7q2.1", {}, "query parameter 'after'", "which uses 'from'"),
        ("view=raw", {"Last-Event-ID": "k7q2.1"}, "header 'Last-Event-ID'", "which uses 'from'"),
        ("control=yes", {}, "query parameter 'control'", "0 or 1"),
        ("", {"Stream-Heartbeat": "often"}, "header 'Stream-Heartbeat'", "seconds"),
        ("", {"Idempotency-Key": ""}, "header 'Idempotency-Key'", "visible ASCII"),
        ("", {"Idempotency-Key": "a b"}, "header 'Idempotency-Key'", "visible ASCII"),
        ("", {"Idempotency-Key": "k" * 257}, "header 'Idempotency-Key'", "256"),
    ],
)
def test_400_says_what_is_wrong_and_what_is_expected(query: str, headers: dict[str, str], part: str, expected: str) -> None:
    got = asked(Facts("GET", headers, query))
    assert isinstance(got, Answer)
    body = body_of(got)
    assert (got.status, body["error"], body["part"]) == (400, "bad_request", part)
    assert expected in body["expected"] and body["expected"] in body["message"] and part in body["message"]
    assert got.header("cache-control") == "no-store"


def test_the_longest_key_is_taken() -> None:
    assert asked(Facts("POST", {"Idempotency-Key": "k" * 256})) == Asked(method="POST", key="k" * 256)


@pytest.mark.parametrize(
    ("headers", "browser"),
    [
        ({"Sec-Fetch-Dest": "empty"}, True),
        ({"user-agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/146.0"}, True),
        ({"User-Agent": "python-httpx/0.28.1"}, False),
        ({"User-Agent": "curl/8.5 (not Mozilla/5.0)"}, False),
        ({}, False),
    ],
)
def test_who_is_a_browser(headers: dict[str, str], browser: bool) -> None:
    assert Facts("GET", headers).is_browser is browser


@given(
    st.text(max_size=60), st.dictionaries(st.sampled_from(["Last-Event-ID", "Prefer", "Idempotency-Key"]), st.text(max_size=30))
)
def test_whatever_a_request_says_it_is_understood_or_answered(query: str, headers: dict[str, str]) -> None:
    got = asked(Facts("GET", headers, query))
    assert isinstance(got, Asked) or body_of(got)["error"] == "bad_request"


# --- how a body ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("outcome", Outcome)
def test_a_body_of_bytes_ends_cleanly_only_after_work_that_did(view: View, outcome: Outcome) -> None:
    ending = Ending(outcome=outcome)
    got = closing(view, epoch="k7q2", n=4, ending=ending)
    if view in ("events", "snapshot"):
        assert got == Closing(end_event("k7q2", 4, ending), True)
    else:
        assert got == Closing(b"", outcome in (Outcome.COMPLETED, Outcome.INCOMPLETE, Outcome.ENDED))


@pytest.mark.parametrize("view", VIEWS)
def test_a_reader_that_lost_its_log_is_told_no_end(view: View) -> None:
    assert closing(view, epoch="k7q2", n=4, ending=None) == Closing(b"", view in ("events", "snapshot"))


@pytest.mark.parametrize(
    ("ending", "data"),
    [
        (DONE, {"outcome": "completed"}),
        (LOST, {"outcome": "failed", "error": {"reason": "producer_lost", "message": "its process died"}}),
        (Ending(outcome=Outcome.FAILED), {"outcome": "failed", "error": {}}),
        (Ending(outcome=Outcome.CANCELLED, reason="abandoned"), {"outcome": "cancelled", "reason": "abandoned"}),
        (Ending(outcome=Outcome.INCOMPLETE, error="cut short"), {"outcome": "incomplete", "error": {"message": "cut short"}}),
    ],
)
def test_the_end_says_how_and_why(ending: Ending, data: dict[str, object]) -> None:
    (event,) = SSEDecoder().feed(end_event("k7q2", 4, ending))
    assert (event.event, event.own_id, json.loads(event.data)) == ("end", "k7q2.5", data)


texts = st.text(st.characters(codec="utf-8"), max_size=60)
endings = st.builds(Ending, outcome=st.sampled_from(Outcome), reason=st.none() | texts, error=st.none() | texts)


@given(endings, st.integers(0, 10**6))
def test_every_end_is_one_event_with_the_next_number(ending: Ending, n: int) -> None:
    decoder = SSEDecoder()
    events = [event for byte in end_event("k7q2", n, ending) for event in decoder.feed(bytes([byte]))]
    assert [(event.event, event.own_id) for event in events] == [("end", f"k7q2.{n + 1}")]
    assert json.loads(events[0].data)["outcome"] == ending.outcome.value
    assert not decoder.partial


@given(endings)
def test_every_outcome_fits_a_header(ending: Ending) -> None:
    value = outcome_header(ending)
    assert encode_headers([("Stream-Outcome", value)]) == [(b"stream-outcome", value.encode("ascii"))]
    assert value.partition(";")[0] == ending.outcome.value


def test_a_reason_of_several_words_is_quoted() -> None:
    assert outcome_header(LOST) == "failed; reason=producer_lost"
    assert (
        outcome_header(Ending(outcome=Outcome.CANCELLED, reason="by the user, twice")) == 'cancelled; reason="by the user, twice"'
    )
    smuggled = outcome_header(Ending(outcome=Outcome.FAILED, reason='x"; a=\r\nSet-Cookie: é'))
    assert smuggled == 'failed; reason="x%22%3B a=%0D%0ASet-Cookie: %C3%A9"'


# --- pieces -------------------------------------------------------------------------------------------------------------


@given(texts, st.none() | st.just("step"), st.none() | st.just("k7q2.1"))
def test_an_event_is_read_as_it_was_written(data: str, event: str | None, id: str | None) -> None:
    (got,) = SSEDecoder().feed(event_block(data, event=event, id=id))
    assert (got.event, got.own_id) == (event or "message", id)
    assert got.data == data.replace("\r\n", "\n").replace("\r", "\n")


@pytest.mark.parametrize("wrong", ["a\nb", "a\rb", "a\0b"])
def test_a_name_or_an_id_of_two_lines_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="the event of an event must be one line"):
        event_block("x", event=wrong)
    with pytest.raises(ValueError, match="the id of an event must be one line"):
        event_block("x", id=wrong)


def test_snapshot_and_caught_up() -> None:
    snapshot, over = SSEDecoder().feed(snapshot_event(Cursor("k7q2", 7), {"text": "é\n☔"}) + caught_up())
    assert (snapshot.event, snapshot.own_id, json.loads(snapshot.data)) == ("snapshot", "k7q2.7", {"text": "é\n☔"})
    assert (over.event, over.own_id) == ("caught-up", None)


def test_a_heartbeat_is_no_event() -> None:
    decoder = SSEDecoder()
    assert decoder.feed(heartbeat("sse")) == [] and not decoder.partial
    assert heartbeat("ndjson") == b"\n" and heartbeat("raw") == b""


@given(st.floats(0, 1, exclude_max=True))
def test_readers_come_back_within_bounds(random: float) -> None:
    decoder = SSEDecoder()
    assert decoder.feed(retry_line(random)) == []
    assert decoder.retry is not None and 500 <= decoder.retry < 1000
    assert 1 <= int(unavailable("draining", random=random).header("Retry-After") or 0) <= 5


@pytest.mark.parametrize("random", [-0.1, 1.0, float("nan")])
def test_a_random_number_is_from_0_to_1(random: float) -> None:
    with pytest.raises(ValueError, match="from 0 up to"):
        retry_line(random)


# --- other answers ------------------------------------------------------------------------------------------------------


def test_the_message_of_a_stream() -> None:
    got = answer_to_message(RUNS, text="Hel", random=0.0)
    assert body_of(got) == {"text": "Hel", "cursor": "k7q2.4", "outcome": None, "events": 4}
    assert body_of(answer_to_message(ENDED, text="Hello", random=0.0))["outcome"] == "completed"
    assert answer_to_message(Unknown(), random=0.0) == not_found()
    assert answer_to_message(Missing(private=False), random=0.0) == not_found()
    assert answer_to_message(Unavailable("log_unavailable"), random=0.0).status == 503
    assert answer_to_message(Gone(3, 4, "trimmed", "k7q2", SSE), random=0.0).status == 410


@pytest.mark.parametrize(
    ("got", "status", "body"),
    [
        (accepted("msg_42", LOCATION), 202, {"id": "msg_42", "location": LOCATION}),
        (said(3), 202, {"position": 3}),
        (told_to_stop(None), 202, {"outcome": None}),
        (told_to_stop(DONE), 200, {"outcome": "completed"}),
        (ended(LOST), 409, {"error": "ended", "outcome": "failed"}),
        (forbidden(), 403, {"error": "forbidden"}),
        (healthy(), 200, {"status": "ok"}),
        (inbox_full(10), 429, {"error": "inbox_full", "limit": 10}),
        (key_reused(), 409, {"error": "key_reused"}),
        (busy(LOCATION), 409, {"error": "session_busy", "active": LOCATION}),
        (too_large(5), 413, {"error": "too_large", "limit": 5}),
        (method_not_allowed("GET", "HEAD"), 405, {"error": "method_not_allowed"}),
        (unavailable("draining", random=0.0), 503, {"error": "unavailable", "reason": "draining"}),
        (bad_request("x", "y", "z" * 500), 400, {"error": "bad_request", "got": "z" * 80}),
    ],
)
def test_answers_say_what_they_mean_to_programs(got: Answer, status: int, body: dict[str, object]) -> None:
    assert got.status == status
    assert body.items() <= body_of(got).items()
    assert (got.header("cache-control"), got.header("x-content-type-options")) == ("no-store", "nosniff")


def test_where_an_answer_points() -> None:
    assert accepted("msg_42", LOCATION).header("Location") == LOCATION
    assert busy(LOCATION).header("Content-Location") == LOCATION
    assert method_not_allowed("GET", "HEAD").header("Allow") == "GET, HEAD"
    assert (forgotten().status, forgotten().body) == (204, b"")


# --- headers ------------------------------------------------------------------------------------------------------------


def test_the_path_of_a_stream() -> None:
    assert path_of("a.B_9~-") == "/streams/a.B_9~-"
    assert path_of("q3k", prefix="/.streams/") == "/.streams/q3k"


@pytest.mark.parametrize("wrong", [".", "..", "", "a/b", "a\r\nb", "é", "a" * 257, "a%2Fb"])
def test_what_has_no_path_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="stream id"):
        path_of(wrong)


@pytest.mark.parametrize(
    ("name", "value"), [("X", "a\r\nSet-Cookie: b"), ("X", "a\nb"), ("X", "a\0"), ("X: a\r\nY", "b"), ("", "b")]
)
def test_a_header_that_could_be_two_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        check_header(name, value)
    with pytest.raises(ValueError, match="header"):
        Answer(200, ((name, value),))
    with pytest.raises(ValueError, match="header"):
        encode_headers([(name, value)])


def test_a_refused_header_is_not_shown() -> None:
    with pytest.raises(ValueError) as caught:
        check_header("Authorization", "Bearer secret\n")
    assert "secret" not in str(caught.value)


def test_headers_are_latin_1_or_utf_8() -> None:
    assert encode_headers([("X-A", "é"), ("X-B", "☔")]) == [(b"x-a", b"\xe9"), (b"x-b", "☔".encode())]


ORIGIN = "https://app.example.com"


def test_without_origins_an_answer_says_nothing_of_them() -> None:
    assert cors_headers(ORIGIN, ()) == ()


def test_an_allowed_origin_may_read_what_it_needs() -> None:
    headers = dict(cors_headers(ORIGIN, check_origins([ORIGIN])))
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    assert headers["Vary"] == "Origin"
    exposed = headers["Access-Control-Expose-Headers"].split(", ")
    assert {"Content-Location", "Location", "Stream-Id", "Stream-Tail", "Stream-Closed", "Stream-Outcome"} <= set(exposed)
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize("origin", ["https://evil.example.com", "https://app.example.com.evil.com", "null", None])
def test_another_origin_may_not(origin: str | None) -> None:
    assert cors_headers(origin, [ORIGIN]) == (("Vary", "Origin"),)
    assert not any("Control" in name for name, _ in preflight(Facts("OPTIONS", {"Origin": origin or ""}), [ORIGIN]).headers)


def test_every_origin() -> None:
    assert dict(cors_headers(ORIGIN, ["*"]))["Access-Control-Allow-Origin"] == "*"


def test_a_preflight_names_methods_and_headers() -> None:
    got = preflight(Facts("OPTIONS", {"Origin": ORIGIN}), [ORIGIN])
    assert got.status == 204
    assert "DELETE" in (got.header("access-control-allow-methods") or "")
    allowed = (got.header("access-control-allow-headers") or "").split(", ")
    assert {"Authorization", "Last-Event-ID", "Idempotency-Key", "Content-Type"} <= set(allowed)


@pytest.mark.parametrize("wrong", ["app.example.com", "https://app.example.com/", "https://App example", ""])
def test_what_no_browser_sends_is_no_origin(wrong: str) -> None:
    with pytest.raises(ValueError, match="an origin is"):
        check_origins([wrong])


def test_one_text_is_no_list_of_origins() -> None:
    with pytest.raises(TypeError, match="list of origins"):
        check_origins(ORIGIN)


def test_readers_of_a_large_server_are_asked_to_come_back_over_a_longer_time() -> None:
    assert retry_bounds(0) == retry_bounds(1000) == RETRY_MS
    assert retry_bounds(4000) == (500, 2500)
    assert retry_bounds(10**6) == (500, MOST_RETRY_MS)
    request = asked(Facts("GET", {}, ""))
    assert isinstance(request, Asked)
    head = Head(content_type="text/event-stream", framing="sse")
    standing = Standing(head=head, epoch="k7q2", n=0, b=0)
    for readers, last in ((0, 999), (4000, 2499)):
        answer = answer_to_reader(request, standing, stream_id="s", random=0.9999, readers=readers)
        assert answer.body == b"retry: %d\n\n" % last
