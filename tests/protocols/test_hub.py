"""`HubStream`: the client side of the wire of `resumable_stream.server`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, Position, StreamState
from resumable_stream._errors import (
    CursorExpired,
    GapError,
    NotResumable,
    OriginMismatch,
    ReplayDiverged,
    ResponseRejected,
    RetriesExhausted,
    StreamInterrupted,
    StreamReset,
)
from resumable_stream._events import Delta, Outcome, StreamEvent, TextReset
from resumable_stream._text import TextReader
from resumable_stream.protocols import HubStream, LastEventID, detect
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import CUTS, DROPPED, NO_ANSWER, Reply, Sent, Stream, Wait, cut_body, ev, policy, run, script

API = "https://chat.example.com"
START = f"{API}/chat"
PLACE = "/streams/msg_42"
EPOCH = "k7q2"
BODY = {"message_id": "msg_42", "prompt": "Weather?"}
HEAD = {"stream-id": "msg_42", "content-location": PLACE}
RETRY = b"retry: 731\n\n"
BEAT = b":\n\n"


def text(word: str) -> str:
    return json.dumps({"text": word}, ensure_ascii=False, separators=(",", ":"))


def log_of(*events: tuple[str | None, str], epoch: str = EPOCH, first: int = 1) -> list[bytes]:
    """Events as the view with ids shows them."""
    return [ev(data, f"{epoch}.{n}", name) for n, (name, data) in enumerate(events, first)]


WORDS = ["Sieben ", "Grad ", "Grad ", "in ", "Köln ☔"]
TEXT = "".join(WORDS)
END = ("end", '{"outcome":"completed"}')
EVENTS: list[tuple[str | None, str]] = [("step", '{"tool":"weather"}'), *((None, text(word)) for word in WORDS), END]
LOG = log_of(*EVENTS)
DATA = [data for _, data in EVENTS]
# What the answer to the POST looks like on the wire.
BLOCKS = [RETRY, *LOG[:3], BEAT, *LOG[3:]]


SNAPSHOT = text(TEXT[:12])
JOINED = [RETRY, ev(SNAPSHOT, "k7q2.3", "snapshot"), BEAT, *LOG[3:]]
FEED_PLACE = "/sessions/s1/feed"
FEED_EVENTS: list[tuple[str | None, str]] = [
    ("started", '{"id":"msg_42","by":"ann"}'),
    ("message", '{"mid":"m1","role":"user","data":"Weather?"}'),
    # Its name is that of the last event of a stream, and this one goes on.
    ("ended", '{"id":"msg_42","outcome":"completed"}'),
    ("message", '{"mid":"m2","role":"user","data":"é"}'),
]
FEED = log_of(*FEED_EVENTS)
FEED_DATA = [data for _, data in FEED_EVENTS]


class Hub:
    """
    The routes of one stream.

    Args:
        log: Its events; the last one ends it.
        cuts: For each answer in turn `(bytes, kind)` or `None`.
        chunk: Bytes in a chunk.
        place: Path of the stream.
    """

    def __init__(self, log: Sequence[bytes] = LOG, *, cuts: Any = (), chunk: Any = None, place: str = PLACE) -> None:
        self.log, self.cuts, self.chunk, self.place, self.answers = list(log), list(cuts), chunk, place, 0

    def __call__(self, sent: Sent) -> Reply:
        assert not sent.side
        if sent.method == "POST":
            assert (sent.path, sent.json, sent.cursor) == ("/chat", BODY, None)
        else:
            assert (sent.method, sent.path, sent.json) == ("GET", self.place, None)
        snapshot = sent.params.get("view") == "snapshot"
        after = 3 if snapshot else 0
        if sent.cursor is not None:
            assert not snapshot
            epoch, _, n = sent.cursor.partition(".")
            assert epoch == EPOCH
            after = int(n)
        if after == len(self.log) and self.place == PLACE:
            return Reply(status=204, headers={**HEAD, "stream-closed": "true", "stream-outcome": "completed"}, type="")
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        blocks = [*self.log[after:3], BEAT, *self.log[max(3, after) :]] if self.place == PLACE else self.log[after:]
        body = b"".join(JOINED if snapshot else [RETRY, *blocks])
        return Reply(cut_body(body, cut, self.chunk, 21), headers={**HEAD, "content-location": self.place})


def post(server: Any, **options: Any) -> Stream:
    return Stream(server, **{"method": "POST", "url": START, "json": BODY, "detecting": True, **options})


def get(server: Any, path: str = PLACE, **options: Any) -> Stream:
    return Stream(server, **{"url": API + path, "detecting": True, **options})


def play(*steps: Any, **options: Any) -> Any:
    return run(post(script(*steps), **options))


def half(count: int = 3, end: str = "rst", **more: Any) -> Reply:
    return Reply([b"".join(LOG[:count]), end], headers={**HEAD, **more})


# --- cuts -----------------------------------------------------------------------------------------------------------


def test_a_post_is_sent_once_and_resumes_where_its_answer_says() -> None:
    result = run(post(Hub(cuts=[(len(b"".join(BLOCKS[:4])), "rst")])))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert isinstance(result.stream.machine.protocol, HubStream)
    assert [(sent.method, sent.path, sent.cursor) for sent in result.stream.sent] == [
        ("POST", "/chat", None),
        ("GET", PLACE, "k7q2.3"),
    ]
    assert [event.sequence for event in result.events] == list(range(1, 8))
    assert result.events[-1].cursor == "k7q2.7"
    assert result.stream.machine.stats.duplicates == 0
    assert result.stream.state.stream_id == "msg_42"


def test_resumes_may_be_cut_too() -> None:
    whole = len(b"".join(BLOCKS))
    result = run(post(Hub(cuts=[(at, CUTS[at % 5]) for at in range(3, whole, 17)]), connections=500))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    positions = range(0, sum(map(len, LOG)), 37)
    schedule = [Fault.cut(after_bytes=at, how=how) for at in positions]
    auth = {"authorization": "Bearer s3cret"}
    with FlakyServer(LOG, schedule, headers={"stream-id": "msg_42"}, content_location=PLACE, path="/chat") as server:
        for _ in positions:
            async with row.connect("POST", server.url, json=BODY, headers=auth) as stream:
                assert await stream.read_text() == TEXT
            assert (stream.outcome, stream.stats.duplicates) == (Outcome.COMPLETED, 0)
        posts = [request for request in server.requests if request.method == "POST"]
        rests = [request for request in server.requests if request.method == "GET"]
        assert (len(posts), {request.path for request in rests}) == (len(positions), {PLACE})
        assert {request.headers["authorization"] for request in rests} == {"Bearer s3cret"}


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
def test_the_last_event_says_how_it_ended(outcome: Outcome) -> None:
    log = log_of((None, text("a")), ("end", json.dumps({"outcome": outcome.value})))
    result = play(Reply([*log, "silence"], headers=HEAD))
    assert (result.outcome, len(result.events)) == (outcome, 2)
    assert result.stream.machine.verified


FAILED = '{"outcome":"failed","error":{"reason":"producer_lost","message":"its process died"}}'


def why(result: Any) -> str:
    machine = result.stream.machine
    return str(machine.protocol.why_ended(machine.state))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (FAILED, "producer_lost: its process died"),
        ('{"outcome":"cancelled","reason":"cancelled_by_user"}', "cancelled_by_user"),
        ('{"outcome":"failed","error":{"reason":"x","message":5}}', "x"),
        ('{"outcome":"failed","error":"x"}', ""),
        ('{"outcome":"completed"}', ""),
        (json.dumps({"outcome": "failed", "reason": "x" * 10_000}), "x" * 200),
    ],
)
def test_the_last_event_says_why(data: str, told: str) -> None:
    result = play(Reply(log_of((None, text("a")), ("end", data)), headers=HEAD))
    assert (why(result), len(result.events)) == (told, 2)
    complete = result.stream.leave()
    assert complete.complete and complete.extra.get("reason", "") == told


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2"], indirect=True)
async def test_a_failure_is_raised_with_its_reason_when_it_is_asked_for(row: Row) -> None:
    log = log_of((None, text("a")), ("end", FAILED))
    with FlakyServer(log, headers={"stream-id": "msg_42"}, content_location=PLACE) as server:
        async with row.connect("POST", server.url, json=BODY) as stream:
            assert [event.event async for event in stream] == ["message", "end"]
        with pytest.raises(StreamInterrupted, match="ended as failed: producer_lost: its process died") as caught:
            stream.raise_for_outcome()
        assert caught.value.reason == "failed"


def test_an_outcome_of_a_later_version_is_an_end() -> None:
    assert play(Reply([*log_of(("end", '{"outcome":"handed_over"}'))], headers=HEAD)).outcome is Outcome.ENDED


@pytest.mark.parametrize("data", ["{}", "bye", "[]", '{"outcome":5}', '{"outcome":null}'])
def test_an_event_end_of_the_application_is_not_the_end(data: str) -> None:
    log = log_of((None, text("a")), ("end", data), (None, text("b")), END)
    result = play(Reply([*log], headers=HEAD))
    assert (len(result.events), result.outcome) == (4, Outcome.COMPLETED)


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({"stream-closed": "true", "stream-outcome": "completed"}, Outcome.COMPLETED),
        ({"stream-closed": "true", "stream-outcome": "failed; reason=producer_lost"}, Outcome.FAILED),
        ({"stream-outcome": 'cancelled; reason="by the user"'}, Outcome.CANCELLED),
        ({"stream-closed": "true", "stream-outcome": "handed_over"}, Outcome.ENDED),
        ({"stream-closed": "true"}, Outcome.ENDED),
        # A proxy took the headers away: 204 answers a cursor behind the end, so nothing is missing.
        ({}, Outcome.ENDED),
    ],
)
def test_204_is_the_end(headers: dict[str, str], outcome: Outcome) -> None:
    result = play(half(), Reply(status=204, headers=headers, type=""))
    assert (result.data, result.outcome, result.error) == (DATA[:3], outcome, None)
    assert result.stream.machine.verified


def test_a_stream_that_ended_long_ago_says_how() -> None:
    done = Reply(status=204, headers={"stream-closed": "true", "stream-outcome": "failed; reason=too_long"}, type="")
    assert run(get(script(done), f"{PLACE}?after=k7q2.7")).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("told", "reason"), [("failed; reason=producer_lost", "producer_lost"), ('failed; reason="a, b"', "a, b"), ("failed", "")]
)
def test_204_says_why(told: str, reason: str) -> None:
    assert why(play(half(), Reply(status=204, headers={"stream-outcome": told}, type=""))) == reason


def test_a_session_without_a_stream_has_nothing_to_read() -> None:
    result = run(get(script(Reply(status=204, type="")), "/sessions/s1/stream"))
    assert (result.events, result.outcome) == ([], Outcome.ENDED)


# --- servers that come and go ---------------------------------------------------------------------------------------


def test_a_goodbye_is_not_the_end() -> None:
    """A server that shuts down: `retry:`, and a clean close between two events."""
    result = play(half(3, "close"), Reply([b"retry: 7000\n\n"]), Reply([*LOG[3:]]))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert result.stream.sleeps[-1] >= 7.0


def test_a_goodbye_in_place_of_the_first_answer_is_followed_by_the_stream() -> None:
    result = play(Reply([b"retry: 7000\n\n"], headers=HEAD), Reply(LOG))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert [(sent.method, sent.path, sent.cursor) for sent in result.stream.sent[1:]] == [("GET", PLACE, None)]


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_that_is_busy_is_asked_again_when_it_says(status: int) -> None:
    result = play(half(), Reply(status=status, headers={"retry-after": "9"}, type=""), Reply(LOG[3:]))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert result.stream.sleeps[-1] >= 9.0


def test_a_start_that_was_refused_for_now_is_sent_again() -> None:
    result = play(Reply(status=503, headers={"retry-after": "2"}, type=""), Reply(LOG, headers=HEAD))
    assert (result.data, [sent.method for sent in result.stream.sent]) == (DATA, ["POST", "POST"])


def test_a_server_that_says_goodbye_for_ever_is_given_up() -> None:
    result = play(half(), *[Reply([b"retry: 5000\n\n"])] * 9, delay=policy(4))
    assert (type(result.error), result.data) == (RetriesExhausted, DATA[:3])


# --- answers that retrying will not mend ----------------------------------------------------------------------------


def gone(why: str) -> Reply:
    body = {"error": "history_gone", "why": why, "oldest": "k7q2.5", "tail": "k7q2.9"}
    return Reply([json.dumps(body).encode()], status=410, type="application/json")


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("trimmed", "begins at k7q2.5"),
        ("other_epoch", "replaced by a new one"),
        ("went_back", "no further than k7q2.9"),
        ("eaten", "eaten"),
    ],
)
def test_a_log_that_is_gone_says_why(why: str, told: str) -> None:
    result = play(half(), gone(why))
    assert isinstance(result.error, CursorExpired)
    assert told in str(result.error) and f"({why})" in str(result.error) and "'k7q2.3'" in str(result.error)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == "k7q2.3"


@pytest.mark.parametrize(("more", "way"), [({}, "on_lost='snapshot'"), ({"snapshot": 1}, "{'view': 'snapshot'}")])
def test_a_log_that_is_gone_says_what_can_be_had(more: dict[str, int], way: str) -> None:
    body = {"error": "history_gone", "why": "trimmed", "oldest": "k7q2.5", "tail": "k7q2.9", **more}
    result = play(half(), Reply([json.dumps(body).encode()], status=410, type="application/json"))
    assert way in str(result.error)


@pytest.mark.parametrize("body", [b"", b"gone", b"[]", b'{"error":5}', b'{"error":"history_gone","why":[]}'])
def test_a_410_of_any_form_is_a_loss(body: bytes) -> None:
    assert isinstance(play(half(), Reply([body], status=410, type="text/plain")).error, CursorExpired)


def test_a_first_request_from_a_place_that_is_gone_is_a_loss_too() -> None:
    result = run(get(script(gone("trimmed")), f"{PLACE}?after=k7q2.1", protocol=HubStream()))
    assert isinstance(result.error, CursorExpired)
    assert "the beginning" in str(result.error)


@pytest.mark.parametrize(("first", "error"), [(True, ResponseRejected), (False, CursorExpired)])
def test_404_says_both_that_it_is_not_there_and_that_it_may_not_be_yours(first: bool, error: type) -> None:
    missing = Reply([b'{"error":"not_found"}'], status=404, type="application/json")
    result = run(get(script(missing), protocol=HubStream())) if first else play(half(), missing)
    assert type(result.error) is error
    assert "has no stream" in str(result.error) and "not yours" in str(result.error)


@pytest.mark.parametrize(
    ("body", "headers", "told"),
    [
        ({"error": "key_reused"}, {}, "used for another request"),
        ({"error": "stream_busy", "active": "msg_41"}, {}, "another stream of it is running (msg_41)"),
        ({}, {"content-location": "/streams/msg_41"}, "another stream of it is running (/streams/msg_41)"),
        ({}, {}, "used for another request"),
    ],
)
def test_409_says_what_is_in_the_way(body: dict[str, str], headers: dict[str, str], told: str) -> None:
    taken = Reply([json.dumps(body).encode()], status=409, headers=headers, type="application/json")
    result = play(taken, protocol=HubStream())
    assert isinstance(result.error, ResponseRejected)
    assert told in str(result.error)
    assert len(result.stream.sent) == 1


@pytest.mark.parametrize(("status", "error"), [(400, ResponseRejected), (403, ResponseRejected), (405, NotResumable)])
def test_what_another_status_to_the_resume_means(status: int, error: type) -> None:
    steps = [Reply(status=status, type="")] * 3
    result = play(half(), *steps)
    assert isinstance(result.error, error)


# --- an answer that got lost ----------------------------------------------------------------------------------------


def counted() -> Any:
    numbers = iter(range(1, 100))
    return lambda: f"key{next(numbers)}"


def named(*steps: Any, **options: Any) -> Any:
    """The caller names the protocol, as `connect()` then hands it to the core."""
    return play(*steps, **{"protocol": HubStream(), "new_key": counted(), **options})


def keys(result: Any) -> list[tuple[str, str | None]]:
    return [(sent.method, sent.headers.get("idempotency-key")) for sent in result.stream.sent]


@pytest.mark.parametrize("lost", [DROPPED, NO_ANSWER, Reply(status=502, type="")])
def test_a_start_whose_answer_got_lost_is_sent_again_with_the_same_key(lost: Any) -> None:
    result = named(lost, lost, half(), Reply(LOG[3:]))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert keys(result) == [("POST", "key1"), ("POST", "key1"), ("POST", "key1"), ("GET", None)]


def test_without_the_name_of_the_protocol_it_is_not_sent_again() -> None:
    """Detection comes after the first answer, so that request carried no key."""
    result = play(DROPPED, new_key=counted())
    assert (type(result.error), keys(result)) == (StreamInterrupted, [("POST", None)])
    result = play(Reply(LOG, headers=HEAD), new_key=counted())
    assert (keys(result), result.stream.leave().extra.get("idempotency_key")) == ([("POST", None)], None)


def test_the_key_of_the_caller_is_the_only_one() -> None:
    assert keys(named(DROPPED, Reply(LOG, headers=HEAD), idempotent=True)) == [("POST", None)] * 2


def test_a_get_needs_no_key() -> None:
    result = run(get(script(DROPPED, half(), Reply(LOG[3:])), protocol=HubStream(), new_key=counted()))
    assert keys(result) == [("GET", None)] * 3


def test_a_restart_has_a_key_of_its_own() -> None:
    """With the old one it would join what is lost."""
    result = named(half(), gone("other_epoch"), DROPPED, Reply(LOG, headers=HEAD), on_lost="restart")
    assert keys(result) == [("POST", "key1"), ("GET", None), ("POST", "key2"), ("POST", "key2")]


def test_a_key_that_is_taken_is_an_error_at_once() -> None:
    result = named(Reply([b'{"error":"key_reused"}'], status=409, type="application/json"))
    assert (type(result.error), len(result.stream.sent)) == (ResponseRejected, 1)


def test_another_process_asks_with_the_same_key() -> None:
    stream = post(script(DROPPED), protocol=HubStream(), new_key=counted(), delay=policy(0))
    place = run(stream).error.checkpoint
    assert place is not None and place.extra["idempotency_key"] == "key1"
    options: dict[str, Any] = {"protocol": HubStream(), "new_key": lambda: "another", "checkpoint": place}
    again = run(post(script(Reply(LOG, headers=HEAD)), **options))
    assert (keys(again), again.data) == ([("POST", "key1")], DATA)
    # Whoever holds only the token may not start anything.
    assert run(post(script(), started_elsewhere=True, **options)).stream.sent == []


@pytest.mark.parametrize("own", [None, "mine", "callable"])
@pytest.mark.parametrize("row", ["sync-httpx", "sync-httpx2", "asyncio-httpx", "trio-httpx2"], indirect=True)
async def test_a_lost_answer_over_sockets(row: Row, own: str | None) -> None:
    given: Any = {"idempotency-key": "mine"}
    headers = {None: None, "mine": given, "callable": lambda: given}[own]
    schedule = [Fault.no_answer(), Fault.no_answer(how="rst"), Fault.cut(after_events=2)]
    with FlakyServer(LOG, schedule, headers={"stream-id": "msg_42"}, content_location=PLACE) as server:
        async with row.connect("POST", server.url, json=BODY, headers=headers, protocol=HubStream()) as stream:
            assert await stream.read_text() == TEXT
        sent = [(request.method, request.headers.get("idempotency-key")) for request in server.requests]
    key = sent[0][1]
    assert sent == [("POST", key)] * 3 + [("GET", None)]
    assert key == "mine" if own else key is not None and len(key) == 32


@pytest.mark.parametrize("row", ["sync-httpx"], indirect=True)
async def test_every_stream_has_a_key_of_its_own(row: Row) -> None:
    protocol = HubStream()
    with FlakyServer(LOG, headers={"stream-id": "msg_42"}, content_location=PLACE) as server:
        for _ in range(2):
            async with row.connect("POST", server.url, json=BODY, protocol=protocol) as stream:
                assert await stream.read_text() == TEXT
        assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


# --- numbers and epochs ---------------------------------------------------------------------------------------------


def test_a_hole_is_asked_for_again() -> None:
    result = play(Reply([*LOG[:2], *LOG[4:]], headers=HEAD), Reply(LOG[2:]))
    assert (result.data, result.outcome, result.stream.machine.stats.gaps) == (DATA, Outcome.COMPLETED, 1)
    assert result.stream.cursors == [None, "k7q2.2"]


def test_a_hole_that_stays_is_an_error() -> None:
    result = play(Reply([*LOG[:2], *LOG[4:]], headers=HEAD), Reply(LOG[4:]))
    assert isinstance(result.error, GapError)
    assert (result.error.expected, result.error.received, result.data) == (3, 5, DATA[:2])


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_log_that_was_made_anew_is_not_the_same_stream(at: int, chunk: int | None) -> None:
    """The numbers go on as if nothing had happened."""
    other = log_of(*EVENTS, epoch="zz77")
    within = play(Reply(cut_body(b"".join([*LOG[:at], *other[at:]]), None, chunk), headers=HEAD))
    resumed = play(half(at), Reply(cut_body(b"".join(other[at:]), None, chunk), headers=HEAD))
    for result in (within, resumed):
        assert (type(result.error), result.data, result.outcome) == (ReplayDiverged, DATA[:at], None)
        assert f"zz77.{at + 1}" in str(result.error) and f"k7q2.{at}" in str(result.error)
        assert result.error.checkpoint is not None and result.error.checkpoint.cursor == f"k7q2.{at}"


def test_an_old_number_of_another_log_is_no_repeat() -> None:
    result = play(half(3), Reply(log_of(*EVENTS, epoch="zz77")))
    assert (type(result.error), result.data) == (ReplayDiverged, DATA[:3])


def test_before_the_first_event_any_log_will_do() -> None:
    result = play(Reply([BEAT, "rst"], headers=HEAD), Reply(log_of(*EVENTS, epoch="zz77")))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)


def test_a_restart_may_be_of_another_log() -> None:
    anew = Reply(log_of(*EVENTS, epoch="zz77"), headers=HEAD)
    result = play(half(3), gone("other_epoch"), anew, on_lost="restart")
    assert (result.data, result.outcome) == ([*DATA[:3], *DATA], Outcome.COMPLETED)
    assert [event.reset for event in result.events].index(True) == 3


def test_a_server_that_ignores_the_cursor_is_seen_through() -> None:
    result = play(half(3), Reply(LOG))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert result.stream.machine.stats.cursor_ignored


def test_a_block_that_delivers_nothing_may_stand_behind_an_id() -> None:
    """What a producer wrote as one event may begin with such a block. The id in front of it is that of the event."""
    odd = b"id: k7q2.2\nretry: 50\n\n" + ev(text("b"))
    log = [*log_of((None, text("a"))), odd, *log_of((None, text("c")), END, first=3)]
    whole = play(Reply(log, headers=HEAD))
    assert (len(whole.events), whole.outcome) == (4, Outcome.COMPLETED)
    assert [event.sequence for event in whole.events] == [1, 2, 3, 4]
    # Cut between the two, the event has not been delivered, so it is asked for.
    cut = play(Reply([log[0], odd[:24], "rst"], headers=HEAD), Reply([*log[1:]]))
    assert cut.stream.cursors == [None, "k7q2.1"]
    assert cut.data == whole.data


@pytest.mark.parametrize(
    ("event", "place"),
    [
        (StreamEvent(id="k7q2.12", own_id="k7q2.12"), Position("k7q2.12", 12, "k7q2.12")),
        (StreamEvent(id="k7q2.12"), Position("k7q2.12", 12, None)),
        (StreamEvent("caught-up", id="k7q2.12"), Position(None)),
        (StreamEvent(), Position(None)),
        (StreamEvent(id="abc", own_id="abc"), Position("abc", None, "abc")),
        (StreamEvent(id="k7q2.1²", own_id="k7q2.1²"), Position("k7q2.1²", None, "k7q2.1²")),
    ],
)
def test_the_place_of_an_event(event: StreamEvent, place: Position) -> None:
    protocol = HubStream()
    assert protocol.position(event) == place
    protocol.place([event])
    assert event.sequence == place.sequence
    assert event.moves is (False if event.event == "caught-up" else None)


# --- joining, following ---------------------------------------------------------------------------------------------


def test_a_late_joiner_begins_where_it_says() -> None:
    result = run(get(script(Reply([*LOG[4:6], "rst"], headers=HEAD), Reply(LOG[6:])), f"{PLACE}?after=k7q2.4"))
    assert (result.data, result.outcome, result.stream.machine.stats.gaps) == (DATA[4:], Outcome.COMPLETED, 0)
    first, second = result.stream.sent
    assert first.params == {"after": "k7q2.4"}
    # One place is enough.
    assert (second.params, second.cursor) == ({}, "k7q2.6")


def test_before_the_first_event_the_same_is_asked_for_again() -> None:
    result = run(get(script(Reply(["rst"], headers=HEAD), Reply(JOINED)), f"{PLACE}?view=snapshot"))
    assert (result.data, result.outcome) == ([SNAPSHOT, *DATA[3:]], Outcome.COMPLETED)
    assert [sent.params for sent in result.stream.sent] == [{"view": "snapshot"}] * 2


def test_the_active_stream_of_a_session_stays_the_same_one() -> None:
    """Asked again under the session's name, another stream might answer."""
    result = run(get(script(half(), Reply(LOG[3:])), "/sessions/s1/stream"))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    assert [sent.path for sent in result.stream.sent] == ["/sessions/s1/stream", PLACE]


