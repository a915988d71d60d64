"""One task that sends what all generations of a process have to the log, in as few trips as it can."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from .._errors import LogUnavailable
from ._backoff import Backoff
from ._signal import Signal
from .generation import Generation
from .log import Append, Appended, Behind, Ended, Fenced, Lost, SpanRefused, StreamLog

__all__ = ["Flusher", "Refusal"]

logger = logging.getLogger("resumable_stream.server")

Refusal = Fenced | Ended | Behind | Lost | SpanRefused
"""What a log answers that did not store a span."""

_COMPANY: Final = 0.005
"""Seconds that a stream may go before its time, if another one goes now. 0.005: a fifth of the window, and streams whose windows
end one after the other do not take a trip each."""
_BATCH_BYTES: Final = 4 << 20
"""Most bytes of a trip, unless one span is larger. 4 MiB: some 40 ms of a local Redis, so the other streams wait no longer."""


class Flusher:
    """
    Append what is due, again and again.

    While a trip is under way nothing else is sent, so a slow log gets wider spans and not more trips.

    Args:
        log: Where to.
        log_timeout: Seconds that the log may be away before `on_away` is called for what waits.
        on_appended: A span is in the log, and may be shown.
        on_refused: The log has answered something else. The generation is not sent again before it is touched.
        on_away: The log is away for too long.
    """

    def __init__(
        self,
        log: StreamLog,
        *,
        log_timeout: float,
        on_appended: Callable[[Generation, Append, Appended], None],
        on_refused: Callable[[Generation, Refusal], None],
        on_away: Callable[[Generation], None],
        on_back: Callable[[], None],
    ) -> None:
        self._log = log
        self._log_timeout = log_timeout
        self._on_appended = on_appended
        self._on_refused = on_refused
        self._on_away = on_away
        self._on_back = on_back
        self._dirty: dict[Generation, None] = {}
        self._wake = Signal()
        self._backoff = Backoff()
        self._away_since: float | None = None
        self._was_away = False

    def touch(self, generation: Generation) -> None:
        """This generation has something to send, or more than before."""
        if generation not in self._dirty:
            self._dirty[generation] = None
            self._wake.wake()
        elif generation.is_due_now:
            self._wake.wake()

    def forget(self, generation: Generation) -> None:
        """Nothing more of this generation is sent."""
        self._dirty.pop(generation, None)

    async def run(self) -> None:
        """Do so for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._due(loop)
            batch, size = [], 0
            # One moment for all of them: their next windows end together, too.
            now = loop.time()
            for generation in list(self._dirty):
                due = generation.due
                if due is None:
                    del self._dirty[generation]
                elif due <= now + _COMPANY and size < _BATCH_BYTES:
                    item = generation.next_item(now)
                    if item is not None:
                        # To the end of the row: what does not fit into this trip is the first of the next.
                        self._dirty[generation] = self._dirty.pop(generation)
                        batch.append((generation, item))
                        size += 0 if item.span is None else len(item.span.data)
            if not batch:
                continue
            began = loop.time()
            try:
                verdicts = await self._log.append([item for _, item in batch])
            except LogUnavailable as exc:
                damaged = [generation for generation, item in batch if item.writer.stream_id == exc.stream_id]
                if damaged and len(batch) > 1:
                    # One stream, not the log: the others go on.
                    self.forget(damaged[0])
                    self._on_away(damaged[0])
                    continue
                await self._away(exc, began)
                continue
            except SpanRefused as exc:
                # The others of the batch are sent again, and known if they were stored.
                for generation, item in batch:
                    if item.writer.stream_id == exc.stream_id and generation.item is item:
                        self._refuse(generation, exc)
                continue
            except Exception as exc:
                # A fault in the log itself. Nothing is known to be stored, so it is tried again like a log that is away.
                logger.exception("the log failed in a way that it should not")
                await self._away(LogUnavailable(f"append() raised {type(exc).__name__}"), began)
                continue
            self._backoff.reset()
            self._away_since = None
            if self._was_away:
                logger.info("the log is back")
                self._was_away = False
                self._on_back()
            for (generation, item), verdict in zip(batch, verdicts, strict=True):
                if generation not in self._dirty or generation.paused or generation.item is not item:
                    # Fenced or written again meanwhile: what the log says to the old writer is no news.
                    continue
                if isinstance(verdict, Appended):
                    generation.appended()
                    self._on_appended(generation, item, verdict)
                    if generation.due is None:
                        self.forget(generation)
                else:
                    self._refuse(generation, verdict)

    def _refuse(self, generation: Generation, refusal: Refusal) -> None:
        self.forget(generation)
        self._on_refused(generation, refusal)

    async def _due(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until something is due."""
        while True:
            dues = [due for generation in self._dirty if (due := generation.due) is not None]
            if not dues:
                self._dirty.clear()
                # It goes on when the loop comes to it, and so after the producer that woke it has come to its next wait: what is
                # sent in one go is one span.
                await self._wake.wait()
                continue
            wait = min(dues) - loop.time()
            if wait <= 0:
                return
            await self._wake.wait(wait)

    async def _away(self, trouble: LogUnavailable, began: float) -> None:
        loop = asyncio.get_running_loop()
        if self._away_since is None:
            # Since it was asked: a log that hangs takes its time to say nothing.
            self._away_since, self._was_away = began, True
            logger.warning("the log is away, generations wait for it: %s", trouble)
        if loop.time() - self._away_since >= self._log_timeout:
            for generation in list(self._dirty):
                self.forget(generation)
                self._on_away(generation)
            # Nobody asks any more, so nobody would notice that it is back: what comes later waits anew.
            self._away_since = None
        await self._backoff.wait()
