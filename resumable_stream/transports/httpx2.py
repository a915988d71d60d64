"""Transports for httpx2, which the current SDKs of OpenAI, Anthropic and Google use."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

try:
    import httpx2
except ModuleNotFoundError as error:
    if error.name != "httpx2":
        raise
    raise ImportError(
        "resumable_stream.transports.httpx2 needs httpx2: pip install 'resumable-stream-sdk[httpx2]'; "
        "for a client of httpx use resumable_stream.transports.httpx",
        name="httpx2",
    ) from None

from ._async import AsyncSplicedBody, AsyncSplicingTransport
from ._sync import SplicedBody, SplicingTransport

__all__ = ["AsyncResumableTransport", "ResumableTransport"]


class _Body(SplicedBody, httpx2.SyncByteStream):
    pass


class _AsyncBody(AsyncSplicedBody, httpx2.AsyncByteStream):
    pass


class ResumableTransport(SplicingTransport, httpx2.BaseTransport):
    """
    The transport for an `httpx2.Client`. Everything else is as in `resumable_stream.transports.httpx.ResumableTransport`.

        client = httpx2.Client(transport=ResumableTransport())

    Raises:
        TypeError: An argument has the wrong type or form; the message says what to pass.
    """

    _library: ClassVar[ModuleType] = httpx2
    _body = _Body


class AsyncResumableTransport(AsyncSplicingTransport, httpx2.AsyncBaseTransport):
    """
    The transport for an `httpx2.AsyncClient`, on asyncio and trio.

        client = httpx2.AsyncClient(transport=AsyncResumableTransport())

    Raises:
        TypeError: An argument has the wrong type or form; the message says what to pass.
    """

    _library: ClassVar[ModuleType] = httpx2
    _body = _AsyncBody
