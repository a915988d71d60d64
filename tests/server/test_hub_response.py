"""A response that follows a stream, without a server: what each server may do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request

from resumable_stream import LogUnavailable, ReaderCut
from resumable_stream.server import Generation, Hub, HubLimits, MemoryLog
from resumable_stream.server.asgi import CHUNK_BYTES, HubResponse

from .virtual import run as run_virtually

Scenario = Callable[[Hub], Awaitable[None]]


def run(scenario: Scenario, **options: Any) -> None:
    async def bounded() -> None:
        async with Hub(options.pop("log", None) or MemoryLog(), **{"flush": 0.0, **options}) as hub:
            await scenario(hub)

    run_virtually(bounded)


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

        async def clean_up() -> None:
            done.append(1)

        response = await client.serve(hub)
        response.background = BackgroundTask(clean_up)
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


# --- a send that begins outside of its task

VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")


class Passes(Client):
    """Sends that do something in the middle of it: one of `BLOCKS`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.gate = asyncio.Event()
        self.began = self.ended = 0
        self.tasks: set[asyncio.Task[Any] | None] = set()
        self.cancelled = 0
        self.shared: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def send(self, message: Any) -> None:
        self.tasks.add(asyncio.current_task())
        assert VARIABLE.get() == "of the request"
        self.began += 1
        try:
            await self._passes()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended += 1
        assert VARIABLE.get() == "of the request"
        self.tasks.add(asyncio.current_task())
        await super().send(message)

    async def _shares(self) -> None:
        await self.shared

    async def _passes(self) -> None:
        match self.how:
            case "not":
                pass
            case "a turn":
                await asyncio.sleep(0)
            case "some turns":
                for _ in range(3):
                    await asyncio.sleep(0)
            case "until something":
                await self.gate.wait()
                await self.gate.wait()
            case "for a future of many":
                other = asyncio.ensure_future(self._shares())
                await self.shared
                await other
            case "within a timeout":
                async with asyncio.timeout(60):
                    await self.gate.wait()
            case "within a scope":
                with anyio.fail_after(60):
                    await anyio.lowlevel.checkpoint()
                    await self.gate.wait()


BLOCKS = [
    "not",
    "a turn",
    "some turns",
    "until something",
    "for a future of many",
    "within a timeout",
    "within a scope",
]


async def follows(hub: Hub, client: Client) -> asyncio.Task[None]:
    VARIABLE.set("of the request")
    response = await client.serve(hub)
    return asyncio.create_task(response(client.scope, client.receive, client.send))


async def counts_to_five(gen: Generation) -> None:
    gen.text("1")
    for n in range(2, 6):
        await gen.wait_steered()
        gen.text(str(n))


@pytest.mark.parametrize("how", BLOCKS)
def test_each_send_is_whole_whatever_it_waits_for(how: str) -> None:
    """It begins in a call of the loop, and goes on in the task of its response: that one is the current task throughout."""

    async def scenario(hub: Hub) -> None:
        await hub.start("s", counts_to_five)
        client = Passes(how)
        task = await follows(hub, client)
        for n in range(1, 6):
            while b'{"text":"%d"}' % n not in client.body:
                await asyncio.sleep(0)
                if client.began > client.ended:
                    # One after the other, however many events come meanwhile.
                    assert client.began == client.ended + 1
                    client.gate.set()
                    if not client.shared.done():
                        # It has two who wait for it.
                        client.shared.set_result(None)
            client.gate.clear()
            client.shared = asyncio.get_running_loop().create_future()
            if n < 5:
                await hub.say("s", "go on")
        client.gate.set()
        client.shared.set_result(None)
        await task
        assert client.body.count(b"data: {") == 6 and client.body.endswith(
            b'event: end\ndata: {"outcome":"completed","applied":4}\n\n'
        )
        assert len(client.tasks) == 1 and None not in client.tasks and task not in client.tasks

    run(scenario)


