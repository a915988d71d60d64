"""The dependencies of the extra `cli`, imported in one place, so that an error can name the extra."""

from __future__ import annotations

try:
    import click
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    missing = (error.name or "an extra").partition(".")[0]
    raise ImportError(f"the command line needs {missing}: pip install 'resumable-stream-sdk[cli]'", name=missing) from None

__all__ = ["Console", "Group", "Live", "Panel", "RenderableType", "Table", "Text", "click"]
