"""The command group."""

from __future__ import annotations

import logging

from .. import __version__
from ._extra import click
from .chat import chat
from .demo import demo
from .kept import forget, list_, show
from .relay import relay
from .serve import serve
from .tail import tail

__all__ = ["app"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="resumable-stream", message="%(prog)s %(version)s")
def app() -> None:
    """Streams that continue exactly where they stopped."""
    # The commands print themselves what the logger would print at WARNING.
    logging.getLogger("resumable_stream").addHandler(logging.NullHandler())


app.add_command(demo)
app.add_command(serve)
app.add_command(relay)
app.add_command(chat)
app.add_command(tail)
app.add_command(list_)
app.add_command(show)
app.add_command(forget)