def test_a_query_that_grants_access_stays_with_its_own_path() -> None:
    result = run(get(script(half(), Reply(LOG[3:])), f"{PLACE}?t=9.abc", params={"t": "9.abc"}))
    assert [sent.params for sent in result.stream.sent] == [{"t": "9.abc"}] * 2


def test_being_caught_up_is_told_and_is_no_event_of_the_log() -> None:
    told = ev("{}", None, "caught-up")
    result = run(get(script(Reply([*LOG[:3], told, LOG[3], "rst"], headers=HEAD), Reply([*LOG[4:], told])), f"{PLACE}?control=1"))
    assert (result.data, result.outcome) == ([*DATA[:3], "{}", *DATA[3:]], Outcome.COMPLETED)
    assert [event.cursor for event in result.events[2:5]] == ["k7q2.3", "k7q2.3", "k7q2.4"]
    assert [sent.params for sent in result.stream.sent] == [{"control": "1"}] * 2


def test_a_reader_that_was_caught_up_before_is_not_told_twice_in_one_place() -> None:
    told = ev("{}", None, "caught-up")
    result = run(get(script(Reply([*LOG[:3], told, "rst"], headers=HEAD), Reply([told, *LOG[3:]])), f"{PLACE}?control=1"))
    assert result.data == [*DATA[:3], "{}", *DATA[3:]]


