"""A response that follows a stream, without a server: what each server may do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.requests import Request

from resumable_stream import LogUnavailable, ReaderCut
from resumable_stream.server import Generation, Hub, HubLimits, MemoryLog
from resumable_stream.server.asgi import CHUNK_BYTES, HubResponse

Scenario = Callable[[Hub], Awaitable[None]]


def run(scenario: Scenario, **options: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60), Hub(options.pop("log", None) or MemoryLog(), **{"flush": 0.0, **options}) as hub:
            await scenario(hub)

    asyncio.run(bounded())


class Client:
    """The side of the server: what it hands to the app, and what it gets."""

    def __init__(self, query: bytes = b"", *, method: str = "GET", blocks: bool = False) -> None:
        headers: list[tuple[bytes, bytes]] = []
        self.scope = {"type": "http", "method": method, "path": "/s", "query_string": query, "headers": headers}
        self.left = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.got = asyncio.Event()
        self._asked = False
        self._blocks = blocks
        self.raises = False

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        self.got.set()
        if self.raises:
            raise OSError("the client has left")
        if self._blocks and message["type"] == "http.response.body":
            await asyncio.Event().wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    async def serve(self, hub: Hub, **options: Any) -> HubResponse:
        return await hub.respond(Request(self.scope, self.receive), id="s", **options)

    async def until(self, wanted: bytes) -> None:
        while wanted not in self.body:
            self.got.clear()
            await self.got.wait()


async def waits(gen: Generation) -> None:
    gen.text("first")
    await gen.wait_steered()


def test_a_response_that_is_never_sent_holds_no_reader() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        await Client().serve(hub)
        assert not hub._readers

    run(scenario)


def test_who_leaves_ends_the_response_and_its_background_task_runs() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        client, done = Client(), []
        response = await client.serve(hub)
        response.background = BackgroundTask(done.append, 1)
        task = asyncio.create_task(response(client.scope, client.receive, client.send))
        await client.until(b"first")
        client.left.set()
        await task
        assert (done, not hub._readers, task.cancelling()) == ([1], True, 0)
        assert client.sent[-1]["more_body"]

    run(scenario)


def test_who_leaves_while_a_send_blocks_ends_the_response() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        client = Client(blocks=True)
        task = asyncio.create_task((await client.serve(hub))(client.scope, client.receive, client.send))
        await client.until(b"retry")
        client.left.set()
        await task
        assert not hub._readers

    run(scenario)


def test_a_send_that_raises_since_the_client_has_left_is_an_end() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        client = Client()
        task = asyncio.create_task((await client.serve(hub))(client.scope, client.receive, client.send))
        await client.until(b"first")
        client.raises = True
        await hub.say("s", "go on")
        await task
        assert not hub._readers
        assert not hub._readers

    run(scenario)


def test_a_send_that_blocks_too_long_is_cut() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        client = Client(blocks=True)
        with pytest.raises(ReaderCut, match="took no bytes for 0.01 s"):
            await (await client.serve(hub))(client.scope, client.receive, client.send)
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        assert not hub._readers

    run(scenario, send_timeout=0.01, poll=0.01)


def test_a_cancellation_from_outside_goes_on_outside() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        client = Client()
        task = asyncio.create_task((await client.serve(hub))(client.scope, client.receive, client.send))
        await client.until(b"first")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not hub._readers

    run(scenario)


def test_a_cancellation_from_outside_counts_though_the_client_leaves_too() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        client = Client()
        task = asyncio.create_task((await client.serve(hub))(client.scope, client.receive, client.send))
        await client.until(b"first")
        client.left.set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario)


def test_a_reader_that_cannot_be_opened_any_more_is_answered() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        first, second = Client(), Client()
        answers = [await client.serve(hub, extra=[("X-Mine", "yes")]) for client in (first, second)]
        task = asyncio.create_task(answers[0](first.scope, first.receive, first.send))
        await first.until(b"first")
        await answers[1](second.scope, second.receive, second.send)
        assert second.sent[0]["status"] == 503
        assert (b"x-mine", b"yes") in second.sent[0]["headers"]
        assert b"limit_reached" in second.body and not second.sent[1].get("more_body")
        first.left.set()
        await task

    run(scenario, limits=HubLimits(readers_per_stream=1))


def test_a_stream_that_is_forgotten_meanwhile_is_not_there() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        client = Client()
        response = await client.serve(hub)
        await hub.forget("s")
        await response(client.scope, client.receive, client.send)
        assert client.sent[0]["status"] == 404

    run(scenario)


class Away(MemoryLog):
    """A log that goes away while somebody reads."""

    away = False

    async def read(self, *args: Any, **options: Any) -> Any:
        if self.away:
            raise LogUnavailable("the log is away")
        return await super().read(*args, **options)


def test_a_reader_whose_log_goes_away_is_cut() -> None:
    async def scenario(hub: Hub) -> None:
        async def large(gen: Generation) -> None:
            for _ in range(3):
                await gen.send("x" * CHUNK_BYTES)
            await gen.wait_steered()

        await hub.start("s", large)
        client = Client()
        response = await client.serve(hub)
        (followed,) = hub._following._streams.values()
        mirror = followed.follower.mirror
        assert mirror is not None
        while mirror.n < 3:
            await followed.grown.wait(1.0)
        send = client.send

        async def trims(message: Any) -> None:
            # The mirror lets go of what only the log has then.
            mirror.trim(0)
            hub.log.away = True  # type: ignore[attr-defined]
            await send(message)

        client.send = trims  # type: ignore[method-assign]
        with pytest.raises(ReaderCut, match="the log"):
            await response(client.scope, client.receive, client.send)

    run(scenario, log=Away())


def test_no_chunk_is_larger_than_a_tick_can_take() -> None:
    async def scenario(hub: Hub) -> None:
        async def large(gen: Generation) -> None:
            await gen.send("x" * (3 * CHUNK_BYTES))

        await hub.start("s", large)
        client = Client()
        await (await client.serve(hub))(client.scope, client.receive, client.send)
        sizes = [len(message["body"]) for message in client.sent[1:]]
        assert max(sizes) == CHUNK_BYTES and sum(sizes) > 3 * CHUNK_BYTES
        assert client.body.endswith(b'event: end\ndata: {"outcome":"completed"}\n\n')
        assert [message["more_body"] for message in client.sent[1:]] == [True] * (len(sizes) - 1) + [False]

    run(scenario)


def test_a_head_has_no_body() -> None:
    async def scenario(hub: Hub) -> None:
        await hub.start("s", waits)
        client = Client(method="HEAD")
        await (await client.serve(hub))(client.scope, client.receive, client.send)
        assert client.sent[0]["status"] == 200 and client.body == b"" and not hub._readers

    run(scenario)


def test_neither_producer_nor_id_is_a_mistake() -> None:
    async def scenario(hub: Hub) -> None:
        with pytest.raises(ValueError, match="needs a producer to start, or the id"):
            await hub.respond(Request(Client().scope))

    run(scenario)


def test_a_request_can_be_stored_for_whoever_takes_the_stream_over() -> None:
    async def scenario(hub: Hub) -> None:
        stored = []

        async def keeps(gen: Generation) -> None:
            stored.append(gen.request)

        await Client(method="POST").serve(hub, run=keeps, request=b'{"goal": "tea"}')
        async for _ in hub.follow("s"):
            pass
        assert stored == [b'{"goal": "tea"}']

    run(scenario)


@pytest.mark.parametrize(
    ("path", "location"), [("//evil.example.com/chat", "/evil.example.com/chat/s"), ("/a b/ü/", "/a%20b/%C3%BC/s")]
)
def test_where_it_can_be_read_again_is_a_path_of_this_host(path: str, location: str) -> None:
    async def scenario(hub: Hub) -> None:
        client = Client(method="POST")
        client.scope["path"] = path
        response = await hub.respond(Request(client.scope, client.receive), waits, id="s")
        assert response.headers["content-location"] == location

    run(scenario)


def test_a_reader_that_waits_for_a_silent_stream_is_not_cut() -> None:
    """In a view without heartbeats nothing is sent while the producer says nothing, which is not the client's fault."""

    async def scenario(hub: Hub) -> None:
        gate = asyncio.Event()

        async def silent() -> AsyncIterator[str]:
            await gate.wait()
            yield "at last"

        await hub.start("s", silent())
        client = Client(b"view=verbatim")
        task = asyncio.create_task((await client.serve(hub))(client.scope, client.receive, client.send))
        await asyncio.sleep(0.2)  # many times the timeout, and many looks of the clock
        assert not task.done()
        gate.set()
        await task
        assert client.body == b"data: at last\n\n"

    run(scenario, send_timeout=0.01, poll=0.01)
