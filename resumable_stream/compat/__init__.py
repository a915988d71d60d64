"""The faces of other libraries over a stream that resumes: change one import."""

from __future__ import annotations

from . import httpx_sse

__all__ = ["httpx_sse"]
