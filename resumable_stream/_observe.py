"""The logger `resumable_stream`: an observer that is always there. It names events and ids, never contents or credentials."""

from __future__ import annotations

import logging
from typing import Final

from ._core.actions import CursorIgnored, Disconnected, GapFound, Lost, Notice, NumberingStopped, Restarted

__all__ = ["log_notice"]

logger: Final = logging.getLogger("resumable_stream")
# Silent unless the application configures logging.
logger.addHandler(logging.NullHandler())
# What an operator wants to see without asking: something may be missing, or is paid again.
_LOUD: Final = (GapFound, CursorIgnored, Lost, Restarted, NumberingStopped)


def log_notice(notice: Notice) -> None:
    """Write a notice: losses and restarts at WARNING, a lost connection at INFO, all else at DEBUG."""
    if isinstance(notice, _LOUD):
        level = logging.WARNING
    elif isinstance(notice, Disconnected) and notice.error is not None:
        level = logging.INFO
    else:
        level = logging.DEBUG
    if logger.isEnabledFor(level):
        logger.log(level, "%s", notice)
