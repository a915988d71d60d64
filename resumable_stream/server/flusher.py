"""
Sends the events of all generations of a process to the log, in as few trips as possible.

    node 1     a, b, c ──▶ trip ──▶ trip ──▶ trip          a lane per shard of the log, with one trip at a time
    node 2     d, e ─────▶ ·  ·  ·  no answer yet          delays only d and e
    waiting    f ────────▶ unavailable, back-off, again    only f was unavailable, so no other stream waits for it
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from .._errors import LogUnavailable
from ._backoff import Backoff
from ._signal import Signal
from ._tasks import Tasks
from .generation import Generation
from .log import Append, Appended, Behind, Ended, Fenced, Lost, SpanRefused, StreamLog, Unavailable, shard_of

__all__ = ["Flusher", "Refusal"]

logger = logging.getLogger("resumable_stream.server")

Refusal = Fenced | Ended | Behind | Lost | SpanRefused
"""Answers of a log that did not store a span."""

_VERDICTS: Final = (Appended, Fenced, Ended, Behind, Lost, Unavailable)
_COMPANY: Final = 0.005
"""Seconds by which a stream may go early if another one goes now. 0.005: a fifth of the window, so that streams whose windows end
one after the other share a trip."""
_BATCH_BYTES: Final = 4 << 20
"""Most bytes of a trip, unless one span is larger. 4 MiB: about 40 ms of a local Redis, the longest that other streams wait."""
_IDLE: Final = 60.0
"""Seconds after which an idle lane ends. 60: nodes come and go, and a lane is small."""


class _Lane:
    """Streams whose spans share trips."""

    def __init__(self, shard: str, *, waiting: bool) -> None:
        self.shard = shard
        self.waiting = waiting
        """For streams that were unavailable while others of the shard were not."""
        self.dirty: dict[Generation, None] = {}
        self.wake = Signal()
        self.backoff = Backoff()
        self.away = False
        """The last trip reached none of its streams."""


class Flusher:
    """
    Append spans as they become due.

    Streams of one shard of the log share a lane. A lane sends one trip at a time, so a slow log gets larger spans rather than
    more trips. A stream that is unavailable while others of its shard are not moves to a second lane of that shard, which backs
    off, until it is reached again. If all streams of a trip are unavailable, their lane backs off.

    The waiting data is bounded by the producers, which wait themselves (`pending_bytes`), and the waiting time by `log_timeout`.

    Args:
        log: Receives the spans.
        log_timeout: Seconds that a stream may be unavailable before `on_away` is called for it.
        on_appended: A span is in the log, and may be shown.
        on_refused: The log has given another answer. The generation is not sent again until it is touched.
        on_away: The stream has been out of reach for too long.
        on_back: Called with the key of a stream that can be reached again, before `on_appended`.
    """

    def __init__(
        self,
        log: StreamLog,
        *,
        log_timeout: float,
        on_appended: Callable[[Generation, Append, Appended], None],
        on_refused: Callable[[Generation, Refusal], None],
        on_away: Callable[[Generation], None],
        on_back: Callable[[str], None],
    ) -> None:
        self._log = log
        self._log_timeout = log_timeout
        self._on_appended = on_appended
        self._on_refused = on_refused
        self._on_away = on_away
        self._on_back = on_back
        self._lanes: dict[tuple[str, bool], _Lane] = {}
        self._lane_of: dict[Generation, _Lane] = {}
        # Since when a generation cannot be stored, counted from the attempt: a log that hangs may take long to fail.
        self._since: dict[Generation, float] = {}
        self._tasks = Tasks("what sends spans to the log failed")
        self._started = False

    def touch(self, generation: Generation) -> None:
        """This generation has something to send, or more than before."""
        lane = self._lane_of.get(generation)
        if lane is None:
            self._enter(generation, waiting=False)
        elif generation.is_due_now:
            lane.wake.wake()

    def forget(self, generation: Generation) -> None:
        """Stop sending this generation."""
        self._since.pop(generation, None)
        lane = self._lane_of.pop(generation, None)
        if lane is not None:
            lane.dirty.pop(generation, None)

    async def run(self) -> None:
        """Run until cancelled."""
        self._started = True
        try:
            for lane in list(self._lanes.values()):
                self._tasks.spawn(self._drive(lane))
            await asyncio.get_running_loop().create_future()
        finally:
            await self._tasks.cancel()

    # --- lanes

    def _enter(self, generation: Generation, *, waiting: bool) -> None:
        """Move a generation to a lane."""
        before = self._lane_of.get(generation)
        if before is not None:
            before.dirty.pop(generation, None)
        shard = before.shard if before is not None else shard_of(self._log, generation.writer.stream_id)
        lane = self._lanes.get((shard, waiting))
        if lane is None:
            lane = self._lanes[shard, waiting] = _Lane(shard, waiting=waiting)
            if self._started:
                self._tasks.spawn(self._drive(lane))
        lane.dirty[generation] = None
        self._lane_of[generation] = lane
        lane.wake.wake()

    async def _drive(self, lane: _Lane) -> None:
        loop = asyncio.get_running_loop()
        while await self._due(lane, loop):
            # The same moment for all of them, so that their next windows end together too.
            began = loop.time()
            try:
                batch = self._batch(lane, began)
                sent = not batch or await self._send(lane, batch, loop)
            except Exception as exc:
                # A bug of ours, met with one of them. The others must not wait forever for a dead lane.
                logger.exception("spans could not be sent")
                self._away(lane, type(exc).__name__, began)
                sent = False
            if not sent:
                await lane.backoff.wait()
            elif batch:
                lane.backoff.reset()
        del self._lanes[lane.shard, lane.waiting]

    async def _due(self, lane: _Lane, loop: asyncio.AbstractEventLoop) -> bool:
        """Wait until something is due. False: nothing was for so long that the lane can end."""
        while True:
            dues = [due for generation in lane.dirty if (due := generation.due) is not None]
            if not dues:
                for generation in list(lane.dirty):
                    self.forget(generation)
                # The loop resumes this after the producer that woke it has reached its next wait, so everything sent in one go is
                # one span.
                if not await lane.wake.wait(_IDLE) and not lane.dirty:
                    return False
                continue
            wait = min(dues) - loop.time()
            if wait <= 0:
                return True
            await lane.wake.wait(wait)

    def _batch(self, lane: _Lane, now: float) -> list[tuple[Generation, Append]]:
        batch: list[tuple[Generation, Append]] = []
        size = 0
        for generation in list(lane.dirty):
            due = generation.due
            if due is None:
                self.forget(generation)
            elif due <= now + _COMPANY and size < _BATCH_BYTES:
                item = generation.next_item(now)
                if item is not None:
                    # Move it to the end: a span that does not fit into this trip is the first of the next.
                    lane.dirty[generation] = lane.dirty.pop(generation)
                    batch.append((generation, item))
                    size += 0 if item.span is None else len(item.span.data)
        return batch

    # --- a trip

    async def _send(self, lane: _Lane, batch: list[tuple[Generation, Append]], loop: asyncio.AbstractEventLoop) -> bool:
        """
        Make a trip.

        Returns:
            Whether the next one may follow at once.
        """
        while True:
            began = loop.time()
            try:
                verdicts: Sequence[object] = await self._log.append([item for _, item in batch])
                _check(verdicts, len(batch))
            except LogUnavailable as exc:
                rest = [(generation, item) for generation, item in batch if item.writer.stream_id != exc.stream_id]
                if len(rest) == len(batch):
                    self._away(lane, str(exc), began)
                    return False
                # Only one stream is affected; the others are sent without it.
                for generation, item in batch:
                    if item.writer.stream_id == exc.stream_id:
                        self._unavailable(lane, generation, item, str(exc), began)
                batch = rest
                if batch:
                    continue
                return not lane.waiting
            except SpanRefused as exc:
                # The others of the batch are sent again, and recognised if they were stored.
                for generation, item in batch:
                    if item.writer.stream_id == exc.stream_id and generation.item is item:
                        self._refuse(generation, exc)
                return True
            except Exception as exc:
                # A bug in the log itself. Nothing is known to be stored, so retry as if the log were unavailable.
                logger.exception("the log raised an unexpected error")
                self._away(lane, f"append() raised {type(exc).__name__}", began)
                return False
            break
        if all(isinstance(verdict, Unavailable) for verdict in verdicts):
            self._away(lane, next(verdict.why for verdict in verdicts if isinstance(verdict, Unavailable)), began)
            return False
        self._answered(lane, batch, verdicts)
        for (generation, item), verdict in zip(batch, verdicts, strict=True):
            if isinstance(verdict, Unavailable):
                self._unavailable(lane, generation, item, verdict.why, began)
            elif self._is_current(lane, generation, item):
                if lane.waiting:
                    self._enter(generation, waiting=False)
                if isinstance(verdict, Appended):
                    generation.appended()
                    self._on_appended(generation, item, verdict)
                    if generation.due is None:
                        self.forget(generation)
                else:
                    assert isinstance(verdict, Fenced | Ended | Behind | Lost), "checked"
                    self._refuse(generation, verdict)
        # In the waiting lane, a stream that still waits must not be retried without a pause.
        return not (lane.waiting and any(isinstance(verdict, Unavailable) for verdict in verdicts))

    def _is_current(self, lane: _Lane, generation: Generation, item: Append) -> bool:
        # Fenced or restored meanwhile: answers to the old writer do not matter.
        return generation in lane.dirty and not generation.paused and generation.item is item

    def _answered(self, lane: _Lane, batch: Sequence[tuple[Generation, Append]], verdicts: Sequence[object]) -> None:
        """Some of these streams were reached."""
        back: str | None = None
        for (generation, item), verdict in zip(batch, verdicts, strict=True):
            if not isinstance(verdict, Unavailable) and self._since.pop(generation, None) is not None:
                back = item.writer.stream_id
        if lane.away:
            lane.away = False
            if not lane.waiting:
                logger.info("the log is available again%s", _of(lane.shard))
            # For streams of the next trip, the time starts anew if they fail again.
            for generation in lane.dirty:
                self._since.pop(generation, None)
        if back is not None:
            self._on_back(back)

    def _refuse(self, generation: Generation, refusal: Refusal) -> None:
        self.forget(generation)
        self._on_refused(generation, refusal)

    def _unavailable(self, lane: _Lane, generation: Generation, item: Append, why: str, began: float) -> None:
        """One stream cannot be reached, while others can."""
        if not self._is_current(lane, generation, item):
            return
        if generation not in self._since:
            logger.warning("stream %s cannot be stored now and waits separately: %s", generation.id, why)
        if not lane.waiting:
            self._enter(generation, waiting=True)
        self._wait_longer(generation, began)

    def _away(self, lane: _Lane, why: str, began: float) -> None:
        """None of the streams of a trip can be reached."""
        if not lane.away:
            lane.away = True
            if not lane.waiting:
                logger.warning("the log is unavailable%s; generations wait for it: %s", _of(lane.shard), why)
        for generation in list(lane.dirty):
            self._wait_longer(generation, began)

    def _wait_longer(self, generation: Generation, began: float) -> None:
        since = self._since.setdefault(generation, began)
        if asyncio.get_running_loop().time() - since >= self._log_timeout:
            self.forget(generation)
            self._on_away(generation)


def _check(verdicts: Sequence[object], count: int) -> None:
    if len(verdicts) != count:
        raise ValueError(f"append() got {count} items and must return {count} verdicts, got {len(verdicts)}")
    for verdict in verdicts:
        if not isinstance(verdict, _VERDICTS):
            raise TypeError(
                f"append() must return Appended, Fenced, Ended, Behind, Lost or Unavailable, got {type(verdict).__name__}"
            )


def _of(shard: str) -> str:
    return f" for the streams of {shard}" if shard else ""
