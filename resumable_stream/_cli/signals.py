"""Ctrl-C and SIGTERM as exceptions, but never between an event's output and its commit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Signals", "Terminated"]


class Terminated(KeyboardInterrupt):
    """SIGTERM: leave as on Ctrl-C, with the exit code that a supervisor expects."""


class Signals:
    """
    Within a `with` block, SIGINT raises `KeyboardInterrupt` and SIGTERM `Terminated`.

    Inside `held()` the first signal waits for the end of that block, so an event is both printed and committed, or neither. A
    second one does not wait: the output may be a pipe that nobody reads.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiting: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        # Other threads cannot set handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) == signal.SIG_IGN:
                    continue  # as under nohup: ignore it as we were told
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Do not raise inside this block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            if (number := self._waiting) is not None:
                self._waiting = None
                _raise(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._held and self._waiting is None:
            self._waiting = number
        else:
            _raise(number)


def _raise(number: int) -> None:
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
