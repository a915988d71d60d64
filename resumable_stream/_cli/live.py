"""
The demo on a terminal: one frame, redrawn twelve times a second.

The frame has a constant height, so nothing jumps. A thread of `rich.live` draws it and only reads the mission, so it continues
while the stream waits.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from functools import lru_cache
from types import TracebackType
from typing import Generic, Self, TypeVar

from ._extra import Console, Group, Live, Panel, RenderableType, Table, Text
from .mission import Entry, Mission

__all__ = ["Frames", "LiveReporter", "draw", "fits"]

FRAMES_PER_SECOND = 12
# A smaller terminal would wrap the frame: use plain lines then.
MIN_WIDTH, MIN_HEIGHT = 79, 20
# Wider lines are harder to read.
MAX_WIDTH, MAX_TEXT_LINES = 104, 12
# Everything except the lines of the story, see `draw()`: 16. The command above and the prompt below stay visible.
_OTHER_LINES = 18
_LOG_LINES = 5

_STATES = {
    "connecting": ("yellow", "connecting"),
    "connected": ("green", "connected"),
    "offline": ("red", "offline"),
    "resumed": ("cyan", "resumed"),
    "ended": ("green", "completed"),
}
_KINDS = {"connected": "green", "lost": "red", "retry": "yellow", "resumed": "cyan", "gap": "red", "ended": "green"}


def fits(console: Console) -> bool:
    """Whether the frame can be drawn here."""
    return console.width >= MIN_WIDTH and console.height >= MIN_HEIGHT and console.encoding.startswith("utf")


AnyMission = TypeVar("AnyMission")


class Frames(Generic[AnyMission]):
    """
    Draws a mission within a `with` block; the last frame stays.

    Args:
        console: Console to draw on.
        draw: Makes a frame of the mission, for the console's `width=` and `height=`.
        before: Shown until the mission has started.
    """

    def __init__(self, console: Console, draw: Callable[..., RenderableType], before: str) -> None:
        self._console, self._draw, self._before = console, draw, before
        self._mission: AnyMission | None = None
        self._live = Live(console=console, get_renderable=self._frame, refresh_per_second=FRAMES_PER_SECOND)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def _frame(self) -> RenderableType:
        if self._mission is None:
            return Text(self._before, style="dim")
        return self._draw(self._mission, width=self._console.width, height=self._console.height)

    def started(self, mission: AnyMission) -> None:
        self._mission = mission

    def ended(self, mission: AnyMission) -> None:
        pass  # the last frame shows it


class LiveReporter(Frames[Mission]):
    """The demo of the client half."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, draw, " connecting")

    def logged(self, mission: Mission, entry: Entry) -> None:
        pass  # the next frame shows it

    def received(self, mission: Mission) -> None:
        pass


def draw(mission: Mission, *, width: int, height: int) -> RenderableType:
    """One frame: never wider than the terminal, two lines lower than it, and of constant height."""
    width = min(width, MAX_WIDTH)
    lines = max(2, min(height - _OTHER_LINES, MAX_TEXT_LINES))
    return Group(
        _title(mission, width),
        Panel(_story(mission, width - 4, lines), width=width, border_style=_STATES[mission.state][0], padding=(0, 1)),
        _state(mission, width),
        _bar(mission, width),
        _tables(mission, width),
        _without(mission),
        *_hashes(mission),
    )


def _title(mission: Mission, width: int) -> RenderableType:
    left = Text.assemble(("  resumable_stream ", "bold"), (f" GET {mission.server.url}", "dim"))
    return _spread(left, Text(f"{mission.elapsed:.1f} s  ", style="dim"), width)


def _story(mission: Mission, width: int, lines: int) -> Text:
    wrapped = [line for paragraph in mission.text.split("\n") for line in (_wrap(paragraph, width - 1) or ("",))]
    shown = wrapped[-lines:]
    shown += [""] * (lines - len(shown))
    text = Text("\n".join(shown), no_wrap=True, overflow="crop")
    if mission.state != "ended":
        last = max((index for index, line in enumerate(shown) if line), default=0)
        before = sum(len(line) + 1 for line in shown[:last]) + len(shown[last])
        text = text[:before] + Text("▌", style=_STATES[mission.state][0]) + text[before:]
    return text


@lru_cache(maxsize=64)
def _wrap(paragraph: str, width: int) -> tuple[str, ...]:
    # Always wrap from the start of the paragraph, so that lines stay the same while the text grows.
    return tuple(textwrap.wrap(paragraph, width))


