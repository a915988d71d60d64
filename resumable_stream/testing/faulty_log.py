"""
A log whose bells are lost, duplicated and swapped, and which is unavailable now and then, all determined by a seed.

Bells are hints, so a listener must stay exact whatever happens to them. A reply may be lost after the log has processed a call,
so a writer has to repeat it.

    log = FaultyLog(MemoryLog(), seed=7, lose=0.2, double=0.2, swap=0.2)

In a log that is spread over several machines, some streams may be unavailable while others are not. `reach` decides this for each
stream of each call:

    log.reach = lambda verb, stream_id: "not_done" if stream_id in lost else None
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Literal, TypeAlias, TypeVar

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
    Unavailable,
    Unknown,
    Writer,
    check_batch,
    reached,
    shard_of,
)

__all__ = ["FaultyBells", "FaultyLog", "Trouble"]

T = TypeVar("T")

Trouble: TypeAlias = Literal["not_done", "reply_lost"]
"""What may happen to an unavailable stream: the call has no effect, or has its effect while the reply is lost."""


_SAID: Final[dict[Trouble, str]] = {
    "not_done": "FaultyLog: the request was lost, and had no effect",
    "reply_lost": "FaultyLog: the call took effect, but the reply was lost",
}


class FaultyLog:
    """
    A log over another one, with faults.

    Args:
        log: The log that does the work.
        seed: Seed of all faults: the same calls in the same order meet the same faults.
        lose: Probability that a bell is lost.
        double: Probability that a bell comes twice.
        swap: Probability that a bell is held back, and comes after the next one; the last one may thus be lost.
        unavailable: Probability that a call raises `LogUnavailable`. In one half of these cases it has no effect, in the
            other it has its effect, and only the reply is lost.
        reach: Called for each stream of each call, with the name of the method and the id; returns what happens to it, or
            `None` if it is reached. The other streams of the call are unaffected. `None`: every stream is reached.

    Attributes:
        faults: How often each occurred: `lost`, `doubled`, `swapped`, `not_done`, `reply_lost`.

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
        reach: Callable[[str, str], Trouble | None] | None = None,
    ) -> None:
        if min(lose, double, swap, unavailable) < 0 or lose + double + swap > 1 or unavailable > 1:
            raise ValueError(
                f"probabilities must be from 0 to 1, and lose, double and swap together at most 1; "
                f"got lose={lose}, double={double}, swap={swap}, unavailable={unavailable}"
            )
        self.log = log
        self.lose, self.double, self.swap, self.unavailable = lose, double, swap, unavailable
        self.reach = reach
        self.faults: Counter[str] = Counter()
        self._chance = random.Random(seed)

    def __repr__(self) -> str:
        return (
            f"FaultyLog({self.log!r}, lose={self.lose}, double={self.double}, swap={self.swap}, unavailable={self.unavailable})"
        )

    async def _call(self, call: Callable[[], Awaitable[T]], verb: str = "", stream_id: str | None = None) -> T:
        chosen: Trouble | None = None
        if stream_id is not None and self.reach is not None:
            chosen = self.reach(verb, stream_id)
        if chosen is None:
            stream_id = None
            if self._chance.random() >= self.unavailable:
                return await call()
            chosen = "not_done" if self._chance.random() < 0.5 else "reply_lost"
        if chosen == "reply_lost":
            await call()
        self.faults[chosen] += 1
        raise LogUnavailable(_SAID[chosen], stream_id=stream_id)

    async def _each(
        self, verb: str, stream_ids: Sequence[str], call: Callable[[list[int]], Awaitable[Sequence[Any]]]
    ) -> list[Any]:
        """A call for many streams, some of which are not reached. `call` gets the indexes of those that are processed."""
        reach = self.reach
        troubles = {} if reach is None else {stream_id: reach(verb, stream_id) for stream_id in dict.fromkeys(stream_ids)}
        places = [place for place, stream_id in enumerate(stream_ids) if troubles.get(stream_id) != "not_done"]
        found = dict(zip(places, await self._call(lambda: call(places)) if places or not stream_ids else [], strict=True))
        answers: list[Any] = []
        for place, stream_id in enumerate(stream_ids):
            if (trouble := troubles.get(stream_id)) is not None:
                self.faults[trouble] += 1
                answers.append(LogUnavailable(_SAID[trouble], stream_id=stream_id))
            elif isinstance(answer := found[place], Unavailable):
                answers.append(LogUnavailable(answer.why, stream_id=stream_id))
            else:
                answers.append(answer)
        return reached(answers, stream_ids)

    def shard_of(self, stream_id: str) -> str:
        """The shard in the inner log."""
        return shard_of(self.log, stream_id)

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
            lambda: self.log.create(stream_id, head, lease=lease, request=request, replaces=replaces, epoch=epoch, **options),
            "create",
            stream_id,
        )

    async def append(
        self, batch: Sequence[Append | tuple[Writer, Span, str | None]]
    ) -> list[Appended | Fenced | Ended | Behind | Lost | Unavailable]:
        """See `StreamLog.append()`."""
        items = check_batch(batch)
        return await self._each(
            "append", [item.writer.stream_id for item in items], lambda places: self.log.append([items[each] for each in places])
        )

    async def restore(self, writer: Writer, head: Head, epoch: str, spans: Sequence[Span], **options: Any) -> Writer | Existing:
        """See `StreamLog.restore()`."""
        return await self._call(lambda: self.log.restore(writer, head, epoch, spans, **options), "restore", writer.stream_id)

    async def finish(
        self, writer: Writer, n: int, ending: Ending, *, also: Append | None = None
    ) -> Done | Fenced | Ended | Behind | Lost | AlsoRefused:
        """See `StreamLog.finish()`."""
        return await self._call(lambda: self.log.finish(writer, n, ending, also=also), "finish", writer.stream_id)

    async def read(self, stream_id: str, after: Cursor | None = None, *, limit_bytes: int = 4 << 20) -> Page | Gone | Unknown:
        """See `StreamLog.read()`."""
        return await self._call(lambda: self.log.read(stream_id, after, limit_bytes=limit_bytes), "read", stream_id)

    def bells(self) -> FaultyBells:
        """See `StreamLog.bells()`."""
        return FaultyBells(self, self.log.bells())

    async def renew(self, writers: Sequence[Writer]) -> list[Control | Fenced | Ended | Lost | Unavailable | None]:
        """See `StreamLog.renew()`."""
        return await self._each(
            "renew", [writer.stream_id for writer in writers], lambda places: self.log.renew([writers[each] for each in places])
        )

    async def claim(
        self, stream_id: str, *, lease: float, go_on: bool = False, claimant: str | None = None
    ) -> Writer | Held | Ended | Unknown:
        """See `StreamLog.claim()`."""
        call = lambda: self.log.claim(stream_id, lease=lease, go_on=go_on, claimant=claimant)  # noqa: E731
        return await self._call(call, "claim", stream_id)

    async def say(self, stream_id: str, message: Message) -> Said | Ended | Full | Unknown:
        """See `StreamLog.say()`."""
        return await self._call(lambda: self.log.say(stream_id, message), "say", stream_id)

    async def inbox(self, stream_id: str, after: int) -> list[Message]:
        """See `StreamLog.inbox()`."""
        return await self._call(lambda: self.log.inbox(stream_id, after), "inbox", stream_id)

    async def compact(self, stream_id: str) -> None:
        """See `StreamLog.compact()`."""
        await self._call(lambda: self.log.compact(stream_id), "compact", stream_id)

    async def delete(self, stream_id: str) -> None:
        """See `StreamLog.delete()`."""
        await self._call(lambda: self.log.delete(stream_id), "delete", stream_id)

    async def orphans(self, limit: int = 100) -> list[str]:
        """See `StreamLog.orphans()`."""
        return await self._call(lambda: self.log.orphans(limit))

    async def aclose(self) -> None:
        """Close the inner log."""
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
        """See `Bells.add()`; it can fail like other calls."""
        await self._log._call(lambda: self._bells.add(stream_id), "bells", stream_id)

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
