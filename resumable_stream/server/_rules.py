"""
The answers of a log, as functions of values.

A log keeps one `Record` per stream, and its spans. In one atomic step (a lock, a transaction, a script) it loads the record,
calls a `judge_…` function, and, if that allows it, changes record and spans:

    verdict = judge_append(record, entries, append)
    if verdict is None:             # nothing stands in the way
        record.append(append, now)  # and store append.span

The order of the checks is part of the rules: a lost log is `Lost` to everybody; a superseded writer is `Fenced` even if the
stream has ended; only then does the position count.

Times are seconds on the clock of the log, which is one clock for all its writers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, TypeAlias, overload

from .._errors import LogUnavailable
from ._values import (
    CANCEL,
    Append,
    Appended,
    Behind,
    Control,
    Cursor,
    Done,
    Ended,
    Ending,
    Existing,
    Fenced,
    Full,
    Gone,
    Handover,
    Head,
    Held,
    Lost,
    Message,
    Page,
    Said,
    Span,
    SpanRefused,
    Unavailable,
    Unknown,
    Writer,
)

__all__ = [
    "MAX_INBOX",
    "Record",
    "check_also",
    "check_batch",
    "check_restore",
    "join_spans",
    "judge_append",
    "judge_claim",
    "judge_create",
    "judge_finish",
    "judge_read",
    "judge_renew",
    "judge_restore",
    "judge_say",
    "only",
    "page_of",
    "reached",
    "spans_after",
    "split_span",
]

ToAppend: TypeAlias = Appended | Fenced | Ended | Behind | Lost
ToRenew: TypeAlias = Control | Fenced | Ended | Lost | None
"""The answers to an item of `append`, and of `renew`, whose stream was reached."""

MAX_INBOX: Final = 10_000
"""Messages that one inbox takes. 10,000: far above what people type into one answer, and a bound for programs."""
COMPACTED_BYTES: Final = 1 << 20
"""
Size of a joined span, before it is compressed. 1 MiB: an answer of 3,000 tokens of a chat is one entry, 40 KB compressed, and a
reader who pages through a longer stream unpacks each entry once, because its pages have the same size.
"""


@dataclass(slots=True, kw_only=True)
class Record:
    """
    All that a log knows about one stream, except its spans and messages.

    Attributes:
        head: As created.
        epoch: Epoch of the log.
        fence: Fence of its writer.
        n: Number of the last event.
        b: Byte position after it.
        c: How many spans were stored. If the log holds another number, some were lost.
        oldest: Number of the oldest event held; n + 1 if none is.
        until: When the lease ends; 0.0: released.
        ending: How the stream ended; `None` while it runs.
        note: The newest note.
        note_n: The last event when it was stored.
        taken: How many messages are dealt with.
        k: How many messages were accepted.
        cancel: The reason of the first cancel; `None`: nobody cancelled.
        mark: Mark of the current writer's last append without a span after event `n`; 0: none.
        claimed: Who claimed the stream last, and the result: `+` with its events, `-` without, `=` and the previous epoch: with
            its events under a new one. Empty: the claimant gave no name.
        request: The request given to `create`.
        expires: When the stream is forgotten.
    """

    head: Head
    epoch: str
    fence: int = 1
    n: int = 0
    b: int = 0
    c: int = 0
    oldest: int = 1
    until: float = 0.0
    ending: Ending | None = None
    note: str | None = None
    note_n: int = 0
    taken: int = 0
    k: int = 0
    cancel: str | None = None
    mark: int = 0
    claimed: str = ""
    request: bytes | None = field(default=None, repr=False)
    expires: float = 0.0

    @property
    def token(self) -> str:
        """The token that a writer must present."""
        return f"{self.epoch}.{self.fence}"

    @property
    def control(self) -> Control | None:
        """The state of the inbox; `None` before the first message."""
        return Control(self.k, self.cancel) if self.k or self.cancel is not None else None

    @classmethod
    def create(cls, head: Head, epoch: str, *, lease: float, now: float, request: bytes | None = None) -> Record:
        """Make the record of a new stream."""
        return cls(head=head, epoch=epoch, request=request, until=now + lease, expires=now + lease + head.retention)

    @classmethod
    def restore(
        cls,
        writer: Writer,
        head: Head,
        epoch: str,
        spans: Sequence[Span],
        *,
        now: float,
        request: bytes | None = None,
        note: str | None = None,
        note_n: int | None = None,
        taken: int = 0,
        inbox: Sequence[Message] = (),
    ) -> Record:
        """Make the record of a stream that its writer restores, under the next fence."""
        cancel = next((message.data for message in inbox if message.kind == CANCEL), None)
        last = spans[-1].n if spans else 0
        return cls(
            head=head,
            epoch=epoch,
            fence=writer.fence + 1,
            n=last,
            b=spans[-1].b if spans else 0,
            c=len(spans),
            oldest=spans[0].first if spans else 1,
            until=now + writer.lease,
            note=note,
            note_n=0 if note is None else last if note_n is None else note_n,
            taken=taken,
            # Not below `taken`: the next message must not get a number the producer has already dealt with.
            k=max(taken, inbox[-1].k if inbox else 0),
            cancel=cancel,
            request=request,
            expires=now + writer.lease + head.retention,
        )

    def append(self, append: Append, now: float, *, dropped: int = 0) -> None:
        """Apply what `judge_append` allowed. The caller stores the span, and passes how many `append.trims` made it drop."""
        span = append.span
        if span is not None:
            self.c -= dropped
            self.oldest = max(self.oldest, append.trims)
            self.n, self.b = span.n, span.b
            self.c += 1
            self.mark = 0
        self.settle(append)
        self.renew(append.writer, now)

    def settle(self, append: Append) -> None:
        """Store the note and `taken`."""
        if append.mark:
            self.mark = append.mark
        if append.note is not None:
            self.note, self.note_n = append.note, append.last
        if append.taken is not None:
            self.taken = append.taken

    def renew(self, writer: Writer, now: float) -> None:
        """Extend the lease; a writer whose lease is 0 releases the stream."""
        self.until = now + writer.lease if writer.lease else 0.0
        self.expires = now + writer.lease + self.head.retention

    def is_of(self, epoch: str | None) -> bool:
        """An earlier attempt of the caller who chose this epoch made it, and nobody has claimed it or written to it since."""
        return self.epoch == epoch and self.fence == 1 and self.n == 0 and self.ending is None

    def is_claimed_by(self, claimant: str | None) -> bool:
        """An earlier attempt of the caller with this name claimed it, and nobody has since."""
        return claimant is not None and self.claimed.startswith((f"{claimant}+", f"{claimant}-", f"{claimant}="))

    def claim(
        self,
        stream_id: str,
        *,
        lease: float,
        now: float,
        entries: int,
        epoch: str,
        doubtful: bool = False,
        claimant: str | None = None,
    ) -> Writer:
        """
        Hand the stream to a new writer, as `judge_claim` allowed, or again to one whose first attempt got no reply.

        A complete log keeps its epoch, so that readers keep their place. A log that lost spans gets `epoch` and starts again
        without events; the caller then removes the remaining spans. A `doubtful` log also gets `epoch` but keeps its events: it
        may have lost later ones, and the new writer will append others.
        """
        if self.is_claimed_by(claimant):
            how = self.claimed[len(claimant or "") :]
            whole, before = how != "-", how[1:] or None
        else:
            whole = entries == self.c
            before = self.epoch if whole and doubtful else None
            how = "-" if not whole else "+" if before is None else f"={before}"
            self.claimed = "" if claimant is None else claimant + how
            self.fence += 1
            self.mark = 0
            if not whole:
                self.epoch = epoch
                self.n = self.b = self.c = 0
                self.oldest = 1
                self.note, self.note_n = None, 0
            elif before is not None:
                self.epoch = epoch
        self.until = now + lease
        self.expires = now + lease + self.head.retention
        handover = Handover(
            head=self.head,
            n=self.n,
            b=self.b,
            note=self.note,
            note_n=self.note_n,
            taken=self.taken,
            control=self.control,
            request=self.request,
            whole=whole,
            before=before,
        )
        return Writer(stream_id, self.epoch, self.fence, lease, self.head.retention, handover)

    def finish(self, ending: Ending, now: float) -> None:
        """Apply what `judge_finish` allowed."""
        self.ending = ending
        self.until = 0.0
        self.expires = now + self.head.retention

    def say(self, message: Message) -> int:
        """Apply what `judge_say` allowed; returns the place of the message in the inbox."""
        self.k += 1
        if message.kind == CANCEL and self.cancel is None:
            self.cancel = message.data
        return self.k


# --- verdicts -----------------------------------------------------------------------------------------------------------


def judge_create(record: Record | None, *, replaces: str | None = None) -> Existing | None:
    """
    Decide on `create`.

    Args:
        record: Record of the stream; `None`: it does not exist.
        replaces: Epoch of an ended stream that the new one replaces.

    Returns:
        The stream to join; `None`: create it.
    """
    if record is None or (record.ending is not None and record.epoch == replaces):
        return None
    return Existing(record.epoch, record.n, record.head, record.ending)


def judge_append(record: Record | None, entries: int, append: Append) -> Appended | Fenced | Ended | Behind | Lost | None:
    """
    Decide on one item of a batch.

    Args:
        record: Record of the stream; `None`: it does not exist.
        entries: How many spans the log actually holds for it.
        append: The item that the writer sends.

    Returns:
        The verdict; `None`: store the span, then call `record.append()`. On `Appended` there is nothing to do: the span, and what
        moves with it, were stored before.

    Raises:
        SpanRefused: The span follows the last event, but its bytes do not follow the last byte; or it repeats the last one, but
            ends at another byte. Such a writer has lost count.
    """
    refusal = _refusal(record, append.writer)
    if refusal is not None:
        return refusal
    assert record is not None
    if record.ending is not None:
        return Ended(record.ending, record.n)
    if entries != record.c:
        return Lost()
    span = append.span
    if span is None:
        if record.n != append.last:
            return Behind(record.n)
        # An older mark after a newer one is a late repeat of an append.
        return Appended(record.n, record.control) if 0 < append.mark <= record.mark else None
    if record.n == span.first - 1:
        if span.start != record.b:
            raise SpanRefused(
                f"stream {append.writer.stream_id!r}: the log ends at byte {record.b} with event {record.n}; the span of events "
                f"{span.first} to {span.n} must begin there, but begins at byte {span.start}",
                stream_id=append.writer.stream_id,
            )
        return None
    if append.exact:
        return Behind(record.n)
    if record.n == span.n and record.b != span.b:
        raise SpanRefused(
            f"stream {append.writer.stream_id!r}: event {span.n} is in the log and ends at byte {record.b}; "
            f"the span sent again ends at byte {span.b}, so it is another span",
            stream_id=append.writer.stream_id,
        )
    return Appended(record.n, record.control) if record.n >= span.n else Behind(record.n)


def judge_finish(
    record: Record | None, entries: int, writer: Writer, n: int, ending: Ending
) -> Done | Fenced | Ended | Behind | Lost | None:
    """
    Decide on `finish`.

    Args:
        record: Record of the stream; `None`: it does not exist.
        entries: How many spans the log actually holds for it.
        writer: Who finishes.
        n: Number of the last event, as the writer knows it.
        ending: How it ends.

    Returns:
        The verdict; `None`: store the ending.
    """
    refusal = _refusal(record, writer)
    if refusal is not None:
        return refusal
    assert record is not None
    if record.ending is not None:
        # Same fence: another one was refused above.
        return Done(record.n) if record.ending == ending and record.n == n else Ended(record.ending, record.n)
    if entries != record.c:
        return Lost()
    return None if record.n == n else Behind(record.n)


def judge_renew(record: Record | None, writer: Writer) -> Fenced | Ended | Lost | None:
    """Decide on one item of `renew`; `None`: extend the lease."""
    refusal = _refusal(record, writer)
    if refusal is not None:
        return refusal
    assert record is not None
    return None if record.ending is None else Ended(record.ending, record.n)


def judge_claim(record: Record | None, now: float, claimant: str | None = None) -> Held | Ended | Unknown | None:
    """Decide on `claim` at the time `now` of the log's clock; `None`: hand the stream over, or again to the same claimant."""
    if record is None:
        return Unknown()
    if record.ending is not None:
        return Ended(record.ending, record.n)
    return Held(record.until - now) if record.until > now and not record.is_claimed_by(claimant) else None


