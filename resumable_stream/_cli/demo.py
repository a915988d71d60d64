"""`resumable-stream demo`: the story of the mission, live."""

from __future__ import annotations

import sys

import resumable_stream as rs

from ._extra import Console, click
from .live import LiveReporter, fits
from .mission import Mission, Pace
from .output import discard_output
from .plain import PlainReporter

__all__ = ["demo"]


@click.command()
@click.option("--fast", is_flag=True, help="The same in a tenth of the time.")
def demo(fast: bool) -> None:
    """
    Watch a stream being cut and continued.

    A server on this machine writes 2,000 tokens in 30 seconds. At token 1,247 the connection is lost and the server's
    port is closed for 8 seconds. The stream waits, tries again, and goes on at token 1,248; at the end the text that
    was received is compared with the one that was sent.

    Needs no network and no key. Exit code 1 if the texts differ.
    """
    pace = Pace.fast() if fast else Pace()
    console = Console()
    try:
        if sys.stdout.isatty() and not console.is_dumb_terminal and fits(console):
            with LiveReporter(console) as reporter:
                identical = Mission(pace, reporter).run()
        else:
            identical = Mission(pace, PlainReporter()).run()
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        discard_output()
        sys.exit(141)
    except (rs.ResumableStreamError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    sys.exit(0 if identical else 1)
