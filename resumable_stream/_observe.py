"""The logger `resumable_stream`: a permanent observer. It names events and ids, never contents or credentials."""

from __future__ import annotations

import logging
from typing import Final

from ._notices import (
    Connected,
    CursorIgnored,
    Disconnected,
    EndUnverified,
    Finished,
    GapFound,
    Lost,
    Notice,
    NumberingStopped,
    Restarted,
    Retrying,
)

__all__ = ["log_notice", "printable"]

logger: Final = logging.getLogger("resumable_stream")
# Silent unless the application configures logging.
logger.addHandler(logging.NullHandler())
# Notices that an operator should always see: something may be missing, or is paid again.
_LOUD: Final = (GapFound, CursorIgnored, Lost, Restarted, NumberingStopped, EndUnverified)


def log_notice(notice: Notice, following: Notice | None = None) -> None:
    """
    Write a notice: losses and restarts at WARNING; an outage and its end at INFO; everything else at DEBUG.

    Args:
        following: The next notice, if it is known. Its wait is added to the line of a lost connection.
    """
    if isinstance(notice, _LOUD):
        level = logging.WARNING
    elif _of_an_outage(notice):
        level = logging.INFO
    else:
        level = logging.DEBUG
    if logger.isEnabledFor(level):
        text = str(notice)
        if isinstance(notice, Disconnected) and isinstance(following, Retrying) and notice.then == "reconnect":
            text = f"{text} {following.when}"
        logger.log(level, "%s: %s", notice.stream, printable(text))


def _of_an_outage(notice: Notice) -> bool:
    match notice:
        case Disconnected():
            return True
        case Connected(offline=offline):
            return offline is not None
        case Retrying(reason=reason):
            return reason != ""
        case Finished(after_loss=after_loss):
            return after_loss
        case _:
            return False


def printable(text: str) -> str:
    r"""
    Escape text to one line: ids and messages come from the server, and must not forge log lines.

    >>> printable("a\nb")
    'a\\nb'
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