def judge_restore(record: Record | None, entries: int, writer: Writer) -> Existing | None:
    """
    Decide on `restore`; `None`: write the stream, replacing what is left of it.

    Another writer's stream is never overwritten. A record whose spans are lost may be, by the writer whose token it has.
    """
    if record is None or (record.token == writer.token and record.ending is None and entries != record.c):
        return None
    return Existing(record.epoch, record.n, record.head, record.ending)


def judge_say(record: Record | None, message: Message, known: int | None) -> Said | Ended | Full | Unknown | None:
    """
    Decide on `say`.

    Args:
        record: Record of the stream; `None`: it does not exist.
        message: The message.
        known: The place of an accepted message with this id; `None`: there is none.

    Returns:
        The verdict; `None`: store the message at `record.say()`.
    """
    if record is None:
        return Unknown()
    if known is not None:
        return Said(known, record.ending)
    if record.ending is not None:
        return Ended(record.ending, record.n)
    if record.k >= MAX_INBOX and not (message.kind == CANCEL and record.cancel is None):
        return Full(MAX_INBOX)
    return None


def judge_read(record: Record | None, entries: int, after: Cursor | None, *, now: float) -> Gone | Unknown | int:
    """
    Decide on `read`.

    Args:
        record: Record of the stream; `None`: it does not exist.
        entries: How many spans the log actually holds for it.
        after: The cursor; `None`: from the first event.
        now: The log's clock.

    Returns:
        Why it cannot be read from there, or the number of the event to read after.
    """
    if record is None:
        return Unknown()
    oldest = _oldest(record, entries)
    # The ending counts as one more event, so a reader who has seen it is one further.
    last = record.n if record.ending is None else record.n + 1
    if after is None:
        why = "trimmed" if oldest > 1 else None
    elif after.epoch != record.epoch:
        why = "other_epoch"
    elif after.n > last:
        why = "went_back"
    else:
        why = "trimmed" if after.n < oldest - 1 else None
    if why is None:
        return 0 if after is None else after.n
    return Gone(
        oldest,
        record.n,
        why,  # type: ignore[arg-type]  # one of the three above
        record.epoch,
        record.head,
        record.ending,
        record.until if record.ending is None else None,
        now,
    )


