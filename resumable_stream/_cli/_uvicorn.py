"""uvicorn, which the extra `server` brings, so that a missing one is named in words that help."""

from __future__ import annotations

try:
    import uvicorn
except ImportError as error:
    missing = (error.name or "uvicorn").partition(".")[0]
    raise ImportError(f"this command needs {missing}: pip install 'resumable-stream-sdk[cli,server]'", name=missing) from None

__all__ = ["uvicorn"]
