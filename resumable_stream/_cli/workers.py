"""
Several processes that serve one socket: started, drained, and replaced when one dies.

Each is the same command with two hidden options: the socket to listen on, and a connection to this process. A worker sends a byte
on it when it serves. When the connection ends, for whatever reason, the worker drains and ends too, so none is left over.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Final

from .serving import SPARE, say

__all__ = ["supervise"]

_PAUSE: Final = 1.0
"""Seconds before a dead worker is replaced. 1: one that dies at once must not occupy a core."""
_TICK: Final = 1.0
_GRACE: Final = 10.0
"""Seconds that a worker may take from the end of its connection to its own. 10: at exit, Python may be slow on a busy machine."""
_LOOK: Final = 0.02
"""Seconds between two looks at a worker that is about to end."""


class _Worker:
    """One process."""

    def __init__(self, arguments: Sequence[str], listener: socket.socket) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            numbers = (listener.fileno(), theirs.fileno())
            options = ["--listener", str(numbers[0]), "--control", str(numbers[1])]
            # Its own group: Ctrl-C on the terminal goes to the first process, which passes it on.
            self.process = subprocess.Popen(  # noqa: S603  # this program, with its own arguments
                [sys.executable, "-m", "resumable_stream", "serve", *arguments, *options],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
                process_group=0,
            )
        self.serves = False
        self.left_at: float | None = None
        """When its connection ended; the process itself ends soon after."""

    def tell(self, number: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(number)


class _Supervisor:
    def __init__(
        self, arguments: Sequence[str], listener: socket.socket, count: int, timeout: float, announce: Callable[[], None]
    ):
        self._arguments = arguments
        self._listener = listener
        self._count = count
        self._timeout = timeout
        self._announce: Callable[[], None] | None = announce
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._received: list[int] = []
        self._told = 0
        self._code = 0
        self._missing: list[float] = []
        """When to start the missing workers."""
        self._until: float | None = None
        """When remaining workers are killed; `None`: no stop was requested."""

    def run(self) -> int:
        waker, woken = socket.socketpair()
        for each in (waker, woken):
            each.setblocking(False)
        self._selector.register(woken, selectors.EVENT_READ)
        before = signal.set_wakeup_fd(waker.fileno())
        handlers: dict[int, Any] = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for _ in range(self._count):
                self._start()
            while self._workers or (self._missing and self._until is None):
                self._once(woken)
        finally:
            for worker in self._workers:
                worker.tell(signal.SIGKILL)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            for each in (waker, woken):
                each.close()
        return 128 + self._received[1] if len(self._received) > 1 else self._code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    def _start(self) -> None:
        worker = _Worker(self._arguments, self._listener)
        self._workers.append(worker)
        self._selector.register(worker.control, selectors.EVENT_READ, worker)

    def _once(self, woken: socket.socket) -> None:
        now = time.monotonic()
        times = [*self._missing, *([] if self._until is None else [self._until])]
        tick = _LOOK if any(worker.left_at is not None for worker in self._workers) else _TICK
        for key, _ in self._selector.select(min([tick, *(max(0.0, each - now) for each in times)])):
            if key.data is None:
                woken.recv(64)
            elif key.data.control.recv(16):
                key.data.serves = True
            else:
                self._left(key.data)
        for worker in list(self._workers):
            # Also one whose connection is held open by a process it has forked.
            if (code := worker.process.poll()) is not None:
                self._left(worker)
                self._ended(worker, code)
            elif worker.left_at is not None and time.monotonic() > worker.left_at + _GRACE:
                worker.tell(signal.SIGKILL)
        self._obey_signals()
        now = time.monotonic()
        if self._until is None:
            due, self._missing = [at for at in self._missing if at <= now], [at for at in self._missing if at > now]
            for _ in due:
                self._start()
        elif now >= self._until:
            for worker in self._workers:
                worker.tell(signal.SIGKILL)
        if self._announce is not None and self._until is None and all(worker.serves for worker in self._workers):
            self._announce()
            self._announce = None

    def _obey_signals(self) -> None:
        for number in self._received[self._told :]:
            self._told += 1
            name = signal.Signals(number).name
            if self._told == 1:
                say(f"{name}: draining, {self._timeout:g} s at most; a second signal stops at once")
            elif self._told == 2:
                say(f"{name}: stopping at once")
            # Another one each time: a second SIGTERM is lost while a worker has not got to its first.
            told = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[min(self._told, 3) - 1]
            self._stop(told, SPARE if self._told > 1 else self._timeout + SPARE)

    def _stop(self, number: int, seconds: float) -> None:
        # Each ends by itself within this time; the rest are killed.
        self._until = time.monotonic() + seconds + _PAUSE
        for worker in self._workers:
            worker.tell(number)

    def _left(self, worker: _Worker) -> None:
        if worker.left_at is None:
            worker.left_at = time.monotonic()
            self._selector.unregister(worker.control)
            worker.control.close()

    def _ended(self, worker: _Worker, code: int) -> None:
        self._workers.remove(worker)
        if self._until is not None:
            self._code = self._code or (1 if code else 0)
        elif self._announce is not None:
            # The reason that stops the first one from starting stops every one.
            say(f"error: a worker did not start ({_how(code)})")
            self._code = code if code > 0 else 1
            self._stop(signal.SIGTERM, SPARE)
        else:
            say(f"a worker ended ({_how(code)}); starting another one")
            self._missing.append(time.monotonic() + _PAUSE)


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def supervise(
    arguments: Sequence[str], listener: socket.socket, count: int, *, timeout: float, announce: Callable[[], None]
) -> int:
    """
    Run `count` workers until a signal comes, and then until they have drained.

    Args:
        arguments: Arguments of the command `serve`, for each worker.
        listener: The socket that they share.
        count: Number of workers.
        timeout: Most seconds that each may take to drain; a worker that has not ended soon after is killed.
        announce: Called once when all serve.

    Returns:
        The exit code: 0 if all have drained.
    """
    os.set_inheritable(listener.fileno(), True)
    with listener:
        return _Supervisor(arguments, listener, count, timeout, announce).run()