def page_of(
    stream_id: str, record: Record, entries: int, after: int, spans: Iterable[Span], *, limit_bytes: int, now: float
) -> Page:
    """
    Build the answer to `read` from the contents of the log.

    Args:
        stream_id: For the message, if something is missing.
        record: Record of the stream.
        entries: How many spans the log actually holds for it.
        after: The result of `judge_read`.
        spans: Those that end after it, in order; read lazily, and only as far as needed.
        limit_bytes: Most bytes of the page, but at least one event; 0: no events at all.
        now: The log's clock.

    Raises:
        LogUnavailable: The spans do not follow `after`, or each other, or stop before the last event.
    """
    taken: list[Span] = []
    room, place = limit_bytes, after
    for span in spans if room > 0 and after < record.n else ():
        if not span.first <= place + 1 <= span.n:
            raise _missing(stream_id, place + 1, f"the next span holds {span.first} to {span.n}")
        rest = spans_after(span, place)
        if len(rest.data) > room:
            part, _ = split_span(rest, room if taken else max(room, rest.lengths[0]))
            if part is not None:
                taken.append(part)
            break
        taken.append(rest)
        place, room = rest.n, room - len(rest.data)
        if not room or place >= record.n:
            break
    else:
        if room > 0 and place < record.n:
            raise _missing(stream_id, place + 1, f"no span holds it, although the log ends with event {record.n}")
    return Page(
        head=record.head,
        epoch=record.epoch,
        oldest=_oldest(record, entries),
        n=record.n,
        b=record.b,
        spans=tuple(taken),
        ending=record.ending,
        running_until=record.until if record.ending is None else None,
        now=now,
        note=None if limit_bytes else record.note,
    )