def _state(mission: Mission, width: int) -> RenderableType:
    colour, word = _STATES[mission.state]
    left = Text.assemble("  ", ("● ", colour), (word, f"bold {colour}"))
    if mission.state == "offline":
        wait = max(0.0, mission.retry_at - time.monotonic())
        left.append(f"  lost at {mission.lost_at:,}, retry {mission.attempts} in {wait:.1f} s")
    elif mission.resumed_at is not None:
        left.append(f"  lost at {mission.lost_at:,}, resumed at {mission.resumed_at:,}")
    return _spread(left, Text(f"{mission.last:,} of {mission.total:,} tokens  ", style="bold"), width)


def _bar(mission: Mission, width: int) -> Text:
    """How much has arrived; the position where the connection was lost stays visible."""
    cells = width - 4

    def cell(token: int) -> int:
        return cells * token // mission.total

    done = cell(mission.last)
    lost = cells if mission.lost_at is None else cell(mission.lost_at)
    bar = Text("  ")
    bar.append("━" * min(done, lost), style="green")
    if mission.lost_at is not None:
        bar.append("╋", style="red")
        bar.append("━" * (done - lost - 1), style="cyan")
    bar.append("─" * (cells + 2 - len(bar)), style="bright_black")
    return bar


def _tables(mission: Mission, width: int) -> RenderableType:
    left = 27
    grid = Table.grid(padding=0)
    grid.add_column(width=left)
    grid.add_column(width=width - left)
    grid.add_row(
        Panel(_ledger(mission), title="ledger", title_align="left", border_style="dim", width=left),
        Panel(_log(mission, width - left - 4), title="log", title_align="left", border_style="dim", width=width - left),
    )
    return grid


def _ledger(mission: Mission) -> RenderableType:
    stats = mission.stats
    table = Table.grid(expand=True)
    table.add_column()
    table.add_column(justify="right")
    for name, value, style in (
        ("delivered", f"{stats.events:,}", "bold"),
        ("duplicates dropped", f"{stats.duplicates:,}", "cyan" if stats.duplicates else ""),
        ("gaps", f"{stats.gaps:,}", "red" if stats.gaps else ""),
        ("reconnects", f"{stats.reconnects:,}", "cyan" if stats.reconnects else ""),
        ("seconds offline", f"{mission.seconds_offline:.1f}", "red" if mission.state == "offline" else ""),
    ):
        table.add_row(name, Text(value, style=style))
    return table


def _log(mission: Mission, width: int) -> Text:
    # Only the newest of consecutive retries, so that the beginning of the story stays visible.
    entries: list[Entry] = []
    for entry in mission.log:
        if entry.kind == "retry" and entries and entries[-1].kind == "retry":
            entries.pop()
        entries.append(entry)
    rows = []
    for entry in entries[-_LOG_LINES:]:
        row = Text.assemble((f"{entry.at:4.1f} s  ", "dim"), (entry.text, _KINDS[entry.kind]))
        row.truncate(width, overflow="ellipsis")
        rows.append(row)
    rows += [Text()] * (_LOG_LINES - len(rows))
    return Text("\n").join(rows)


def _without(mission: Mission) -> Text:
    text = Text("  plain httpx ", style="dim")
    if (without := mission.without) is not None:
        text.append(f"{without.tokens:,} of {mission.total:,} tokens", style="not dim")
        if without.error is not None:
            text.append(f", then {without.error}", style="not dim red")
    return text


def _hashes(mission: Mission) -> tuple[Text, Text, Text]:
    sent = Text.assemble(("  sent        ", "dim"), mission.sent_digest)
    received = Text("  received    ", style="dim")
    result = Text("  sha256      ", style="dim")
    if mission.received_digest is None:
        received.append("…")
    elif mission.identical:
        received.append(mission.received_digest, style="not dim green")
        result.append("✔ identical", style="not dim bold green").append(": every token once, in order", style="not dim")
    else:
        received.append(mission.received_digest, style="not dim red")
        result.append("✘ different", style="not dim bold red")
    return sent, received, result


def _spread(left: Text, right: Text, width: int) -> RenderableType:
    grid = Table.grid()
    grid.add_column(width=width - len(right), no_wrap=True)
    grid.add_column(width=len(right), no_wrap=True)
    grid.add_row(left, right)
    return grid