def test_a_feed_may_be_quiet_and_close() -> None:
    steps = [Reply([FEED[0], "close"], headers=HEAD), *[Reply([BEAT, Wait(30.0)])] * 20, Reply(FEED[1:])]
    result = run(get(script(*steps), FEED_PLACE, delay=policy(3)), at_most=4)
    assert result.data == FEED_DATA
    assert repr(result.stream.machine.protocol) == "<HubStream: resumable, numbered>"


def test_a_feed_that_was_compacted_begins_again_with_its_state() -> None:
    state = ev('{"messages":[],"streams":[]}', "k7q2.9", "snapshot")
    steps = [Reply([JOINED[1], "rst"], headers=HEAD), gone("trimmed"), Reply([state, *log_of(FEED_EVENTS[0], first=10)])]
    stream = get(script(*steps), f"{FEED_PLACE}?view=snapshot", on_lost="restart")
    result = run(stream, at_most=3)
    assert [(event.event, event.reset, event.sequence) for event in result.events] == [
        ("snapshot", False, 3),
        ("snapshot", True, 9),
        ("started", False, 10),
    ]


def test_a_feed_of_another_path_is_named() -> None:
    feed = HubStream(end="never")
    result = run(get(script(Reply([*FEED, "rst"], headers=HEAD), Reply(status=204, type="")), "/news", protocol=feed))
    assert (result.data, result.outcome) == (FEED_DATA, Outcome.ENDED)


