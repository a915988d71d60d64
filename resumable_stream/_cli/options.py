"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._extra import click

__all__ = ["KEEP_ALIVE", "drain_timeout", "keep_alive_option", "spread_option"]

KEEP_ALIVE = 75
"""
Seconds that an idle connection is kept open. 75: longer than the 60 of load balancers and nginx, so that none of them sends a
request into a connection that is being closed, which it would answer with a 502.
"""


def drain_timeout(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--drain-timeout`, for a command that serves. `what`: what may still take its time."""
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
    help="Seconds over which readers are then sent away.",
)


def keep_alive_option(default: int | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--keep-alive`, for a command that serves. `default`: `None` if a file may set it too."""
    return click.option(
        "--keep-alive",
        type=click.IntRange(1, 3600),
        default=default,
        show_default=default is not None,
        metavar="S",
        help="Seconds that an idle connection stays open; must exceed the idle timeout of a load balancer in front."
        + ("" if default is not None else f"  [default: {KEEP_ALIVE}]"),
    )
