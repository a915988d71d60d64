"""What happens to the connection, as lines on standard error."""

from __future__ import annotations

import sys

import resumable_stream as rs

from .output import coloured, visible

__all__ = ["Notes", "counted"]


_CLOCKS = {"idle": "no byte", "stall": "no event", "first_event": "no first event"}


class Notes:
    """
    An observer that says what a person wants to know: lost, trying again, continued, missing.

    Args:
        verbose: Say the rest too: connections, duplicates, the reckoning at the end.

    Attributes:
        stream: The stream that is watched; set before it is opened.
    """

    def __init__(self, *, verbose: bool) -> None:
        self.stream: rs.ResumableStream | None = None
        self._verbose = verbose
        # The server closed in order and was asked whether that was all: if it was not, nothing was lost.
        self._asking = False
        self._errors = sys.stderr
        self._dim = ("\x1b[2m", "\x1b[0m") if coloured(self._errors) else ("", "")

    def say(self, text: str) -> None:
        """Write a line."""
        before, after = self._dim
        try:
            self._errors.write(f"{before}* {visible(text)}{after}\n")
            self._errors.flush()
        except OSError:
            pass  # nobody listens; the events matter more

    def __call__(self, notice: rs.Notice) -> None:
        if isinstance(notice, rs.Disconnected):
            self._asking = notice.reason == "closed" and notice.error is None
        text = self._loud(notice)
        if text is None and self._verbose:
            text = self._quiet(notice)
        if text is not None:
            self.say(text)

    def _loud(self, notice: rs.Notice) -> str | None:
        match notice:
            case rs.Connected(resuming=True) if not self._asking:
                return f"continuing {self._place()}"
            case rs.Disconnected(reason=reason, seconds=float(seconds)):
                # A clock of ours: which exception it ended the read with says nothing.
                return f"{_CLOCKS.get(reason, reason)} for {seconds:g} s {self._place()}"
            case rs.Disconnected(reason=reason, error=error) if not self._asking:
                # Of a status, the exception says no more.
                known = error is None or reason.startswith("status ")
                return f"{reason}{'' if known else f' ({error})'} {self._place()}"
            case rs.Retrying(wait=wait, reason=reason) if wait > 0 or reason:
                return f"{reason}{', ' if reason else ''}trying again {notice.when}"
            case rs.GapFound(gap=gap, asked_again=asked_again):
                return f"{_missing(gap)}{', asking for them again' if asked_again else ''}"
            case rs.CursorIgnored():
                return "the server sends the stream from its beginning again"
            case rs.EndUnverified():
                return (
                    "warning: the server closed in order, and nothing shows that this was the end; "
                    "name the end with --end, if the stream marks it"
                )
            case rs.Restarted(offset=offset):
                return f"the stream starts again; what was written from event {offset + 1:,} on is void"
            case _:
                return None

    def _quiet(self, notice: rs.Notice) -> str | None:
        match notice:
            case rs.Connected(status=status):
                return f"connected: {status}, {self.stream.protocol!r}" if self.stream is not None else None
            case rs.Disconnected():
                return f"closed {self._place()}, asking whether that was all"
            case rs.DuplicateDropped(id=name):
                return f"dropped a duplicate{f' (id {name})' if name else ''}"
            case rs.NumberingStopped(expected=expected, received=received):
                return f"the ids are no counter after all (expected {expected}, received {received}): gaps are not watched for"
            case rs.NumberOutOfOrder(expected=expected, received=received):
                return f"an event has number {received}, expected {expected}: delivered all the same"
            case rs.Finished(outcome=outcome) if self.stream is not None:
                stats = self.stream.stats
                return (
                    f"{outcome.value}: {counted(stats.events, 'event')} in {counted(stats.connections, 'connection')}, "
                    f"{counted(stats.duplicates, 'duplicate')} dropped, {counted(stats.gaps, 'gap')}, "
                    f"{stats.seconds_offline:.1f} s offline"
                )
            case _:
                return None

    def _place(self) -> str:
        """Where the stream is, in words."""
        if self.stream is None or not (place := self.stream.checkpoint).offset:
            return "before the first event"
        protocol = self.stream.protocol
        if protocol is not None and protocol.framing == "raw":
            return f"after byte {int(place.cursor or 0):,}"
        return f"after event {place.offset:,}"


def counted(count: int, noun: str) -> str:
    """
    >>> counted(1, "gap"), counted(2, "gap")
    ('1 gap', '2 gaps')
    """
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _missing(gap: rs.Gap) -> str:
    if (missing := gap.missing) is None:
        return "events are missing"
    return f"{counted(missing, 'event')} missing (expected {gap.expected}, received {gap.received})"