# --- answers that are deferred --------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(("body", "kind"), [([], ""), ([b'{"id":"msg_42"}'], "application/json"), ([b"ok"], "text/plain")])
def test_an_answer_that_is_deferred_is_read_where_it_will_be(body: list[bytes], kind: str, named: bool) -> None:
    accepted = Reply(body, status=202, headers={"location": PLACE, "stream-id": "msg_42"}, type=kind)
    result = play(accepted, half(), Reply(LOG[3:]), **({"protocol": HubStream()} if named else {}))
    assert (result.data, result.outcome) == (DATA, Outcome.COMPLETED)
    later = result.stream.sent[1:]
    assert [(sent.method, sent.path, sent.cursor) for sent in later] == [("GET", PLACE, None), ("GET", PLACE, "k7q2.3")]
    assert [sent.request.headers["Prefer"] for sent in later] == [None, None]
    # It was no failure, so nothing waits for long.
    assert sum(result.stream.sleeps) < 1.0


def test_a_stream_may_come_with_202_too() -> None:
    result = play(Reply(LOG, status=202, headers={"location": PLACE, "stream-id": "msg_42"}))
    assert (result.data, result.outcome, len(result.stream.sent)) == (DATA, Outcome.COMPLETED, 1)


# --- places and origins ---------------------------------------------------------------------------------------------


