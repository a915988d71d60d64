"""The demo as plain lines, for a pipe, a file, or a build log."""

from __future__ import annotations

from ._extra import click
from .mission import Entry, Mission

__all__ = ["PlainReporter"]

EVERY = 250


class PlainReporter:
    """One line per event of the story, and one per 250 tokens."""

    def started(self, mission: Mission) -> None:
        pace, without = mission.pace, mission.without
        _row(
            "server", f"{mission.server.url}: {mission.total:,} tokens in {pace.story:g} s, closed for {pace.outage:g} s of them"
        )
        if without is not None:
            then = f", then {without.error}" if without.error else ""
            _row("plain httpx", f"{without.tokens:,} of {mission.total:,} tokens{then}")

    def logged(self, mission: Mission, entry: Entry) -> None:
        _line(entry.at, entry.text)

    def received(self, mission: Mission) -> None:
        if mission.last % EVERY == 0:
            _line(mission.elapsed, f"{mission.last:,} tokens")

    def ended(self, mission: Mission) -> None:
        stats = mission.stats
        _row("delivered", f"{stats.events:,}")
        _row("duplicates", f"{stats.duplicates:,} dropped, {mission.server.resent:,} sent")
        _row("gaps", f"{stats.gaps:,}")
        _row("reconnects", f"{stats.reconnects:,}")
        _row("offline", f"{stats.seconds_offline:.1f} s")
        _row("sent", f"sha256 {mission.sent_digest}")
        _row("received", f"sha256 {mission.received_digest}")
        _row("result", "identical" if mission.identical else "DIFFERENT")


def _row(name: str, text: str) -> None:
    click.echo(f"{name:<12} {text}")


def _line(at: float, text: str) -> None:
    click.echo(f"{at:>9.2f} s  {text}")
