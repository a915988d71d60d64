"""
For `mkdocs build`: show the doctests of docstrings as code, and list the protocols that `protocols/_registry.py` lists.

Markdown takes `>>>` for a quotation of a quotation, and two lists below each other for a link.
"""

from __future__ import annotations

import ast
from pathlib import Path
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


REGISTRY = Path(__file__).parents[1] / "resumable_stream/protocols/_registry.py"
EACH = "<!-- each protocol of the registry -->"


def registered() -> list[str]:
    """Names of the protocols, in the order of the registry. Read, not imported: the pages are built without the package."""
    for node in ast.parse(REGISTRY.read_text()).body:
        match node:
            case ast.Assign([ast.Name("__all__")], value):
                return list(ast.literal_eval(value))
    raise ValueError(f"no list __all__ in {REGISTRY}")


def on_page_markdown(markdown: str, **about: Any) -> str:
    """Called by MkDocs."""
    options = "    options:\n      heading_level: 3\n      members: false\n"
    return markdown.replace(EACH, "\n".join(f"::: resumable_stream.protocols.{name}\n{options}" for name in registered()))


def on_config(config: Any) -> Any:
    """Called by MkDocs."""
    config["markdown_extensions"].append(Doctests())
    return config