@pytest.mark.parametrize("how", [each for each in BLOCKS if each not in ("not", "a turn", "some turns")])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("why", ["leaves", "cancelled", "too long"])
def test_a_send_that_blocks_is_cancelled_with_its_response(how: str, turns: int, why: str) -> None:
    """At any moment: before the task has taken it over, and after."""

    async def scenario(hub: Hub) -> None:
        await hub.start("s", counts_to_five)
        client = Passes("not")
        task = await follows(hub, client)
        await client.until(b'{"text":"1"}')
        client.how = how
        await hub.say("s", "go on")
        while client.began == client.ended:  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        match why:
            case "leaves":
                client.left.set()
                await task
            case "cancelled":
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            case "too long":
                (reader,) = hub._readers
                for seconds in (0.0, 61.0):
                    reader.tick(asyncio.get_running_loop().time() + seconds)
                with pytest.raises(ReaderCut, match="took no bytes"):
                    await task
        assert (client.began, client.cancelled) == (client.ended + 1, 1)
        assert not hub._readers
        (followed,) = hub._following._streams.values()
        assert not followed.grown._listeners and not followed.grown._waiters

    run(scenario)


@pytest.mark.parametrize("error", [OSError("left"), RuntimeError("broken")], ids=repr)
@pytest.mark.parametrize("how", BLOCKS)
def test_a_send_that_raises_ends_its_response_and_no_other(error: Exception, how: str) -> None:
    class Raises(Passes):
        raising = False

        async def send(self, message: Any) -> None:
            await super().send(message)
            if self.raising:
                raise error

    async def scenario(hub: Hub) -> None:
        await hub.start("s", counts_to_five)
        broken, other = Raises("not"), Client()
        tasks = [await follows(hub, each) for each in (broken, other)]
        for each in (broken, other):
            await each.until(b'{"text":"1"}')
        broken.how, broken.raising = how, True
        await hub.say("s", "go on")
        await other.until(b'{"text":"2"}')
        broken.gate.set()
        if not broken.shared.done():
            broken.shared.set_result(None)
        if isinstance(error, OSError):
            await tasks[0]
        else:
            with pytest.raises(RuntimeError, match="broken"):
                await tasks[0]
        for n in range(3, 6):
            await hub.say("s", "go on")
            await other.until(b'{"text":"%d"}' % n)
        await tasks[1]
        assert not hub._readers

    run(scenario)


def test_middleware_that_hands_messages_from_task_to_task_gets_every_event() -> None:
    """`BaseHTTPMiddleware` sends into a memory stream of anyio's, which blocks until the other side has taken it."""

    async def scenario(hub: Hub) -> None:
        class Middle(BaseHTTPMiddleware):
            async def dispatch(self, request: Request, call_next: Any) -> Any:
                return await call_next(request)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await (await hub.respond(Request(scope, receive), id="s"))(scope, receive, send)

        await hub.start("s", counts_to_five)
        clients = [Client() for _ in range(3)]
        tasks = [asyncio.create_task(Middle(app)(each.scope, each.receive, each.send)) for each in clients]
        for n in range(1, 6):
            for each in clients:
                await each.until(b'{"text":"%d"}' % n)
            if n < 5:
                await hub.say("s", "go on")
        await asyncio.gather(*tasks)
        assert all(each.body.count(b"data: {") == 6 for each in clients)

    run(scenario)


def test_a_large_event_is_sent_in_pieces_to_who_waits_for_it() -> None:
    async def scenario(hub: Hub) -> None:
        async def large(gen: Generation) -> None:
            gen.text("first")
            await gen.wait_steered()
            await gen.send("x" * (3 * CHUNK_BYTES))
            gen.text("last")

        await hub.start("s", large)
        client = Client()
        task = await follows(hub, client)
        await client.until(b"first")
        await hub.say("s", "go on")
        await task
        sizes = [len(message["body"]) for message in client.sent[1:]]
        assert max(sizes) == CHUNK_BYTES and b"data: " + b"x" * 3 * CHUNK_BYTES in client.body
        assert client.body.index(b"xxx") < client.body.index(b"last")

    run(scenario)
