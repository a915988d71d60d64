"""
Which answer the retry of an SDK belongs to, where the request has no `Idempotency-Key`.

    first request ──▶ a key is made for it, and noted in the log under a keyed hash of whose it is, its path and its body
    retry         ──▶ the note ──▶ the key ──▶ the answer that is being made, at any relay over the log

A note is a stream without events, whose head holds the key. It is gone ten minutes after it was made.
"""

from __future__ import annotations

from typing import Final

from .._events import Outcome
from .log import Ending, Existing, Head, Page, StreamLog, Writer

__all__ = ["Retries"]

_AGE: Final = 600.0
"""Seconds in which a retry joins. 600: so long the SDKs wait for an answer before they send the request again."""
_DONE: Final = Ending(outcome=Outcome.COMPLETED)


class Retries:
    """
    The notes of one log.

    Args:
        log: Where they are.
        lease: Seconds that a note may be half made before somebody else cleans up.
    """

    def __init__(self, log: StreamLog, *, lease: float) -> None:
        self._log = log
        self._lease = lease

    async def note(self, id: str, owner: str, key: str) -> None:
        """
        Say which key the retries of a request are to use from now on; the last one said counts.

        Raises:
            LogUnavailable: The log cannot be reached.
        """
        head = Head(content_type="application/octet-stream", framing="raw", owner=owner, fingerprint=key, retention=_AGE)
        answer = await self._log.create(id, head, lease=self._lease)
        if isinstance(answer, Existing) and answer.ending is not None:
            answer = await self._log.create(id, head, lease=self._lease, replaces=answer.epoch)
        # Otherwise somebody notes the same request at this moment: one of the two is as good as the other.
        if isinstance(answer, Writer):
            await self._log.finish(answer, 0, _DONE)

    async def find(self, id: str, owner: str) -> str | None:
        """
        The key that the retries of a request use; `None`: there was no such request in the last ten minutes.

        Raises:
            LogUnavailable: The log cannot be reached.
        """
        page = await self._log.read(id, None, limit_bytes=0)
        return page.head.fingerprint if isinstance(page, Page) and page.head.owner == owner else None
