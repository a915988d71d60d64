"""
Draw docs/assets/demo.svg: the last frame of a real run of `resumable-stream demo`.

    .venv/bin/python scripts/demo_picture.py            30 seconds, as readers will see it
    .venv/bin/python scripts/demo_picture.py --fast     3 seconds, to try out a change of the frame
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from resumable_stream._cli.live import draw
from resumable_stream._cli.mission import Mission, Pace
from resumable_stream._cli.plain import PlainReporter

TARGET = Path(__file__).resolve().parent.parent / "docs" / "assets" / "demo.svg"
WIDTH, HEIGHT = 88, 24

# Muted colours, readable on both themes of the documentation.
THEME = TerminalTheme(
    (24, 26, 32),
    (214, 217, 224),
    [
        (60, 64, 74),
        (232, 104, 104),
        (126, 190, 120),
        (222, 181, 96),
        (108, 153, 220),
        (186, 140, 212),
        (96, 186, 196),
        (200, 204, 212),
    ],
    [
        (92, 98, 112),
        (240, 128, 128),
        (150, 210, 144),
        (236, 200, 124),
        (134, 174, 236),
        (206, 166, 228),
        (124, 206, 214),
        (240, 242, 246),
    ],
)

# rich's own template without its window buttons and without the fonts that it would download.
SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="The demo, at its end">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: {char_height}px;
  line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
<rect fill="#181a20" width="{width}" height="{height}" rx="12" />
<g transform="translate(9, 25)" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def main() -> None:
    mission = Mission(Pace.fast() if "--fast" in sys.argv else Pace(), PlainReporter())
    if not mission.run():
        sys.exit("the texts differ: no picture was drawn")
    console = Console(file=io.StringIO(), record=True, width=WIDTH, height=HEIGHT, force_terminal=True, color_system="truecolor")
    console.print(draw(mission, width=WIDTH, height=HEIGHT))
    svg = console.export_svg(theme=THEME, code_format=SVG, unique_id="demo")
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(svg, encoding="utf-8")
    print(f"\n{TARGET}: {len(svg):,} bytes")


if __name__ == "__main__":
    main()
