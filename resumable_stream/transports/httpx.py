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
    Everything else passes through unchanged, and so does any error response. Before a stream has begun nothing is retried
    here; that is left to the SDK. (The exception is a named protocol whose server joins a repeated start, such as `Relayed`.)

    A cut that cannot be resumed raises what httpx raises there, even after a clean close without the protocol's end.
    The exception is also ours: `resumable_stream.error_of()` finds it in the SDK's error, with its checkpoint.

    Args:
        next_transport: The transport that sends the requests. Default: `httpx.HTTPTransport()`. A client with a given transport
            does not make its own, so set proxies, certificates and limits on this one.
        protocols: Instances from `resumable_stream.protocols`, asked before the detection; or a callable of the request that
            returns one, or `None` for the detection.
        retry: When to reconnect, and when to give up. Default: `RetryPolicy()`.
        timeouts: Clocks in seconds. Default: `Timeouts()`. The SDK's own read and connect timeouts apply if they are shorter.
        limits: How much a stream may hold; a body holds as much again.
        refresh: Called with each reconnect request before it is sent, for a fresh token; returns the request to send.
            The client applies its auth above the transport, so without this the first request's headers are sent again.
        store: Where streams are kept; used with `key`. If it keeps events, a request whose key is known is answered from it,
            and continued. Default: nothing is kept.
        key: A callable of the request that names its stream in the store, such as `resumable_stream.request_key`; `None` from it:
            not kept. If the name already holds the answer to another request (method, URL, body), that is a `StoreError`.
        observer: Called with a small frozen notice of each reconnect, gap and duplicate. The call is inline, so keep it short.
        upgrade_background: Turn a streaming call of OpenAI's Responses API into a background one, which can be resumed. OpenAI
            stores such a response; a call with `store: false` is not changed.
        on_lost: What to do with a partial answer in the store that cannot be continued. `"raise"` delivers it and then raises;
            `"restart"` sends the request again, which may be billed again, and replaces the partial answer.

    Raises:
        TypeError: An argument has the wrong type or form; the message says what to pass.
    """

    _library: ClassVar[ModuleType] = httpx
    _body = _Body


class AsyncResumableTransport(AsyncSplicingTransport, httpx.AsyncBaseTransport):
    """
    `ResumableTransport` for an `httpx.AsyncClient`, on asyncio and trio. `refresh` may be a coroutine function.

        client = httpx.AsyncClient(transport=AsyncResumableTransport())

    Raises:
        TypeError: An argument has the wrong type or form; the message says what to pass.
    """

    _library: ClassVar[ModuleType] = httpx
    _body = _AsyncBody
