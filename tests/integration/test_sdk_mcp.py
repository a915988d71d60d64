"""The client of the `mcp` package over the transport, dropped in mid-answer: results and notifications arrive once, in order."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import resumable_stream as rs

from .dropping import WAYS, DroppingProxy, Seen, Way
from .serving import serving, settle

httpx2: Any = pytest.importorskip("httpx2")
mcp: Any = pytest.importorskip("mcp", reason="needs mcp 2")
mcpserver: Any = pytest.importorskip("mcp.server.mcpserver", reason="needs mcp 2")
streamable: Any = pytest.importorskip("mcp.client.streamable_http", reason="needs mcp 2")
transports: Any = pytest.importorskip("resumable_stream.transports.httpx2")
pytest.importorskip("uvicorn")

# Where mcp is missing, that module is skipped half-way, and has no such name.
from .test_mcp_server import Events  # noqa: E402

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:The logging capability is deprecated"),
]

STEPS = 20
RETRY = rs.RetryPolicy(attempts=30, wait=lambda state: 0.02)

PROXIES: list[DroppingProxy] = []
runs: collections.Counter[int] = collections.Counter()
numbers = itertools.count(10_000)


async def report(number: int, close: bool, ctx: Any) -> str:
    """Tell of each step, and answer; `close`: let go of the client in the middle, as SEP-1699 has it."""
    runs[number] += 1
    for step in range(STEPS):
        await settle(PROXIES[-1])
        if close and step == STEPS // 2:
            await ctx.close_sse_stream()
            await asyncio.sleep(0.05)
        await ctx.report_progress(step, STEPS, f"step {step}: ünï¢ödé 🦊")
        if step % 5 == 0:
            await ctx.info(f"at {step}")
            # Of no request: it comes on the stream that the client keeps by GET.
            await ctx.session.send_resource_updated(f"memo://{number}/{step}")
    await settle(PROXIES[-1])
    return f"report {number}"


async def hang(number: int, ctx: Any) -> str:
    await ctx.report_progress(0, 1)
    try:
        await asyncio.sleep(60)
    finally:
        runs[number] += 1
    return ""


async def refuse(ctx: Any) -> str:
    for step in range(5):
        await settle(PROXIES[-1])
        await ctx.report_progress(step, 5)
    raise ValueError("out of ideas")


def app(*, events: bool, **options: Any) -> Any:
    server = mcpserver.MCPServer("reports")
    for tool in (report, hang, refuse):
        tool.__annotations__["ctx"] = mcpserver.Context
        server.tool()(tool)
    if events:
        options |= {"event_store": Events(), "retry_interval": 10}
    return server.streamable_http_app(**options)


@contextlib.contextmanager
def proxied(application: Any) -> Iterator[DroppingProxy]:
    with serving(application) as plain:
        proxy = DroppingProxy(plain.upstream)
        PROXIES.append(proxy)
        try:
            yield proxy
        finally:
            PROXIES.remove(proxy)
            proxy.close()


@pytest.fixture(scope="module")
def proxy() -> Iterator[DroppingProxy]:
    with proxied(app(events=True)) as proxy:
        yield proxy


class Told:
    """What a client was told: log messages, and what came on the stream that it keeps."""

    def __init__(self) -> None:
        self.logged: list[str] = []
        self.others: list[str] = []
        self.progress: list[float] = []

    async def log(self, message: Any) -> None:
        self.logged.append(message.data)

    async def any(self, message: Any) -> None:
        if getattr(message, "method", "") == "notifications/resources/updated":
            self.others.append(message.params.uri)

    async def step(self, progress: float, total: float | None, message: str | None) -> None:
        self.progress.append(progress)


@contextlib.asynccontextmanager
async def session_of(proxy: DroppingProxy, **options: Any) -> AsyncIterator[tuple[Any, Told, list[Any]]]:
    told, responses = Told(), []

    async def keep(response: Any) -> None:
        responses.append(response)

    http = httpx2.AsyncClient(
        transport=transports.AsyncResumableTransport(**{"retry": RETRY, **options}),
        timeout=httpx2.Timeout(5.0, read=1.0),
        event_hooks={"response": [keep]},
        trust_env=False,
    )
    async with http, streamable.streamable_http_client(f"{proxy.url}/mcp", http_client=http) as streams:
        async with mcp.ClientSession(*streams, logging_callback=told.log, message_handler=told.any) as session:
            await session.initialize()
            yield session, told, responses


def calls(seen: Seen) -> bool:
    """The requests of one tool call: the POST, and the GETs that resume it."""
    return b'"tools/call"' in seen.body or (seen.method == "GET" and "last-event-id" in seen.headers)


def latest(responses: list[Any]) -> Any:
    """The answer to the latest call; the stream that the client keeps is opened when it likes."""
    return [response for response in responses if response.request.method == "POST"][-1]


async def called(session: Any, told: Told, *, close: bool = False) -> tuple[int, Any]:
    number = next(numbers)
    told.__init__()
    result = await session.call_tool("report", {"number": number, "close": close}, progress_callback=told.step)
    return number, result


def whole(number: int, told: Told, result: Any) -> None:
    assert result.content[0].text == f"report {number}" and not result.is_error
    assert told.progress == list(range(STEPS))
    assert told.logged == [f"at {step}" for step in range(0, STEPS, 5)]
    assert runs[number] == 1


@pytest.mark.parametrize("how", WAYS)
def test_a_call_is_that_of_an_undisturbed_run(how: Way, proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with session_of(proxy) as (session, told, _):
            proxy.drop(calls)
            number, result = await called(session, told)
            whole(number, told, result)
            assert told.others == [f"memo://{number}/{step}" for step in range(0, STEPS, 5)]
            body = bytes(proxy.bodies[0])
            undisturbed = result.model_dump()
            cuts = [body.index(b"\r\n\r\n") + 4, len(body) // 2 + 7, len(body) - 30]
            for after in cuts[1:2] if how == "silence" else cuts:
                proxy.drop(calls, (after, how), (len(body) // 6, how))
                number, result = await called(session, told)
                whole(number, told, result)
                assert told.others == [f"memo://{number}/{step}" for step in range(0, STEPS, 5)]
                assert result.model_dump(exclude={"content", "structured_content"}) == {
                    name: value for name, value in undisturbed.items() if name not in ("content", "structured_content")
                }

    asyncio.run(main())


@pytest.mark.parametrize("how", WAYS)
def test_the_stream_that_the_client_keeps_loses_and_doubles_nothing(how: Way, proxy: DroppingProxy) -> None:
    async def main() -> None:
        # Of the GET, from the head on, so that it is this session's.
        proxy.drop(lambda seen: seen.method == "GET", (200, how), (70, how))
        async with session_of(proxy) as (session, told, _):
            number, result = await called(session, told)
            whole(number, told, result)
            await until(lambda: len(told.others) >= STEPS // 5)
            assert told.others == [f"memo://{number}/{step}" for step in range(0, STEPS, 5)]
            assert len(proxy.bodies) >= 3
            asked = len(proxy.requests)
            # Nothing is asked for ever: what comes now is a read timeout, as often as one is set.
            await asyncio.sleep(0.3)
            assert len(proxy.requests) <= asked + 1

    asyncio.run(main())


async def until(done: Any) -> None:
    for _ in range(12_000):
        if done():
            return
        await asyncio.sleep(0.01)


def test_a_server_that_lets_go_in_the_middle_is_come_back_to(proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with session_of(proxy) as (session, told, _):
            proxy.drop(calls)
            number, result = await called(session, told, close=True)
            whole(number, told, result)
            # Ours alone comes back: the client never knew.
            assert [seen.method for seen in proxy.requests if calls(seen)] == ["POST", "GET"]

    asyncio.run(main())


def test_what_is_no_stream_passes_untouched(proxy: DroppingProxy) -> None:
    async def main(json_response: DroppingProxy) -> None:
        async with session_of(json_response) as (session, told, responses):
            number, result = await called(session, told)
            assert result.content[0].text == f"report {number}"
        posts = [response for response in responses if response.request.method != "GET"]
        # The notification, JSON answers, and the end of the session.
        assert {response.status_code for response in posts} == {200, 202}
        assert {rs.stream_of(response) for response in posts} == {None}
        assert [seen.method for seen in json_response.requests].count("DELETE") == 1

    with proxied(app(events=False, json_response=True)) as json_response:
        asyncio.run(main(json_response))


def test_an_error_is_the_sdks_own(proxy: DroppingProxy) -> None:
    async def main() -> None:
        async with session_of(proxy) as (session, told, responses):
            proxy.drop(calls, (300, "clean"))
            result = await session.call_tool("refuse", {}, progress_callback=told.step)
            assert result.is_error and result.content[0].text == "Error executing tool refuse"
            assert told.progress == [0, 1, 2, 3, 4]
            assert rs.stream_of(latest(responses)).outcome is rs.Outcome.FAILED
            with pytest.raises(mcp.MCPError):
                await session.read_resource("memo://none")

    asyncio.run(main())


@pytest.mark.parametrize("how", ["rst", "clean"])
def test_without_ids_a_cut_is_the_sdks_error(how: Way) -> None:
    async def main(proxy: DroppingProxy) -> None:
        async with session_of(proxy) as (session, told, _):
            proxy.drop(calls, (400, how))
            with pytest.raises(mcp.MCPError, match="SSE stream ended without a response"):
                await called(session, told)
            # A tool may cost something: it is not called again.
            assert len(proxy.bodies) == 1

    with proxied(app(events=False)) as proxy:
        asyncio.run(main(proxy))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_the_version_that_was_agreed_on_decides(mode: str, proxy: DroppingProxy) -> None:
    async def main() -> None:
        http = httpx2.AsyncClient(transport=transports.AsyncResumableTransport(retry=RETRY), trust_env=False)
        over = streamable.streamable_http_client(f"{proxy.url}/mcp", http_client=http)
        async with http, mcp.Client(over, mode=mode) as client:
            proxy.drop(calls, (400, "rst"))
            number = next(numbers)
            call = client.call_tool("report", {"number": number, "close": False}, progress_callback=Told().step)
            if mode == "legacy":
                assert (await call).content[0].text == f"report {number}"
            else:
                # 2026-07-28 has no ids.
                with pytest.raises(mcp.MCPError):
                    await call
            assert runs[number] == 1

    asyncio.run(main())


def test_retries_do_not_multiply(proxy: DroppingProxy) -> None:
    async def main() -> None:
        policy = rs.RetryPolicy(attempts=3, wait=lambda state: 0.01)
        async with session_of(proxy, retry=policy) as (session, told, _):
            body_less: list[tuple[int, Way]] = [(0, "rst")] * 20
            proxy.drop(calls, (600, "rst"), *body_less)
            with pytest.raises(mcp.MCPError, match="reconnection attempts were exhausted"):
                await called(session, told)
            # The POST and ours; then the client's own two, each of which is tried again only behind its head.
            assert len(proxy.bodies) <= 1 + 3 * 4

    asyncio.run(main())


def test_leaving_in_mid_answer(proxy: DroppingProxy) -> None:
    async def main() -> Any:
        proxy.drop(lambda seen: False)
        async with session_of(proxy) as (session, _, responses):
            number = next(numbers)
            began = asyncio.Event()

            async def step(progress: float, total: float | None, message: str | None) -> None:
                began.set()

            task = asyncio.create_task(session.call_tool("hang", {"number": number}, progress_callback=step))
            await began.wait()
            stream = rs.stream_of(latest(responses))
            assert stream.checkpoint.cursor and not stream.outcome
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # The client says so to the server (`notifications/cancelled`), as without us.
            await until(lambda: runs[number])
            assert runs[number] == 1
        return stream

    stream = asyncio.run(main())
    assert "mcp-session-id" not in json.dumps(stream.checkpoint.to_json()).lower()
