"""What the extra `cli` brings, imported in one place, so that a missing one is named in words that help."""

from __future__ import annotations

try:
    import click
    from rich.console import Console, Group, RenderableType
    from rich.live import Live
    from rich.padding import Padding
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise ImportError(
        f"the command line needs {error.name or 'an extra'}: pip install 'resumable-stream-sdk[cli]'", name=error.name
    ) from None

__all__ = ["Console", "Group", "Live", "Padding", "Panel", "RenderableType", "Table", "Text", "click"]
