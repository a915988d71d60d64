"""
What the sync and the async stream have in common: everything that does not wait.

The events of a batch are delivered from a plain list iterator. Its length hint shows how many were taken,
so the hot path stores nothing per event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from operator import length_hint
from typing import Any, Final
from urllib.parse import urlsplit

from .._checkpoint import Checkpoint
from .._contract import Explained, Head, ResumeProtocol, Shared
from .._core.actions import Save
from .._core.machine import Machine
from .._core.settings import Stats
from .._errors import (
    ResponseRejected,
    ResumableStreamError,
    StreamBusy,
    StreamClosed,
    StreamConsumed,
    StreamInterrupted,
)
from .._events import Delta, Outcome
from .._notices import Notice
from .._observe import log_notice, printable
from .._settings import Limits, Timeouts
from .._text import Mode, TextReader
from .http import Call, Family

__all__ = ["NOTHING", "Pieces", "Plan", "StreamBase"]

_NOTE: Final = "resumable_stream: the stream stopped here, and nothing is lost;"
NOTHING: Final[Iterator[Any]] = iter(())
# Distinguishes two streams with the same path and no id in a process's log.
_NUMBERS: Final = count(1)
_LABEL_PATH = 80
_LABEL_ID = 60


@dataclass(slots=True, kw_only=True)
class Plan:
    """
    A validated call of `connect()`.

    Attributes:
        machine: Makes the machine, once the checkpoint is known.
        family, client: The HTTP library, and the client; `None`: make one for this stream.
        check: Raises when a stored checkpoint belongs to another stream.
    """

    machine: Callable[[Checkpoint | None], Machine]
    family: Family
    client: Any
    call: Call
    checkpoint: Checkpoint | None
    check: Callable[[Checkpoint], None]
    store: Any
    key: str | None
    observer: Callable[[Notice], object] | None
    timeouts: Timeouts
    limits: Limits


class StreamBase:
    """State of a stream between two reads."""

    _opens = "with"
    # The time in seconds: for clocks and waits, and the Unix time for a server's dates.
    _now = staticmethod(time.monotonic)
    _wall = staticmethod(time.time)

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._number = next(_NUMBERS)
        self._label = ("", "")
        self._family = plan.family
        self._client = plan.client
        self._owns_client = plan.client is None
        self._timeouts = plan.timeouts
        self._observer = plan.observer
        self._store = plan.store
        self._fence: Any = None
        self._machine = plan.machine(plan.checkpoint)
        self._body: Any = None
        self._side: Any = None  # the body of a side request
        self._head: Head | None = None
        self._state = "new"  # new → open → ended, failed or closed
        self._final: Checkpoint | None = None
        self._left = False
        # The batch being handed out: `_events` iterates over its first `_upto` items.
        self._batch: Sequence[Any] = ()
        self._events: Iterator[Any] = NOTHING
        self._upto = 0
        self._floor = 0
        self._in_hand = 0
        self._whole = False
        self._busy = 0  # sync: the thread that reads; async: whether a task does
        # The source of chunks while the machine is calm and nothing else is due; `None`: use the full path.
        self._live: Any = None
        # The result of such a read until it is judged, so that an interrupt in between loses nothing.
        self._failure: BaseException | None = None
        self._stopped = False
        self._replay: Iterator[Any] | None = None
        self._replayed = 0
        # The replay was interrupted: its iterator is dead, or returned an event that nobody received.
        self._torn = False
        self._text: TextReader | None = None

    # --- what a caller may look at

    @property
    def checkpoint(self) -> Checkpoint:
        """The position after the last event taken. In the loop body, that is before the current event."""
        if self._final is not None:
            return self._final
        return self._machine.checkpoint(self._taken(), self._batch)

    @property
    def token(self) -> str:
        """URL-safe text of `checkpoint`, for another process or device. Neither signed nor secret."""
        return self.checkpoint.token()

    @property
    def outcome(self) -> Outcome | None:
        """How the stream ended; `None` while it runs and after an exception."""
        return self._machine.outcome if self._state == "ended" else None

    @property
    def stats(self) -> Stats:
        """What has happened so far: events, duplicates, gaps, reconnects, seconds offline."""
        return self._machine.stats

    @property
    def protocol(self) -> ResumeProtocol | None:
        """The resume protocol; `None` until the first response, when it is detected."""
        return self._machine.protocol

    @property
    def response(self) -> Head | None:
        """Status and headers of the latest connection; `None` before the first."""
        return self._head

    @property
    def stream_id(self) -> str | None:
        """The provider's id of the stream, once it is known."""
        return self._machine.state.stream_id

    @property
    def label(self) -> str:
        """
        A short name for people, as in notices and log lines: `POST /v1/responses resp_abc #3`.

        Method and path, the provider's id once it is known, and a number that is unique in this process.
        """
        stream_id = self._machine.state.stream_id or ""
        known, label = self._label
        if not label or known != stream_id:
            state = self._machine.state
            path = _cut(urlsplit(state.public_url).path or "/", _LABEL_PATH)
            own = f" {_cut(stream_id, _LABEL_ID)}" if stream_id and stream_id not in path else ""
            label = printable(f"{state.method} {path}{own} #{self._number}")
            self._label = stream_id, label
        return label

    @property
    def goes_on(self) -> bool:
        """Whether the stream can continue from its checkpoint: it is complete, or the rest can be requested."""
        return self._machine.outcome is not None or self._machine.requests.resumable()

    @property
    def end_verified(self) -> bool | None:
        """
        Whether something vouches for the end: the protocol's marker or status, the server when asked, or your `end=`.

        False after a clean close that nothing vouches for: the outcome is `ENDED`, and the answer may be incomplete.
        `None` while `outcome` is `None`.
        """
        return None if self.outcome is None else self._machine.verified

    def raise_for_outcome(self, *, strict: bool = False) -> None:
        """
        Raise unless the stream ended well.

        Args:
            strict: Also raise if nothing vouches for the end (see `end_verified`).

        Raises:
            StreamInterrupted: The outcome is `INCOMPLETE`, `FAILED` or `CANCELLED`; with `strict` also an unverified `ENDED`.
            StreamClosed: There is no outcome yet.
        """
        outcome = self.outcome
        if outcome is None:
            raise self._with_place(StreamClosed("the stream has no outcome: it has not ended"))
        if outcome not in (Outcome.COMPLETED, Outcome.ENDED):
            protocol = self._machine.protocol
            why = Explained.of(protocol).why_ended(self._machine.state) if protocol is not None else ""
            text = f"the stream ended as {outcome.value}" + (f": {why}" if why else "")
            raise self._with_place(StreamInterrupted(text, reason=outcome.value))
        if strict and not self._machine.verified:
            text = "the stream closed cleanly, but nothing shows that this was its end: the answer may be incomplete"
            if why := self._machine.requests.why_not():
                text += f" ({why})"
            raise self._with_place(StreamInterrupted(text, reason="end not verified"))

    def __repr__(self) -> str:
        state = self._machine.state
        return f"<{type(self).__name__} {state.method} {state.public_url} {self._state}, {self.stats.events} events>"

    def _starts_over(self) -> bool:
        """Whether the store has a partial answer that cannot be continued, and the caller wants to start over."""
        settings, state = self._machine.settings, self._machine.state
        elsewhere = settings.started_elsewhere and not state.safe
        return settings.on_lost == "restart" and not self.goes_on and not elsewhere

    # --- bookkeeping

    def _taken(self) -> int:
        """Items of the latest batch that the caller is done with."""
        given = self._upto - length_hint(self._events)
        return max(given - self._in_hand, self._floor)

    def _commit(self, event: Any) -> None:
        machine, given = self._machine, self._upto - length_hint(self._events)
        if machine.settings.manual:
            if self._left:
                raise self._with_place(StreamClosed("the stream is closed: commit before leaving the `with` block"))
            machine.commit(event, given, self._batch)
            if self._final is not None:
                # The loop is over but the block is not, so the last events may still be committed.
                self._final = machine.checkpoint(self._taken(), self._batch)
        elif event is None:
            self._floor = given
        else:
            for index in range(given):
                if self._batch[index] is event:
                    self._floor = max(self._floor, index + 1)
                    return

    def _take_in_hand(self) -> None:
        """On leaving without an exception, the current event counts as taken. A current batch does not (rule 1)."""
        if not self._whole:
            self._in_hand = 0

    def _concluded(self) -> bool:
        """Whether the caller left on the event that ends the stream."""
        return self._state == "open" and self._machine.conclude(self._taken(), self._batch)

    def _seconds_left(self, ends: float | None) -> float | None:
        """
        Seconds until a moment of `_now()`; `None` without one.

        Raises:
            TimeoutError: The moment has passed.
        """
        if ends is None:
            return None
        left = ends - self._now()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        return left

    def _receive(self, chunk: bytes | None) -> Sequence[Any]:
        if chunk is None:
            return self._machine.receive_eof(self._now())
        return self._machine.receive_data(chunk, self._now())

    def _hand_out(self, events: Sequence[Any]) -> None:
        self._floor = 0
        self._in_hand = 1
        self._whole = False
        # An interrupt comes after a call. These assignments contain no call, so it sees the old batch taken, or the new one.
        if self._store is None or len(events) == 1:
            iterator, upto = iter(events), len(events)
            self._batch = events
            self._events = iterator
            self._upto = upto
        else:
            self._batch = events
            self._events = NOTHING
            self._upto = 0
            self._hand_on()

    def _hand_on(self) -> None:
        """With a store, events are delivered one at a time, so that a save can come between two of them."""
        upto = self._upto
        self._in_hand = 1
        self._events = iter(self._batch[upto : upto + 1])
        self._upto = upto + 1

    def _hand_batch(self) -> Sequence[Any]:
        """The rest of the batch as one unit of delivery: nothing of it is taken until the caller comes back."""
        left = length_hint(self._events)
        self._floor = max(self._floor, self._upto - left)
        # Replayed events belong to no batch, and are before the position anyway. The others stay until the assignments below.
        rest = list(self._events) if self._replay is not None else list(self._batch[self._upto - left : self._upto])
        self._in_hand = self._upto
        self._whole = True
        self._events = NOTHING
        return rest

    def _hand_rest(self) -> list[Any]:
        """The rest of the batch together with what was delivered of it: all untaken until the caller comes back."""
        rest = list(self._events)
        self._events = NOTHING
        self._in_hand = self._upto
        return rest

    def _new_reader(self, mode: Mode, *, resets: bool, strict: bool = False) -> TextReader:
        limit = self._plan.limits.text_bytes
        self._text = reader = TextReader(
            lambda: self.protocol,
            mode=mode,
            resets=resets,
            limit=limit,
            strict=strict,
            step_at=self._machine.step_at,
            state=self._machine.state,
        )
        return reader

    def _deltas(self, event: Any) -> Iterable[Delta]:
        """The content of an event of this stream, as the text readers see it."""
        protocol = self.protocol or ResumeProtocol()
        shared = protocol.ability(Shared)
        return protocol.deltas(event) if shared is None else shared.deltas_in(self._machine.state, event)

    def _may_read_on(self) -> bool:
        """With a store: whether the batch was delivered and no save can be due before the next event."""
        if self._upto >= len(self._batch) and self._now() < self._machine.save_at:
            return True
        self._live = None
        return False

    def _withhold(self) -> None:
        """Hand out nothing more of the batch: the final checkpoint is before it."""
        self._upto -= length_hint(self._events)
        self._events = NOTHING

    def _due_save(self, *, force: bool = False, before_read: Callable[[], bool] | None = None) -> Save | None:
        return self._machine.save(self._now(), self._taken(), self._batch, force=force, blocks=before_read)

    def _notify(self) -> None:
        notices = self._machine.notices
        while notices:
            notice = replace(notices.pop(0), stream=self.label)
            log_notice(notice, notices[0] if notices else None)
            if self._observer is not None:
                self._observer(notice)

    def _with_place(self, error: ResumableStreamError) -> ResumableStreamError:
        if error.checkpoint is None:
            error.checkpoint = self.checkpoint
        if error.text_so_far is None and self._text is not None:
            error.text_so_far = self._text.so_far()
        return error

    def _note_place(self, error: BaseException) -> None:
        """Add a note on the checkpoint to an exception of the caller's code (`resume=`, `headers=`, a protocol's method)."""
        if not isinstance(error, Exception) or isinstance(error, ResumableStreamError):
            return
        if any(note.startswith(_NOTE) for note in getattr(error, "__notes__", ())):
            return
        error.add_note(f"{_NOTE} the place is in the stream's `checkpoint`: resume() or connect(checkpoint=…) continues there")

    def _second_reader(self, one: str) -> StreamBusy:
        """The error for a second reader; `one` is `thread` or `task`."""
        error = StreamBusy(
            f"another {one} is reading this stream, which can have only one reader. Read in one {one} and pass the "
            f"events on, for instance in a queue; any {one} may close it"
        )
        with suppress(RuntimeError):
            # The other reader may be changing the state that is read here.
            self._with_place(error)
        return error

    def _check_readable(self) -> None:
        if self._state == "new":
            raise StreamClosed(f"the stream is not open: use `{self._opens}`, or call open() first")
        if self._state in ("ended", "failed"):
            raise self._with_place(StreamConsumed("the stream has ended; connect again, or resume from its checkpoint"))
        if self._state == "closed":
            raise self._with_place(StreamClosed("the stream is closed; resume from its checkpoint"))

    def _unheard_cancel(self) -> ResumableStreamError:
        return self._with_place(ResumableStreamError("the request to cancel got no answer; the generation may continue"))

    def _check_cancel(self, answer: Any) -> None:
        if not 200 <= answer.status < 300:
            raise self._with_place(
                ResponseRejected(
                    f"the server refused to cancel: status {answer.status}",
                    status=answer.status,
                    headers={},
                    body=answer.body,
                )
            )

    def _no_cancel(self) -> ResumableStreamError:
        name = repr(self._machine.protocol) if self._machine.protocol is not None else "this stream"
        return self._with_place(ResumableStreamError(f"{name} has no call that stops the generation; close() only detaches"))


class Pieces:
    """Pieces of text from successive events. An event counts as taken only once its last piece has been processed."""

    def __init__(self, stream: Any, reader: TextReader) -> None:
        self._stream = stream
        self._reader = reader
        self._pieces: Iterator[Any] = NOTHING
        self.ended = False

    def _take(self, event: Any) -> None:
        try:
            self._pieces = iter(self._reader.read(event))
        except ResumableStreamError as error:
            raise self._stream._with_place(error) from None
        except Exception as error:
            self._stream._note_place(error)
            raise

    def _finish(self) -> None:
        self.ended = True
        self._pieces = iter(self._reader.finish())


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"
