"""Transports for httpx: what an SDK reads through them continues exactly where it stopped."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

import httpx

from ._async import AsyncSplicedBody, AsyncSplicingTransport
from ._sync import SplicedBody, SplicingTransport

__all__ = ["AsyncResumableTransport", "ResumableTransport"]


class _Body(SplicedBody, httpx.SyncByteStream):
    pass


class _AsyncBody(AsyncSplicedBody, httpx.AsyncByteStream):
    pass


class ResumableTransport(SplicingTransport, httpx.BaseTransport):
    """
    An httpx transport whose streams survive the loss of their connection. The SDK above sees one uninterrupted body.

        client = httpx.Client(transport=ResumableTransport())

    Streams (`text/event-stream`, JSON lines) are spliced: whole events only, their bytes as they came, across reconnects.
    Everything else passes through untouched, and so does any response that is an error; before a stream has begun nothing
    is tried again here, that is the SDK's. (But for a named protocol whose server joins a repeated start, as `Relayed` does.)

    A cut that cannot be resumed raises what httpx raises there, also after a clean close without the protocol's end.
    The exception is ours too: `resumable_stream.error_of()` finds it behind the SDK's, with its checkpoint.

    Args:
        next_transport: What sends the requests. Default: `httpx.HTTPTransport()`. A client that is given a transport makes
            none of its own, so its proxies, certificates and limits are those of this one.
        protocols: Instances from `resumable_stream.protocols`, asked before the detection; or a callable of the request that
            names one, or `None` for the detection.
        retry: When to reconnect, and when to give up. Default: `RetryPolicy()`.
        timeouts: Clocks in seconds. Default: `Timeouts()`. The SDK's own read and connect timeouts apply where they are shorter.
        limits: What a stream may hold; a body holds as much again.
        refresh: Called with each request before it is sent to reconnect, for a fresh token; returns the request to send.
            Auth of the client is applied above a transport, so without this the first request's headers are sent again.
        store: Where streams are kept; goes with `key`. If it keeps events, a request whose key is known is answered from it,
            and continued. Default: nothing is kept.
        key: A callable of the request that names its stream in the store, such as `resumable_stream.request_key`; `None` from it:
            not kept. The answer to another request (method, URL, body) under that name is a `StoreError`.
        observer: Called with a small frozen notice at each reconnect, gap, duplicate; inline, so be quick.
        upgrade_background: Turn a streaming call of OpenAI's Responses API into a background one, which can be resumed. OpenAI
            keeps such a response; a call with `store: false` is left alone.
        on_lost: Half an answer in the store that cannot be continued: `"raise"` hands the half on, and then raises; `"restart"`
            sends the request, which may be paid again, and replaces the half.

    Raises:
        TypeError: An argument is not what it should be; the message says what to pass.
    """

    _library: ClassVar[ModuleType] = httpx
    _body = _Body


class AsyncResumableTransport(AsyncSplicingTransport, httpx.AsyncBaseTransport):
    """
    `ResumableTransport` for an `httpx.AsyncClient`, on asyncio and trio. `refresh` may be a coroutine function.

        client = httpx.AsyncClient(transport=AsyncResumableTransport())

    Raises:
        TypeError: An argument is not what it should be; the message says what to pass.
    """

    _library: ClassVar[ModuleType] = httpx
    _body = _AsyncBody
