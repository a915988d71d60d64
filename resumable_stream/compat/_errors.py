"""Errors as users of httpx-sse catch them."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import httpx_sse

from .. import _twins
from .._errors import ResumableStreamError, UnexpectedContentType

__all__ = ["twin"]


def twin(error: ResumableStreamError, library: ModuleType, request: Any = None, *, natives: tuple[type, ...] = ()) -> Any:
    """The same error with a second type; see `_twins.twin()`. A response that is no event stream is an `SSEError`."""
    if not natives and isinstance(error, UnexpectedContentType):
        natives = _sse_errors(library)
    return _twins.twin(error, library, request, natives=natives)


def _sse_errors(library: ModuleType) -> tuple[type, ...]:
    """httpx-sse's `SSEError` is of httpx only; users of httpx2 catch httpx2's, or its TransportError."""
    native = getattr(library, "SSEError", library.TransportError)
    return (httpx_sse.SSEError,) if issubclass(httpx_sse.SSEError, native) else (httpx_sse.SSEError, native)
