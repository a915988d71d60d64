"""
The upstream side of a relay: a request is sent once, and its answer is passed on, or read into a generation.

Only this module imports aiohttp (extra `relay`), which takes the least time per token among the well-maintained clients.

No error of aiohttp is logged, or becomes the cause of one of ours: its text may contain a URL, and a URL may hold a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

try:
    import aiohttp
    from yarl import URL
except ImportError as error:
    missing = (error.name or "aiohttp").partition(".")[0]
    raise ImportError(
        f"resumable_stream.server.Relay needs {missing}: pip install 'resumable-stream-sdk[relay]'", name=missing
    ) from None

from .._errors import ReaderCut
from .._events import Outcome
from ._relay_rules import headers_down
from ._values import Ending
from .asgi import left
from .generation import GenerationFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from starlette.types import Receive, Scope, Send

    from ._relay_metrics import Metrics
    from ._relay_reading import UpstreamReading
    from .generation import Generation

__all__ = ["Begun", "Client", "Passed", "Trouble", "collected", "pump"]

_LINGER: Final = 5.0
"""Seconds that an upstream may take to close a body after the last event. 5: at most a line feed follows."""
_KEEP_ALIVE: Final = 3.0
"""
Seconds that an idle connection is kept. 3: less than usual servers keep it. If the server closes it while a request is under way,
that request fails, because a POST is not sent again.
"""
_BROKEN: Final = (aiohttp.ClientError, OSError)
"""Errors of a broken connection, including timeouts."""
_REASONS: Final = frozenset(
    {
        "abandoned", "shutdown", "too_long", "upstream_cancelled", "upstream_cut", "upstream_error", "upstream_gone",
        "upstream_refused", "upstream_reported",
    }
)  # fmt: skip
_SKIP: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


class Trouble(Exception):
    """
    An upstream gave no answer. Not an error of this package: the answer is a 502 or 504.

    Attributes:
        sent: The request may have arrived, so the work may be done and billed.
        timeout: The wait was long enough.
        why: For the log: the kind of the error, and the system's message. Contains nothing of the URL.
    """

    def __init__(self, *, sent: bool, timeout: bool, why: str = "") -> None:
        super().__init__(sent, timeout)
        self.sent = sent
        self.timeout = timeout
        self.why = why or "the relay gave up"

    @classmethod
    def of(cls, error: Exception, *, sent: bool) -> Trouble:
        """What an error of aiohttp means for a request. Its text is dropped because it contains a URL."""
        why = type(error).__name__
        number = getattr(error, "errno", None)
        if isinstance(number, int) and number in errno.errorcode:
            # A name that cannot be resolved has a number from another list; the name of its error says as much.
            why += f" ({os.strerror(number)})"
        return cls(sent=sent, timeout=isinstance(error, TimeoutError), why=why)


class Client:
    """
    Connections to upstreams. Make it in the event loop, and close it.

    Args:
        connect: Most seconds to connect.
        idle: Most seconds an upstream may send nothing.
    """

    def __init__(self, *, connect: float, idle: float) -> None:
        self._session = aiohttp.ClientSession(
            # The relay limits their number itself; a limit here would make requests wait.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_SKIP,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=idle),
            trust_env=False,
        )

    async def open(self, method: str, url: str, headers: Sequence[tuple[str, str]], body: bytes) -> aiohttp.ClientResponse:
        """
        Send a request, and wait for the head of its answer. Redirects are not followed: they would send the key elsewhere.

        Raises:
            Trouble: There was no answer.
        """
        try:
            return await self._session.request(
                method, URL(url, encoded=True), headers=headers, data=body or None, allow_redirects=False
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as exc:
            raise Trouble.of(exc, sent=False) from None
        except (*_BROKEN, ValueError) as exc:
            raise Trouble.of(exc, sent=True) from None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


def _arrived(response: aiohttp.ClientResponse) -> bytes:
    """
    Data that had arrived before a body broke, but was not read.

    aiohttp raises the break before it returns that data, and has no public way to get it: a burst of events just before a reset
    would be lost. If a later version renames its buffer, they are.
    """
    return b"".join(getattr(response.content, "_buffer", ()))


# --- an answer that passes through ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begun:
    """
    An answer to pass on.

    Attributes:
        response: Answer of the upstream.
        first: The part of its body that was already read.
    """

    response: aiohttp.ClientResponse
    first: bytes = b""


async def collected(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """
    Read a body up to a limit.

    Returns:
        The data, and whether it is the whole body.

    Raises:
        Trouble: The upstream broke it off. The response is then closed.
    """
    if (response.content_length or 0) > limit:
        return b"", False
    pieces, size = [], 0
    try:
        while data := await response.content.readany():
            pieces.append(data)
            size += len(data)
            if size > limit:
                return b"".join(pieces), False
    except _BROKEN as exc:
        response.close()
        raise Trouble.of(exc, sent=True) from None
    except BaseException:
        response.close()
        raise
    return b"".join(pieces), True


class Passed:
    """
    An answer that is passed on as it arrives, as an ASGI app. A client that leaves closes the upstream, as with any proxy.

    Args:
        begun: Answer of the upstream.
        send_timeout: Seconds that the client may accept no bytes.
        extra: More headers.
        passing: Contains this answer while it is being passed on.
    """

    def __init__(self, begun: Begun, *, send_timeout: float, extra: Sequence[tuple[bytes, bytes]], passing: set[object]) -> None:
        self._response = begun.response
        self._first = begun.first
        self._send_timeout = send_timeout
        self._extra = tuple(extra)
        self._passing = passing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = self._response
        self._passing.add(self)
        leaving = asyncio.get_running_loop().create_task(left(receive))
        leaving.add_done_callback(lambda _: response.close())
        try:
            headers = [*headers_down(response.raw_headers), *self._extra]
            await self._send(send, {"type": "http.response.start", "status": response.status, "headers": headers})
            while not leaving.done():
                data, broken = await self._read()
                await self._send(send, {"type": "http.response.body", "body": data, "more_body": bool(data) or broken})
                if broken and not leaving.done():
                    raise ReaderCut("the upstream broke off the body, so it is cut here too")
                if not data:
                    return
        except OSError:
            # From a send: newer servers raise it when the client has left.
            pass
        finally:
            self._passing.discard(self)
            leaving.cancel()
            response.close()

    async def _read(self) -> tuple[bytes, bool]:
        if self._first:
            first, self._first = self._first, b""
            return first, False
        try:
            return await self._response.content.readany(), False
        except _BROKEN:
            return _arrived(self._response), True

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        scope = asyncio.timeout(self._send_timeout)
        try:
            async with scope:
                await send(message)
        except TimeoutError:
            if not scope.expired():
                raise
            raise ReaderCut(f"a client took no bytes for {self._send_timeout:g} s and was cut") from None


# --- a stream that is kept --------------------------------------------------------------------------------------------


async def pump(
    gen: Generation, *, response: aiohttp.ClientResponse, reading: UpstreamReading, metrics: Metrics, mount: str
) -> Ending:
    """
    Read the body of an upstream into a generation, until it ends, breaks, or is cancelled.

    Args:
        gen: Receives its events.
        response: Answer of the upstream; it is closed.
        reading: Splits its body into events.
        metrics: Counts bytes and the end.
        mount: Label for them.
    """
    watching = asyncio.get_running_loop().create_task(_close_when_cancelled(gen, response))
    ending = Ending(outcome=Outcome.FAILED, reason="shutdown")
    arrived = metrics.counter("relay_upstream_bytes_total", upstream=mount)
    read = response.content.readany
    try:
        clean = broken = False
        while not (clean or broken or reading.broken):
            try:
                # aiohttp limits the silence, with a timer of its own.
                data = await (_in_time(read()) if reading.over else read())
                clean = not data
            except _BROKEN:
                data, broken = _arrived(response), True
            arrived(len(data))
            if not gen.cancelled and (events := reading.feed(data)):
                await gen.pass_on(events)
        if gen.cancelled:
            ending = Ending(outcome=Outcome.CANCELLED, reason=(gen.cancel_reason or "cancelled_by_user")[:256])
            return ending
        events, ending = reading.close(clean=clean)
        if events:
            await gen.pass_on(events)
        return ending
    finally:
        watching.cancel()
        response.close()
        metrics.count("relay_streams_total", upstream=mount, outcome=ending.outcome.value, reason=_word(ending.reason))


async def _in_time(read: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(_LINGER):
        return await read


async def _close_when_cancelled(gen: Generation, response: aiohttp.ClientResponse) -> None:
    with contextlib.suppress(GenerationFailed):
        while not gen.cancelled:
            await gen.wait_steered()
        # Closing is the only way to stop a provider that has no cancel call.
        response.close()


def _word(reason: str | None) -> str:
    # The reason of a cancel may be anything, but labels must have few values.
    return reason if reason in _REASONS else ""
