"""
`Relayed` over a real hub, behind a proxy that cuts: each provider's answer arrives once and whole, and is made once.

The app is the smallest relay there is: a POST to a provider's path starts a stream, whose producer writes the provider's bytes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

import resumable_stream as rs
from resumable_stream.protocols import Relayed
from resumable_stream.server import Hub, MemoryLog
from resumable_stream.server.asgi import create_app
from resumable_stream.server.log import Head
from resumable_stream.transports.httpx import AsyncResumableTransport, ResumableTransport

from ..protocols.test_relayed import CHAT, GEMINI, LINES, MESSAGES, OLLAMA, PROVIDERS, RESPONSES, Provider, is_event
from .serving import Gate, Served
from .test_every_cut_of_a_hub import AT_ONCE, CuttingProxy

KNOWN = [CHAT, MESSAGES, GEMINI, OLLAMA, RESPONSES]
each_known = pytest.mark.parametrize("provider", KNOWN, ids=lambda provider: provider.name)
each_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
# A few places of each provider, at other bytes of each; the head of an answer has 300 or so.
step = pytest.mark.parametrize("step", [307, pytest.param(5, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])


class Upstream:
    """
    A relay before providers that send what they are told to.

    Attributes:
        provider: What the next answers are.
        upto: So many of its blocks are sent, then the upstream is lost; `None`: all.
        calls: How often a provider was called.
        gate: What the provider waits for in the middle of an answer; `None`: it does not.
    """

    def __init__(self) -> None:
        self.provider = CHAT
        self.upto: int | None = None
        self.calls = 0
        self.gate: Gate | None = None
        self.hub = Hub(MemoryLog(), authorize=self.owner, heartbeat=1.0, cancel_grace=0.2)

    async def owner(self, facts: Any, id: str | None, action: str) -> str | None:
        """Only who shows the same key reads an answer."""
        return facts.headers.get("authorization")

    async def produce(self, gen: Any) -> rs.Outcome:
        self.calls += 1
        blocks, upto = self.provider.blocks, self.upto
        for n, block in enumerate(blocks[:upto]):
            if is_event(block):
                await gen.raw(block)
            if n % 3 == 0:
                # In a few spans, so that a cut may come between replay and live.
                await asyncio.sleep(0.001)
            if self.gate is not None and n == len(blocks) // 2:
                await self.gate.wait()
        if upto is not None:
            raise ConnectionError("the upstream is gone")
        return rs.Outcome.COMPLETED

    def app(self) -> Starlette:
        async def start(request: Request) -> Response:
            kind = self.provider.kind
            head = Head(content_type=kind, framing="sse" if kind != LINES else "ndjson")
            verbatim = Request({**request.scope, "query_string": b"view=verbatim"}, request.receive)
            id = request.headers.get("idempotency-key") or f"a{self.calls}"
            return await self.hub.respond(verbatim, self.produce, id=id, location=f"/.relay/streams/{id}", head=head)

        routes = [Mount("/.relay", create_app(self.hub)), Route("/{path:path}", start, methods=["POST"])]
        return Starlette(routes=routes, lifespan=self.hub.lifespan)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Upstream, Served]]:
    upstream = Upstream()
    with Served(upstream.app()) as one:
        yield upstream, one


@pytest.fixture
def relay(served: tuple[Upstream, Served]) -> Iterator[tuple[Upstream, Served]]:
    upstream, one = served
    upstream.calls_before = upstream.calls  # type: ignore[attr-defined]
    yield upstream, one
    upstream.upto = upstream.gate = None


AUTH = {"authorization": "Bearer s3cret"}


def path_of(provider: Provider) -> str:
    return httpx.URL(provider.url).raw_path.decode()


async def everywhere(proxy: CuttingProxy, step: int, begin: int, provider: Provider, read: Any) -> int:
    """Read an answer cut at or shortly after byte `begin`, and each `step` bytes further. Returns how often it was read."""
    times = 0
    for place in proxy.everywhere(begin + PROVIDERS.index(provider) * 43 % step, step):
        await read(f"cut after byte {place}")
        times += 1
    return times


@step
@each_known
def test_a_named_one_is_whole_and_paid_once_wherever_it_is_cut(
    relay: tuple[Upstream, Served], provider: Provider, step: int
) -> None:
    """From the first byte of the head on."""
    upstream, one = relay
    upstream.provider, before = provider, upstream.calls

    async def scenario() -> None:
        async with CuttingProxy([one.url]) as proxy:

            async def read(place: str) -> None:
                url = proxy.url + path_of(provider)
                protocol = Relayed(provider.protocol)
                stream = rs.aconnect("POST", url, json=provider.body, headers=AUTH, protocol=protocol, retry=AT_ONCE)
                async with stream:
                    data = [event.data async for event in stream]
                assert (data, stream.outcome) == (provider.data, rs.Outcome.COMPLETED), place

            times = await everywhere(proxy, step, 1, provider, read)
            assert upstream.calls - before == times

    asyncio.run(scenario())


@step
@each_provider
def test_a_detected_one_is_whole_wherever_its_body_is_cut(relay: tuple[Upstream, Served], provider: Provider, step: int) -> None:
    upstream, one = relay
    upstream.provider = provider

    async def scenario() -> None:
        async with CuttingProxy([one.url]) as proxy:

            async def read(place: str) -> None:
                url = proxy.url + path_of(provider)
                stream = rs.aconnect("POST", url, json=provider.body, headers=AUTH, retry=AT_ONCE)
                async with stream:
                    data = [event.data async for event in stream]
                assert (data, stream.outcome) == (provider.data, rs.Outcome.COMPLETED), place
                assert repr(stream.protocol).startswith(f"<Relayed({provider.name})"), place

            # Behind any head.
            await everywhere(proxy, step, 600, provider, read)

    asyncio.run(scenario())


@step
@each_known
def test_below_an_sdk_too(relay: tuple[Upstream, Served], provider: Provider, step: int) -> None:
    """Named, async: the bytes of the answer, head lost or not."""
    upstream, one = relay
    upstream.provider, before = provider, upstream.calls
    whole = b"".join(block for block in provider.blocks if is_event(block))

    async def scenario() -> None:
        transport = AsyncResumableTransport(httpx.AsyncHTTPTransport(), protocols=[Relayed(provider.protocol)], retry=AT_ONCE)
        async with CuttingProxy([one.url]) as proxy, httpx.AsyncClient(transport=transport) as client:

            async def read(place: str) -> None:
                response = await client.post(proxy.url + path_of(provider), json=provider.body, headers=AUTH)
                assert (response.status_code, response.content) == (200, whole), place

            times = await everywhere(proxy, step, 1, provider, read)
            assert upstream.calls - before == times

    asyncio.run(scenario())


@each_known
def test_a_failed_upstream_raises(relay: tuple[Upstream, Served], provider: Provider) -> None:
    upstream, one = relay
    upstream.provider, upstream.upto = provider, len(provider.blocks) // 2
    half = [block for block in provider.blocks[: upstream.upto] if is_event(block)]
    with pytest.raises(rs.StreamInterrupted, match="ended as failed") as caught:
        with rs.connect("POST", one.url + path_of(provider), json=provider.body, headers=AUTH, retry=AT_ONCE) as stream:
            list(stream)
    assert caught.value.checkpoint is not None and caught.value.checkpoint.offset == len(half)
    with httpx.Client(transport=ResumableTransport(retry=AT_ONCE)) as client, pytest.raises(httpx.TransportError) as below:
        client.post(one.url + path_of(provider), json=provider.body, headers=AUTH)
    assert isinstance(rs.error_of(below.value), rs.StreamInterrupted)


def test_a_token_continues_while_the_answer_is_being_made(relay: tuple[Upstream, Served]) -> None:
    upstream, one = relay
    upstream.provider, upstream.gate = CHAT, Gate()
    with rs.connect("POST", one.url + path_of(CHAT), json=CHAT.body, headers=AUTH) as stream:
        before = [next(stream).data for _ in range(3)]
    upstream.gate.open()
    with rs.resume(stream.token, origin=one.url, headers=AUTH, retry=AT_ONCE) as again:
        assert before + [event.data for event in again] == CHAT.data
    assert again.outcome is rs.Outcome.COMPLETED
    assert stream.token.count("s3cret") == 0


def test_another_key_gets_nothing(relay: tuple[Upstream, Served]) -> None:
    upstream, one = relay
    upstream.provider, upstream.gate = CHAT, Gate()
    with rs.connect("POST", one.url + path_of(CHAT), json=CHAT.body, headers=AUTH) as stream:
        next(stream)
    upstream.gate.open()
    with pytest.raises(rs.CursorExpired, match="not yours"):
        with rs.resume(stream.token, origin=one.url, headers={"authorization": "Bearer other"}) as again:
            next(again)


def test_cancelling_stops_the_answer(relay: tuple[Upstream, Served]) -> None:
    upstream, one = relay
    upstream.provider, upstream.gate = CHAT, Gate()
    with rs.connect("POST", one.url + path_of(CHAT), json=CHAT.body, headers=AUTH, retry=AT_ONCE) as stream:
        place = stream.checkpoint
        next(stream)
        stream.cancel()
    # The provider still waits, so it is the cancellation that ends it.
    with pytest.raises(rs.StreamInterrupted, match="cancelled"):
        with rs.resume(place, origin=one.url, headers=AUTH, retry=AT_ONCE) as again:
            list(again)


def test_two_who_start_with_one_key_are_answered_once(relay: tuple[Upstream, Served]) -> None:
    upstream, one = relay
    upstream.provider, before = CHAT, upstream.calls
    found: list[list[str]] = []

    def read() -> None:
        headers = {**AUTH, "Idempotency-Key": "both"}
        with rs.connect("POST", one.url + path_of(CHAT), json=CHAT.body, headers=headers, retry=AT_ONCE) as stream:
            found.append([event.data for event in stream])

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(200)
    assert (found, upstream.calls - before) == ([CHAT.data] * 8, 1)
