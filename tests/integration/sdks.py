"""
An SDK over a client with the transport, over real sockets: what its tests share.

A test is written once, as `async def` with `row`, like those of the drivers (tests/conftest.py). SDKs have a sync and an async
class of everything, so `now()`, `each()` and `opened()` take either.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, get_args

import pytest

import resumable_stream as rs
from benchmarks.wires import CUT_AT, WORDS, Wire
from resumable_stream.testing import Fault, RecordedRequest
from resumable_stream.testing.faults import How

if TYPE_CHECKING:
    from tests.conftest import Row

HOWS: Final[Sequence[How]] = get_args(How)
SILENCE: Final = 0.3  # the SDK's read timeout where the server falls silent; seconds
PATIENCE: Final = 10.0  # and elsewhere
NO_WAITS: Final = rs.RetryPolicy(wait=lambda state: 0.0)


def rows(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", names, indirect=True)


def drops(names: Sequence[str], *reads: Any) -> pytest.MarkDecorator:
    """
    Each way of dropping, for the first reader in all rows, for the others in two of them. Silence takes time, so it is rarer.

    Args:
        names: Rows, sync on httpx2 and asyncio among them.
        reads: Readers.
    """
    few = [name for name in names if name in ("sync-httpx2", "asyncio-httpx2")] or names
    cases = [
        pytest.param(name, how, read, id=f"{read.__name__}-{name}-{how}")
        for read in reads
        for name in (names if read is reads[0] else few)
        for how in HOWS
        if how != "silence" or (read is reads[0] and name in few)
    ]
    return pytest.mark.parametrize(("row", "how", "read"), cases, indirect=["row"])


# --- sync or async


async def now(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def each(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__aiter__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


async def first(stream: Any) -> Any:
    """The first item, without an async generator that would be left open."""
    return next(stream) if hasattr(stream, "__next__") else await anext(stream)


@contextlib.asynccontextmanager
async def opened(thing: Any) -> AsyncIterator[Any]:
    if hasattr(thing, "__aenter__"):
        async with thing as inner:
            yield inner
    else:
        with thing as inner:
            yield inner


# --- clients


@functools.cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def transport(row: Row, **options: Any) -> Any:
    """Our transport of the row, over the library's own."""
    module = importlib.import_module(f"resumable_stream.transports.{row.family}")
    ours, theirs = ("ResumableTransport", "HTTPTransport") if row.sync else ("AsyncResumableTransport", "AsyncHTTPTransport")
    below = getattr(row.module, theirs)(verify=_context())
    return getattr(module, ours)(below, **{"retry": NO_WAITS, **options})


def client(row: Row, *, through: bool = True, streams: list[Any] | None = None, **options: Any) -> Any:
    """
    A client of the row's library.

    Args:
        through: With the transport.
        streams: Gets the stream below each response.
        options: Of the transport.
    """
    found: list[Any] = [] if streams is None else streams

    def look(response: Any) -> None:
        found.append(rs.stream_of(response))

    async def look_async(response: Any) -> None:
        look(response)

    hooks = {"response": [look if row.sync else look_async]} if through else {}
    way = {"transport": transport(row, **options)} if through else {"verify": _context()}
    return row.client_class(**way, trust_env=False, event_hooks=hooks)


# --- runs


@dataclass
class Ran:
    """
    What came of it.

    Attributes:
        got: What the caller had when it ended, in the SDK's objects.
        result: What the reader returned.
        error: What the SDK raised.
        streams: Those below the responses; `None` for one that was no stream.
        requests: What the server was asked.
    """

    got: list[Any] = field(default_factory=list)
    result: Any = None
    error: Exception | None = None
    streams: list[Any] = field(default_factory=list)
    requests: list[RecordedRequest] = field(default_factory=list)

    @property
    def posts(self) -> list[RecordedRequest]:
        return [request for request in self.requests if request.method == "POST"]

    def __eq__(self, other: object) -> bool:
        """The same to the caller."""
        return isinstance(other, Ran) and self.seen() == other.seen()

    def seen(self) -> Any:
        error = self.error
        told = error and (type(error), str(error), getattr(error, "body", None), getattr(error, "status_code", None))
        return self.got, self.result, told


Read = Callable[[Any, list[Any]], Awaitable[Any]]
"""Reads an answer with an SDK's client, into the list."""
Make = Callable[..., Any]
"""Of the row, the server, a client and a timeout: an SDK's client."""


async def run(
    make: Make,
    read: Read,
    row: Row,
    wire: Wire,
    *faults: Fault | None,
    through: bool = True,
    timeout: float = PATIENCE,
    sdk: dict[str, Any] | None = None,
    **options: Any,
) -> Ran:
    """Read an answer whose first connections are disturbed by `faults`."""
    ran = Ran()
    with wire.serve(*faults) as server:
        http = client(row, through=through, streams=ran.streams, **options)
        try:
            async with opened(http), opened(make(row, server, http, timeout, **(sdk or {}))) as made:
                ran.result = await read(made, ran.got)
        except Exception as error:
            ran.error = error
        ran.requests = list(server.requests)
    return ran


async def cut(make: Make, read: Read, row: Row, wire: Wire, how: How, **options: Any) -> Ran:
    """Read an answer that is cut at token 150."""
    return await run(make, read, row, wire, wire.cut(how), timeout=SILENCE if how == "silence" else PATIENCE, **options)


_wholes: dict[tuple[Read, bytes], Ran] = {}


async def undisturbed(make: Make, read: Read, row: Row, wire: Wire) -> Ran:
    """What an SDK makes of the whole answer, without us. The same in every row, so it is read once."""
    key = read, b"".join(wire.frames)
    if key not in _wholes:
        _wholes[key] = ran = await run(make, read, row, wire, through=False)
        assert ran.error is None, ran.error
        assert len(ran.requests) == 1
    return _wholes[key]


# --- what must be true


def assert_whole(ran: Ran, whole: Ran) -> None:
    """The SDK's objects are those of an answer that was not cut, and it was paid once."""
    assert ran.error is None, ran.error
    assert ran == whole
    assert len(ran.posts) == 1
    assert ran.streams[0].outcome is rs.Outcome.COMPLETED
    assert ran.streams[0].stats.reconnects == 1


REASONS: Final = {"clean": "closed before the end", "clean_inside": "closed inside an event", "silence": "idle"}


def assert_honest(ran: Ran, wire: Wire, how: How, words: Callable[[list[Any]], Sequence[str]]) -> rs.ResumableStreamError:
    """It raises, behind the 150 tokens that came, and nothing was sent twice."""
    ours = rs.error_of(ran.error) if ran.error is not None else None
    assert isinstance(ours, rs.StreamInterrupted), (ran.error, len(ran.got))
    assert str(ours.reason).startswith(REASONS.get(how, "connection lost"))
    assert ours.checkpoint is not None
    assert ours.checkpoint.offset == wire.behind
    assert words(ran.got) == WORDS[:CUT_AT]
    assert len(ran.posts) == 1
    return ours
