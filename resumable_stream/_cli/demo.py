"""`resumable-stream demo`: the mission's story, live."""

from __future__ import annotations

import sys

import resumable_stream as rs

from ._extra import Console, click
from .live import LiveReporter, fits
from .mission import Mission, Pace
from .needs import needs
from .output import discard_output
from .plain import PlainReporter

__all__ = ["demo"]


@click.command()
@click.option("--fast", is_flag=True, help="Take less time.")
@click.option("--server", is_flag=True, help="The story of the server: one generation, three readers.")
def demo(fast: bool, server: bool) -> None:
    """
    Watch a stream being cut and continued.

    A server on this machine writes 2,000 tokens in 30 seconds. At token 1,247 the connection is lost and the server's
    port is closed for 8 seconds. The stream waits, retries, and continues at token 1,248; at the end the received text
    is compared with the sent one.

    With --server, a hub on this machine generates an answer for three readers: one starts it, one is killed in the middle and
    returns, one comes late. Their texts are compared with the generated one.

    Needs no network and no key. Exit code 1 if the texts differ.
    """
    console = Console()
    live = sys.stdout.isatty() and not console.is_dumb_terminal and fits(console)
    try:
        identical = (_of_the_server if server else _of_the_client)(fast, console if live else None)
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


def _of_the_client(fast: bool, console: Console | None) -> bool:
    pace = Pace.fast() if fast else Pace()
    if console is None:
        return Mission(pace, PlainReporter()).run()
    with LiveReporter(console) as reporter:
        return Mission(pace, reporter).run()


def _of_the_server(fast: bool, console: Console | None) -> bool:
    with needs("demo --server", "server", "uvicorn", "starlette"):
        from .hub_mission import HubMission, HubPace
        from .hub_shown import HubLiveReporter, HubPlainReporter
    pace = HubPace.fast() if fast else HubPace()
    if console is None:
        return HubMission(pace, HubPlainReporter()).run()
    with HubLiveReporter(console) as reporter:
        return HubMission(pace, reporter).run()
