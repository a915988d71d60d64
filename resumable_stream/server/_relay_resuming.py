"""
Reads an upstream that can resume through the client half: a broken connection costs only the time to reconnect.

    the request ──▶ upstream: its answer, read by the machine of the client half
    the rest    ──▶ upstream: requested after each break, from the exact event
    blocks, and the place after them ──▶ the generation, in one step

All requests use the relay's own connections. No error here contains a URL, which may hold a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx

from .._errors import LimitReached, ResumableStreamError
from .._events import Outcome
from .._settings import Limits, Timeouts
from ..transports._verbatim import VerbatimStream, read_verbatim
from ._relay_notes import Credentials, Note, Refused, end_of, ending_of, merged
from ._relay_upstream import _BROKEN, Trouble, _arrived, _word
from ._values import MAX_NOTE_BYTES, Ending, check_text
from .generation import GenerationFailed

if TYPE_CHECKING:
    import aiohttp

    from ..protocols import ResumeProtocol
    from ._relay_metrics import Metrics
    from ._relay_upstream import Client
    from .generation import Generation

__all__ = ["Upstream", "follow", "stop"]

_CANCEL: Final = 3.0
"""Seconds that an upstream may take to process a cancel. 3: the hub ends a producer that does not stop within 5."""
_CLOSE: Final = 5.0
"""Seconds to close connections."""
_NOT_UP: Final = frozenset({"host", "connection", "content-length", "transfer-encoding"})


class Upstream:
    """
    One stream of an upstream, read through the client half.

    Args:
        client: The relay's connections.
        mount: Mount of the upstream.
        credentials: What the upstream is shown.
        noted: The headers that describe the first request.
        needs: As in a note.
        connect, idle: Seconds, as for the relay.
        event_bytes: Most bytes of an event.
        count: Called with the number of bytes of each piece of a body.
    """

    def __init__(
        self,
        client: Client,
        mount: str,
        credentials: Credentials,
        noted: tuple[tuple[str, str], ...],
        needs: tuple[str, ...],
        *,
        connect: float,
        idle: float,
        event_bytes: int,
        count: Callable[[int], None],
    ) -> None:
        self.mount = mount
        self.credentials = credentials
        self._client = client
        self._noted = noted
        self._needs = needs
        self._count = count
        self._timeouts = Timeouts(connect=connect, first_event=idle)
        self._limits = Limits(event_bytes=event_bytes, line_bytes=event_bytes, redirects=0)
        self._http: httpx.AsyncClient | None = None

    def begun(
        self, response: aiohttp.ClientResponse, protocol: ResumeProtocol, method: str, url: str, json: Any, content: bytes
    ) -> VerbatimStream:
        """The stream of an answer that has already begun."""
        return read_verbatim(
            self._http_client(url, response),
            method,
            url,
            protocol=protocol,
            json=json,
            content=content,
            headers=_raw(self.credentials.headers),
            timeouts=self._timeouts,
            limits=self._limits,
        )

    def resumed(self, note: Note) -> VerbatimStream:
        """
        The stream of another relay, continued from its note.

        Raises:
            ValueError: This version does not know the protocol.
        """
        return read_verbatim(
            self._http_client(note.place.url, None),
            note.place.method,
            note.place.url,
            checkpoint=note.place,
            headers=_raw(merged(note.headers, self.credentials.headers)),
            timeouts=self._timeouts,
            limits=self._limits,
        )

    def note(self, gen: Generation, stream: VerbatimStream) -> str | None:
        """The note to store with the latest events; `None`: no other relay could continue after them."""
        place = stream.place
        if place is None:
            return None
        try:
            text = check_text("a note", Note(self.mount, place, self._noted, self._needs).text(), limit=MAX_NOTE_BYTES)
        except ValueError:
            # An id or a cursor of the upstream that is not text, or is far too long.
            return None
        gen.continues = True
        return text

    async def aclose(self) -> None:
        """Close everything the stream has open."""
        if self._http is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE):
                    await self._http.aclose()

    def _http_client(self, url: str, first: aiohttp.ClientResponse | None) -> httpx.AsyncClient:
        transport = _Port(self._client, first, self._count, origin=_origin(url), params=self.credentials.params)
        self._http = made = httpx.AsyncClient(transport=transport, trust_env=False)
        # Each request brings its own headers, or none.
        made.headers.clear()
        return made


class _Port(httpx.AsyncBaseTransport):
    """
    The relay's connections as a transport of the client half. The first answer is to a request that was already sent.

    Keys in a query are added here, because httpx logs the URL of each request, and only for the origin of the stream.
    """

    def __init__(
        self,
        client: Client,
        first: aiohttp.ClientResponse | None,
        count: Callable[[int], None],
        *,
        origin: tuple[str, str],
        params: Sequence[tuple[str, str]],
    ) -> None:
        self._origin = origin
        self._params = params
        self._client = client
        self._first = first
        self._count = count

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response, self._first = self._first, None
        if response is None:
            headers = [(name, value) for name, value in _texts(request) if name.lower() not in _NOT_UP]
            content = await request.aread()
            try:
                async with asyncio.timeout(request.extensions.get("timeout", {}).get("read")):
                    response = await self._client.open(request.method, self._with_keys(str(request.url)), headers, content)
            except Trouble as trouble:
                raise _error(trouble) from None
        # Cookies pass in neither direction.
        heads = [(name, value) for name, value in response.raw_headers if name.lower() not in (b"set-cookie", b"set-cookie2")]
        return httpx.Response(response.status, headers=heads, stream=_Bytes(response, self._count))

    def _with_keys(self, url: str) -> str:
        parts = urlsplit(url)
        named = {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
        added = [(name, value) for name, value in self._params if name not in named]
        if not added or _origin(url) != self._origin:
            return url
        return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, urlencode(added))))))

    async def aclose(self) -> None:
        if self._first is not None:
            self._first.close()
            self._first = None


def _origin(url: str) -> tuple[str, str]:
    # As httpx writes it: without the default port of the scheme.
    parts = httpx.URL(url)
    return parts.scheme, parts.netloc.decode("ascii")


class _Bytes(httpx.AsyncByteStream):
    def __init__(self, response: aiohttp.ClientResponse, count: Callable[[int], None]) -> None:
        self._response = response
        self._count = count

    async def __aiter__(self) -> AsyncIterator[bytes]:
        broken = False
        while not broken:
            try:
                data = await self._response.content.readany()
            except _BROKEN:
                data, broken = _arrived(self._response), True
            self._count(len(data))
            if data:
                yield data
            elif not broken:
                return
        raise httpx.ReadError("the upstream broke off the body")

    async def aclose(self) -> None:
        self._response.close()


def _raw(headers: Iterable[tuple[str, str]]) -> Sequence[tuple[Any, Any]]:
    # Encoded as in the first request. httpx accepts text only if it is ASCII.
    return [(name.encode(), value.encode()) for name, value in headers]


def _texts(request: httpx.Request) -> Sequence[tuple[str, str]]:
    found = []
    for name, value in request.headers.raw:
        try:
            text = value.decode()
        except UnicodeDecodeError:
            text = value.decode("latin-1")
        found.append((name.decode("latin-1"), text))
    return found


def _error(trouble: Trouble) -> httpx.TransportError:
    if not trouble.sent:
        return httpx.ConnectTimeout("no connection in time") if trouble.timeout else httpx.ConnectError("no connection")
    return httpx.ReadTimeout("no answer in time") if trouble.timeout else httpx.ReadError("no answer")


async def follow(
    gen: Generation,
    *,
    upstream: Upstream,
    make: Callable[[], VerbatimStream],
    skip: int,
    metrics: Metrics,
    opened: Callable[[], object],
    refused: Callable[[Refused], Awaitable[object]],
) -> Ending:
    """
    Read an upstream that can resume into a generation, until it ends, cannot continue, or is cancelled.

    Args:
        gen: Receives its events, with the place after them.
        upstream: Upstream of the stream.
        make: Makes the stream, not yet open.
        skip: Number of its first events that are already in the log.
        metrics: Counts the end.
        opened: Called when the upstream has answered.
        refused: Called before the stream is released because the upstream refused the credentials.
    """
    ending: Ending | None = Ending(outcome=Outcome.FAILED, reason="shutdown")
    stream: VerbatimStream | None = None
    watching: asyncio.Task[None] | None = None
    try:
        made = stream = make()
        note = functools.partial(upstream.note, gen, made)
        if _is_cancelled(gen):
            await stop(stream)
            ending = _cancelled(gen)
            return ending
        watching = asyncio.get_running_loop().create_task(_stop_when_cancelled(gen, stream))
        try:
            await stream.open()
            opened()
            if not skip:
                await gen.pass_on((), upstream.note(gen, stream))
            while (blocks := await stream.next_blocks()) is not None and not _is_cancelled(gen):
                new, skip = blocks[skip:], max(0, skip - len(blocks))
                if not gen.continues:
                    upstream.note(gen, stream)
                # While the log is ahead of this place, a note would be too old.
                await gen.pass_on(new, None if skip else note)
            ending = _cancelled(gen) if _is_cancelled(gen) else ending_of(stream.outcome)
        except LimitReached:
            raise
        except ResumableStreamError as error:
            if _is_cancelled(gen):
                ending = _cancelled(gen)
                return ending
            found = end_of(error)
            if isinstance(found, Refused):
                if gen.continues:
                    ending = None
                    await refused(found)
                    gen.release()
                found = Ending(outcome=Outcome.FAILED, reason="upstream_refused", error=f"the upstream answered {found.status}")
            ending = found
        return ending
    finally:
        if watching is not None:
            if _is_cancelled(gen):
                # Events may keep coming until the upstream knows of the cancel; whoever deletes a stream waits for nothing else.
                await asyncio.wait({watching}, timeout=_CANCEL)
            watching.cancel()
        if stream is not None:
            metrics.count("relay_resumes_total", stream.stats.reconnects, upstream=upstream.mount)
            with contextlib.suppress(ResumableStreamError):
                await stream.aclose()
        await upstream.aclose()
        if ending is not None:
            outcome, reason = ending.outcome.value, _word(ending.reason)
            metrics.count("relay_streams_total", upstream=upstream.mount, outcome=outcome, reason=reason)


def _is_cancelled(gen: Generation) -> bool:
    # Other tasks change it meanwhile, which a type checker cannot see.
    return gen.cancelled


def _cancelled(gen: Generation) -> Ending:
    return Ending(outcome=Outcome.CANCELLED, reason=(gen.cancel_reason or "cancelled_by_user")[:256])


async def _stop_when_cancelled(gen: Generation, stream: VerbatimStream) -> None:
    with contextlib.suppress(GenerationFailed):
        while not gen.cancelled:
            await gen.wait_steered()
        await stop(stream)
        with contextlib.suppress(ResumableStreamError):
            await stream.aclose()


async def stop(stream: VerbatimStream) -> None:
    """Stop the generation upstream, which continues when its connection closes. Without a way to cancel, it just runs on."""
    with contextlib.suppress(ResumableStreamError, TimeoutError):
        async with asyncio.timeout(_CANCEL):
            await stream.cancel()
