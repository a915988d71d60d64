"""One reader of one stream: a position, and the events after it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol, TypeAlias

from .following import Followed, Following
from .log import Cursor, Ending, Framing, Gone, Page, StreamLog, Unknown, join_spans
from .mirror import CHUNK_BYTES, Mirror, NotHeld, Phase, with_ids
from .texts import TextSoFar

__all__ = ["Reader", "Sink", "View"]

View: TypeAlias = Literal["events", "verbatim", "raw"]
"""With ids; as the producer wrote it, counted in events; or counted in bytes."""

_PRECISE: Final = 2.0
"""Seconds. A shorter wait has its own timer; a longer one may take up to a second more."""
_LOOK: Final = 1.0
"""Seconds before the log is read again when it has lost data that a reader needs. 1: a lease is 15."""
_PAGE: Final = 1 << 20
"""Bytes that are read from the log at once for a reader behind the mirror."""


class Aside:
    """
    Data for the readers of a stream outside its events: a block without an id, so that no reader's position moves.

    Attributes:
        block: The newest block; it replaces earlier ones.
        version: Number of blocks so far; 0: none.
    """

    __slots__ = ("block", "version")

    def __init__(self) -> None:
        self.block = b""
        self.version = 0

    def say(self, block: bytes) -> None:
        """Give this block to every reader next. Wake them, too."""
        self.block = block
        self.version += 1


class Sink(Protocol):
    """Accepts chunks that arrive while nobody awaits them."""

    def take(self, chunk: bytes) -> bool:
        """Accept a chunk, and return whether another one can follow at any time. Called by the loop, outside any task."""
        ...


class Reader:
    """
    Reads one stream from a position on. Close it with `close()`, or use it in a `with` block.

        while chunk := await reader.next(15.0) …       None: silence, a good moment for a heartbeat; b"": over, see why

    Attributes:
        n: Number of the last event returned; for the view `"raw"`, `b` counts instead.
        b: Byte position after the last byte returned, in the view `"raw"`.
        ending: How the stream ended, once everything was returned; `None` before.
        gone: Why nothing more can be read, though the stream did not end; otherwise `None`.
        ahead: The log had gone back before this reader's position when it began. The reader waits, at most a lease, for the
            producer to send the lost events again, and then for another process to take the stream over.
        left: The server is shutting down, or cut off from its log, and sends this reader elsewhere.
        aside: Data outside the events, in the view `"events"`; `None`: nothing.
        watch: Called about every second with the time of the event loop, for the sender.
    """

    __slots__ = (
        "_awaits",
        "_due",
        "_followed",
        "_following",
        "_heard",
        "_hoping_until",
        "_log",
        "_mirror",
        "_open",
        "_pages",
        "_patience",
        "_place",
        "_silent_until",
        "_sink",
        "_view",
        "_waiter",
        "ahead",
        "aside",
        "b",
        "ending",
        "gone",
        "left",
        "n",
        "on_close",
        "watch",
    )

    def __init__(
        self,
        log: StreamLog,
        following: Following,
        followed: Followed,
        mirror: Mirror,
        *,
        view: View,
        n: int,
        b: int = 0,
        awaits: float | None = None,
    ):
        self.n = n
        self.b = b
        self.ending: Ending | None = None
        self.gone: Gone | Unknown | None = None
        self.ahead: Gone | None = None
        self.left = False
        self.aside: Aside | None = None
        self._heard = 0
        self.watch: Callable[[float], None] | None = None
        self._log = log
        self._following = following
        self._followed = followed
        self._mirror = mirror
        self._view = view
        # Until when it waits for a stream that does not exist; `None`: it exists, or did.
        self._awaits = awaits
        # Made when a reader lags: an empty deque is as large as the rest of a reader.
        self._pages: deque[tuple[bytes, int, int]] | None = None
        # In the view "raw": an event, and the byte position after it, up to which the log was read.
        self._place: tuple[int, int] | None = None
        self._open = True
        self._hoping_until: float | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._due = 0.0
        self._silent_until: float | None = None
        self._sink: Sink | None = None
        self._patience: float | None = None
        self.on_close: Callable[[Reader], None] | None = None
        followed.readers += 1
        following.readers.add(self)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading. Calling it twice does no harm."""
        if self._open:
            self._open = False
            self._wait_no_more()
            self._followed.readers -= 1
            self._following.readers.discard(self)
            self._followed.left_at = self._following.now()
            if self._awaits is not None and not self._followed.readers and not self._followed.owned:
                # Keep nothing of a stream that never existed.
                self._following.forget(self._followed.key)
            if self.on_close is not None:
                self.on_close(self)

    @property
    def cursor(self) -> Cursor:
        """The position of this reader: it has everything up to here."""
        return Cursor(self._mirror.epoch, self.n)

    @property
    def followed(self) -> Followed:
        """The stream, as this process follows it."""
        return self._followed

    @property
    def _has_aside(self) -> bool:
        return self.aside is not None and self._heard != self.aside.version and self._view == "events"

    @property
    def framing(self) -> Framing:
        """How the bytes of the stream are split into events."""
        return self._mirror.framing

    @property
    def caught_up(self) -> bool:
        """It has returned everything that this process has of the stream."""
        return not self._pages and (self.b == self._mirror.b if self._view == "raw" else self.n == self._mirror.n)

    @property
    def seen_the_end(self) -> bool:
        """Its position is after the end of the stream, so it has had everything, including the ending."""
        return self._mirror.ending is not None and self.n > self._mirror.n

    def so_far(self, text_of: Any) -> TextSoFar:
        """The text of the stream, as far as it was requested here."""
        followed, mirror = self._followed, self._mirror
        if followed.text is None or followed.text[0] != mirror.epoch:
            followed.text = mirror.epoch, TextSoFar(mirror.framing, text_of)
        return followed.text[1]

    def leave(self) -> None:
        """Let `next()` return the existing data, and then nothing more: another process serves this reader better."""
        self.left = True
        if self._waiter is None:
            self._followed.grown.wake()
        else:
            # Not the others: thousands of readers of one stream would each be woken thousands of times.
            self._followed.grown.discard(self._waiter)
            self._wake()

    async def next(self, timeout: float | None = None) -> bytes | None:
        """
        The next data.

        Args:
            timeout: Most seconds to wait for it; from 2 on, it may take a second more.

        Returns:
            Complete events (or bytes), at most 256 KiB unless one event is larger; `None` after the timeout; `b""` at the end.

        Raises:
            LogUnavailable: The next data is only in the log, which cannot be read.
        """
        self._silent_until = None
        deadline: float | None = None
        while True:
            if self._pages:
                chunk, self.n, b = self._pages.popleft()
                if self._view == "raw":
                    self.b = b
                return chunk
            if self.aside is not None and self._has_aside:
                self._heard = self.aside.version
                return self.aside.block
            if self._awaits is not None and not self._has_begun():
                if self.left or not self._open:
                    return b""
                now = self._following.now()
                if timeout is not None and deadline is None:
                    deadline = now + timeout
                if now >= self._awaits:
                    self.gone = Unknown()
                    return b""
                if deadline is not None and now >= deadline:
                    return None
                if timeout is not None and timeout < _PRECISE and deadline is not None:
                    await self._followed.grown.wait(min(self._awaits, deadline) - now)
                    continue
                waiter = self._wait(min(self._awaits, math.inf if deadline is None else deadline))
                try:
                    await waiter
                finally:
                    self._wait_no_more()
                continue
            follower, mirror = self._followed.follower, self._mirror
            if follower.mirror is not mirror and follower.mirror is not None and not await self._move(follower.mirror):
                return b""
            mirror = self._mirror
            if (self.b != mirror.b) if self._view == "raw" else (self.n != mirror.n):
                try:
                    chunk = self._take(mirror)
                except NotHeld:
                    behind = await self._page()
                    if behind is None:
                        if self._pages:
                            continue
                        return b""
                    if not self._hope(behind):
                        self.gone = behind
                        return b""
                    if self.left or not self._open:
                        return b""
                    wait = _LOOK
                    if timeout is not None:
                        now = self._following.now()
                        deadline = now + timeout if deadline is None else deadline
                        if now >= deadline:
                            return None
                        wait = min(wait, deadline - now)
                    await self._followed.grown.wait(wait)
                    continue
                if chunk:
                    return chunk
            if self.ahead is not None:
                if mirror.n >= self.n:
                    self.ahead = None
                elif mirror.ending is not None or not self._hope(self.ahead):
                    self.gone = self.ahead
                    return b""
            if mirror.ending is not None:
                self.ending = mirror.ending
                return b""
            if self.left:
                # The next process that serves it knows whether it is gone.
                return b""
            if follower.phase is Phase.GONE and not self._hope(follower.gone):
                self.gone = follower.gone or Unknown()
                return b""
            if follower.phase is not Phase.GONE and self.ahead is None:
                self._hoping_until = None
            if not self._open:
                return b""
            if timeout is not None:
                # Over all waits together: each poll of the log wakes readers, and must not delay their heartbeats.
                now = self._following.now()
                deadline = now + timeout if deadline is None else deadline
                if now >= deadline:
                    return None
                if timeout < _PRECISE:
                    await self._followed.grown.wait(deadline - now)
                    continue
            waiter = self._wait(min(math.inf if deadline is None else deadline, self._hoping_until or math.inf))
            try:
                if not await waiter and self._due == deadline:
                    return None
            finally:
                self._wait_no_more()

    def pause(self, timeout: float | None, sink: Sink | None = None) -> asyncio.Future[bool] | None:
        """
        What to await before `next()` has something, for senders with so many readers that a coroutine per wait costs too much.

        Pass its result to `resume()`. To give up instead, close the reader.

        Args:
            timeout: As for `next()`.
            sink: Receives chunks that arrive meanwhile, as long as it can, without waking the awaiting task, which would cost as
                much as the send. The future raises its errors.

        Returns:
            `None`: call `next()` now.
        """
        mirror, follower = self._mirror, self._followed.follower
        if (
            self._pages
            or (self.aside is not None and self._has_aside)
            or follower.mirror is not mirror
            or ((self.b != mirror.b) if self._view == "raw" else (self.n != mirror.n))
            or mirror.ending is not None
            or follower.phase is Phase.GONE
            or self.ahead is not None
            or self.left
            or not self._open
            or (timeout is not None and timeout < _PRECISE)
        ):
            return None
        self._hoping_until = None
        if self._silent_until is None:
            self._silent_until = math.inf if timeout is None else self._following.now() + timeout
        if sink is None:
            return self._wait(self._silent_until)
        self._due, self._sink, self._patience = self._silent_until, sink, timeout
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        self._followed.grown.listen(self)
        return waiter

    def heard(self, now: float) -> None:
        """See `Listener.heard()`: pass new data to the sink, and wake the task that awaits `pause()` if more has to be done."""
        sink, waiter, mirror = self._sink, self._waiter, self._mirror
        if sink is None or waiter is None or waiter.done():
            return
        follower = self._followed.follower
        if follower.mirror is not mirror or self.left or (self.aside is not None and self._has_aside):
            self._wake()
            return
        try:
            if (self.b != mirror.b) if self._view == "raw" else (self.n != mirror.n):
                chunk = self._take(mirror)
                self._silent_until = None
                if not sink.take(chunk):
                    self._wake()
                    return
                # A wake without new data must not extend the timeout.
                self._due = self._silent_until = math.inf if self._patience is None else now + self._patience
        except NotHeld:
            self._wake()
        except asyncio.CancelledError:
            waiter.cancel()
        except Exception as exc:  # noqa: BLE001  passed to the sender, which awaits it
            if not waiter.done():
                waiter.set_exception(exc)
        else:
            if mirror.ending is not None or follower.phase is Phase.GONE or not self.caught_up:
                self._wake()

    def resume(self, woken: bool) -> bytes | None:
        """
        The data that arrived after `pause()`.

        Args:
            woken: Result of the future.

        Returns:
            Like `next()`, but `b""` means: call `next()`.
        """
        passed_on = self._sink is not None
        self._wait_no_more()
        if not woken:
            self._silent_until = None
            return None
        if passed_on:
            # Data that the sink accepted may still be on its way.
            return b""
        mirror = self._mirror
        # A wake without new data must not extend the timeout.
        if self._followed.follower.mirror is not mirror or self._view == "raw" or self.n == mirror.n:
            return b""
        self._silent_until = None
        try:
            return self._take(mirror)
        except NotHeld:
            return b""

    def _wait(self, due: float) -> asyncio.Future[bool]:
        # No timer, which would cost as much as the rest of a wait: the clock of the process checks, see `tick()`.
        self._due = due
        self._waiter = waiter = self._followed.grown.waiter()
        return waiter

    def _wait_no_more(self) -> None:
        waiter, self._waiter = self._waiter, None
        if self._sink is not None:
            self._sink = None
            self._followed.grown.unlisten(self)
        elif waiter is not None:
            self._followed.grown.discard(waiter)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)

    def tick(self, now: float) -> None:
        """Called about every second: ends a wait whose time is over, and calls `watch`."""
        if self._waiter is not None and now >= self._due and not self._waiter.done():
            self._waiter.set_result(False)
        if self.watch is not None:
            self.watch(now)

    def _take(self, mirror: Mirror) -> bytes:
        match self._view:
            case "events":
                chunk, self.n = mirror.after_with_ids(self.n)
            case "verbatim":
                chunk, self.n = mirror.after(self.n)
            case "raw":
                chunk, self.b = mirror.after_byte(self.b)
        return chunk

    def _has_begun(self) -> bool:
        """The awaited stream exists now: read it from its start, as far as the log holds it."""
        if self._followed.dropped and self._open and not self.left:
            # Somebody else has checked whether it exists, and follows it anew.
            self._followed.readers -= 1
            self._followed = self._following.get(self._followed.key)
            self._followed.readers += 1
            self._following.do(self._followed, self._followed.follower.listen())
        mirror = self._followed.follower.mirror
        if mirror is None or self._followed.is_over:
            return False
        self._awaits, self._mirror, self.n = None, mirror, mirror.oldest - 1
        return True

    def _hope(self, gone: Gone | Unknown | None) -> bool:
        """
        Whether a log that lost the tail of a running stream, or all of it, may still be repaired: by a living producer, within a
        lease.

        After that, this process may claim the stream, and restore what the log has lost. A feed has no producer: what its log
        holds counts.
        """
        now = self._following.now()
        match gone:
            case Gone(why="went_back", ending=None, running_until=until) if not gone.head.feed:
                left = max(0.0, (until or 0.0) - gone.now) + self._following.grace
            case Unknown() if not self._followed.dropped:
                # It was running when last seen, because the mirror has no ending.
                left = self._following.lease
            case _:
                return False
        if self._hoping_until is None:
            self._hoping_until = now + left
        return now < self._hoping_until

    async def _move(self, mirror: Mirror) -> bool:
        """The log is not the mirrored one: does it hold this reader's position?"""
        if mirror.epoch != self._mirror.epoch:
            answer = await self._log.read(self._followed.key, self.cursor, limit_bytes=0)
            self.gone = answer if not isinstance(answer, Page) else Unknown()
            return False
        self._mirror = mirror
        return True

    async def _page(self) -> Gone | None:
        """
        This reader is behind the mirror: read the log.

        Returns:
            `None`: there are pages, or it is over, see `ending` and `gone`. Otherwise the log, which is running, has lost the
                events
            after this reader's position, although this process once had them.
        """
        raw = self._view == "raw"
        answer: Page | Gone | Unknown | Cursor = await self._event_before() if raw else self.cursor
        if isinstance(answer, Cursor):
            answer = await self._log.read(self._followed.key, answer, limit_bytes=_PAGE)
        spans = answer.spans if isinstance(answer, Page) else ()
        if raw:
            # A log is read by events; skip those the reader has.
            spans = tuple(span for span in spans if span.b > self.b)
        if spans:
            self._hoping_until = None
            self._pages = self._pages or deque()
            if raw:
                pieces = [span for span in join_spans(spans, limit_bytes=CHUNK_BYTES) if span.b > self.b]
                self._pages.extend((span.data[max(0, self.b - span.start) :], span.n, span.b) for span in pieces)
                self._place = spans[-1].n, spans[-1].b
            else:
                ids, epoch, framing = self._view == "events", self._mirror.epoch, self._mirror.framing
                pieces = join_spans(spans, limit_bytes=CHUNK_BYTES)
                self._pages.extend((with_ids(span, epoch, framing) if ids else span.data, span.n, span.b) for span in pieces)
            return None
        if isinstance(answer, Page):
            if answer.ending is not None and not (raw and answer.b < self.b):
                # It ended where this reader is, whatever this process had seen before.
                self.ending = answer.ending
                return None
            answer = Gone(
                answer.oldest,
                answer.n,
                "went_back",
                answer.epoch,
                answer.head,
                answer.ending,
                answer.running_until,
                answer.now,
            )
        if isinstance(answer, Gone) and answer.why == "went_back" and answer.ending is None:
            return answer
        self.gone = answer
        return None

    async def _event_before(self) -> Cursor | Page | Gone | Unknown:
        """
        The last event, or nearly the last one, that ends at or before this reader's byte, because a log is read by events.

        Earlier positions of this reader are known. Another one is found by bisection, with one trip per step until a page holds
        the rest, since it may be anywhere in a stream of many pages.

        Returns:
            The answer of the log instead, if it does not hold that byte, or there is none.
        """
        key, epoch = self._followed.key, self._mirror.epoch
        if self._place is not None and self._place[1] == self.b:
            return Cursor(epoch, self._place[0])
        stands = await self._log.read(key, None, limit_bytes=0)
        if not isinstance(stands, Page):
            return stands
        if stands.epoch != epoch or stands.b <= self.b:
            return await self._log.read(key, Cursor(epoch, stands.n), limit_bytes=0)
        low, low_b = stands.oldest - 1, 0
        high, high_b = stands.n, stands.b
        if low:
            found = high_b if low == high else await self._start_after(low)
            if not isinstance(found, int):
                return found
            if found > self.b:
                return await self._log.read(key, Cursor(epoch, 0), limit_bytes=1)
            low_b = found
        while high - low > 1 and high_b - low_b > _PAGE:
            middle = (low + high) // 2
            found = await self._start_after(middle)
            if not isinstance(found, int):
                return found
            if found > self.b:
                high, high_b = middle, found
            else:
                low, low_b = middle, found
        return Cursor(epoch, low)

    async def _start_after(self, n: int) -> int | Page | Gone | Unknown:
        """The byte position after event `n`, which is not the last one."""
        answer = await self._log.read(self._followed.key, Cursor(self._mirror.epoch, n), limit_bytes=1)
        return answer.spans[0].start if isinstance(answer, Page) and answer.spans else answer
