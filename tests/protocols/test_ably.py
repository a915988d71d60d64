"""`AblySSE`: channels over server-sent events (ably.com/docs, protocols/sse, api/sse)."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

import resumable_stream as rs
from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, StreamState
from resumable_stream._errors import (
    CursorExpired,
    EventTooLarge,
    GapError,
    ResponseRejected,
    RetriesExhausted,
    StreamReset,
    UpstreamError,
)
from resumable_stream._events import Delta, StreamEvent, TextReset
from resumable_stream._text import TextReader
from resumable_stream.protocols.ably import AblySSE
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, EventServer, Reply, Stream, Wait, ev, policy, rows_of, run, script, transcript

URL = "https://main.realtime.ably.net/sse?channels=c&v=1.2&rewind=5"
WORDS = ["Über ", "Köln: ", "sieben ", "Grad ", "Grad ", "☔", "!", " a", " b", " c", " d"]


def own_id(at: int) -> str:
    return f"abc123XYZ:1763600000000-{at}"


def message(at: int, **fields: Any) -> bytes:
    body = {"id": f"p1:{at}:0", "name": "token", "timestamp": 1763600000000, "channel": "c", "data": WORDS[at % 11], **fields}
    return ev(json.dumps(body, ensure_ascii=False), own_id(at), "message")


def failure(code: int, text: str = "Token expired", status: int = 0) -> bytes:
    body = {
        "message": text,
        "code": code,
        "statusCode": status or (400 if code >= 80000 else code // 100),
        "href": "https://help.ably.io",
    }
    return ev(json.dumps(body), None, "error")


KEEPALIVE = b":keepalive\n\n"
PRESENCE = ev('{"id":"p2:0:0","action":2,"clientId":"me","channel":"c"}', own_id(11), "presence")
MESSAGES = [message(at) for at in range(11)]
LOG = [*MESSAGES[:4], KEEPALIVE, *MESSAGES[4:], PRESENCE]
BLOCKS = transcript(*LOG)
ROWS = rows_of(BLOCKS)


def feed(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"url": URL, "protocol": AblySSE(), **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(feed(script(*steps), **options))


def ably(blocks: Any, **faults: Any) -> EventServer:
    return EventServer(blocks, cursor=lambda sent: sent.params.get("lastEvent"), **faults)


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_resumes_may_be_cut_too() -> None:
    cuts = [(at, CUTS[at % 5]) for at in range(200, 900, 83)]
    result = run(feed(ably(BLOCKS, cuts=cuts)), at_most=len(ROWS))
    assert result.rows == ROWS
    assert {sent.params["channels"] for sent in result.stream.sent} == {"c"}


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    positions = range(1, len(b"".join(LOG)), 307)
    for at in positions:
        with FlakyServer(LOG, [Fault.cut(after_bytes=at, how=how)], cursor_param="lastEvent", hold_open=True) as server:
            got = []
            async with row.connect("GET", server.url, params={"channels": "c", "v": "1.2"}, protocol=AblySSE()) as stream:
                async for text in stream.iter_text():
                    got.append(text)
                    if len(got) == len(WORDS):
                        break
            assert got == WORDS


# --- tokens, losses, errors -----------------------------------------------------------------------------------------


def test_a_token_that_ran_out_is_no_end() -> None:
    result = run(feed(script(Reply([*MESSAGES[:3], failure(40142)]), Reply(MESSAGES[3:]))), at_most=11)
    assert [json.loads(data)["data"] for data in result.data] == WORDS
    assert result.stream.sent[1].params["lastEvent"] == own_id(2)


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_a_new_token_is_asked_for(row: Row) -> None:
    tokens = iter(["old", "new"])

    def guard(request: RecordedRequest) -> WebReply | None:
        if request.headers["authorization"] == "old":
            return WebReply(body=MESSAGES[0] + failure(40142))
        assert request.query["lastEvent"] == own_id(0)
        return None

    with FlakyServer(LOG, cursor_param="lastEvent", on_request=guard) as server:
        headers = lambda: {"authorization": next(tokens)}  # noqa: E731
        async with row.connect("GET", server.url, headers=headers, protocol=AblySSE()) as stream:
            assert [await anext_of(stream) for _ in range(3)] == WORDS[:3]


async def anext_of(stream: Any) -> Any:
    return (await stream.__anext__()).json()["data"]


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *[(code, 401) for code in (40140, 40142, 40149)],
        *[(code, 500) for code in (50000, 50003)],
        # What npm `ably` connects again after.
        *[(code, 400) for code in (80000, 80002, 80003, 80017)],
        (80022, 410),
        (10000, 503),
    ],
)
def test_such_errors_are_no_progress(code: int, status: int) -> None:
    answers = [Reply([*MESSAGES[:2], "rst"]), *[Reply([failure(code, status=status)])] * 9]
    result = play(*answers, delay=policy(4))
    assert (type(result.error), len(result.data), len(result.stream.sent)) == (RetriesExhausted, 2, 6)


@pytest.mark.parametrize("code", [40000, 40017, 40101, 40139, 40150, 40160, 42910])
def test_other_errors_are_raised(code: int) -> None:
    result = play(Reply([*MESSAGES[:2], failure(code, "no capability", 400)]))
    assert isinstance(result.error, UpstreamError)
    assert (result.error.type, len(result.data)) == (str(code), 2)
    assert "no capability" in str(result.error)


def test_an_error_that_is_no_json_is_raised() -> None:
    assert isinstance(play(Reply([ev("boom", None, "error")])).error, UpstreamError)


def test_a_connection_that_is_no_longer_kept_is_a_hole() -> None:
    gone = Reply([failure(80008, "Unable to recover connection"), *MESSAGES[6:]])
    first = Reply([*MESSAGES[:3], "rst"])
    result = play(first, gone, gone)
    assert (type(result.error), len(result.data)) == (GapError, 3)
    delivered = run(feed(script(first, gone, gone), on_gap="deliver"), at_most=8)
    assert (len(delivered.data), delivered.events[3].gap.after) == (8, own_id(2))


def test_a_hole_that_was_granted_is_not_asked_for_again() -> None:
    """The connection may close behind the error: then the feed goes on with what is new, and that carries the gap."""
    gone = Reply([failure(80008, "Unable to recover connection")])
    answers = [Reply([*MESSAGES[:3], "rst"]), gone, gone, Reply([KEEPALIVE, "rst"]), Reply(MESSAGES[6:8])]
    stream = feed(script(*answers), on_gap="deliver")
    result = run(stream, at_most=5)
    assert (len(result.data), result.events[3].gap.after, result.events[4].gap) == (5, own_id(2), None)
    assert [sent.params.get("lastEvent") for sent in stream.sent] == [None, own_id(2), own_id(2), None, None]


def test_a_place_in_front_of_a_granted_hole_still_tells_of_it() -> None:
    gone = Reply([failure(80008, "Unable to recover connection")])
    stream = feed(
        script(Reply([*MESSAGES[:3], "rst"]), gone, gone, *[Reply([KEEPALIVE, "rst"])] * 9), on_gap="deliver", delay=policy(2)
    )
    assert isinstance(run(stream).error, RetriesExhausted)
    place = Checkpoint.from_token(stream.leave().token())
    assert place.cursor == own_id(2)
    again = run(feed(script(gone, gone), checkpoint=place))
    assert isinstance(again.error, GapError)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, b'{"error":{"code":80018,"message":"Invalid connectionKey"}}', CursorExpired),
        (400, b'{"error":{"code":40000,"message":"Bad request"}}', ResponseRejected),
        (401, b'{"error":{"code":40101}}', ResponseRejected),
        (403, b"", ResponseRejected),
        (404, b"", CursorExpired),
        (410, b"", CursorExpired),
        (410, b'{"error":{"code":80022,"message":"Unable to find connection"}}', RetriesExhausted),
        (400, b'{"error":{"code":80003}}', RetriesExhausted),
        (429, b"[]", RetriesExhausted),
        (500, b'{"error":{"code":50000}}', RetriesExhausted),
        (503, b"", RetriesExhausted),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, body: bytes, error: type) -> None:
    answers = [Reply([*MESSAGES[:2], "rst"]), *[Reply([body], status=status, type="application/json")] * 9]
    result = play(*answers, delay=policy(3))
    assert (type(result.error), len(result.data)) == (error, 2)


def test_a_first_request_that_fails_is_the_callers() -> None:
    assert isinstance(play(Reply([b'{"error":{"code":40101}}'], status=401)).error, ResponseRejected)


# --- the feed -------------------------------------------------------------------------------------------------------


def test_a_quiet_feed_may_be_closed_for_as_long_as_it_likes() -> None:
    quiet = Reply([KEEPALIVE, Wait(30.0), KEEPALIVE])
    result = run(feed(script(Reply(MESSAGES[:2]), *[quiet] * 20, Reply(MESSAGES[2:4])), delay=policy(3)), at_most=4)
    assert len(result.data) == 4


def test_a_heartbeat_is_no_event_of_a_channel() -> None:
    """`heartbeats=true`; a connection that brings nothing else is a failed attempt, as with comments."""
    heartbeat = ev("", None, "heartbeat") + ev("{}", None, "heartbeat")
    result = play(Reply([MESSAGES[0], heartbeat, MESSAGES[1], "rst"]), *[Reply([heartbeat, "rst"])] * 9, delay=policy(3))
    assert (result.data, type(result.error)) == ([row[1] for row in rows_of(transcript(*MESSAGES[:2]))], RetriesExhausted)


def test_a_repeat_is_dropped() -> None:
    result = run(feed(script(Reply([*MESSAGES[:5], "rst"]), Reply(MESSAGES[2:]))), at_most=11)
    assert ([json.loads(data)["data"] for data in result.data], result.stream.machine.stats.duplicates) == (WORDS, 3)


@pytest.mark.parametrize(
    ("event", "data", "text"),
    [
        ("message", {"id": "p:0:0", "data": "Hi"}, "Hi"),
        ("message", {"id": "p:0:0", "data": '"Hi"', "encoding": "json"}, "Hi"),
        ("message", {"id": "p:0:0", "data": '{"t":"Hi"}', "encoding": "json"}, None),
        ("message", {"id": "p:0:0", "data": "SGk=", "encoding": "base64"}, None),
        ("message", {"id": "p:0:0", "data": {"t": 1}}, None),
        ("message", {"id": "p:0:0"}, None),
        ("message", "enveloped=false", "enveloped=false"),
        ("presence", {"id": "p:0:0", "data": "Hi"}, None),
    ],
)
def test_the_text_of_a_message(event: str, data: Any, text: str | None) -> None:
    made = StreamEvent(event=event, data=data if isinstance(data, str) else json.dumps(data))
    assert list(AblySSE().deltas(made)) == ([Delta("text", text)] if text else [])


def acted(at: int, action: int, data: Any, serial: str = "m1", **fields: Any) -> StreamEvent:
    body = {"id": f"p:{at}:0", "action": action, "serial": serial, "channel": "c", "data": data, **fields}
    event = StreamEvent(event="message", data=json.dumps(body))
    event.offset = at
    return event


def read(*events: StreamEvent, resets: bool = True, limit: int = 1000, mode: Any = "text") -> list[Any]:
    reader = TextReader(lambda: AblySSE(), mode=mode, resets=resets, limit=limit, strict=False)
    return [piece for event in events for piece in reader.read(event)]


CREATE, UPDATE, DELETE, META, SUMMARY, APPEND = range(6)
HELLO = [acted(0, CREATE, "Hel"), acted(1, APPEND, "lo")]


def test_appends_follow_the_text_of_their_message() -> None:
    """Actions of ably.com/docs, messages/updates-deletes."""
    assert read(*HELLO, acted(2, META, "x"), acted(3, SUMMARY, "y"), resets=False) == ["Hel", "lo"]


def test_an_update_that_goes_on_where_the_text_stopped_is_an_append() -> None:
    """Ably may send an append as an update with all of the text."""
    assert read(*HELLO, acted(2, UPDATE, "Hello wor"), acted(3, APPEND, "ld"), resets=False) == ["Hel", "lo", " wor", "ld"]
    assert read(*HELLO, acted(2, UPDATE, "Hello"), acted(3, APPEND, "!"), resets=False) == ["Hel", "lo", "!"]


def test_the_first_of_a_message_may_be_an_update() -> None:
    assert read(acted(0, UPDATE, "Hello wor"), acted(1, APPEND, "ld"), resets=False) == ["Hello wor", "ld"]


def test_an_update_voids_the_text_of_its_message() -> None:
    before = acted(0, CREATE, "A: ", "m0")
    hello = [acted(1, CREATE, "Hel"), acted(2, APPEND, "lo")]
    new = [before, *hello, acted(3, UPDATE, "Bye"), acted(4, APPEND, "!")]
    assert read(*new) == ["A: ", "Hel", "lo", TextReset(1), "Bye", "!"]
    assert read(*new, mode="deltas")[3:] == [TextReset(1), Delta("text", "Bye"), Delta("text", "!")]
    with pytest.raises(StreamReset) as caught:
        read(*new, resets=False)
    assert caught.value.offset == 1


def test_what_others_said_since_is_told_again_behind_an_update() -> None:
    """A reset voids all behind it, an update one message: the text has to be exact all the same."""
    other = acted(2, CREATE, "[other]", "m2")
    more = acted(4, APPEND, "!", "m1")
    assert read(*HELLO, other, acted(3, UPDATE, "Hello, you"), more) == [
        *("Hel", "lo", "[other]"), TextReset(0), "Hello, you", "[other]", "!",
    ]  # fmt: skip
    again = read(*HELLO, other, acted(3, UPDATE, "1"), acted(4, UPDATE, "2"), acted(5, UPDATE, "3", "m2"))
    assert again[3:] == [TextReset(0), "1", "[other]", TextReset(3), "2", "[other]", TextReset(4), "2", "3"]


def test_who_does_what_a_reset_says_holds_the_text() -> None:
    """What is told again is text of the event in hand, so that a later reset counts it."""
    for seed in range(400):
        rnd = random.Random(seed)
        reader = TextReader(lambda: AblySSE(), mode="text", resets=True, limit=1 << 20, strict=True)
        held: list[tuple[int, str]] = []
        said: dict[str, str] = {}
        for at in range(12):
            serial, action, data = (
                rnd.choice("xyz"),
                rnd.choice((UPDATE, DELETE, APPEND, APPEND)),
                rnd.choice(("a", "bb", "aab", "")),
            )
            said[serial] = {UPDATE: data, DELETE: ""}.get(action, said.get(serial, "") + data)
            for piece in reader.read(acted(at, action, data, serial)):
                if isinstance(piece, TextReset):
                    held = [told for told in held if told[0] < piece.offset]
                else:
                    held.append((at, piece))
        text = "".join(piece for _, piece in held)
        assert text == reader.so_far(), seed
        assert sorted(text) == sorted("".join(said.values())), seed


def test_a_message_of_the_same_serial_in_another_channel_is_another() -> None:
    assert read(acted(0, CREATE, "a"), acted(1, UPDATE, "b", channel="d"), resets=False) == ["a", "b"]


@pytest.mark.parametrize("gone", [acted(2, DELETE, "Hello"), acted(2, DELETE, None), acted(2, UPDATE, "AA==", encoding="base64")])
def test_a_deleted_message_has_no_text(gone: StreamEvent) -> None:
    assert read(*HELLO, gone) == ["Hel", "lo", TextReset(0)]
    assert read(gone, resets=False) == []


def test_an_update_of_more_text_than_may_be_held_is_told() -> None:
    with pytest.raises(EventTooLarge):
        read(*HELLO, acted(2, CREATE, "x" * 20, "m2"), acted(3, UPDATE, "Bye"), limit=20)
    with pytest.raises(EventTooLarge):
        read(*HELLO, acted(2, CREATE, "x" * 20, "m2"), acted(3, UPDATE, "Bye", "m2"), limit=20)


def test_a_message_that_was_never_seen_may_be_updated_in_any_text() -> None:
    long = [acted(0, CREATE, "0123456789"), acted(1, APPEND, "more")]
    assert read(*long, acted(2, UPDATE, "new", "m2"), resets=False, limit=10) == ["0123456789", "more", "new"]


def test_messages_of_which_too_many_were_forgotten_may_be_any() -> None:
    """What is kept to tell them apart is held to the limit too."""
    many = [acted(at, CREATE, "0123456789", f"m{at}") for at in range(9)]
    with pytest.raises(EventTooLarge):
        read(*many, acted(9, UPDATE, "new", "other"), limit=10)


def test_a_reset_before_what_was_forgotten_lets_all_be_remembered_again() -> None:
    reader = TextReader(lambda: AblySSE(), mode="text", resets=True, limit=10, strict=False)
    for event in (acted(0, CREATE, "01234567"), acted(1, APPEND, "89ab"), acted(2, APPEND, "cd")):
        reader.read(event)
    assert reader.so_far() == "01234567"
    later, again = acted(2, CREATE, "x", "m3"), acted(1, CREATE, "y", "m4")
    later.reset = again.reset = True
    reader.read(later)
    assert reader.so_far() == "01234567"
    reader.read(again)
    assert reader.so_far() == "01234567y"


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_an_update_over_sockets(row: Row) -> None:
    log = [ev(event.data, own_id(at), "message") for at, event in enumerate([*HELLO, acted(2, UPDATE, "Bye")])]
    with FlakyServer(log, [Fault.cut(after_events=2)], cursor_param="lastEvent", hold_open=True) as server:
        async with row.connect("GET", server.url, params={"channels": "c", "v": "1.2"}, protocol=AblySSE()) as stream:
            got = []
            async for piece in stream.iter_text(resets=True):
                got.append(piece)
                if piece == "Bye":
                    break
    assert got == ["Hel", "lo", TextReset(0), "Bye"]


def test_a_subscription_has_nothing_to_stop() -> None:
    with FlakyServer(LOG, cursor_param="lastEvent", hold_open=True) as server:
        stream = rs.connect("GET", f"{server.url}?channels=c&v=1.2", protocol=AblySSE())
        with stream, pytest.raises(rs.ResumableStreamError, match="no call that stops the generation"):
            stream.cancel()


def test_another_process_goes_on() -> None:
    for count in range(1, len(ROWS)):
        stream = feed(ably(BLOCKS))
        first = run(stream, at_most=count)
        place = Checkpoint.from_token(stream.leave().token())
        second = run(feed(ably(BLOCKS), checkpoint=place), at_most=len(ROWS) - count)
        assert first.rows + second.rows == ROWS


@pytest.mark.parametrize(
    ("method", "url", "kind", "found"),
    [
        ("GET", URL, "text/event-stream", True),
        ("GET", "https://realtime.ably.io/event-stream?channels=a&v=1.2", "text/event-stream", True),
        ("GET", "https://realtime.ably.io/event-stream?channels=a&v=1.2", "application/json", False),
        ("GET", "https://ably.net.example.com/sse?channels=a&v=1.2", "text/event-stream", False),
        ("GET", "https://example.com/sse?channels=a&v=1.2", "text/event-stream", False),
        ("POST", URL, "text/event-stream", False),
        ("GET", "https://rest.ably.io/channels/a/messages", "text/event-stream", False),
    ],
)
def test_it_is_known_by_its_host_and_path(method: str, url: str, kind: str, found: bool) -> None:
    state = StreamState(method, url)
    assert AblySSE().matches(state, Head(200, {"content-type": kind}, url)) is found
    assert AblySSE().cancel_request(state) is None
