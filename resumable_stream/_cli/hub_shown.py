"""The server's demo, as a frame that is redrawn twelve times a second, and as plain lines."""

from __future__ import annotations

import textwrap

from ._extra import Console, Group, Panel, RenderableType, Text, click
from .hub_mission import HubMission, Lane, Note
from .live import MAX_WIDTH, Frames

__all__ = ["HubLiveReporter", "HubPlainReporter", "draw_hub"]

_COLOURS = ("magenta", "green", "cyan", "yellow")
"""For the generation and the readers."""
_LOG_LINES = 7
# Everything except the lines of the story and of the log: 13. The command above and the prompt below stay visible.
_OTHER_LINES = 15
_NAME, _COUNT, _STATE = 14, 7, 24


class HubLiveReporter(Frames[HubMission]):
    """The demo of the server half."""

    def __init__(self, console: Console) -> None:
        super().__init__(console, draw_hub, " starting")

    def noted(self, mission: HubMission, note: Note) -> None:
        pass  # the next frame shows it


def draw_hub(mission: HubMission, *, width: int, height: int) -> RenderableType:
    """One frame: never wider than the terminal, two lines lower than it, and of constant height."""
    width = min(width, MAX_WIDTH)
    room = height - _OTHER_LINES
    lines = max(1, min(room - _LOG_LINES, 8))
    return Group(
        _title(mission, width),
        _story(mission, width, lines),
        _row("generation", _COLOURS[0], mission.written, mission.total, None, _generating(mission), width),
        *(
            _row(lane.name, _COLOURS[lane.number], lane.count, mission.total, lane.cut_at, _doing(mission, lane), width)
            for lane in mission.lanes
        ),
        _log(mission, width, min(room - lines, _LOG_LINES)),
        *_hashes(mission),
    )


def _title(mission: HubMission, width: int) -> Text:
    left, right = f"  GET {mission.url}", f"{mission.elapsed:.1f} s  "
    title = Text.assemble(("  resumable_stream", "bold"), (left, "dim"))
    title.append(" " * max(1, width - len(title) - len(right)))
    return title.append(right, style="dim")


def _story(mission: HubMission, width: int, lines: int) -> RenderableType:
    # The text of the killed reader: the one that might have a seam.
    lane = mission.lanes[1]
    wrapped = [line for paragraph in lane.text.split("\n") for line in (textwrap.wrap(paragraph, width - 5) or ("",))]
    shown = wrapped[-lines:]
    text = Text("\n".join([*shown, *[""] * (lines - len(shown))]), no_wrap=True, overflow="crop")
    colour = "red" if lane.state == "killed" else _COLOURS[2]
    return Panel(text, title="text of reader 2", title_align="left", width=width, border_style=colour, padding=(0, 1))


def _row(name: str, colour: str, count: int, total: int, cut_at: int | None, doing: str, width: int) -> Text:
    cells = width - _NAME - _COUNT - _STATE - 2
    done = cells * count // total
    row = Text(f"  {name:<{_NAME - 2}}")
    if cut_at is None:
        row.append("━" * done, style=colour)
    else:
        cut = cells * cut_at // total
        row.append("━" * min(done, cut), style=colour).append("╋", style="red").append("━" * (done - cut - 1), style=colour)
    row.append("─" * (_NAME + cells - len(row)), style="bright_black")
    row.append(f"{count:>{_COUNT},}  ", style="bold")
    return row.append(doing, style="red" if doing.startswith("killed") else "dim")


def _generating(mission: HubMission) -> str:
    return "ended" if mission.written == mission.total else "running"


def _doing(mission: HubMission, lane: Lane) -> str:
    if lane.state == "killed":
        return "killed, kill -9"
    if lane.state != "reading":
        return {"waiting": "not there yet", "ended": "ended"}[lane.state]
    return "reading, live" if mission.written - lane.count < 20 else "reading what it missed"


def _log(mission: HubMission, width: int, lines: int) -> RenderableType:
    rows = []
    for note in mission.log[-lines:]:
        row = Text.assemble((f"{note.at:4.1f} s  ", "dim"), (note.text, "red" if "killed" in note.text else _COLOURS[note.lane]))
        row.truncate(width - 4, overflow="ellipsis")
        rows.append(row)
    rows += [Text()] * (lines - len(rows))
    return Panel(Text("\n").join(rows), title="log", title_align="left", border_style="dim", width=width)


def _hashes(mission: HubMission) -> list[Text]:
    found = [Text.assemble(("  sent      ", "dim"), mission.sent_digest)]
    for lane in mission.lanes:
        row = Text(f"  {lane.name:<10}", style="dim")
        if lane.digest is None:
            row.append("…")
        elif lane.digest == mission.sent_digest:
            row.append(lane.digest, style="not dim green").append(" ✔", style="not dim bold green")
        else:
            row.append(lane.digest, style="not dim red").append(" ✘", style="not dim bold red")
        found.append(row)
    return found


class HubPlainReporter:
    """One line per event of the story."""

    def started(self, mission: HubMission) -> None:
        click.echo(f"server       {mission.url}: one generation, {mission.total:,} tokens, three readers")

    def noted(self, mission: HubMission, note: Note) -> None:
        click.echo(f"{note.at:>9.2f} s  {note.text}")

    def ended(self, mission: HubMission) -> None:
        click.echo(f"sent         sha256 {mission.sent_digest}")
        for lane in mission.lanes:
            click.echo(f"{lane.name:<12} sha256 {lane.digest}")
        click.echo(f"result       {'identical' if mission.identical else 'DIFFERENT'}")