def test_a_place_on_another_origin_gets_nothing() -> None:
    result = play(half(3, **{"content-location": "https://other.example.net/streams/msg_42"}))
    assert isinstance(result.error, OriginMismatch)
    assert len(result.stream.sent) == 1


def test_an_answer_that_names_no_place_cannot_be_resumed() -> None:
    result = play(Reply([*LOG[:3], "rst"], headers={"stream-id": "msg_42"}), protocol=HubStream())
    assert isinstance(result.error, StreamInterrupted)
    assert "has no Content-Location" in str(result.error)


def test_another_process_goes_on() -> None:
    for count in range(1, len(LOG)):
        stream = post(Hub())
        first = run(stream, at_most=count)
        token = stream.leave().token()
        second = run(post(Hub(), checkpoint=Checkpoint.from_token(token), started_elsewhere=True, protocol=HubStream()))
        assert (first.data + second.data, second.outcome) == (DATA, Outcome.COMPLETED)
        assert [sent.method for sent in second.stream.sent] == ["GET"]
        assert second.stream.state.stream_id == "msg_42"


# --- stopping -------------------------------------------------------------------------------------------------------


def test_cancelling_asks_the_server_to_stop() -> None:
    stream = post(Hub())
    run(stream, at_most=2)
    request = stream.machine.requests.cancel()
    assert request is not None
    assert (request.method, request.url, request.json) == ("POST", f"{API}{PLACE}/cancel", None)


