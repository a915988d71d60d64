"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._extra import click

__all__ = ["drain_timeout", "spread_option"]


def drain_timeout(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--drain-timeout`, of a command that serves. `what`: what may still take its time then."""
    return click.option(
        "--drain-timeout",
        "timeout",
        type=click.FloatRange(0, 3600),
        default=25.0,
        show_default=True,
        metavar="S",
        help=f"Seconds that {what} may still take after SIGTERM or Ctrl-C.",
    )


spread_option = click.option(
    "--spread",
    type=click.FloatRange(0, 3600),
    default=5.0,
    show_default=True,
    metavar="S",
    help="Seconds over which readers are sent away then.",
)
