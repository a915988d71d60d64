"""Commands that need more than the command line itself does."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from ._extra import click

__all__ = ["needs"]


@contextlib.contextmanager
def needs(command: str, extra: str, *modules: str) -> Iterator[None]:
    """
    Import what a command needs within this block. Where it is missing, one line says how to get it, and the exit code is 1.

    Args:
        command: As it is typed.
        extra: What brings the modules.
        modules: What may be missing. Any other error of an import is a fault, and is raised.
    """
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in modules:
            raise
        click.echo(f"error: {command} needs {missing}: pip install 'resumable-stream-sdk[{extra}]'", err=True)
        sys.exit(1)