@pytest.mark.parametrize("path", [PLACE, f"{PLACE}?after=k7q2.2", f"{PLACE}/"])
def test_a_reader_may_cancel_too(path: str) -> None:
    stream = get(script(half()), path, protocol=HubStream())
    run(stream, at_most=2)
    request = stream.machine.requests.cancel()
    assert request is not None and urlsplit(request.url).path == f"{PLACE}/cancel"
    assert request.params["after"] is None


def test_a_feed_cannot_be_cancelled() -> None:
    assert HubStream(end="never").cancel_request(StreamState("GET", f"{API}{FEED_PLACE}")) is None


@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx2"], indirect=True)
async def test_cancelling_over_sockets(row: Row) -> None:
    def route(request: RecordedRequest) -> WebReply | None:
        return WebReply(status=202) if request.path == f"{PLACE}/cancel" else None

    headers = {"stream-id": "msg_42"}
    with FlakyServer(LOG[:-1], headers=headers, content_location=PLACE, hold_open=True, on_request=route) as server:
        async with row.connect("POST", server.url, json=BODY, headers={"authorization": "Bearer s3cret"}) as stream:
            async for _ in stream:
                await stream.cancel()
                break
        stop = server.requests[-1]
        assert (stop.method, stop.path, stop.body) == ("POST", f"{PLACE}/cancel", b"")
        assert stop.headers["authorization"] == "Bearer s3cret"


