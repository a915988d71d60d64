"""The names used from Starlette (extra `server`), and the error if it is missing."""

from __future__ import annotations

try:
    from starlette.applications import Starlette
    from starlette.datastructures import Headers
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import Response
    from starlette.routing import Route
except ImportError as error:
    missing = (error.name or "starlette").partition(".")[0]
    raise ImportError(
        f"resumable_stream.server.asgi needs {missing}: pip install 'resumable-stream-sdk[server]'", name=missing
    ) from None

__all__ = ["ClientDisconnect", "Headers", "Request", "Response", "Route", "Starlette"]
