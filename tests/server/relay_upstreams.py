"""A relay in this process, whose upstream is one of the virtual servers of `tests/core/simulation.py`: no sockets, no waiting."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import httpx
from multidict import CIMultiDict

from resumable_stream import LogUnavailable, _api
from resumable_stream._contract import Request
from resumable_stream.server import MemoryLog, Relay
from resumable_stream.server._relay_upstream import Trouble
from resumable_stream.transports import _verbatim

from ..core.simulation import Failure, Reply, Sent

KEY = "sk-secret-of-one-client"
AUTH = {"authorization": f"Bearer {KEY}"}


class Prompt(_api.Options):
    """Tries again at once."""

    def settings(self, **options: Any) -> Any:
        return replace(super().settings(**options), jitter=lambda: 0.0, delay=lambda state: None if state.attempt >= 5 else 0.0)


def without_waits(monkeypatch: Any) -> None:
    monkeypatch.setattr(_verbatim, "Options", Prompt)


class _Content:
    """What aiohttp has of a body. A step may be a callable, which is called, and awaited, when the reader gets there."""

    def __init__(self, steps: Sequence[Any]) -> None:
        self._steps = list(steps)
        self._buffer: list[bytes] = []

    async def readany(self) -> bytes:
        while self._steps:
            step = self._steps.pop(0)
            if callable(step):
                await step()
            elif isinstance(step, bytes):
                if step:
                    return step
            elif step == "close":
                return b""
            elif step == "silence":
                raise aiohttp.SocketTimeoutError
            elif isinstance(step, str):
                raise aiohttp.ClientPayloadError(f"an error that names {KEY}")
        return b""


class FakeResponse:
    """An answer as aiohttp has it."""

    def __init__(self, reply: Reply, url: str) -> None:
        head = reply.head(url)
        self.status = head.status
        self.headers = CIMultiDict(head.headers)
        self.raw_headers = tuple((name.encode(), value.encode()) for name, value in head.headers.items())
        self.content = _Content(reply.steps)
        self.content_length: int | None = None
        self.closed = False

    def close(self) -> None:
        self.closed = True


class _Untold:
    """What of the first request was repeated: on the wire nobody can tell, and the fakes ask."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class FakeClient:
    """
    The connections of a relay.

    Attributes:
        sent: What was asked for.
        keys: The API key of each request.
    """

    def __init__(self, server: Callable[[Sent], Any]) -> None:
        self.server = server
        self.sent: list[Sent] = []
        self.keys: list[str | None] = []

    async def open(self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> FakeResponse:
        told = {name.lower(): value for name, value in headers}
        self.keys.append(told.get("authorization"))
        form: dict[str, str] = {}
        if told.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            form, body = dict(parse_qsl(body.decode())), b""
        request = Request(method=method, url=url, repeat=_Untold())  # type: ignore[arg-type]
        sent = Sent(method, url, told, json.loads(body) if body else None, 0.0, None, False, request, form)
        self.sent.append(sent)
        await asyncio.sleep(0)
        reply = self.server(sent)
        if isinstance(reply, Failure):
            raise Trouble(sent=not reply.unsent, timeout=reply.timeout)
        return FakeResponse(reply, url)

    async def aclose(self) -> None:
        """It has none."""

    @property
    def posts(self) -> int:
        """Requests that started something: what costs money."""
        first = self.sent[0]
        return sum((sent.method, sent.path, sent.json) == (first.method, first.path, first.json) for sent in self.sent)


@asynccontextmanager
async def relaying(client: FakeClient, log: Any, origin: str, **options: Any) -> AsyncIterator[tuple[Relay, httpx.AsyncClient]]:
    relay = Relay(origin, log, **{"flush": 0.0, "secret": b"0123456789abcdef", **options})
    async with relay:
        assert relay._client is not None
        await relay._client.aclose()
        relay._client = relay._takeovers.client = client  # type: ignore[assignment]
        transport = httpx.ASGITransport(relay, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://relay", timeout=30.0) as http:
            yield relay, http


def origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def target_of(url: str) -> str:
    return url.removeprefix(origin_of(url)) or "/"


async def ended(relay: Relay, id: str, owner: str) -> Any:
    """How a stream stands when it has ended."""
    for _ in range(20_000):
        state = await relay.hub.state(id, owner=owner)
        if state.ending is not None:
            return state
        await asyncio.sleep(0.001)
    raise AssertionError("it never ended")


async def logged(log: MemoryLog, key: str) -> list[bytes]:
    """The events of a stream, as they are kept."""
    page: Any = await log.read(key)
    found = []
    for span in page.spans:
        at = 0
        for length in span.lengths:
            found.append(span.data[at : at + length])
            at += length
    return found


def owner_of(headers: Mapping[str, str]) -> str:
    from resumable_stream.server._relay_rules import principal_of
    from resumable_stream.server.wire import Facts

    return principal_of(b"0123456789abcdef", Facts("GET", dict(headers), ""))


class Clock:
    """Of a log: a lease is over when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Mortal:
    """A log as one process has it. When the process is dead, nothing reaches the log any more."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)
        if name == "bells" or not callable(found):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            if self.dead:
                raise LogUnavailable("this process is dead")
            return await found(*args, **options)

        return call


class HangingClient(FakeClient):
    """
    Its first answer stops where it would be cut, and nothing more comes.

    Attributes:
        reached: All before that was read.
    """

    def __init__(self, server: Callable[[Sent], Any]) -> None:
        super().__init__(server)
        self.reached = asyncio.Event()

    async def open(self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> FakeResponse:
        response = await super().open(method, url, headers, body)
        if len(self.sent) == 1:
            steps = response.content._steps
            response.content._steps = [each if isinstance(each, bytes) else self._hang for each in steps]
            if self._hang not in response.content._steps:
                response.content._steps.append(self._hang)
        return response

    async def _hang(self) -> None:
        self.reached.set()
        await asyncio.Event().wait()