# --- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("message", text("a"), "a"),
        ("message", '{"mid":"m1","role":"user","data":"x"}', None),
        ("message", '{"text":5}', None),
        ("message", '{"text":""}', None),
        ("message", "[]", None),
        ("message", '{"choices":[]}', None),
        ("step", text("a"), None),
        ("snapshot", text("a"), "a"),
        ("snapshot", '{"messages":[]}', None),
        ("end", '{"outcome":"completed","text":"a"}', None),
        ("reset", text("a"), None),
        ("caught-up", text("a"), None),
    ],
)
def test_the_text_of_an_event(name: str, data: str, told: str | None) -> None:
    assert list(HubStream().deltas(StreamEvent(name, data))) == ([Delta("text", told)] if told else [])


def test_the_text_stands_where_the_caller_says() -> None:
    nested = HubStream(text="delta.content")
    assert list(nested.deltas(StreamEvent(data='{"delta":{"content":"a"}}'))) == [Delta("text", "a")]
    plain = HubStream(text=lambda event: event.data if event.event == "token" else None)
    assert list(plain.deltas(StreamEvent("token", "a"))) == [Delta("text", "a")]
    assert list(plain.deltas(StreamEvent("message", "a"))) == []
    assert list(plain.deltas(StreamEvent("snapshot", text("a")))) == [Delta("text", "a")]
    assert not plain.reads_json(StreamEvent("message", "a"))


def read(blocks: Sequence[bytes], *, resets: bool) -> list[Any]:
    result = play(Reply(blocks, headers=HEAD))
    protocol = result.stream.machine.protocol
    step_at = result.stream.machine.step_at
    reader = TextReader(lambda: protocol, mode="text", resets=resets, limit=1000, strict=False, step_at=step_at)
    return [*(piece for event in result.events for piece in reader.read(event)), reader.so_far()]


