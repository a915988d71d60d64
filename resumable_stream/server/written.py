"""
Streams that clients write over HTTP, as in Durable Streams: created, appended to and closed by requests.

Nobody holds such a stream, see `shared`. Its lease is the time that it is kept: every append renews it, and with a TTL every read
does too. After that the stream no longer exists, and the next process that notices deletes it.

The state that its writers share is the note of the stream, which is stored in the same step as the events. Closing a stream takes
two steps: the last events with a note that says so, and the ending. A process that finds such a note without an ending adds it.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .._errors import LogUnavailable, StreamUnknown
from ._durable import (
    COMPLETED,
    Accepted,
    Create,
    Notes,
    Shown,
    Write,
    created,
    decide_append,
    decide_create,
    expires_at,
    failure,
    span_after,
    ttl_of,
)
from .log import (
    Append,
    Behind,
    Done,
    Ended,
    Ending,
    Existing,
    Fenced,
    Head,
    Lost,
    Page,
    StreamLog,
    Writer,
    damaged,
    epoch_of,
    only,
)
from .shared import Known, SharedStreams
from .wire import Answer

__all__ = ["Written"]

logger = logging.getLogger("resumable_stream.server")

_LOOKS: Final = 20
"""How often a PUT retries while the stream is deleted and created again, and how often an ending is attempted."""
_KEPT: Final = 1000
"""Streams with a TTL whose last renewal this process remembers."""
_FENCE: Final = 2
"""
The fence of a written stream: that of `restore()`, which creates it with its first events in one step.

It never changes, because such a stream is only claimed in order to delete it.
"""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a stream is kept."""

    id: str
    owner: str
    key: str


@dataclass(frozen=True, slots=True)
class _State:
    """The state of a stream, and the state that its writers share."""

    shown: Shown
    notes: Notes


