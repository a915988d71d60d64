"""
What has happened to a stream so far: counters, time offline, and the notices for an observer.

The notice of a lost connection says what follows it. That is known a moment later, so the notice is held until then.
"""

from __future__ import annotations

from dataclasses import replace

from .. import _notices as note
from .._events import Outcome
from .ledger import Ledger
from .plan import Wait
from .settings import Settings, Stats

__all__ = ["Account"]


class Account:
    """
    Attributes:
        notices: For the driver, which shows and removes them.
        last_error: The error that ended the latest connection.
        connections: Responses whose body was read.
    """

    def __init__(self, settings: Settings) -> None:
        self.notices: list[note.Notice] = []
        self.last_error: BaseException | None = None
        self.connections = 0
        self._routine = False
        """The next answer is routine and does not count as a reconnect."""
        self._attempts = settings.attempts
        self._events = 0
        self._answers = 0
        """Connections that followed as routine, and so are not reconnects."""
        self._offline_since: float | None = None
        self._offline = 0.0
        self._parting: note.Disconnected | None = None
        """The notice of the latest loss, held until it is known what follows."""

    def stats(self, ledger: Ledger, bytes: int) -> Stats:
        return Stats(
            events=self._events + ledger.fresh,
            bytes=bytes,
            duplicates=ledger.duplicates,
            gaps=ledger.gaps,
            connections=self.connections,
            reconnects=max(0, self.connections - 1 - self._answers),
            seconds_offline=self._offline,
            cursor_ignored=ledger.cursor_ignored,
        )

    def count_events(self, events: int) -> None:
        """Count events of an earlier connection, or from the store."""
        self._events += events

    def waits(self, wait: Wait, seconds: float) -> None:
        """The next request follows in `seconds`, unless the deadline comes first."""
        if wait.follows is None:
            self._routine = True
            return
        self.then(wait.follows)
        self.notices.append(note.Retrying(wait.attempt, seconds, attempts=self._attempts, reason=wait.failed))

    def connected(self, status: int, ledger: Ledger, now: float, *, resuming: bool, asking: bool) -> None:
        """A response of the stream is being read."""
        self.connections += 1
        self._answers += self._routine
        self._routine = False
        offline = None
        if self._offline_since is not None:
            offline = now - self._offline_since
            self._offline += offline
            self._offline_since = None
        cursor = ledger.cursor if resuming else None
        self.notices.append(note.Connected(status, resuming, cursor, offset=ledger.offset, offline=offline, asking=asking))

    def lost(
        self, reason: str, error: BaseException | None, ledger: Ledger, now: float, *, seconds: float | None, checked: bool
    ) -> None:
        """
        A connection is over before the stream has ended.

        Args:
            seconds: The limit of the clock that ran out, if one did.
            checked: The status of the run was requested, and the run is still running.
        """
        self._routine = False
        if self._offline_since is None:
            self._offline_since = now
        self.last_error = error
        self._parting = note.Disconnected(
            reason,
            type(error).__name__ if error is not None else None,
            offset=ledger.offset,
            cursor=ledger.cursor,
            seconds=seconds,
            then="give up",
            checked=checked,
        )
        self.notices.append(self._parting)

    def lost_for_good(self, text: str) -> None:
        """The rest of the stream cannot be resumed."""
        self.notices.append(note.Lost(text))

    def finished(self, outcome: Outcome, ledger: Ledger, *, asking: bool) -> None:
        """The stream has ended. `asking`: the latest request only asked whether there is more."""
        self.then("end")
        self.notices.append(note.Finished(outcome, offset=ledger.offset, after_loss=asking or self._offline_since is not None))

    def then(self, follows: note.Then) -> None:
        """Record what follows the lost connection. Its notice says so, unless it was already sent."""
        parting, self._parting = self._parting, None
        for index, notice in enumerate(self.notices):
            if notice is parting:
                self.notices[index] = replace(parting, then=follows)
