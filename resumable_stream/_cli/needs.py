"""Commands with additional dependencies."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from ._extra import click

__all__ = ["needs"]


@contextlib.contextmanager
def needs(command: str, extra: str, *modules: str) -> Iterator[None]:
    """
    Import a command's dependencies within this block. If one is missing, print how to install it and exit with code 1.

    Args:
        command: As it is typed.
        extra: Extra that installs the modules.
        modules: Modules that may be missing. Any other import error is a bug, and is raised.
    """
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in modules:
            raise
        click.echo(f"error: {command} needs {missing}: pip install 'resumable-stream-sdk[{extra}]'", err=True)
        sys.exit(1)
