"""
What has happened to a stream so far: counters, time offline, and the notices for an observer.

The notice of a lost connection says what follows it. That is known a moment later, so the notice is held until then.
"""

from __future__ import annotations

from dataclasses import replace

from .. import _notices as note
from .ledger import Ledger
from .settings import Stats

__all__ = ["Account"]


class Account:
    """
    Attributes:
        notices: For the driver, which shows and removes them.
        last_error: The error that ended the latest connection.
        routine: The next answer is routine and does not count as a reconnect.
        checked: The status of the run was requested, and the run is still running.
        connections: Responses whose body was read.
    """

    def __init__(self) -> None:
        self.notices: list[note.Notice] = []
        self.last_error: BaseException | None = None
        self.routine = False
        self.checked = False
        self.connections = 0
        self._events = 0
        self._answers = 0
        """Connections that followed as routine, and so are not reconnects."""
        self._offline_since: float | None = None
        self._offline = 0.0
        self._parting: note.Disconnected | None = None
        """The notice of the latest loss, held until it is known what follows."""

    @property
    def offline(self) -> bool:
        """Whether the latest connection was lost and none has replaced it yet."""
        return self._offline_since is not None

    def stats(self, ledger: Ledger | None, bytes: int) -> Stats:
        return Stats(
            events=self._events + (ledger.fresh if ledger else 0),
            bytes=bytes,
            duplicates=ledger.duplicates if ledger else 0,
            gaps=ledger.gaps if ledger else 0,
            connections=self.connections,
            reconnects=max(0, self.connections - 1 - self._answers),
            seconds_offline=self._offline,
            cursor_ignored=ledger.cursor_ignored if ledger else False,
        )

    def count_events(self, events: int) -> None:
        """Count events of an earlier connection, or from the store."""
        self._events += events

    def connected(self, status: int, ledger: Ledger, now: float, *, resuming: bool, asking: bool) -> None:
        """A response of the stream is being read."""
        self.connections += 1
        self._answers += self.routine
        self.routine = False
        offline = None
        if self._offline_since is not None:
            offline = now - self._offline_since
            self._offline += offline
            self._offline_since = None
        cursor = ledger.cursor if resuming else None
        self.notices.append(note.Connected(status, resuming, cursor, offset=ledger.offset, offline=offline, asking=asking))

    def lost(self, reason: str, error: BaseException | None, ledger: Ledger | None, now: float, *, seconds: float | None) -> None:
        """
        A connection is over before the stream has ended.

        Args:
            seconds: The limit of the clock that ran out, if one did.
        """
        self.routine = False
        if self._offline_since is None:
            self._offline_since = now
        self.last_error = error
        self._parting = note.Disconnected(
            reason,
            type(error).__name__ if error is not None else None,
            offset=ledger.offset if ledger is not None else 0,
            cursor=ledger.cursor if ledger is not None else None,
            seconds=seconds,
            then="give up",
            checked=self.checked,
        )
        self.checked = False
        self.notices.append(self._parting)

    def then(self, follows: note.Then) -> None:
        """Record what follows the lost connection. Its notice says so, unless it was already sent."""
        parting, self._parting = self._parting, None
        for index, notice in enumerate(self.notices):
            if notice is parting:
                self.notices[index] = replace(parting, then=follows)
