"""
For `mkdocs build`: show the doctests of docstrings as code.

Markdown takes `>>>` for a quotation of a quotation, and two lists below each other for a link.
"""

from __future__ import annotations

from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor


class _Fence(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        inside = False
        for line in lines:
            if not inside and line.startswith(">>> "):
                out += ["", "```pycon"]
                inside = True
            elif inside and not line.strip():
                out.append("```")
                inside = False
            out.append(line)
        return [*out, "```"] if inside else out


class Doctests(Extension):
    """Put a fence around a doctest."""

    def extendMarkdown(self, md: Markdown) -> None:
        # 28: behind the normalisation of white space, before the fences are read.
        md.preprocessors.register(_Fence(md), "doctests", 28)


def on_config(config: Any) -> Any:
    """Called by MkDocs."""
    config["markdown_extensions"].append(Doctests())
    return config
