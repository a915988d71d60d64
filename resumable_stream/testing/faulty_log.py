"""
A log whose bells are lost, doubled and swapped, and that is away now and then: all by a seed.

Bells are hints, so whoever listens has to come out exact whatever is done to them. A reply may be lost after the log has done
what it was asked, so whoever writes has to send it again.

    log = FaultyLog(MemoryLog(), seed=7, lose=0.2, double=0.2, swap=0.2)
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from .._errors import LogUnavailable
from ..server.log import (
    AlsoRefused,
    Append,
    Appended,
    Behind,
    Bell,
    Bells,
    Control,
    Cursor,
    Done,
    Ended,
    Ending,
    Existing,
    Fenced,
    Full,
    Gone,
    Head,
    Held,
    Lost,
    Message,
    Page,
    Said,
    Span,
    StreamLog,
    Unknown,
    Writer,
)

__all__ = ["FaultyBells", "FaultyLog"]

T = TypeVar("T")


class FaultyLog:
    """
    A log over another one, with faults.

    Args:
        log: The log that does the work.
        seed: Of all faults: the same calls in the same order meet the same ones.
        lose: Probability that a bell is lost.
        double: Probability that a bell comes twice.
        swap: Probability that a bell is held back, and comes after the next one; the last one may so be lost, too.
        unavailable: Probability that a call raises `LogUnavailable`. In one half of these cases it did nothing, in the other it
            did all, and only the reply is lost.

    Attributes:
        faults: How often each was put in: `lost`, `doubled`, `swapped`, `not_done`, `reply_lost`.

    Raises:
        ValueError: A probability is not from 0 to 1, or `lose`, `double` and `swap` add up to more than 1.
    """

    def __init__(
        self,
        log: StreamLog,
        *,
        seed: int = 0,
        lose: float = 0.2,
        double: float = 0.2,
        swap: float = 0.2,
        unavailable: float = 0.0,
    ) -> None:
        if min(lose, double, swap, unavailable) < 0 or lose + double + swap > 1 or unavailable > 1:
            raise ValueError(
                f"probabilities are from 0 to 1, and lose, double and swap together at most 1; "
                f"got lose={lose}, double={double}, swap={swap}, unavailable={unavailable}"
            )
        self.log = log
        self.lose, self.double, self.swap, self.unavailable = lose, double, swap, unavailable
        self.faults: Counter[str] = Counter()
        self._chance = random.Random(seed)

    def __repr__(self) -> str:
        return (
            f"FaultyLog({self.log!r}, lose={self.lose}, double={self.double}, swap={self.swap}, unavailable={self.unavailable})"
        )

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        if self._chance.random() >= self.unavailable:
            return await call()
        if self._chance.random() < 0.5:
            self.faults["not_done"] += 1
            raise LogUnavailable("FaultyLog: the request was lost, and nothing was done")
        await call()
        self.faults["reply_lost"] += 1
        raise LogUnavailable("FaultyLog: it was done, and the reply was lost")

    # --- the log

    async def create(
        self,
        stream_id: str,
        head: Head,
        *,
        lease: float,
        request: bytes | None = None,
        replaces: str | None = None,
        also: Append | None = None,
        epoch: str | None = None,
    ) -> Writer | Existing | AlsoRefused:
        """See `StreamLog.create()`."""
        options: dict[str, Any] = {} if also is None else {"also": also}
        return await self._call(
            lambda: self.log.create(stream_id, head, lease=lease, request=request, replaces=replaces, epoch=epoch, **options)
        )

    async def append(
        self, batch: Sequence[Append | tuple[Writer, Span, str | None]]
    ) -> list[Appended | Fenced | Ended | Behind | Lost]:
        """See `StreamLog.append()`."""
        return await self._call(lambda: self.log.append(batch))

    async def restore(self, writer: Writer, head: Head, epoch: str, spans: Sequence[Span], **options: Any) -> Writer | Existing:
        """See `StreamLog.restore()`."""
        return await self._call(lambda: self.log.restore(writer, head, epoch, spans, **options))

    async def finish(
        self, writer: Writer, n: int, ending: Ending, *, also: Append | None = None
    ) -> Done | Fenced | Ended | Behind | Lost | AlsoRefused:
        """See `StreamLog.finish()`."""
        return await self._call(lambda: self.log.finish(writer, n, ending, also=also))

    async def read(self, stream_id: str, after: Cursor | None = None, *, limit_bytes: int = 4 << 20) -> Page | Gone | Unknown:
        """See `StreamLog.read()`."""
        return await self._call(lambda: self.log.read(stream_id, after, limit_bytes=limit_bytes))

    def bells(self) -> FaultyBells:
        """See `StreamLog.bells()`."""
        return FaultyBells(self, self.log.bells())

    async def renew(self, writers: Sequence[Writer]) -> list[Control | Fenced | Ended | Lost | None]:
        """See `StreamLog.renew()`."""
        return await self._call(lambda: self.log.renew(writers))

    async def claim(
        self, stream_id: str, *, lease: float, go_on: bool = False, claimant: str | None = None
    ) -> Writer | Held | Ended | Unknown:
        """See `StreamLog.claim()`."""
        return await self._call(lambda: self.log.claim(stream_id, lease=lease, go_on=go_on, claimant=claimant))

    async def say(self, stream_id: str, message: Message) -> Said | Ended | Full | Unknown:
        """See `StreamLog.say()`."""
        return await self._call(lambda: self.log.say(stream_id, message))

    async def inbox(self, stream_id: str, after: int) -> list[Message]:
        """See `StreamLog.inbox()`."""
        return await self._call(lambda: self.log.inbox(stream_id, after))

    async def compact(self, stream_id: str) -> None:
        """See `StreamLog.compact()`."""
        await self._call(lambda: self.log.compact(stream_id))

    async def delete(self, stream_id: str) -> None:
        """See `StreamLog.delete()`."""
        await self._call(lambda: self.log.delete(stream_id))

    async def orphans(self, limit: int = 100) -> list[str]:
        """See `StreamLog.orphans()`."""
        return await self._call(lambda: self.log.orphans(limit))

    async def aclose(self) -> None:
        """Close the log below."""
        await self.log.aclose()


class FaultyBells:
    """The bells of a `FaultyLog`; made by `FaultyLog.bells()`."""

    def __init__(self, log: FaultyLog, bells: Bells) -> None:
        self._log = log
        self._bells = bells
        self._below = bells.__aiter__()
        self._ready: deque[Bell] = deque()
        self._held: Bell | None = None

    async def add(self, stream_id: str) -> None:
        """See `Bells.add()`; it fails as other calls do."""
        await self._log._call(lambda: self._bells.add(stream_id))

    async def discard(self, stream_id: str) -> None:
        """See `Bells.discard()`."""
        await self._bells.discard(stream_id)

    def __aiter__(self) -> FaultyBells:
        return self

    async def __anext__(self) -> Bell:
        while not self._ready:
            self._meet(await anext(self._below))
        return self._ready.popleft()

    async def aclose(self) -> None:
        """See `Bells.aclose()`."""
        self._ready.clear()
        self._held = None
        await self._bells.aclose()

    def _meet(self, bell: Bell) -> None:
        log, dice = self._log, self._log._chance.random()
        held, self._held = self._held, None
        if dice < log.lose:
            log.faults["lost"] += 1
        elif dice < log.lose + log.double:
            log.faults["doubled"] += 1
            self._ready += [bell, bell]
        elif dice < log.lose + log.double + log.swap and held is None:
            log.faults["swapped"] += 1
            self._held = bell
        else:
            self._ready.append(bell)
        if held is not None:
            self._ready.append(held)
