"""The reference server of Durable Streams (npm), cut at a sample of all bytes: each message arrives once, in order."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.protocols.durable_streams import DurableStreams

from .node_server import NodeServer, node_server
from .proxy import sample

pytestmark = [pytest.mark.integration]

Driver = Literal["sync", "asyncio"]

RETRY = rs.RetryPolicy(attempts=100, wait=lambda state: 0.01)
numbers = itertools.count(10_000)


Size = Callable[[Any], int]


def bytes_of(event: Any) -> int:
    return len(content_of(event))


def content_of(event: Any) -> bytes:
    """What was appended, of an event that is no JSON."""
    try:
        return base64.b64decode(event.data, validate=True)
    except ValueError:
        return str(event.data).encode()


class Stream:
    """
    A stream that is written while it is read: what is next is appended when the reader has all that was before.

    So a connection meets data of before, data that comes live, and `control` events in between.

    Args:
        server: Where it is.
        writer: Who appends to it.
        kind: Its content type.
        batches: What is appended at a time, in messages.
        size: What of a batch an event is: one message, or its bytes.
    """

    def __init__(
        self, server: NodeServer, writer: httpx.Client, kind: str, batches: list[list[bytes]], size: Size = lambda event: 1
    ) -> None:
        name = f"streams/s-{next(numbers)}"
        self.url, self.direct = f"{server.url}/{name}", f"{server.direct}/{name}"
        self._writer, self._kind = writer, kind
        self._batches = iter(batches)
        self._size, self._left = size, 0
        writer.put(self.direct, headers={"content-type": kind}).raise_for_status()
        self.append()

    def append(self) -> None:
        batch = next(self._batches, None)
        if batch is None:
            self._writer.post(self.direct, headers={"stream-closed": "true"}).raise_for_status()
            return
        self._left = sum(map(len, batch)) if self._size is bytes_of else len(batch)
        for message in batch:
            self._writer.post(self.direct, content=message, headers={"content-type": self._kind}).raise_for_status()

    def seen(self, event: Any) -> None:
        if event.event == "control":
            return
        self._left -= self._size(event)
        if self._left == 0:
            self.append()


@pytest.fixture(scope="module")
def server() -> Iterator[NodeServer]:
    with node_server("durable_streams.mjs", "@durable-streams/server") as server:
        yield server


@pytest.fixture(scope="module")
def writer() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


def read(driver: Driver, url: str, seen: Callable[[Any], None] | None = None, **options: Any) -> tuple[list[Any], Any]:
    options = {"params": {"offset": "-1", "live": "sse"}, "retry": RETRY, **options}
    events = []
    if driver == "sync":
        with rs.connect("GET", url, **options) as stream:
            for event in stream:
                events.append(event)
                if seen is not None:
                    seen(event)
            return events, stream

    async def read() -> tuple[list[Any], Any]:
        async with rs.aconnect("GET", url, **options) as stream:
            async for event in stream:
                events.append(event)
                if seen is not None:
                    seen(event)
            return events, stream

    return asyncio.run(read())


def messages_of(events: list[Any]) -> list[str]:
    return [event.data for event in events if event.event != "control"]


JSON = [{"t": "Über "}, {"t": "☔\n"}, ["a", 1.5, None], "last"]
TEXT = ["Hello\n", " wörld\r\n", "\n", "data: x"]
BINARY = [bytes(range(256)), b"\0", b"\xff\xfe"]


def as_json(values: list[Any]) -> list[bytes]:
    # In a list of its own, so that a value that is a list is one message.
    return [json.dumps([value]).encode() for value in values]


CASES = {
    "json": ("application/json", None, [as_json(JSON[:2]), as_json(JSON[2:]), as_json(["tail"])]),
    "text": ("text/plain; charset=utf-8", False, [[text.encode() for text in TEXT[:3]], [TEXT[3].encode()]]),
    "binary": ("application/octet-stream", False, [BINARY[:2], BINARY[2:]]),
}


@pytest.mark.parametrize(
    ("case", "driver", "how"),
    [("json", "sync", "rst"), ("json", "asyncio", "fin"), ("text", "sync", "fin"), ("binary", "asyncio", "rst")],
)
def test_each_message_arrives_once_wherever_the_stream_is_cut(
    case: str, driver: Driver, how: str, server: NodeServer, writer: httpx.Client
) -> None:
    kind, json_mode, batches = CASES[case]
    options = {} if json_mode is None else {"protocol": DurableStreams(json=json_mode)}
    server.proxy.cut(1_000_000, how)
    stream = Stream(server, writer, kind, batches)
    events, undisturbed = read(driver, stream.url, stream.seen, **options)
    assert isinstance(undisturbed.protocol, DurableStreams)
    assert (undisturbed.outcome, undisturbed.stats.reconnects) == (rs.Outcome.COMPLETED, 0)
    expected, body = messages_of(events), bytes(server.proxy.body)
    match case:
        case "json":
            assert [json.loads(data) for data in expected] == [*JSON, "tail"]
        case "text":
            # What that server (0.3.7) loses on SSE: it writes no space behind `data:`, so one of the text is taken for it;
            # and every line end becomes that of SSE.
            assert expected == [text.replace("\r\n", "\n").removeprefix(" ") for text in TEXT]
        case "binary":
            assert [base64.b64decode(data) for data in expected] == BINARY
            assert undisturbed.response.headers["stream-sse-data-encoding"] == "base64"
    resumed = 0
    for after in sample(len(body)):
        server.proxy.cut(after, how)
        stream = Stream(server, writer, kind, batches)
        events, cut = read(driver, stream.url, stream.seen, **options)
        where = f"cut after {after} bytes: {[(event.event, event.data) for event in events]}"
        assert messages_of(events) == expected, where
        assert cut.outcome is rs.Outcome.COMPLETED and events[-1].json()["streamClosed"] is True, where
        # A cut behind the last event is none.
        resumed += cut.stats.reconnects
        assert cut.stats.reconnects == (server.proxy.connections > 1), where
    assert resumed > 20


DOCUMENTS = {
    "json": ("application/json", CASES["json"][2]),
    # A character lies in two messages.
    "text": ("text/plain", [[b"Hello\n w\xc3", b"\xb6rld\r\n"], [b" tail \xe2\x98", b"\x94"]]),
    "binary": ("application/octet-stream", CASES["binary"][2]),
}


@pytest.mark.parametrize(
    ("live", "case", "driver", "how"),
    [
        ("long-poll", "json", "sync", "rst"),
        ("long-poll", "text", "asyncio", "fin"),
        ("long-poll", "binary", "sync", "fin"),
        (None, "json", "asyncio", "fin"),
        (None, "text", "sync", "rst"),
        (None, "binary", "asyncio", "rst"),
    ],
)
def test_each_message_arrives_once_wherever_an_answer_is_cut(
    live: str | None, case: str, driver: Driver, how: str, server: NodeServer, writer: httpx.Client
) -> None:
    kind, batches = DOCUMENTS[case]
    if live is None:
        # All of it is there, and closed.
        batches = [[message for batch in batches for message in batch]]
    params = {"offset": "-1"} if live is None else {"offset": "-1", "live": live}

    def run() -> tuple[list[Any], Any]:
        stream = Stream(server, writer, kind, batches, (lambda event: 1) if case == "json" else bytes_of)
        if live is None:
            stream.append()
        return read(driver, stream.url, None if live is None else stream.seen, params=params)

    def whole(events: list[Any]) -> bool:
        if case == "json":
            return [json.loads(data) for data in messages_of(events)] == [*JSON, "tail"]
        return b"".join(map(content_of, events)) == b"".join(message for batch in batches for message in batch)

    server.proxy.cut(1_000_000, how)
    events, undisturbed = run()
    assert isinstance(undisturbed.protocol, DurableStreams)
    assert whole(events) and (undisturbed.outcome, undisturbed.stats.reconnects) == (rs.Outcome.COMPLETED, 0)
    reconnects = 0
    for after in sample(len(server.proxy.body)):
        server.proxy.cut(after, how)
        events, cut = run()
        where = f"cut after {after} bytes: {[(event.event, event.data) for event in events]}"
        assert whole(events) and cut.outcome is rs.Outcome.COMPLETED, where
        reconnects += cut.stats.reconnects
    assert reconnects > 20


def test_a_catch_up_read_ends_at_the_tail_and_goes_on_from_there(server: NodeServer, writer: httpx.Client) -> None:
    stream = Stream(server, writer, "application/json", [as_json(["a", "b"]), as_json(["c"])])
    events, first = read("sync", stream.url, params={"offset": "-1"})
    assert (messages_of(events), first.outcome) == (['"a"', '"b"'], rs.Outcome.ENDED)
    stream.append()
    stream.append()
    with rs.resume(first.token, origin=server.url) as rest:
        assert (messages_of(list(rest)), rest.outcome) == (['"c"'], rs.Outcome.COMPLETED)


def test_a_closed_stream_ends_at_once_at_its_tail(server: NodeServer, writer: httpx.Client) -> None:
    stream = Stream(server, writer, "application/json", [as_json(["only"])])
    events, first = read("sync", stream.url, stream.seen)
    assert messages_of(events) == ['"only"']
    for offset in (first.checkpoint.cursor, "now"):
        events, again = read("sync", stream.url, params={"offset": offset, "live": "sse"})
        assert ([event.event for event in events], again.outcome) == (["control"], rs.Outcome.COMPLETED)


def test_a_silent_stream_says_that_it_lives(server: NodeServer, writer: httpx.Client) -> None:
    """The server repeats its place (here each 0.1 s) in an event that says nothing new."""
    stream = Stream(server, writer, "application/json", [as_json(["a"]), as_json(["b"])])
    with rs.connect("GET", stream.url, params={"offset": "-1", "live": "sse"}, retry=RETRY) as reader:
        events = [next(reader), next(reader)]
        # Read by another, who sees that the silence was broken before it is ended.
        with httpx.stream("GET", f"{stream.url}?offset={events[1].cursor}&live=sse") as other:
            lines = (line for line in other.iter_lines() if line.startswith("data:"))
            assert next(lines) == next(lines)
        stream.append()
        stream.append()
        events += list(reader)
    assert [event.data for event in events if event.event != "control"] == ['"a"', '"b"']
    assert [event.cursor for event in events if event.event == "control"].count(events[1].cursor) == 1
    assert reader.outcome is rs.Outcome.COMPLETED


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_a_stream_that_is_deleted_is_lost(driver: Driver, server: NodeServer, writer: httpx.Client) -> None:
    """The server (0.3.7) leaves its readers connected, and is silent: only the clock for silence finds out."""
    stream = Stream(server, writer, "application/json", [as_json(["a"])])

    def delete(event: Any) -> None:
        if event.event == "control":
            writer.delete(stream.direct).raise_for_status()

    with pytest.raises(rs.CursorExpired):
        read(driver, stream.url, delete, timeouts=rs.Timeouts(idle=0.3))


def test_what_the_server_refuses(server: NodeServer, writer: httpx.Client) -> None:
    with pytest.raises(rs.ResponseRejected) as unknown:
        read("sync", f"{server.url}/streams/none")
    assert unknown.value.status == 404
    stream = Stream(server, writer, "application/json", [as_json(["a"])])
    with pytest.raises(rs.ResponseRejected) as malformed:
        read("sync", stream.url, params={"offset": "5", "live": "sse"})
    assert malformed.value.status == 400