def _missing(stream_id: str, n: int, seen: str) -> LogUnavailable:
    return LogUnavailable(
        f"stream {stream_id!r}: the log is damaged: event {n} is missing ({seen}); delete() the stream", stream_id=stream_id
    )


def _refusal(record: Record | None, writer: Writer) -> Lost | Fenced | None:
    """The checks of every write: the log must exist, and must be the writer's."""
    if record is None:
        return Lost()
    return Fenced(record.token) if record.token != writer.token else None


def _oldest(record: Record, entries: int) -> int:
    # All stored spans are gone (an evicted key): the log begins after the last event.
    return record.n + 1 if record.c and not entries else record.oldest


# --- spans --------------------------------------------------------------------------------------------------------------


@overload
def only(verdicts: Sequence[ToAppend | Unavailable]) -> ToAppend: ...  # type: ignore[overload-overlap]  # alike
@overload
def only(verdicts: Sequence[ToRenew | Unavailable]) -> ToRenew: ...
def only(verdicts: Sequence[Any]) -> Any:
    """
    The verdict on the only item of a call.

    Raises:
        LogUnavailable: Its stream cannot be reached.
    """
    (verdict,) = verdicts
    if isinstance(verdict, Unavailable):
        raise LogUnavailable(verdict.why, stream_id=verdict.stream_id)
    return verdict


@overload
def reached(  # type: ignore[overload-overlap]  # alike
    found: Sequence[ToAppend | LogUnavailable], stream_ids: Sequence[str]
) -> list[ToAppend | Unavailable]: ...
@overload
def reached(found: Sequence[ToRenew | LogUnavailable], stream_ids: Sequence[str]) -> list[ToRenew | Unavailable]: ...
def reached(found: Sequence[Any], stream_ids: Sequence[str]) -> list[Any]:
    """
    Convert the results of a call's items to the answer of a log.

    Args:
        found: The verdict on each item, or the error instead of one.
        stream_ids: Their streams, in the same order.

    Raises:
        LogUnavailable: None of them could be reached.
    """
    if found and (failures := [each for each in found if isinstance(each, LogUnavailable)]) and len(failures) == len(found):
        # An error about all of them says more than one about a single stream.
        raise next((each for each in failures if each.stream_id is None), failures[0])
    return [
        Unavailable(stream_id, str(each)) if isinstance(each, LogUnavailable) else each
        for each, stream_id in zip(found, stream_ids, strict=True)
    ]


