"""Reports on the connection, as lines on standard error."""

from __future__ import annotations

import sys

import resumable_stream as rs

from .output import coloured, visible

__all__ = ["Notes", "counted"]


_CLOCKS = {"idle": "no byte", "stall": "no event", "first_event": "no first event"}


class Notes:
    """
    An observer that prints what a person wants to know: lost, retrying, continued, missing.

    Args:
        verbose: Print more: connections, duplicates, the totals at the end.

    Attributes:
        stream: The stream to observe; set before it is opened.
    """

    def __init__(self, *, verbose: bool) -> None:
        self.stream: rs.ResumableStream | None = None
        self._verbose = verbose
        # The server closed cleanly and was asked whether that was all: until the answer, nothing is lost.
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
            pass  # standard error is closed; the events matter more

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
                # One of our own clocks: the exception that ended the read adds nothing.
                return f"{_CLOCKS.get(reason, reason)} for {seconds:g} s {self._place()}"
            case rs.Disconnected(reason=reason, error=error) if not self._asking:
                # For a status, the exception adds nothing.
                known = error is None or reason.startswith("status ")
                return f"{reason}{'' if known else f' ({error})'} {self._place()}"
            case rs.Retrying(wait=wait, reason=reason) if wait > 0 or reason:
                return f"{reason}{', ' if reason else ''}retrying {notice.when}"
            case rs.GapFound(gap=gap, asked_again=asked_again):
                return f"{_missing(gap)}{', requesting them again' if asked_again else ''}"
            case rs.CursorIgnored():
                return "the server sends the stream again from the start"
            case rs.EndUnverified():
                return (
                    "warning: the server closed cleanly, but nothing shows that this was the end; "
                    "name the end with --end, if the stream marks its end"
                )
            case rs.Restarted(offset=offset):
                return f"the stream starts again; the output from event {offset + 1:,} on is void"
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
                return f"the ids are not a counter after all (expected {expected}, received {received}): gaps cannot be detected"
            case rs.NumberOutOfOrder(expected=expected, received=received):
                return f"an event has number {received}, expected {expected}: delivered anyway"
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
        """The position of the stream, in words."""
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
