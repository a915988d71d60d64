"""Routes of npm `ai` and `resumable-stream` over a real Redis, cut at a sample of all bytes: each event arrives once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.protocols.ai_sdk import AISDKStream
from resumable_stream.protocols.resumable_stream_npm import ResumableStreamNPM
from tests.redis_server import free_port

from .node_server import NodeServer, node_server, redis_binary
from .proxy import sample

pytestmark = [pytest.mark.integration]

Driver = Literal["sync", "asyncio"]

RETRY = rs.RetryPolicy(attempts=100, wait=lambda state: 0.01)
numbers = itertools.count(10_000)


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    port = free_port()
    command = [redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert any("Ready to accept connections" in line for line in process.stdout), "redis-server did not start"
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield {"REDIS_URL": url}


@pytest.fixture(scope="module")
def server(redis: dict[str, str]) -> Iterator[NodeServer]:
    with node_server("ai_sdk.mjs", "resumable-stream", redis) as server:
        yield server


def read(driver: Driver, server: NodeServer, name: str, gates: tuple[str, ...], method: str, path: str, **options: Any) -> Any:
    """
    Read one answer, and let the server go on where it waits for this reader.

    Args:
        driver: Sync or asyncio.
        server: The server.
        name: What it calls the answer.
        gates: Ends of the `data` of events behind which it waits.
        method: Of the first request.
        path: Of the route.
        options: For `connect()`.

    Returns:
        The events and the stream that they came from.
    """
    events: list[Any] = []
    waits = iter(gates)
    awaited = next(waits)

    def seen(event: Any) -> None:
        nonlocal awaited
        events.append(event)
        if awaited and awaited in event.data:
            awaited = next(waits, "")
            server.go_on(name)

    url, options = f"{server.url}/{path}", {"retry": RETRY, **options}
    if driver == "sync":
        with rs.connect(method, url, **options) as stream:
            for event in stream:
                seen(event)
            return events, stream

    async def read() -> Any:
        async with rs.aconnect(method, url, **options) as stream:
            async for event in stream:
                seen(event)
            return events, stream

    return asyncio.run(read())


def while_away(server: NodeServer, name: str, gates: int, path: str) -> Any:
    """An observer: when our reader was cut, another one reads the answer to its end before we are back."""

    def observer(notice: object) -> None:
        if isinstance(notice, rs.Disconnected):
            with httpx.stream("GET", f"{server.direct}/{path}") as other:
                for _ in range(gates):
                    server.go_on(name)
                assert other.read().endswith(b"data: [DONE]\n\n")

    return observer


# --- the AI SDK -----------------------------------------------------------------------------------------------------

CHAT = ("tool-input-delta", "Sieben", '" finish"', '"finish"')
FINISH = b'{"type":"finish","finishReason":"stop"}\n\n'
TEXT = "Sieben ☔ finish finish"


def chat(driver: Driver, server: NodeServer, kind: str = "chat") -> Any:
    # Of one length; the id is quoted in the URL.
    name = f"{kind}/{next(numbers)} é"
    return name, *read(driver, server, name, CHAT, "POST", "api/chat", json={"id": name, "messages": []})


@pytest.mark.parametrize(("driver", "how"), [("sync", "rst"), ("asyncio", "fin")])
def test_each_part_arrives_once_wherever_the_answer_is_cut(driver: Driver, how: str, server: NodeServer) -> None:
    server.proxy.cut(1_000_000, how)
    _, events, stream = chat(driver, server)
    assert isinstance(stream.protocol, AISDKStream)
    assert (stream.outcome, stream.stats.reconnects) == (rs.Outcome.COMPLETED, 0)
    expected, body = [event.data for event in events], bytes(server.proxy.body)
    assert expected[-1] == "[DONE]"
    text = "".join(delta.text for event in events for delta in stream.protocol.deltas(event) if delta.kind == "text")
    assert text == TEXT
    assert body.count(FINISH) == 1
    duplicates = 0
    for after in sample(len(body)):
        server.proxy.cut(after, how)
        _, events, cut = chat(driver, server)
        where = f"cut after {after} bytes: {[event.data for event in events]}"
        # Not by its place: a busy machine sends more comments. Behind `finish` nothing is lost but `[DONE]`.
        finished = FINISH in server.proxy.body
        whole = not finished or len(events) == len(expected)
        assert [event.data for event in events] == (expected if whole else expected[:-1]), where
        assert cut.outcome is rs.Outcome.COMPLETED, where
        assert cut.stats.reconnects == (not finished), where
        duplicates += cut.stats.duplicates
    assert duplicates > 50


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_an_answer_that_is_over_is_not_replayed(driver: Driver, server: NodeServer) -> None:
    name = f"over-{next(numbers)}"
    observer = while_away(server, name, len(CHAT), f"api/chat/{name}/stream")
    server.proxy.cut(400, "rst")
    with pytest.raises(rs.CursorExpired, match="message store") as caught:
        read(driver, server, name, ("",), "POST", "api/chat", json={"id": name, "messages": []}, observer=observer)
    assert caught.value.checkpoint is not None and 0 < caught.value.checkpoint.offset < 10
    # Who comes later finds no active answer: an empty stream.
    for chat_id in (name, "unknown"):
        events, stream = read(driver, server, "", ("",), "GET", f"api/chat/{chat_id}/stream", protocol=AISDKStream())
        assert (events, stream.outcome) == ([], rs.Outcome.ENDED)


@pytest.mark.parametrize(
    ("kind", "outcome", "part"),
    [
        ("short", rs.Outcome.INCOMPLETE, {"type": "finish", "finishReason": "length"}),
        ("failing", rs.Outcome.FAILED, {"type": "error", "errorText": "overloaded"}),
        ("broken", rs.Outcome.COMPLETED, {"type": "finish", "finishReason": "stop"}),
    ],
)
def test_how_an_answer_ends(kind: str, outcome: rs.Outcome, part: dict[str, str], server: NodeServer) -> None:
    _, events, stream = chat("sync", server, kind)
    assert stream.outcome is outcome
    parts = [event.json() for event in events if event.data != "[DONE]"]
    assert parts[-1] == part
    assert ("tool-output-error" in [each["type"] for each in parts]) == (kind == "broken")


# --- the readme of resumable-stream ---------------------------------------------------------------------------------

WORDS = ["Über ", "so", "so", "🦊 ends"]
README = ('"so"', "ends", "[DONE]")


def words_of(events: list[Any]) -> list[str]:
    assert events[-1].data == "[DONE]"
    return [event.json()["word"] for event in events[:-1]]


@pytest.mark.parametrize(
    ("driver", "how", "method", "route"),
    [
        ("sync", "rst", "GET", "idempotent"),
        ("asyncio", "fin", "GET", "idempotent"),
        ("sync", "fin", "POST", "explicit"),
        ("asyncio", "rst", "POST", "explicit"),
    ],
)
def test_each_event_arrives_once_wherever_a_route_is_cut(
    driver: Driver, how: str, method: str, route: str, server: NodeServer
) -> None:
    def words() -> Any:
        name = f"w-{next(numbers)}"
        # For the GET it is the route itself.
        protocol = ResumableStreamNPM(resume=f"/{route}/{name}")
        return read(driver, server, name, README, method, f"{route}/{name}", protocol=protocol)

    server.proxy.cut(1_000_000, how)
    events, stream = words()
    assert (words_of(events), stream.outcome, stream.stats.reconnects) == (WORDS, rs.Outcome.COMPLETED, 0)
    body = bytes(server.proxy.body)
    duplicates = 0
    for after in sample(len(body)):
        server.proxy.cut(after, how)
        events, cut = words()
        where = f"cut after {after} bytes: {[event.data for event in events]}"
        assert (words_of(events), cut.outcome) == (WORDS, rs.Outcome.COMPLETED), where
        assert cut.stats.reconnects == (b"[DONE]\n\n" not in server.proxy.body), where
        duplicates += cut.stats.duplicates
    assert duplicates > 20


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
@pytest.mark.parametrize(("method", "route"), [("GET", "idempotent"), ("POST", "explicit")])
def test_what_is_done_is_not_replayed(driver: Driver, method: str, route: str, server: NodeServer) -> None:
    name = f"d-{next(numbers)}"
    observer = while_away(server, name, len(README), f"{route}/{name}")
    protocol = ResumableStreamNPM(resume=f"/{route}/{name}")
    server.proxy.cut(60, "rst")
    with pytest.raises(rs.CursorExpired, match="422"):
        read(driver, server, name, ("",), method, f"{route}/{name}", protocol=protocol, observer=observer)
    events, stream = read(driver, server, "", ("",), "GET", f"{route}/{name}", protocol=ResumableStreamNPM())
    assert (events, stream.outcome) == ([], rs.Outcome.ENDED)
    # An unknown one gets the same answer where the route does not make it.
    events, stream = read(driver, server, "", ("",), "GET", "explicit/unknown", protocol=ResumableStreamNPM())
    assert (events, stream.outcome) == ([], rs.Outcome.ENDED)


def test_an_answer_whose_producer_died_is_no_end(server: NodeServer, redis: dict[str, str]) -> None:
    """
    Readers at another machine hear nothing more: it is no clean close.

    Who resumes gets an error after a second, or no answer at all (2.2.13, if its clock shows no more than that second).
    """
    name = f"p-{next(numbers)}"
    retry = rs.RetryPolicy(attempts=1, wait=lambda state: 0.01)
    options: dict[str, Any] = {"retry": retry, "timeouts": rs.Timeouts(idle=2.0), "protocol": ResumableStreamNPM()}
    with contextlib.ExitStack() as producing:
        producer = producing.enter_context(node_server("ai_sdk.mjs", "resumable-stream", redis))
        producing.enter_context(httpx.stream("POST", f"{producer.direct}/explicit/{name}"))
        with rs.connect("GET", f"{server.url}/explicit/{name}", **options) as stream:
            assert [next(stream).json()["word"] for _ in range(3)] == WORDS[:3]
            producing.close()
            with pytest.raises(rs.RetriesExhausted):
                next(stream)
