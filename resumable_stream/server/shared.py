"""
Streams that every process appends to: nobody holds them, and the log decides who comes first.

A process that knows the state of the stream decides what to append, and appends it with `Append(exact=True)`: the log refuses it
if the stream has changed. Then the process reads what is new, and decides again.

`Sessions` keeps the feeds of conversations this way, and `Written` the streams that clients write over HTTP.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Generic, Protocol, TypeVar

from .._errors import LogUnavailable
from .log import (
    AlsoRefused,
    Append,
    Appended,
    Behind,
    Done,
    Ended,
    Fenced,
    Lost,
    SpanRefused,
    StreamLog,
    Writer,
    only,
)

__all__ = ["Known", "Place", "SharedStreams"]

_KEPT: Final = 1000
"""Streams whose state this process remembers. 1,000: a forgotten one is read again, mostly in one trip."""
_TRIES: Final = 100
"""How often a step is attempted while others append. 100: each failed attempt is a successful one of theirs."""

_DONE: Final = (Appended, Done, Writer)
"""Answers that include a stored append."""


class Place(Protocol):
    """Where a stream is kept."""

    @property
    def key(self) -> str:
        """Its key in the log."""
        ...


T = TypeVar("T")
S = TypeVar("S")
P = TypeVar("P", bound=Place)


class Known(Generic[P, S]):
    """
    What this process knows of one stream.

    Attributes:
        place: Where it is kept.
        lock: One step at a time.
        state: Its state; `None`: to be read.
        fence: Fence of its writer.
        busy: How many hold the lock or wait for it.
    """

    def __init__(self, place: P) -> None:
        self.place = place
        self.lock = asyncio.Lock()
        self.state: S | None = None
        self.fence = 1
        self.busy = 0


class SharedStreams(abc.ABC, Generic[P, S]):
    """
    Streams that this process and others append to.

    Args:
        log: Where they are kept.
    """

    def __init__(self, log: StreamLog) -> None:
        self._log = log
        self._known: OrderedDict[str, Known[P, S]] = OrderedDict()

    @abc.abstractmethod
    async def _load(self, known: Known[P, S]) -> S:
        """Read the state of the stream, or create it, and store that in `known`."""

    async def _reload(self, known: Known[P, S]) -> S:
        """Discard what was known, and read it anew."""
        known.state = None
        return await self._load(known)

    @abc.abstractmethod
    async def _catch_up(self, known: Known[P, S]) -> None:
        """Read what others have appended."""

    @abc.abstractmethod
    async def _mend(self, known: Known[P, S], verdict: Fenced | Ended | Behind | Lost) -> None:
        """Update the state after an append was refused."""

    @abc.abstractmethod
    def _took(self, known: Known[P, S], append: Append) -> None:
        """The decided append is in the log: update the state."""

    async def _step(
        self,
        known: Known[P, S],
        decide: Callable[[S], Append | None],
        act: Callable[[Append | None], Awaitable[T | AlsoRefused]],
        *,
        asked: bool = False,
    ) -> T:
        """
        Append to a stream that is held, together with another action.

        Args:
            known: The stream.
            decide: What to append to a stream in this state; `None`: nothing. It may refuse by raising. Anything other than an
                append takes effect only for a state that the log has confirmed.
            act: Does it, with the append, or without one. `AlsoRefused`: the append was refused, and nothing was done.
            asked: The known state was read from the log just now.

        Raises:
            LogUnavailable: The log cannot be reached, or others keep appending.
            Exception: Raised by `decide` or `act`.
        """
        fresh = asked or known.state is None
        for _ in range(_TRIES):
            state = known.state
            if state is None:
                state, fresh = await self._load(known), True
            try:
                append = decide(state)
            except Exception:
                if fresh:
                    raise
                await self._catch_up(known)
                fresh = True
                continue
            if append is None and not fresh:
                # The known state may be old: ask the log whether there is really nothing to append.
                await self._catch_up(known)
                fresh = True
                continue
            try:
                found = await act(append)
            except SpanRefused:
                # The log went back, and others continued from there.
                known.state = None
                continue
            if not isinstance(found, AlsoRefused):
                # Joining a stream, or failing to finish it, leaves the append out.
                if append is not None and known.state is state and isinstance(found, _DONE):
                    self._took(known, append)
                return found
            fresh = True
            await self._mend(known, found.verdict)
        raise LogUnavailable(f"others have appended to the stream {_TRIES} times meanwhile", stream_id=known.place.key)

    async def _append(self, append: Append | None) -> Appended | AlsoRefused | None:
        """The action of `_step()` if there is only the append."""
        if append is None:
            return None
        verdict = only(await self._log.append([append]))
        return verdict if isinstance(verdict, Appended) else AlsoRefused(verdict)

    @contextlib.asynccontextmanager
    async def _held(self, place: P) -> AsyncIterator[Known[P, S]]:
        """Hold what is known of a stream, for one step."""
        known = self._known.get(place.key)
        if known is None:
            known = self._known[place.key] = Known(place)
        self._known.move_to_end(place.key)
        known.busy += 1
        try:
            async with known.lock:
                yield known
        finally:
            known.busy -= 1
            if len(self._known) > _KEPT:
                for other in [each for each in self._known.values() if not each.busy][: len(self._known) - _KEPT]:
                    del self._known[other.place.key]