def test_a_producer_that_starts_over_takes_its_text_back() -> None:
    log = log_of((None, text("a")), ("reset", "{}"), (None, text("b")), ("reset", "{}"), (None, text("c")), END)
    assert read(log, resets=True) == ["a", TextReset(0), "b", TextReset(0), "c", "c"]
    with pytest.raises(StreamReset):
        read(log, resets=False)
    # Nothing was told, so there is nothing to take back.
    assert read(log_of(("reset", "{}"), (None, text("b")), END), resets=False) == ["b", "b"]


def test_the_text_of_a_late_joiner_is_whole() -> None:
    assert read(JOINED, resets=False)[-1] == TEXT[:12] + "".join(WORDS[2:])


def stored(outcome: str | None) -> Reply:
    body = {"text": TEXT[:7], "cursor": "zz77.4", "outcome": outcome, "events": 4}
    return Reply([json.dumps(body).encode()], type="application/json")


def test_what_the_server_has_stored_stands_in_for_a_log_that_is_gone() -> None:
    later = log_of((None, text("Grad")), END, epoch="zz77", first=5)
    result = play(half(3), gone("other_epoch"), stored(None), Reply(later), on_lost="snapshot")
    assert (result.data[3:], result.outcome) == ([text(TEXT[:7]), text("Grad"), END[1]], Outcome.COMPLETED)
    assert [event.reset for event in result.events].index(True) == 3
    assert [sent.path for sent in result.stream.sent[2:]] == [f"{PLACE}/message", PLACE]
    assert result.stream.sent[-1].cursor == "zz77.4"


@pytest.mark.parametrize("outcome", ["completed", "failed"])
def test_the_stored_text_of_a_stream_that_is_over_ends_it(outcome: str) -> None:
    result = play(half(3), gone("trimmed"), stored(outcome), on_lost="snapshot")
    assert (result.data[-1], result.outcome) == (text(TEXT[:7]), Outcome(outcome))


@pytest.mark.parametrize("body", [b"", b"{}", b'{"text":5}', b'{"text":"a","cursor":"x"}', b'{"text":"a","cursor":null}'])
def test_a_stored_text_of_another_form_is_of_no_use(body: bytes) -> None:
    result = play(half(3), gone("trimmed"), Reply([body], type="application/json"), on_lost="snapshot")
    assert isinstance(result.error, CursorExpired)


# --- options, detection ---------------------------------------------------------------------------------------------


def test_options_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="'auto' or 'never'"):
        HubStream(end="close")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dotted path"):
        HubStream(text=5)  # type: ignore[arg-type]


def test_options_are_known_in_another_process() -> None:
    made = [HubStream(), HubStream(end="never"), HubStream(text="a.b"), HubStream(text=lambda event: None)]
    assert len({protocol.options for protocol in made}) == 4
    assert HubStream().options == ""
    feed = StreamState("GET", f"{API}{FEED_PLACE}")
    assert HubStream.for_request(feed).options == HubStream(end="never").options


NOT_OURS = [
    ("POST", "/chat", 200, {"content-location": PLACE}),
    ("POST", "/chat", 200, {"stream-id": "msg_42"}),
    ("GET", "/radio", 200, {"stream-id": "msg_42"}),
    # Behind the relay: the provider's own stream.
    ("POST", "/v1/chat/completions", 200, {**HEAD, "stream-epoch": "k7q2"}),
    ("GET", f"{PLACE}?view=verbatim&after=k7q2.2", 200, HEAD),
    ("GET", "/ds/msg_42", 200, {**HEAD, "stream-next-offset": "k7q2_0000000000000001"}),
]
OURS = [
    ("POST", "/chat", 200, HEAD),
    ("POST", "/v1/chat/completions", 200, HEAD),
    ("GET", PLACE, 200, {"stream-id": "msg_42"}),
    ("GET", f"{PLACE}?view=snapshot", 200, {"stream-id": "msg_42"}),
    ("GET", "/chat/a%20b", 200, {"stream-id": "a b"}),
    ("GET", "/sessions/s1/stream", 200, HEAD),
    ("GET", FEED_PLACE, 200, {"stream-id": "s1"}),
]


@pytest.mark.parametrize(("found", "row"), [*((True, row) for row in OURS), *((False, row) for row in NOT_OURS)])
def test_it_is_known_by_its_head(found: bool, row: tuple[str, str, int, dict[str, str]]) -> None:
    method, path, status, headers = row
    state = StreamState(method, API + path, {"stream": True, "messages": []})
    head = Head(status, {"content-type": "text/event-stream", **headers}, state.url)
    assert isinstance(detect(state, head), HubStream) is found
    page = Head(status, {"content-type": "text/html", **headers}, state.url)
    assert not isinstance(detect(state, page), HubStream)


def test_a_stream_id_of_somebody_else_stays_plain_sse() -> None:
    result = run(get(script(Reply([ev("a", "1"), ev("[DONE]", "2")], headers={"stream-id": "7"})), "/radio"))
    assert isinstance(result.stream.machine.protocol, LastEventID)
    assert result.outcome is Outcome.COMPLETED
