"""What tests of several commands need."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

import resumable_stream


@pytest.fixture
def app_without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """
    The commands, imported anew where a module is missing; what was imported before is back after the test.

    Besides the commands, the modules of ours are named that import what is missing.
    """

    def imported(missing: str, *importers: str) -> Any:
        monkeypatch.setattr(resumable_stream, "_cli", importlib.import_module("resumable_stream._cli"))
        ours = [name for name in sys.modules if f"{name}.".startswith("resumable_stream._cli.")]
        for name in (*ours, *importers):
            monkeypatch.delitem(sys.modules, name, raising=False)
        for name in {missing, *(name for name in sys.modules if name.startswith(f"{missing}."))}:
            monkeypatch.setitem(sys.modules, name, None)
        return importlib.import_module("resumable_stream._cli.app").app

    return imported
