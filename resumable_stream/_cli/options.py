"""Options that several commands take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._extra import click

__all__ = ["KEEP_ALIVE", "drain_timeout", "keep_alive_option", "spread_option"]

KEEP_ALIVE = 75
"""
Seconds that a connection without a request is kept open. 75: longer than the 60 that load balancers and nginx keep theirs, so
that none of them sends a request into a connection that is being closed, and answers 502 for it.
"""


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


def keep_alive_option(default: int | None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--keep-alive`, of a command that serves. `default`: `None` where a file may say it too."""
    return click.option(
        "--keep-alive",
        type=click.IntRange(1, 3600),
        default=default,
        show_default=default is not None,
        metavar="S",
        help="Seconds that a connection without a request stays open; more than the idle timeout of a load balancer in front."
        + ("" if default is not None else f"  [default: {KEEP_ALIVE}]"),
    )
