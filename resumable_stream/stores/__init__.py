"""Where a checkpoint is kept between two processes, optionally with the events before it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .base import Kept, Listed, Store, check_interval, check_key, item_from_json, item_to_json
from .file import FileStore
from .memory import MemoryStore

if TYPE_CHECKING:
    from .redis import RedisStore
    from .sqlite import SQLiteStore

__all__ = [
    # the contract
    "Kept",
    "Listed",
    "Store",
    # the stores
    "FileStore",
    "MemoryStore",
    "RedisStore",
    "SQLiteStore",
    # for a store of your own
    "check_interval",
    "check_key",
    "item_from_json",
    "item_to_json",
]

# Loaded on first use: redis may not be installed, some Pythons lack sqlite3, and few programs need both.
_LAZY = {"RedisStore": ".redis", "SQLiteStore": ".sqlite"}


def __getattr__(name: str) -> object:
    if (home := _LAZY.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
