"""
Draw docs/assets/phases.svg from the table in resumable_stream/_core/phases.py.

    .venv/bin/python scripts/phases_picture.py

A test compares the file with the table.
"""

from __future__ import annotations

from math import hypot
from pathlib import Path

from resumable_stream._core.phases import TRANSITIONS, Phase

TARGET = Path(__file__).resolve().parent.parent / "docs" / "assets" / "phases.svg"
WIDTH, HEIGHT, BOX_WIDTH, BOX_HEIGHT = 860, 470, 136, 44
APART = 13
"""Half of the distance between two opposite arrows."""

# Centres of the boxes.
WHERE: dict[Phase, tuple[int, int]] = {
    Phase.BETWEEN: (430, 225),
    Phase.CONNECTING: (140, 70),
    Phase.READING: (720, 70),
    Phase.JUDGING: (140, 400),
    Phase.ASKING: (720, 400),
    Phase.OVER: (430, 400),
}
HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="t d" \
font-family="system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif">
  <title id="t">Phases of a stream</title>
  <desc id="d">{description}</desc>
  <style>
    .phase {{ fill: #a8326e; }} .over {{ fill: #5d6773; }}
    .name {{ fill: #fff; font-size: 16px; font-weight: 600; text-anchor: middle; }}
    .input {{ fill: #7d868f; font-size: 12.5px; font-family: ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace; }}
    .arrow {{ stroke: #7d868f; stroke-width: 2; fill: none; marker-end: url(#head); }}
  </style>
  <marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">
    <path d="M0 0 L10 5 L0 10 z" fill="#7d868f"/>
  </marker>
"""


def edges() -> dict[tuple[Phase, Phase], list[str]]:
    """Arrows, and the inputs that they represent. An input that leads back to its phase is written inside the box."""
    found: dict[tuple[Phase, Phase], list[str]] = {}
    for phase, row in TRANSITIONS.items():
        for given, after in row.items():
            for to in Phase:
                if to in after:
                    found.setdefault((phase, to), []).append(given)
    return found


def border(box: Phase, start: tuple[float, float], along: tuple[float, float]) -> tuple[float, float]:
    """Where a line that starts off-centre inside a box crosses its border."""
    reach = []
    for at, middle, half, step in zip(start, WHERE[box], (BOX_WIDTH / 2, BOX_HEIGHT / 2), along, strict=True):
        if step:
            reach.append((middle + (half if step > 0 else -half) - at) / step)
    return start[0] + along[0] * min(reach), start[1] + along[1] * min(reach)


def arrow(start: Phase, end: Phase, inputs: list[str]) -> str:
    (x1, y1), (x2, y2) = WHERE[start], WHERE[end]
    length = hypot(x2 - x1, y2 - y1)
    # To the left of its direction, so that opposite arrows do not meet.
    aside_x, aside_y = APART * (y2 - y1) / length, -APART * (x2 - x1) / length
    along = ((x2 - x1) / length, (y2 - y1) / length)
    from_x, from_y = border(start, (x1 + aside_x, y1 + aside_y), along)
    to_x, to_y = border(end, (x2 + aside_x, y2 + aside_y), (-along[0], -along[1]))
    points = f"{from_x:.0f} {from_y:.0f} L{to_x:.0f} {to_y:.0f}"
    # Nearer to the outer box: many labels meet in the middle.
    share = 0.5 if Phase.BETWEEN not in (start, end) or Phase.OVER in (start, end) else 0.38 if end is Phase.BETWEEN else 0.62
    middle_x, middle_y = from_x + (to_x - from_x) * share, from_y + (to_y - from_y) * share
    anchor = "start" if aside_x > 0 else "end"
    left = middle_x + (10 if aside_x > 0 else -10)
    # Above a line that leans to this side, below one that leans the other way.
    top = middle_y + (-(len(inputs) - 1) * 16 if aside_y < 0 else 12)
    if abs(aside_y) < 1:
        top = middle_y - (len(inputs) - 1) * 8 + 4
    elif abs(aside_x) < 1:
        top, left, anchor = middle_y - 8, middle_x, "middle"
    lines = "".join(
        f'\n  <text class="input" x="{left:.0f}" y="{top + 16 * at:.0f}" text-anchor="{anchor}">{given}</text>'
        for at, given in enumerate(inputs)
    )
    return f'  <path class="arrow" d="M{points}"/>{lines}\n'


def box(phase: Phase, own: list[str]) -> str:
    x, y = WHERE[phase]
    kind = "over" if phase is Phase.OVER else "phase"
    # Two per line: above the boxes at the top, below those at the bottom, beside the one in the middle.
    lines = [", ".join(own[at : at + 2]) for at in range(0, len(own), 2)]
    anchor, column = "middle", float(x)
    if phase is Phase.BETWEEN:
        lines, anchor, column = own, "start", x + BOX_WIDTH / 2 + 10
        first = y + 4 - 8 * (len(lines) - 1)
    else:
        first = y - BOX_HEIGHT // 2 + 6 - 16 * len(lines) if y < HEIGHT / 2 else y + BOX_HEIGHT // 2 + 18
    stays = "".join(
        f'\n  <text class="input" x="{column:.0f}" y="{first + 16 * at}" text-anchor="{anchor}">{text}</text>'
        for at, text in enumerate(lines)
    )
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    return (
        f'  <rect class="{kind}" x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8"/>\n'
        f'  <text class="name" x="{x}" y="{y + 6}">{phase.value}</text>{stays}\n'
    )


def draw() -> str:
    found = edges()
    words = "; ".join(
        f"{start.value} to {end.value} by {', '.join(inputs)}" for (start, end), inputs in found.items() if start is not end
    )
    parts = [HEAD.format(width=WIDTH, height=HEIGHT, description=words)]
    parts += [arrow(start, end, inputs) for (start, end), inputs in found.items() if start is not end]
    parts += [box(phase, found.get((phase, phase), [])) for phase in Phase]
    return "".join(parts) + "</svg>\n"


if __name__ == "__main__":
    TARGET.write_text(draw())
    print(f"wrote {TARGET.name}")
