"""
For use below an SDK: transports for httpx and httpx2 whose streams survive the loss of their connection.

    from resumable_stream.transports.httpx import ResumableTransport      # or .httpx2

    client = httpx.Client(transport=ResumableTransport())

There are two modules so that each imports only its own library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._splice import EXTENSION

if TYPE_CHECKING:
    from .._drivers.async_ import AsyncResumableStream
    from .._drivers.sync import ResumableStream

__all__ = ["stream_of"]

_NAMES = ("response", "http_response", "_response")


def stream_of(response: Any) -> ResumableStream | AsyncResumableStream | None:
    """
    The stream below a response that came through one of the transports.

    Args:
        response: The library's response, or an SDK's object that has it as `response` or `http_response`; litellm's wrapper of
            such an object is accepted too.

    Returns:
        The stream (for an async client, the async one), to inspect: `.checkpoint`, `.token`, `.stats`, `.outcome`, `.protocol`,
            and `cancel()`. The SDK reads it, so do not iterate it; with a sync client, inspect it from the thread that reads.
            `None`: the response is not a stream and was passed on unchanged.

    Raises:
        TypeError: The object is not a response, and has none.
    """
    inner = getattr(response, "completion_stream", None)
    for found in (each for outer in (response, inner) for each in (outer, *(getattr(outer, name, None) for name in _NAMES))):
        extensions = getattr(found, "extensions", None)
        if isinstance(extensions, dict):
            return extensions.get(EXTENSION)
    raise TypeError(f"expected a response of httpx or httpx2, or an object that has one, got {type(response).__name__}")
