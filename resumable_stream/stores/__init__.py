"""Where a checkpoint lives between two processes and, if wanted, the events that came before it."""

from .base import Kept, Store, check_interval, check_key, item_from_json, item_to_json
from .file import FileStore
from .memory import MemoryStore

__all__ = [
    # the contract
    "Kept",
    "Store",
    # the stores
    "FileStore",
    "MemoryStore",
    # for a store of your own
    "check_interval",
    "check_key",
    "item_from_json",
    "item_to_json",
]
