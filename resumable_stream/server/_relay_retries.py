"""
Finds the answer that an SDK's retry belongs to, if the request has no `Idempotency-Key`.

    first request ──▶ a key is made for it, and noted in the log under a keyed hash of its owner, path and body
    retry         ──▶ the note ──▶ the key ──▶ the answer that is being made, at any relay over the log

A note is a stream without events, whose head holds the key. It expires ten minutes after it was made.
"""

from __future__ import annotations

from typing import Final

from .._events import Outcome
from .log import Ending, Existing, Head, Page, StreamLog, Writer

__all__ = ["Retries"]

_AGE: Final = 600.0
"""Seconds in which a retry joins. 600: how long the SDKs wait for an answer before they send the request again."""
_DONE: Final = Ending(outcome=Outcome.COMPLETED)


class Retries:
    """
    The notes of one log.

    Args:
        log: The log that holds them.
        lease: Seconds after which another process may clean up an incomplete note.
    """

    def __init__(self, log: StreamLog, *, lease: float) -> None:
        self._log = log
        self._lease = lease

    async def note(self, id: str, owner: str, key: str) -> None:
        """
        Set the key that retries of a request use from now on; the newest key counts.

        Raises:
            LogUnavailable: The log cannot be reached.
        """
        head = Head(content_type="application/octet-stream", framing="raw", owner=owner, fingerprint=key, retention=_AGE)
        answer = await self._log.create(id, head, lease=self._lease)
        if isinstance(answer, Existing) and answer.ending is not None:
            answer = await self._log.create(id, head, lease=self._lease, replaces=answer.epoch)
        # Otherwise another process is noting the same request right now: either note will do.
        if isinstance(answer, Writer):
            await self._log.finish(answer, 0, _DONE)

    async def find(self, id: str, owner: str) -> str | None:
        """
        The key that retries of a request use; `None`: there was no such request in the last ten minutes.

        Raises:
            LogUnavailable: The log cannot be reached.
        """
        page = await self._log.read(id, None, limit_bytes=0)
        return page.head.fingerprint if isinstance(page, Page) and page.head.owner == owner else None
