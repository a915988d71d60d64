"""`UpstashRealtime`: a feed of channels (npm `@upstash/realtime` 1.1.0, `server/handler.js`)."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from resumable_stream._checkpoint import Checkpoint
from resumable_stream._contract import Head, Position, StreamState
from resumable_stream._errors import CursorExpired, ResponseRejected, RetriesExhausted, UpstreamError
from resumable_stream._events import Delta, StreamEvent
from resumable_stream.protocols.upstash import UpstashRealtime
from resumable_stream.testing import Fault, FlakyServer
from resumable_stream.testing import Reply as WebReply
from resumable_stream.testing.server import RecordedRequest

from ..conftest import Row
from ..core.simulation import Reply, Sent, Stream, Wait, cut_body, ev, policy, run, script

ONE = "https://app.example.com/api/realtime?channel=chat"
TWO = "https://app.example.com/api/realtime?channel=chat&channel=caf%C3%A9"
WORDS = ["Über ", "Köln: ", "sieben ", "Grad ", "Grad ", "☔", "!", " a", " b", " c", " d", " e"]
T0 = 1763600000000


def event(at: int, channel: str = "chat", delay: int = 0) -> dict[str, Any]:
    return {"data": WORDS[at % 12], "event": "ai.chunk", "channel": channel, "id": f"{T0 + 100 * at - delay}-0"}


def wire(body: dict[str, Any]) -> bytes:
    return ev(json.dumps(body, ensure_ascii=False))


@pytest.mark.parametrize("channel", [{}, [], ["chat"], None, 5, "\ud800"])
def test_a_channel_that_is_no_name_moves_no_place(channel: Any) -> None:
    odd = {**event(1), "channel": channel}
    result = run(
        Stream(
            script(Reply([wire(event(0)), ev(json.dumps(odd)), "rst"]), Reply(status=410)), url=TWO, protocol=UpstashRealtime()
        )
    )
    assert (len(result.data), type(result.error)) == (2, CursorExpired)
    assert result.stream.sent[1].params["last_ack_chat"] == event(0)["id"]


def key(body: dict[str, Any]) -> tuple[int, int]:
    first, _, second = body["id"].partition("-")
    return int(first), int(second)


EVENTS = [event(at) for at in range(12)]
# Of two channels, each in the order of its ids, the two of them not.
MIXED = [event(at, "café" if at % 3 else "chat", 0 if at % 3 else 250) for at in range(12)]
PING = wire({"type": "ping", "timestamp": T0})
RECONNECT = wire({"type": "reconnect", "timestamp": T0})


class Handler:
    """`handle()` of the package: history behind `last_ack_<channel>` for each channel, then live events; all of it, in a test."""

    def __init__(self, events: list[dict[str, Any]], *, cuts: Any = (), size: Any = None) -> None:
        self.events, self.cuts, self.size, self.answers = events, list(cuts), size, 0

    def __call__(self, sent: Sent) -> Reply:
        cut = self.cuts[self.answers] if self.answers < len(self.cuts) else None
        self.answers += 1
        # As they were planned: the simulation's own URL holds each name once.
        channels = [value for name, value in parse_qsl(urlsplit(sent.request.url).query) if name == "channel"]
        body = b""
        missing: list[dict[str, Any]] = []
        for channel in channels:
            body += wire({"type": "connected", "channel": channel})
            # A test's time begins with its first event.
            ack = sent.request.params.get(f"last_ack_{channel}") or "0-0"
            missing += [e for e in self.events if e["channel"] == channel and key(e) > key({"id": ack})]
        if self.answers == 1:
            missing.sort(key=self.events.index)
        body += b"".join(wire(each) + (PING if at % 5 == 4 else b"") for at, each in enumerate(missing))
        return Reply([*cut_body(body + RECONNECT, cut, self.size, 21)])


def feed(server: Any, url: str = ONE, **options: Any) -> Stream:
    return Stream(server, **{"url": url, "protocol": UpstashRealtime(), **options})


def bodies(result: Any) -> list[Any]:
    return [json.loads(data) for data in result.data]


# --- cuts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["rst", "fin", "clean", "clean_inside"])
@pytest.mark.parametrize("row", ["sync-httpx", "asyncio-httpx"], indirect=True)
async def test_over_sockets(row: Row, how: Any) -> None:
    def resume(request: RecordedRequest) -> WebReply | None:
        ack = dict(parse_qsl(urlsplit(request.url).query)).get("last_ack_chat")
        if ack is None:
            return None
        return WebReply(body=b"".join(wire(e) for e in EVENTS if key(e) > key({"id": ack})))

    log = [wire({"type": "connected", "channel": "chat"}), *map(wire, EVENTS), RECONNECT]
    positions = range(150, 900, 211)
    with FlakyServer(log, [Fault.cut(after_bytes=at, how=how) for at in positions], on_request=resume) as server:
        for _ in positions:
            got = []
            async with row.connect("GET", f"{server.url}?channel=chat", protocol=UpstashRealtime()) as stream:
                async for text in stream.iter_text():
                    got.append(text)
                    if len(got) == len(WORDS):
                        break
            assert got == WORDS


# --- the feed -------------------------------------------------------------------------------------------------------


def test_the_server_rotates_and_nothing_is_lost() -> None:
    result = run(feed(script(Reply([*map(wire, EVENTS[:5]), RECONNECT]), Reply(map_wire(5, 12)))), at_most=12)
    assert bodies(result) == EVENTS
    assert result.stream.sent[1].params == {"channel": "chat", "last_ack_chat": EVENTS[4]["id"]}


def map_wire(first: int, last: int) -> list[bytes]:
    return [wire(each) for each in EVENTS[first:last]]


def test_each_channel_has_a_place_of_its_own() -> None:
    cut = [Reply([wire(each), "rst"]) for each in MIXED[:2]]
    result = run(feed(script(*cut, Reply([wire(MIXED[2])])), TWO), at_most=3)
    assert (bodies(result), result.stream.machine.stats.duplicates) == (MIXED[:3], 0)
    # Before its first event a channel is read from 5 seconds before the first event of all.
    places = [{name: sent.params.get(f"last_ack_{name}") for name in ("chat", "café")} for sent in result.stream.sent]
    assert places == [
        {"chat": None, "café": None},
        {"chat": MIXED[0]["id"], "café": f"{T0 - 250 - 5000}-0"},
        {"chat": MIXED[0]["id"], "café": MIXED[1]["id"]},
    ]


def test_a_channel_begins_where_the_first_url_says() -> None:
    url = f"{TWO}&last_ack_caf%C3%A9={T0 - 9}-0&last_ack_chat=0"
    result = run(feed(script(Reply([wire(MIXED[0]), "rst"]), Reply([wire(MIXED[1])])), url), at_most=2)
    sent = result.stream.sent[1]
    assert (sent.params["last_ack_chat"], sent.params["last_ack_café"]) == (MIXED[0]["id"], f"{T0 - 9}-0")


@pytest.mark.parametrize("at", range(6))
def test_a_cut_in_the_replay_of_one_channel_loses_nothing_of_the_next(at: int) -> None:
    """The channels are replayed one after the other: the newest event of the first is no place of the second."""
    first = event(0)
    missed = [*(event(600 * n) for n in range(1, 4)), *({**event(600 * n - 300), "channel": "café"} for n in range(1, 4))]
    missed = [{**each, "data": f"{index}"} for index, each in enumerate(missed)]
    server = Handler([first, *missed])
    answers = [Reply([wire(first), "rst"]), Reply([*map(wire, missed[:at]), "rst"])]
    result = run(feed(lambda sent: answers.pop(0) if answers else server(sent), TWO), at_most=7)
    assert sorted(bodies(result), key=key) == sorted([first, *missed], key=key)
    assert result.error is None


def test_a_repeat_moves_no_place_back() -> None:
    late = [{**event(at), "channel": "café"} for at in (1, 2, 1)]
    result = run(feed(script(Reply([*map(wire, [event(0), *late, event(3)]), "rst"]), Reply([wire(event(4))])), TWO), at_most=5)
    assert result.stream.sent[1].params["last_ack_café"] == late[1]["id"]


@pytest.mark.parametrize("cursor", ["", "x", "chat", "chat=5&chat=6-0", "=1-0", f"chat={'9' * 40}-0", f"{T0}-0"])
def test_a_forged_place_of_several_channels_does_no_harm(cursor: str) -> None:
    place = Checkpoint(protocol="UpstashRealtime", method="GET", url=TWO, cursor=cursor, offset=3)
    result = run(feed(script(Reply(map_wire(0, 2))), TWO, checkpoint=place), at_most=2)
    assert bodies(result) == EVENTS[:2]


def test_the_same_id_in_two_channels_is_two_events() -> None:
    pair = [event(1, "chat"), event(1, "café")]
    assert bodies(run(feed(script(Reply([wire(each) for each in pair])), TWO), at_most=2)) == pair


def test_frames_are_no_progress_and_no_events() -> None:
    hello = [wire({"type": "connected", "channel": "chat"}), PING, wire({"type": "disconnected", "channels": ["chat"]})]
    answers = [Reply([*map_wire(0, 2), "rst"]), *[Reply([*hello, "rst"])] * 9]
    result = run(feed(script(*answers), delay=policy(4)))
    assert (type(result.error), bodies(result), len(result.stream.sent)) == (RetriesExhausted, EVENTS[:2], 6)


def test_a_quiet_feed_rotates_for_as_long_as_it_likes() -> None:
    quiet = Reply([wire({"type": "connected", "channel": "chat"}), Wait(50.0), PING, Wait(50.0), RECONNECT])
    answers = [Reply(map_wire(0, 2)), *[quiet] * 20, Reply(map_wire(2, 4))]
    result = run(feed(script(*answers), delay=policy(3)), at_most=4)
    assert bodies(result) == EVENTS[:4]


def test_before_its_first_event_the_feed_starts_anew() -> None:
    result = run(feed(script(Reply(["rst"]), Reply(map_wire(0, 1)))), at_most=1)
    assert [sent.params for sent in result.stream.sent] == [{"channel": "chat"}] * 2


def test_an_error_is_raised_and_the_place_kept() -> None:
    result = run(feed(script(Reply([*map_wire(0, 3), wire({"type": "error", "error": "redis is gone"})]))))
    assert isinstance(result.error, UpstreamError) and "redis is gone" in str(result.error)
    assert result.error.checkpoint is not None and result.error.checkpoint.cursor == EVENTS[2]["id"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, ResponseRejected),
        (401, ResponseRejected),
        (404, CursorExpired),
        (429, RetriesExhausted),
        (500, RetriesExhausted),
        (503, RetriesExhausted),
    ],
)
def test_what_a_status_to_the_resume_means(status: int, error: type) -> None:
    result = run(feed(script(Reply([*map_wire(0, 3), "rst"]), *[Reply(status=status, type="")] * 9), delay=policy(3)))
    assert (type(result.error), bodies(result)) == (error, EVENTS[:3])


# --- text, going on elsewhere, detection ----------------------------------------------------------------------------


def test_the_text_of_an_event() -> None:
    deltas = [list(UpstashRealtime().deltas(StreamEvent(data=json.dumps(body)))) for body in (EVENTS[0], {"data": {"a": 1}}, {})]
    assert deltas == [[Delta("text", "Über ")], [], []]


@pytest.mark.parametrize("data", ["", "no json", "[]", '{"id":"x","channel":"c"}', '{"id":5}', '{"type":"other"}'])
def test_odd_data_is_delivered_without_a_place(data: str) -> None:
    assert UpstashRealtime().position(StreamEvent(data=data)) == Position(None)
    assert UpstashRealtime().error(StreamEvent(data=data)) is None


def test_an_event_of_a_user_may_look_like_a_frame() -> None:
    body = {**EVENTS[0], "type": "ping"}
    assert bodies(run(feed(script(Reply([wire(body)]))), at_most=1)) == [body]


@pytest.mark.parametrize(("url", "events"), [(ONE, EVENTS), (TWO, MIXED)])
def test_another_process_goes_on(url: str, events: list[dict[str, Any]]) -> None:
    for count in range(1, 12):
        stream = feed(Handler(events), url)
        first = run(stream, at_most=count)
        other = feed(Handler(events), url, checkpoint=Checkpoint.from_token(stream.leave().token()))
        second = run(other, at_most=12 - count)
        assert sorted(bodies(first) + bodies(second), key=key) == sorted(events, key=key)


@pytest.mark.parametrize(
    ("method", "query", "kind", "found"),
    [
        ("GET", "?channel=a&last_ack_a=0", "text/event-stream", True),
        ("GET", "?channel=a", "text/event-stream", False),
        ("POST", "?channel=a&last_ack_a=0", "text/event-stream", False),
        ("GET", "?channel=a&last_ack_a=0", "application/json", False),
    ],
)
def test_it_is_known_by_its_acknowledgements(method: str, query: str, kind: str, found: bool) -> None:
    state = StreamState(method, f"https://app.example.com/api/realtime{query}")
    assert UpstashRealtime().matches(state, Head(200, {"content-type": kind}, state.url)) is found
    assert UpstashRealtime().cancel_request(state) is None
