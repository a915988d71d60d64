"""The clients of `langgraph-sdk` over the transport, dropped in mid-run: their parts are those of an undisturbed run."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.protocols.langgraph import LangGraphRun
from resumable_stream.transports.httpx import AsyncResumableTransport, ResumableTransport

from .dropping import WAYS, DroppingProxy, Seen, Way
from .relaying import relaying

sdk: Any = pytest.importorskip("langgraph_sdk")
clients: Any = pytest.importorskip("langgraph_sdk.client")
pytest.importorskip("langgraph_api")
pytest.importorskip("langgraph_cli")

# Where the server is missing, that module is skipped half-way, and has no such names.
from .test_langgraph_server import AT_ONCE, CHUNKS, OVER, Server, server  # noqa: E402

__all__ = ["server"]

# The first test waits for the server too.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

Driver = Literal["sync", "asyncio"]

RETRY = rs.RetryPolicy(attempts=20, wait=lambda state: 0.02)
RUN: dict[str, Any] = {"stream_mode": ["custom", "values"], "stream_resumable": True, "on_disconnect": "continue"}

tags = itertools.count()


def streams(seen: Seen) -> bool:
    return seen.path.partition("?")[0].endswith("/stream")


@contextlib.contextmanager
def dropping(running: Server, *drops: tuple[int, Way], pause: float = OVER) -> Iterator[DroppingProxy]:
    """`pause`: until the run is over, since the replay of the development server may repeat what it meets live."""
    proxy = DroppingProxy(running.port, pause=pause if drops else 0.0)
    proxy.drop(streams, *drops)
    try:
        yield proxy
    finally:
        proxy.close()


class Client:
    """One of the SDK's clients, and the responses that it had."""

    def __init__(self, driver: Driver, url: str, **options: Any) -> None:
        self.responses: list[Any] = []
        self.driver = driver
        settings: dict[str, Any] = {"base_url": url, "timeout": httpx.Timeout(5.0, read=1.5), "trust_env": False}
        options = {"retry": RETRY, **options}
        if driver == "sync":
            hooks = {"response": [self.responses.append]}
            http: Any = httpx.Client(transport=ResumableTransport(**options), event_hooks=hooks, **settings)
            self.sdk = clients.SyncLangGraphClient(http)
        else:

            async def keep(response: Any) -> None:
                self.responses.append(response)

            http = httpx.AsyncClient(transport=AsyncResumableTransport(**options), event_hooks={"response": [keep]}, **settings)
            self.sdk = clients.LangGraphClient(http)

    def read(self, parts: Callable[[Any], Any], most: int | None = None) -> list[Any]:
        """All parts of a stream, or the first ones."""
        if self.driver == "sync":
            with contextlib.closing(parts(self.sdk)) as answer, self.sdk:
                return list(itertools.islice(answer, most))

        async def main() -> list[Any]:
            found: list[Any] = []
            async with self.sdk, contextlib.aclosing(parts(self.sdk)) as answer:
                async for part in answer:
                    found.append(part)
                    if len(found) == most:
                        break
            return found

        return asyncio.run(main())


def told(parts: list[Any], tag: str) -> list[Any]:
    """What differs from run to run left out: ids, and the name of this run."""
    found = []
    for part in parts:
        data = {name: value for name, value in part.data.items() if name != "run_id"}
        found.append((part.event, {name: "tag" if value == tag else value for name, value in data.items()}))
    return found


def run(driver: Driver, running: Server, *drops: tuple[int, Way], **options: Any) -> tuple[list[Any], Client, DroppingProxy]:
    tag = f"sdk-{next(tags)}"
    thread = running.thread()
    with dropping(running, *drops) as proxy:
        client = Client(driver, proxy.url, **options)
        parts = client.read(lambda sdk: sdk.runs.stream(thread, "agent", input={"tag": tag}, **RUN))
    assert running.calls.read_text().splitlines().count(tag) == 1, "the run was started twice"
    return told(parts, tag), client, proxy


