"""The server of the `mcp` package, cut at a sample of all bytes: each message arrives once, and the tool runs once."""

from __future__ import annotations

import asyncio
import collections
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.protocols.mcp import MCPStreamableHTTP

from .proxy import CuttingProxy, sample
from .serving import serving, settle

mcpserver: Any = pytest.importorskip("mcp.server.mcpserver", reason="needs mcp 2")
transport: Any = pytest.importorskip("mcp.server.streamable_http", reason="needs mcp 2")
pytest.importorskip("uvicorn")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The logging capability is deprecated"),
]

STEPS = 6
# The server may not have noticed yet that the previous connection is gone; it then replays, and closes.
RETRY = rs.RetryPolicy(attempts=100, wait=lambda state: 0.01)

Driver = Literal["sync", "asyncio"]

PROXIES: list[CuttingProxy] = []
runs: collections.Counter[int] = collections.Counter()
numbers = itertools.count(10_000)


class Events(transport.EventStore):  # type: ignore[misc, name-defined, unused-ignore]
    """All messages of all streams in one list; the id of an event is its place there."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self.log.append((stream_id, message))
        # Of one width, so that the answers to all calls are of one length.
        return f"{len(self.log) - 1:06}"

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        stream_id = self.log[int(last_event_id)][0]
        for place in itertools.count(int(last_event_id) + 1):
            if place >= len(self.log):
                break
            owner, message = self.log[place]
            if owner == stream_id and message is not None:
                await send_callback(transport.EventMessage(message, f"{place:06}"))
        return stream_id


async def report(number: int, close: bool, ctx: Any) -> str:
    """Tell of each step, wait in the middle for a client that was cut, and answer: it hears the rest live."""
    runs[number] += 1
    for step in range(STEPS):
        if step == STEPS // 2:
            if close:
                await ctx.close_sse_stream()
                # The client comes back after `retry`, 10 ms.
                await asyncio.sleep(0.2)
            await settle(PROXIES[-1])
            await ctx.info("half")
        await ctx.report_progress(step, STEPS, f"step {step}: ünï¢ödé 🦊")
    return f"report {number}"


async def hang(ctx: Any) -> str:
    """Tell of a beginning, and never answer."""
    await ctx.report_progress(0, 1)
    try:
        await asyncio.sleep(60)
    finally:
        runs[-1] += 1
    return ""


@pytest.fixture(scope="module")
def proxy() -> Iterator[CuttingProxy]:
    server = mcpserver.MCPServer("reports")
    for tool in (report, hang):
        tool.__annotations__["ctx"] = mcpserver.Context
        server.tool()(tool)
    with serving(server.streamable_http_app(event_store=Events(), retry_interval=10)) as proxy:
        PROXIES.append(proxy)
        yield proxy


def initialized(proxy: CuttingProxy, version: str) -> dict[str, str]:
    """The headers of a new session."""
    hello = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "tests", "version": "1"}}
    call = {"jsonrpc": "2.0", "id": next(numbers), "method": "initialize", "params": hello}
    with rs.connect("POST", url(proxy), json=call) as stream:
        answer = list(stream)[-1].json()
        assert isinstance(stream.protocol, MCPStreamableHTTP) and stream.response is not None
        assert answer["result"]["protocolVersion"] == version
        headers = {"Mcp-Session-Id": stream.response.headers["mcp-session-id"], "MCP-Protocol-Version": version}
    note = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    with rs.connect("POST", url(proxy), json=note, headers=headers, protocol=MCPStreamableHTTP()) as stream:
        assert list(stream) == []
    return headers


def url(proxy: CuttingProxy) -> str:
    return f"http://127.0.0.1:{proxy.port}/mcp"


def called(number: int, *, close: bool = False) -> dict[str, Any]:
    params = {"name": "report", "arguments": {"number": number, "close": close}, "_meta": {"progressToken": number}}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def read(driver: Driver, proxy: CuttingProxy, session: dict[str, str], *, close: bool = False) -> tuple[int, list[Any], Any]:
    """
    Call the tool once.

    Returns:
        The number of the call, its events, and the stream that they came from.
    """
    number = next(numbers)
    options: dict[str, Any] = {"json": called(number, close=close), "headers": session, "retry": RETRY}
    if driver == "sync":
        with rs.connect("POST", url(proxy), **options) as stream:
            return number, list(stream), stream

    async def read() -> tuple[int, list[Any], Any]:
        async with rs.aconnect("POST", url(proxy), **options) as stream:
            return number, [event async for event in stream], stream

    return asyncio.run(read())


def told(events: list[Any]) -> list[Any]:
    """What the tool said. An event without data only names a place."""
    said = []
    for message in (event.json() for event in events if event.data):
        match message:
            case {"method": "notifications/progress", "params": {"progress": step}}:
                said.append(step)
            case {"method": "notifications/message", "params": {"data": text}}:
                said.append(text)
            case {"result": {"content": [{"text": text}]}}:
                said.append(text)
            case _:
                said.append(message)
    return said


def whole(number: int) -> list[Any]:
    """What it says, once and in order."""
    return [0, 1, 2, "half", 3, 4, 5, f"report {number}"]


@pytest.mark.parametrize(
    ("driver", "version", "how"),
    [
        ("sync", "2025-11-25", "rst"),
        ("asyncio", "2025-11-25", "fin"),
        # Here no event names the place before the first message.
        ("sync", "2025-06-18", "fin"),
        ("asyncio", "2025-06-18", "rst"),
    ],
)
def test_each_message_arrives_once_wherever_the_answer_is_cut(
    driver: Driver, version: str, how: str, proxy: CuttingProxy
) -> None:
    session = initialized(proxy, version)
    proxy.cut(1_000_000, how)
    number, events, stream = read(driver, proxy, session)
    assert isinstance(stream.protocol, MCPStreamableHTTP)
    assert told(events) == whole(number) and stream.stats.reconnects == 0
    assert (events[0].data == "") == (version == "2025-11-25")
    body = bytes(proxy.body)
    # The first event has the first id: a cut before its end cannot be resumed.
    named = body.index(b"\r\n\r\n") + 4
    resumed = 0
    for after in sample(len(body)):
        proxy.cut(after, how)
        try:
            number, events, stream = read(driver, proxy, session)
        except rs.StreamInterrupted:
            assert after < named, f"not resumed after {after} bytes"
            continue
        where = f"cut after {after} bytes"
        assert told(events) == whole(number), where
        assert [event.id for event in events] == sorted({event.id for event in events}), where
        assert stream.outcome is rs.Outcome.COMPLETED and runs[number] == 1, where
        resumed += stream.stats.reconnects > 0
    assert resumed > 20


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_a_server_that_lets_go_in_the_middle_is_come_back_to(driver: Driver, proxy: CuttingProxy) -> None:
    number, events, stream = read(driver, proxy, initialized(proxy, "2025-11-25"), close=True)
    assert told(events) == whole(number) and stream.stats.reconnects >= 1 and runs[number] == 1


def test_a_tool_is_stopped(proxy: CuttingProxy) -> None:
    session = initialized(proxy, "2025-11-25")
    params = {"name": "hang", "arguments": {}, "_meta": {"progressToken": 1}}
    call = {"jsonrpc": "2.0", "id": "the call", "method": "tools/call", "params": params}
    proxy.cut(1_000_000, "fin")
    with rs.connect("POST", url(proxy), json=call, headers=session, retry=RETRY) as stream:
        for event in stream:
            if event.data and event.json().get("method") == "notifications/progress":
                stream.cancel()
    assert (stream.outcome, runs[-1]) == (rs.Outcome.CANCELLED, 1)


def test_the_rest_of_a_session_that_was_deleted_is_lost(proxy: CuttingProxy) -> None:
    session = initialized(proxy, "2025-11-25")
    connections = itertools.count()

    def headers() -> dict[str, str]:
        if next(connections) == 1:
            assert httpx.delete(url(proxy), headers=session).status_code == 200
        return session

    proxy.cut(400, "rst")
    with pytest.raises(rs.CursorExpired, match="the session is gone"):
        with rs.connect("POST", url(proxy), json=called(next(numbers)), headers=headers, retry=RETRY) as stream:
            list(stream)
