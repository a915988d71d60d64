"""
Close what must not be carried across a `fork()`, and let nobody in until the fork is over.

SQLite must not be used in a child with a connection that its parent opened, and one that is only left open there does harm too.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import ExitStack
from typing import Protocol

__all__ = ["close_at_forks", "opening"]

# Locks are taken in this order: `_known_lock`, those of each object, `opening`.
opening = threading.RLock()
"""For who creates and sets up a file, one thread at a time; whoever wants it may hold a lock of an object already."""


class Forked(Protocol):
    """What has connections."""

    def hold_at_fork(self, held: ExitStack) -> None:
        """Enter the locks of those who use a connection, and close the connections. The locks are let go of after the fork."""
        ...


_known_lock = threading.RLock()
_known: weakref.WeakSet[Forked] = weakref.WeakSet()
_forking: list[ExitStack] = []
_prepared = False


def close_at_forks(owner: Forked) -> None:
    """Hold this object at every fork, for as long as it lives."""
    global _prepared
    with _known_lock:
        _known.add(owner)
        if not _prepared and hasattr(os, "register_at_fork"):
            os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
            _prepared = True


def _before_fork() -> None:
    held = ExitStack()
    _forking.append(held)
    held.enter_context(_known_lock)
    for owner in list(_known):
        owner.hold_at_fork(held)
    held.enter_context(opening)


def _after_fork() -> None:
    # The child has only the thread that forked, and that one holds the locks.
    _forking.pop().close()