@pytest.fixture(scope="module")
def whole(server: Server) -> tuple[list[Any], int]:
    """What an undisturbed run tells, and how long its body is."""
    parts, _, proxy = run("sync", server)
    assert [data["n"] for event, data in parts if event == "custom"] == list(range(CHUNKS))
    return parts, len(proxy.bodies[0])


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_a_run_is_that_of_an_undisturbed_one(driver: Driver, server: Server, whole: tuple[list[Any], int]) -> None:
    expected, length = whole

    def scenario(how: Way, after: int) -> None:
        parts, client, proxy = run(driver, server, (after, how), (length // 5, how))
        assert parts == expected, f"{how} after {after}"
        assert len(proxy.bodies) >= 2
        stream = rs.stream_of(client.responses[0])
        assert isinstance(stream.protocol, LangGraphRun) and stream.outcome is rs.Outcome.COMPLETED
        # The client asked once: it never knew. Its question for the status of the run is its own.
        assert [response.request.method for response in client.responses] == ["POST", "GET"]

    # One after the other would take a minute, since the server looks for new runs every 0.5 s.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(scenario, *zip(*itertools.product(WAYS, (1, length // 4, length // 2 + 5, length - 1)), strict=True)))


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_a_run_that_is_joined_is_whole_too(driver: Driver, server: Server, whole: tuple[list[Any], int]) -> None:
    expected, length = whole
    tag, thread = f"joined-{driver}", server.thread()
    with dropping(server) as proxy:
        client = Client(driver, proxy.url)
        client.read(lambda sdk: sdk.runs.stream(thread, "agent", input={"tag": tag}, **RUN))
    name = client.responses[0].headers["content-location"].rpartition("/")[2]
    with dropping(server, (length // 3, "clean"), (length // 5, "rst"), pause=0.0) as proxy:
        client = Client(driver, proxy.url)
        # Of a list of modes the development server takes the last one, with us and without.
        parts = client.read(lambda sdk: sdk.runs.join_stream(thread, name, stream_mode="custom", last_event_id="-1"))
        assert told(parts, tag) == [(event, data) for event, data in expected if event == "custom"]
        # Each goes on behind what came, and asks for the same kinds of events.
        assert len(proxy.bodies) >= 3
        asked = [seen for seen in proxy.requests if streams(seen)]
        assert len({seen.headers["last-event-id"] for seen in asked}) == len(asked)
        assert all("stream_mode=custom" in seen.path for seen in asked)


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_leaving_in_mid_run(driver: Driver, server: Server) -> None:
    tag, thread = f"left-{driver}", server.thread()
    with dropping(server) as proxy:
        client = Client(driver, proxy.url)
        parts = client.read(lambda sdk: sdk.runs.stream(thread, "agent", input={"tag": tag}, **RUN), most=20)
        token = rs.stream_of(client.responses[0]).token
        # Another process goes on behind the last part that was taken.
        with rs.resume(token, origin=proxy.url, retry=RETRY) as stream:
            numbers = [event.json()["n"] for event in stream if event.event == "custom"]
        assert stream.outcome is rs.Outcome.COMPLETED
    taken = [data["n"] for event, data in told(parts, tag) if event == "custom"]
    # What was in hand comes again, and what the server repeats while the run goes on.
    assert list(dict.fromkeys(taken + numbers)) == list(range(CHUNKS))
    assert server.calls.read_text().splitlines().count(tag) == 1


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_an_error_is_the_sdks_own(driver: Driver, server: Server) -> None:
    with dropping(server) as proxy:
        client = Client(driver, proxy.url)
        with pytest.raises(sdk.errors.NotFoundError):
            client.read(
                lambda sdk: sdk.runs.stream("00000000-0000-4000-8000-000000000000", "agent", input={"tag": "none"}, **RUN)
            )
        assert len(proxy.requests) == 1
        client = Client(driver, proxy.url)
        # The graph fails for want of its tag: a part "error", and the end.
        parts = client.read(lambda sdk: sdk.runs.stream(server.thread(), "agent", input={"other": 1}, **RUN))
        assert [part.event for part in parts][-1] == "error"
        assert rs.stream_of(client.responses[0]).outcome is rs.Outcome.FAILED


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_retries_do_not_multiply(driver: Driver, server: Server, whole: tuple[list[Any], int], monkeypatch: Any) -> None:
    _, length = whole
    for module in ("_sync", "_async"):
        monkeypatch.setattr(f"langgraph_sdk.{module}.http._reconnect_delay", lambda *args, **options: 0.0)
    nothing: list[tuple[int, Way]] = [(0, "rst")] * 100
    with dropping(server, (length // 3, "rst"), *nothing, pause=0.0) as proxy:
        client = Client(driver, proxy.url, retry=rs.RetryPolicy(attempts=2, wait=lambda state: 0.0))
        with pytest.raises(httpx.TransportError) as caught:
            client.read(lambda sdk: sdk.runs.stream(server.thread(), "agent", input={"tag": f"lost-{driver}"}, **RUN))
        found = rs.error_of(caught.value)
        assert isinstance(found, rs.RetriesExhausted) and found.checkpoint is not None
        # The client comes back five times, and each time ours tries as often as it was told.
        assert len(proxy.bodies) <= (1 + 5) * (1 + 2 + 1)


@pytest.mark.parametrize("driver", ["sync", "asyncio"])
def test_a_run_that_nobody_can_resume_is_whole_through_a_relay(
    driver: Driver, server: Server, whole: tuple[list[Any], int]
) -> None:
    expected, length = whole
    asked = {**RUN, "stream_resumable": False}
    with relaying({"": server.url}) as relay:
        for n, how in enumerate(("rst", "fin", "clean")):
            tag, thread = f"relayed-{driver}-{how}", server.thread()
            proxy = DroppingProxy(int(relay.rpartition(":")[2]))
            proxy.drop(streams, (length * (n + 1) // 5, how))
            try:
                client = Client(driver, proxy.url)
                parts = client.read(lambda sdk, at=thread, tag=tag: sdk.runs.stream(at, "agent", input={"tag": tag}, **asked))
            finally:
                proxy.close()
            assert told(parts, tag) == expected, how
            assert server.calls.read_text().splitlines().count(tag) == 1