class _Refused(Exception):
    """Raised with the answer to the request."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


_Known = Known[_Place, _State]


class Written(SharedStreams[_Place, _State]):
    """
    The streams that clients write through this process.

    Args:
        log: Where they are kept.
        key_of: Returns the key of a stream in the log, from its id and owner.
        compact: Called with the key of a stream that was closed.
        stream_bytes: Most bytes of one stream.
        event_bytes: Most bytes of one event.
    """

    def __init__(
        self,
        log: StreamLog,
        key_of: Callable[[str, str], str],
        *,
        compact: Callable[[str], None],
        stream_bytes: int,
        event_bytes: int,
    ) -> None:
        super().__init__(log)
        self._key_of = key_of
        self._compact = compact
        self._stream_bytes = stream_bytes
        self._event_bytes = event_bytes
        self._touched: OrderedDict[str, float] = OrderedDict()

    # --- requests

    async def create(self, id: str, owner: str, create: Create, *, retention: float) -> Answer:
        """
        Answer a PUT.

        Args:
            id: Id of the stream.
            owner: Its owner.
            create: The parsed request.
            retention: Seconds that a stream is kept after its last append, and after it was closed, unless the request says
                otherwise.

        Raises:
            LogUnavailable: The log cannot be reached.
        """
        if (refused := self._too_large(0, create.pieces)) is not None:
            return refused
        place = self._place(id, owner)
        async with self._held(place) as known:
            for _ in range(_LOOKS):
                head = self._head(place, create, retention)
                epoch = epoch_of(secrets.token_bytes(8))
                span = span_after(0, 0, create.pieces) if create.pieces else None
                notes = Notes(closed=create.closes)
                # `restore()` stores its first events in the same step, which `create()` cannot.
                made = await self._log.restore(
                    Writer(place.key, epoch, _FENCE - 1, _lease(head), head.retention),
                    head,
                    epoch,
                    [] if span is None else [span],
                    note=notes.to_json() if create.closes else None,
                )
                known.state = None
                if isinstance(made, Existing):
                    try:
                        state = await self._load(known)
                    except StreamUnknown:
                        # It has expired.
                        await self._delete_expired(place)
                        continue
                    return decide_create(state.shown, state.notes, create)
                shown = Shown(head=head, epoch=epoch, n=0 if span is None else span.n, b=0 if span is None else span.b)
                known.state = _State(shown, notes)
                if create.closes and not await self._close(known):
                    # The next reader does it.
                    raise _restless(known)
                return created(201, shown, create.closes)
            raise _restless(known)

    async def append(self, id: str, owner: str, write: Write) -> Answer:
        """
        Answer a POST.

        Raises:
            StreamUnknown: There is no such stream.
            LogUnavailable: The log cannot be reached. The append may have taken effect.
        """
        async with self._held(self._place(id, owner)) as known:
            for _ in range(_LOOKS):
                answer = await self._appended(known, write)
                if not isinstance(answer, Accepted):
                    return answer
                if not write.closes or await self._close(known):
                    return answer.answer
            raise _restless(known)

    async def _appended(self, known: _Known, write: Write) -> Accepted | Answer:
        accepted: Accepted | None = None

        def decide(state: _State) -> Append | None:
            nonlocal accepted
            if not state.shown.head.written:
                raise _Refused(failure(405, "only its producer may append to this stream", ("Allow", "GET, HEAD")))
            found = decide_append(state.shown, state.notes, write)
            if isinstance(found, Answer):
                raise _Refused(found)
            if (refused := self._too_large(state.shown.b, write.pieces)) is not None:
                raise _Refused(refused)
            accepted = found
            note = None if found.notes is None else found.notes.to_json()
            if found.span is None:
                return Append(self._writer(known, state), None, note=note, n=state.shown.n)
            return Append(self._writer(known, state), found.span, note=note, exact=True)

        try:
            await self._step(known, decide, self._append)
        except _Refused as exc:
            return exc.answer
        assert accepted is not None
        return accepted

    async def delete(self, id: str, owner: str) -> None:
        """Delete a stream."""
        async with self._held(self._place(id, owner)) as known:
            await self._log.delete(known.place.key)
            known.state = None

    async def end(self, id: str, owner: str, ending: Ending) -> bool:
        """
        Close a stream on behalf of someone other than its writers.

        Returns:
            Whether it was open.

        Raises:
            StreamUnknown: There is no such stream.
        """
        async with self._held(self._place(id, owner)) as known:
            for _ in range(_LOOKS):
                state = await self._load(known)
                if state.shown.ending is not None:
                    return False
                if await self._close(known, ending):
                    return True
            raise _restless(known)

    async def look(self, id: str, owner: str, *, touch: bool = False) -> Shown:
        """
        The state of a stream, from the log.

        Args:
            id: Id of the stream.
            owner: Its owner.
            touch: It is being read, so a stream with a TTL is kept for longer.

        Raises:
            StreamUnknown: There is no such stream, or it has expired.
            LogUnavailable: The log cannot be reached.
        """
        async with self._held(self._place(id, owner)) as known:
            state = await self._load(known)
            shown = state.shown
            if touch and shown.head.written and shown.ending is None and (ttl := ttl_of(shown.head)) is not None:
                await self._touch(known, state, ttl)
            return shown

    # --- what is known

    def _place(self, id: str, owner: str) -> _Place:
        return _Place(id, owner, self._key_of(id, owner))

    def _head(self, place: _Place, create: Create, retention: float) -> Head:
        head = Head(
            content_type=create.content_type,
            framing=create.framing,
            headers=create.headers,
            owner=place.owner,
            public_id="" if place.key == place.id else place.id,
            written=True,
        )
        at = expires_at(head)
        if create.ttl is not None:
            retention = float(create.ttl)
        elif at is not None:
            retention = max(0.0, at - time.time())
        return replace(head, retention=retention)

    def _writer(self, known: _Known, state: _State) -> Writer:
        head = state.shown.head
        return Writer(known.place.key, state.shown.epoch, _FENCE, _lease(head), head.retention)

    def _took(self, known: _Known, append: Append) -> None:
        state = known.state
        assert state is not None
        shown, notes = state.shown, state.notes
        if append.span is not None:
            shown = replace(shown, n=append.span.n, b=append.span.b)
        if append.note is not None:
            notes = Notes.from_json(append.note)
        known.state = _State(shown, notes)

    async def _load(self, known: _Known) -> _State:
        """
        Read the state of the stream.

        Raises:
            StreamUnknown: There is no such stream, or it has expired.
        """
        known.state = None
        place = known.place
        for _ in range(_LOOKS):
            found = await self._log.read(place.key, None, limit_bytes=0)
            if not isinstance(found, Page) or found.head.owner != place.owner or _is_over(found):
                raise _unknown(place)
            state = known.state = _State(Shown.of(found), _notes(place.key, found))
            if not state.notes.closed or state.shown.ending is not None:
                return state
            # The process that closed it died halfway.
            if await self._close(known) and known.state is not None:
                return known.state
        raise _restless(known)

    async def _catch_up(self, known: _Known) -> None:
        await self._load(known)

    async def _mend(self, known: _Known, verdict: Fenced | Ended | Behind | Lost) -> None:
        before = known.state
        assert before is not None
        state = await self._load(known)
        match verdict:
            case Fenced(current) if current.rpartition(".")[0] == state.shown.epoch and state.shown.ending is None:
                raise _unknown(known.place)
            case Lost() if state == before:
                raise LogUnavailable(
                    f"stream {known.place.id[:80]!r}: the log has lost some of it; delete() the stream", stream_id=known.place.key
                )

    async def _close(self, known: _Known, ending: Ending = COMPLETED) -> bool:
        """
        Add the ending.

        Returns:
            Whether it has one now. False: a writer that did not know of the closing has appended to it.

        Raises:
            StreamUnknown: It was deleted meanwhile.
        """
        state = known.state
        if state is None:
            return False
        verdict = await self._log.finish(self._writer(known, state), state.shown.n, ending)
        match verdict:
            case Done():
                known.state = replace(state, shown=replace(state.shown, ending=ending))
                self._compact(known.place.key)
                return True
            case Ended(found):
                known.state = replace(state, shown=replace(state.shown, ending=found))
                return True
        known.state = None
        if isinstance(verdict, Behind):
            return False
        raise _unknown(known.place)

    async def _delete_expired(self, place: _Place) -> None:
        found = await self._log.read(place.key, None, limit_bytes=0)
        if not isinstance(found, Page) or not _is_over(found):
            return
        if found.ending is None and expires_at(found.head) is None:
            # An append at this moment keeps the stream alive, and must not be lost.
            claimed = await self._log.claim(place.key, lease=0.0)
            if not isinstance(claimed, Writer):
                return
        await self._log.delete(place.key)

    async def _touch(self, known: _Known, state: _State, ttl: int) -> None:
        # About once a second is enough for repeated reads.
        key, now = known.place.key, time.monotonic()
        last = self._touched.pop(key, None)
        if last is not None and now - last < min(1.0, ttl / 10):
            self._touched[key] = last
            return
        verdict = only(await self._log.renew([self._writer(known, state)]))
        if isinstance(verdict, Fenced | Lost):
            known.state = None
            raise _unknown(known.place)
        self._touched[key] = now
        while len(self._touched) > _KEPT:
            self._touched.popitem(last=False)

    def _too_large(self, b: int, pieces: Sequence[bytes]) -> Answer | None:
        if pieces and max(map(len, pieces)) > self._event_bytes:
            return failure(413, f"one message may have at most {self._event_bytes} bytes")
        if b + sum(map(len, pieces)) > self._stream_bytes:
            return failure(413, f"one stream may have at most {self._stream_bytes} bytes; it has {b}")
        return None


def _notes(key: str, page: Page) -> Notes:
    if not page.head.written:
        # A note of its producer.
        return Notes()
    try:
        return Notes.from_json(page.note)
    except ValueError as exc:
        raise damaged(key, str(exc)) from exc


def _is_over(page: Page) -> bool:
    """It has expired, but is still in the log."""
    if not page.head.written:
        return False
    at = expires_at(page.head)
    return (at is not None and at <= time.time()) or (page.ending is None and page.lease_left == 0.0)


def _lease(head: Head) -> float:
    """Seconds from now for which an append keeps a stream."""
    at = expires_at(head)
    return head.retention if at is None else max(0.0, at - time.time())


def _unknown(place: _Place) -> StreamUnknown:
    return StreamUnknown(f"there is no stream {place.id[:80]!r}, or you may not see it", stream_id=place.id)


def _restless(known: _Known) -> LogUnavailable:
    return LogUnavailable(
        f"stream {known.place.id[:80]!r} was changed by others {_LOOKS} times meanwhile", stream_id=known.place.key
    )
