"""uvicorn, from the extra `server`, imported in one place, so that an error can name the extra."""

from __future__ import annotations

try:
    import uvicorn
except ImportError as error:
    missing = (error.name or "uvicorn").partition(".")[0]
    raise ImportError(f"this command needs {missing}: pip install 'resumable-stream-sdk[cli,server]'", name=missing) from None

__all__ = ["uvicorn"]