def check_batch(batch: Iterable[Append | tuple[Writer, Span, str | None]]) -> list[Append]:
    """
    Convert the items of a batch to `Append`, in order.

    Raises:
        TypeError: An item is neither an `Append` nor a tuple of its values.
        ValueError: An item is invalid.
    """
    items = []
    for item in batch:
        if not isinstance(item, Append):
            if not isinstance(item, tuple) or not 2 <= len(item) <= 5:
                raise TypeError(f"an item of a batch is an Append or a tuple of writer, span and note, got {type(item).__name__}")
            item = Append(*item)
        items.append(item)
    return items


def check_also(stream_id: str, also: Append | None) -> None:
    """
    Refuse an append that cannot be part of the step of `create` or `finish`.

    Raises:
        ValueError: It is for the same stream, or may have been stored before by another writer (`exact` is false).
    """
    if also is None:
        return
    if also.writer.stream_id == stream_id:
        raise ValueError(f"also must be an append to another stream, got one for {stream_id!r} itself")
    if not also.exact:
        raise ValueError("also must be exact: Append(…, exact=True)")


def check_restore(spans: Sequence[Span]) -> None:
    """
    Refuse spans that are not one piece of a log.

    They may begin after event 1, if the writer has trimmed its own copy.

    Raises:
        ValueError: A span does not continue the previous one, or the first is event 1 but not byte 0.
    """
    if spans and (spans[0].first == 1) != (spans[0].start == 0):
        raise ValueError(f"event 1 begins at byte 0; the first span begins with event {spans[0].first} at byte {spans[0].start}")
    for before, span in pairwise(spans):
        if (span.first, span.start) != (before.n + 1, before.b):
            raise ValueError(
                f"event {before.n + 1} must follow at byte {before.b}, got a span that begins with event {span.first} "
                f"at byte {span.start}"
            )


def spans_after(span: Span, n: int) -> Span:
    """
    The part of a span after event `n`; the span itself if all of it comes after.

    Raises:
        ValueError: Nothing comes after it.
    """
    if n < span.first:
        return span
    if n >= span.n:
        raise ValueError(f"no event of {span.first} to {span.n} comes after {n}")
    lengths = span.lengths[n - span.n :]
    return Span(n=span.n, b=span.b, lengths=lengths, data=span.data[-sum(lengths) :])


def split_span(span: Span, limit_bytes: int) -> tuple[Span | None, Span | None]:
    """
    Split a span between two of its events.

    Returns:
        Its first events, up to `limit_bytes`, and the rest; `None` for a part without events.
    """
    if len(span.data) <= limit_bytes:
        return span, None
    size = count = 0
    for length in span.lengths:
        if size + length > limit_bytes:
            break
        size += length
        count += 1
    if not count:
        return None, span
    first = Span(n=span.first + count - 1, b=span.start + size, lengths=span.lengths[:count], data=span.data[:size])
    return first, Span(n=span.n, b=span.b, lengths=span.lengths[count:], data=span.data[size:])


def join_spans(spans: Iterable[Span], *, limit_bytes: int = COMPACTED_BYTES) -> list[Span]:
    """
    Merge spans into as few as possible.

    Args:
        spans: One piece of a log, in order.
        limit_bytes: Most bytes of a span; a larger event is a span of its own.

    Returns:
        Spans with the same events, numbers and positions.
    """
    joined: list[Span] = []
    lengths: list[int] = []
    pieces: list[bytes] = []
    size = n = b = 0

    def close() -> None:
        if lengths:
            joined.append(Span(n=n, b=b, lengths=tuple(lengths), data=b"".join(pieces)))
            lengths.clear()
            pieces.clear()

    for span in spans:
        rest: Span | None = span
        while rest is not None:
            part, more = split_span(rest, limit_bytes - size)
            if part is None:
                if size:
                    close()
                    size = 0
                    continue
                part, more = split_span(rest, rest.lengths[0])
                assert part is not None
            lengths += part.lengths
            pieces.append(part.data)
            size, n, b, rest = size + len(part.data), part.n, part.b, more
    close()
    return joined
