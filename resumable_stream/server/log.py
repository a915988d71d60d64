"""
The interface of a log of streams, and the rules that all logs share.

A stream is a sequence of events, numbered from 1, and an ending. One writer at a time appends to it; any number of readers read
it from any position. The log keeps the two apart:

    create → Writer          append, append, append, finish            one writer; every write presents its token
    read(cursor) → Page      read, read, …                             readers hold a cursor and nothing else
    bells                    "stream 7 has grown"                      hints; only what `read` returns counts

*Nobody sees what the log has not acknowledged.* A writer passes events to readers after `append` has answered, never before, so a
crash leaves no reader ahead of the log.

*The token.* `<epoch>.<fence>`: the epoch is the identity of the log, the fence counts its writers. A writer that was paused for
longer than its lease, and superseded meanwhile, is refused at its next write, and so is the writer of a log that was lost and
recreated.

*The lease.* A writer that neither appends nor renews for `lease` seconds, on the log's clock, may be superseded by `claim`. Until
then, it may continue.

*Repeats.* A caller that gets no reply sends the same call again: a span, an ending or a message that is already in the log is
stored once, and answered as if it were new.

This module and those it re-exports do no I/O; they import no event loop, no clock and no database client.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, runtime_checkable

from ._records import (
    compressed,
    compressed_lengths,
    damaged,
    decode_lengths,
    encode_lengths,
    ending_from_json,
    ending_to_json,
    head_from_json,
    head_to_json,
    stored_span,
)
from ._rules import (
    MAX_INBOX,
    Record,
    check_also,
    check_batch,
    check_restore,
    join_spans,
    judge_append,
    judge_claim,
    judge_create,
    judge_finish,
    judge_read,
    judge_renew,
    judge_restore,
    judge_say,
    only,
    page_of,
    reached,
    spans_after,
    split_span,
)
from ._values import (
    CANCEL,
    MAX_PLACE,
    AlsoRefused,
    Append,
    Appended,
    Behind,
    Bell,
    Control,
    Cursor,
    Done,
    Ended,
    Ending,
    Existing,
    Fenced,
    Framing,
    Full,
    Gone,
    GoneWhy,
    Handover,
    Head,
    Held,
    Lost,
    Message,
    Page,
    Released,
    Said,
    Span,
    SpanRefused,
    Unavailable,
    Unknown,
    Writer,
    check_claimant,
    check_seconds,
    check_stream_id,
    check_text,
    epoch_of,
)

__all__ = [
    # what users of a log name
    "StreamLog",
    "Bells",
    # values
    "CANCEL",
    "Append",
    "Bell",
    "Control",
    "Cursor",
    "Ending",
    "Framing",
    "Handover",
    "Head",
    "Message",
    "Page",
    "Released",
    "Span",
    "Writer",
    # verdicts
    "AlsoRefused",
    "Appended",
    "Behind",
    "Done",
    "Ended",
    "Existing",
    "Fenced",
    "Full",
    "Gone",
    "GoneWhy",
    "Held",
    "Lost",
    "Said",
    "SpanRefused",
    "Unavailable",
    "Unknown",
    # rules, for those who write a log
    "MAX_INBOX",
    "MAX_PLACE",
    "Record",
    "check_also",
    "check_batch",
    "check_claimant",
    "check_restore",
    "check_seconds",
    "check_stream_id",
    "check_text",
    "epoch_of",
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
    "shard_of",
    "spans_after",
    "split_span",
    # the stored form
    "compressed",
    "compressed_lengths",
    "damaged",
    "decode_lengths",
    "encode_lengths",
    "ending_from_json",
    "ending_to_json",
    "head_from_json",
    "head_to_json",
    "stored_span",
]


@runtime_checkable
class Bells(Protocol):
    """
    Rings when streams change; one object per process listens to any number of them.

    Iterate it in one task: `async for bell in bells`. The iteration ends after `aclose()`.

    Bells are hints. One may be lost, duplicated or out of order, so a listener compares `bell.n` with what it has, reads the log
    when there is a hole, and also reads it now and then without a bell. The content of a bell is already in the log.

    An implementation that loses its connection reconnects by itself, and rings `Bell(id=…, item=None)` for each stream it listens
    to again, because bells were lost meanwhile. It does the same when a slow listener lets bells pile up.
    """

    async def add(self, stream_id: str) -> None:
        """
        Listen to a stream. From the return on, every append to it rings.

        Adding first and reading afterwards therefore misses nothing. Adding twice has no further effect.

        Raises:
            LogUnavailable: The log cannot be heard.
            ValueError: The id is invalid.
        """
        ...

    async def discard(self, stream_id: str) -> None:
        """Stop listening to a stream; waiting bells may still come. Does nothing if nobody listens."""
        ...

    def __aiter__(self) -> AsyncIterator[Bell]:
        """The bells of all added streams, in no particular order."""
        ...

    async def aclose(self) -> None:
        """Stop listening to all streams, and end the iteration. Calling it twice does no harm."""
        ...


def shard_of(log: object, stream_id: str) -> str:
    """The shard of a stream, as far as the log knows; `""` for a log without shards, see `StreamLog`."""
    found = getattr(log, "shard_of", None)
    return "" if found is None else str(found(stream_id))


@runtime_checkable
class StreamLog(Protocol):
    """
    Keeps the events of streams. All methods may be called from any task of one event loop.

    `resumable_stream.testing.log_contract` holds the tests that an implementation has to pass, and this module the rules as
    functions: `judge_append` and the others.

    Every method raises `LogUnavailable` if the log cannot be reached, or its data is damaged, and `ValueError` for an invalid
    stream id. After `LogUnavailable` a write may or may not have happened; send it again. Everything else is an answer, not an
    error.

    `append` and `renew` take many streams at once, and a damaged or unreachable one is `Unavailable` by itself. A log whose
    streams are spread over several machines may also report which belong together:

        def shard_of(self, stream_id: str) -> str: …

    It answers at once, without I/O, and may be wrong: a stream may move. Streams of different shards are then sent in separate
    trips, so that a machine that is slow to fail delays only its own streams.
    """

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
        """
        Create the stream, or join the existing one: of any number of concurrent callers, one becomes its writer.

        Args:
            stream_id: 1 to 256 characters of `A-Z a-z 0-9 . _ ~ -`.
            head: Fixed from now on.
            lease: Seconds, see `Writer.lease`.
            request: Request of the stream, for a later producer; stored unchanged.
            replaces: The epoch of an ended stream: if it still exists, it is deleted in the same step, and the new stream has
                another epoch. `None`: an existing stream is joined, ended or not.
            also: An append to another stream in the same step: both are done or neither. Ignored if the stream exists
                already. A log whose streams are spread over several machines may do it just before instead.
            epoch: Epoch of the new stream, chosen at random by the caller. Repeating the call with the same epoch, because the
                first got no reply, returns the writer that the first one made, with a fresh lease, as long as it has appended
                nothing and nobody has claimed the stream. Do not reuse one later than a lease after the first call: events may
                have been written under it. `None`: the log chooses one.

        Returns:
            The writer; or the existing stream, whose head is unchanged; or why `also` was refused.

        Raises:
            ValueError: `also` is for the same stream, or not exact.
        """
        ...

    async def append(
        self, batch: Sequence[Append | tuple[Writer, Span, str | None]]
    ) -> list[Appended | Fenced | Ended | Behind | Lost | Unavailable]:
        """
        Append spans of any number of streams in one trip, and renew the leases of their writers.

        The items of one stream are judged in order. Each item is stored completely or not at all; its note and its `taken` are
        stored in the same step. Items of different streams are independent.

        Args:
            batch: `Append` objects, or tuples of writer, span and note.

        Returns:
            A verdict for each item, in the same order:

            | the log | verdict |
            |---|---|
            | has nothing | `Lost` |
            | has another token | `Fenced` |
            | has an ending | `Ended` |
            | has fewer spans than were stored | `Lost` |
            | ends with the event before the span | stored: `Appended` |
            | has the span already | `Appended` |
            | ends elsewhere | `Behind` |
            | was not reached for this stream, but for another one of the batch | `Unavailable` |

            An `exact` item that the log has already is `Behind` as well.

        Raises:
            LogUnavailable: None of the streams could be reached.
            SpanRefused: The bytes of a span do not continue those of its log (a `ValueError`). Nothing of that span is stored;
                the other items may or may not be. Send the batch again without it.
        """
        ...

    async def restore(
        self,
        writer: Writer,
        head: Head,
        epoch: str,
        spans: Sequence[Span],
        *,
        request: bytes | None = None,
        note: str | None = None,
        note_n: int | None = None,
        taken: int = 0,
        inbox: Sequence[Message] = (),
    ) -> Writer | Existing:
        """
        Write a lost stream again in one step, after `Lost`, under the next fence.

        Args:
            writer: The one that got `Lost`.
            head: As created.
            epoch: The old one, if the spans are complete, so that readers keep their place; otherwise a new one.
            spans: One piece of a log; none if there were no events.
            request: As created.
            note: The newest note.
            note_n: The event that the note belongs to; `None`: the last.
            taken: How many messages are dealt with.
            inbox: The known messages, so that a repeated one is still recognised.

        Returns:
            The writer to continue with. `Existing`: another writer has the stream, and nothing changed.

        Raises:
            ValueError: The spans are not one piece.
        """
        ...

    async def finish(
        self, writer: Writer, n: int, ending: Ending, *, also: Append | None = None
    ) -> Done | Fenced | Ended | Behind | Lost | AlsoRefused:
        """
        End the stream after event `n`; it is kept for `head.retention` seconds from now.

        A repeated call of the same writer with the same ending is `Done`; with another one it is `Ended`, with the first.

        Args:
            writer: Writer of the stream.
            n: Number of the last event.
            ending: How it ended.
            also: An append to another stream in the same step: both are done or neither. If the stream has this ending already,
                `also` is appended alone. A log whose streams are spread over several machines may do it just after instead, and
                answers `AlsoRefused` if the stream has ended and `also` was refused: finish it again.

        Raises:
            ValueError: `also` is for the same stream, or not exact.
        """
        ...

    async def read(self, stream_id: str, after: Cursor | None = None, *, limit_bytes: int = 4 << 20) -> Page | Gone | Unknown:
        """
        Read the events after a cursor.

        Args:
            stream_id: The stream.
            after: The last event that the reader has; a cursor at n + 1 of an ended stream has seen the ending too.
                `None`: from the first event; `Gone` if that is no longer there, never a silent hole.
            limit_bytes: Most bytes of events in the page, but at least one event. 4 MiB: one trip for nearly every answer.
                0: no events, only the state of the stream, and its note; without a cursor this is never `Gone`.
        """
        ...

    def bells(self) -> Bells:
        """Make an object that reports changes, including those by other processes. One per process is enough."""
        ...

    async def renew(self, writers: Sequence[Writer]) -> list[Control | Fenced | Ended | Lost | Unavailable | None]:
        """
        Extend the leases of writers that have nothing to append.

        A writer whose `lease` is 0 releases its stream: it may be claimed at once, and a bell says so (`Released`).

        Returns:
            For each writer, in the same order, why it has lost its stream; otherwise the state of the inbox, which is `None`
            before
                the first message. `Unavailable`: this stream cannot be reached, while another one can.

        Raises:
            LogUnavailable: None of the streams could be reached.
        """
        ...

    async def claim(
        self, stream_id: str, *, lease: float, go_on: bool = False, claimant: str | None = None
    ) -> Writer | Held | Ended | Unknown:
        """
        Take over a stream whose lease has ended; its writer is fenced from now on.

        A complete log keeps its epoch, and readers continue. A log that lost spans starts again under a new epoch without events
        (`writer.handover.whole` is false), and its readers get `Gone`.

        A log that recovered from a failover, a power loss or a backup may have lost its last events without a trace. Readers may
        have seen them, so their numbers must not be given to other events.

        Args:
            stream_id: The stream.
            lease: Seconds, see `Writer.lease`.
            go_on: The new writer will append events. A log that may have lost its last events then moves the others to a new
                epoch (`writer.handover.before` is the old one), and readers of the old one get `Gone`. Otherwise the epoch
                stays, so that its readers get the remaining events, and the end.
            claimant: A name for this claim, chosen at random by the caller, 1 to 64 characters of `A-Z a-z 0-9 _`. Repeating the
                call with the same name, because the first got no reply, returns the writer that the first one made, with a
                fresh lease, as long as nobody else has claimed the stream. Do not reuse one after a reply. `None`: if the reply
                is lost, nobody holds the stream until its lease ends.

        Returns:
            The new writer, with the state to continue from in `.handover`, or why there is none.
        """
        ...

    async def say(self, stream_id: str, message: Message) -> Said | Ended | Full | Unknown:
        """
        Put a message into the inbox of a running stream, and ring.

        A message with a known id is not stored again, and is answered with the place of the first, even after the end. One of the
        kind `CANCEL` asks the producer to stop; the first reason is kept in `Control.cancel`.
        """
        ...

    async def inbox(self, stream_id: str, after: int) -> list[Message]:
        """Read the messages after place `after`, in order, at most 1,000 of them; none for an unknown stream."""
        ...

    async def compact(self, stream_id: str) -> None:
        """Store an ended stream in fewer, compressed entries. Readers notice nothing. A running stream stays as it is."""
        ...

    async def delete(self, stream_id: str) -> None:
        """Delete the stream and its messages, and ring. Its writer gets `Lost`. Does nothing if there is none."""
        ...

    async def orphans(self, limit: int = 100) -> list[str]:
        """Return at most `limit` running streams whose lease has ended, the earliest first."""
        ...

    async def aclose(self) -> None:
        """Close the connections, files and bells that this object opened. A persistent log keeps its streams."""
        ...
