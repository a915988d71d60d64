"""
uvicorn with a hub: a server that drains, and its log.

    SIGTERM, Ctrl-C ──▶ hub.drain(): readers leave, generations finish ──▶ uvicorn's own shutdown ──▶ the log is closed
    a second time   ──▶ the generations end now as FAILED, `shutdown`
    a third time    ──▶ the signal ends the process
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from .._errors import ReaderCut
from ..server import Hub
from ..server.asgi import create_app
from ._uvicorn import uvicorn
from .options import KEEP_ALIVE
from .output import visible

__all__ = ["HubServer", "say", "serve", "set_up_logging"]

SPARE: Final = 1.0
"""Seconds after the time for draining by which the process has ended, whatever happens."""
_AT_ONCE: Final = 0.5
"""Seconds after a second signal in which the log can still store the ends of the generations."""
_TAIL: Final = 0.2
"""Part of `SPARE` for Python's own work at exit."""
_SHOWN: Final = 12
"""Characters of a path segment in the log. 12: anyone who knows the id of a stream may read it, unless `authorize` refuses."""

logger = logging.getLogger("resumable_stream.serve")


def say(text: str) -> None:
    """Write a line for people to standard error."""
    with suppress(OSError):
        sys.stderr.write(f"* {visible(text)}\n")
        sys.stderr.flush()


class HubServer(uvicorn.Server):
    """
    A uvicorn server that drains its hub before it stops.

    Args:
        hub: Hub to drain.
        app: App to serve; `None`: the routes of the hub.
        timeout: Seconds that generations may still take after the first signal.
        spread: Seconds over which readers are sent away; at most `timeout`.
        announce: Called once when it serves.
        access_log: Log a line per request.
        keep_alive: Seconds that an idle connection stays open.
        quiet: Another process reports the shutdown to people.

    Attributes:
        mistake: Why it could not serve, for people.
        stopped_by: The signal that interrupted the draining.
    """

    def __init__(
        self,
        hub: Hub,
        app: Any = None,
        *,
        timeout: float,
        spread: float,
        announce: Callable[[], None],
        access_log: bool = True,
        keep_alive: int = KEEP_ALIVE,
        quiet: bool = False,
    ) -> None:
        own = app is None
        config = uvicorn.Config(
            create_app(hub) if own else app,
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=access_log,
            timeout_keep_alive=keep_alive,
            server_header=False,
            ws="none" if own else "auto",
        )
        super().__init__(config)
        self.hub = hub
        self.mistake: str | None = None
        self.stopped_by: int | None = None
        self._timeout = timeout
        self._spread = min(spread, timeout)
        self._announce = announce
        self._quiet = quiet
        self._received = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and check that the app has entered the hub."""
        await super().startup(sockets=sockets)
        if not self.started:
            return
        if not self.hub.running:
            self.mistake = "the app does not enter the hub when it starts; give it lifespan=hub.lifespan"
            # A moment later: older versions do not shut down properly if they are stopped during the start.
            asyncio.get_running_loop().call_soon(setattr, self, "should_exit", True)
            return
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle the signals: drain, stop at once, end."""
        self._received += 1
        if self._received > 2 or (self._loop is None and self._received > 1):
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        elif self._loop is None:
            # Still starting: there is nothing to drain.
            self.should_exit = True
        else:
            # The loop sleeps until something happens, and a signal alone does not wake it.
            self._loop.call_soon_threadsafe(self.leave, sig)

    def leave(self, sig: int = signal.SIGTERM) -> None:
        """Start draining; a second call stops at once. In the event loop."""
        assert self._loop is not None
        name = signal.Signals(sig).name
        at_once = self._draining is not None
        if at_once:
            self.stopped_by = sig
        timeout = 0.0 if at_once else self._timeout
        spare = _AT_ONCE if at_once else SPARE
        self._until = self._loop.time() + timeout + spare
        if self._draining is not None:
            self._draining.cancel()
        self._tell(
            f"{name}: stopping at once" if at_once else f"{name}: draining, {timeout:g} s at most; a second signal stops at once"
        )
        _end_after(timeout + SPARE)
        self._draining = self._loop.create_task(self._drain(timeout, 0.0 if at_once else self._spread))

    async def _drain(self, timeout: float, spread: float) -> None:
        try:
            # Extra time for the log to store the ends of the remaining generations.
            await asyncio.wait_for(self.hub.drain(timeout, spread), timeout + (SPARE if timeout else _AT_ONCE) / 2)
        except TimeoutError:
            logger.warning("the log did not store the end of every generation in time: their leases will run out")
        except Exception:
            logger.exception("draining failed; the server stops anyway")
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's shutdown, within the remaining time."""
        loop = asyncio.get_running_loop()
        until = (loop.time() + SPARE if self._until is None else self._until) - _TAIL
        # uvicorn declares whole seconds, but passes them to asyncio, which accepts fractions. A third is for the app's own
        # shutdown.
        self.config.timeout_graceful_shutdown = max(0.05, (until - loop.time()) * 2 / 3)  # type: ignore[assignment]
        try:
            await asyncio.wait_for(super().shutdown(sockets), max(0.15, until - loop.time()))
            await asyncio.wait_for(self.hub.log.aclose(), max(0.05, until - loop.time()))
        except TimeoutError:
            logger.warning("the app or the log did not close in time and was abandoned")

    def _tell(self, text: str) -> None:
        if not self._quiet:
            say(text)


def serve(server: HubServer, listener: socket.socket, control: socket.socket | None = None) -> int:
    """
    Serve until a signal arrives.

    Args:
        server: Server to run.
        listener: Socket to listen on; it is closed.
        control: For a worker, the connection to the supervisor: a byte reports that it serves, and its end acts like SIGTERM.

    Returns:
        The exit code.
    """
    _allow_many_files()
    if control is not None:
        _obey(server, control)
    try:
        server.run(sockets=[listener])
    except SystemExit:
        # uvicorn reports this way that the app did not start; the reason is in its log.
        return 1
    if server.mistake is not None:
        say(f"error: {server.mistake}")
        return 2
    if server.stopped_by is not None:
        return 128 + server.stopped_by
    return 0 if server.started else 1


def _obey(server: HubServer, control: socket.socket) -> None:
    inner = server._announce

    def announce() -> None:
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(control)
            if server._draining is None:
                server.leave()

        loop.add_reader(control, ended)
        inner()
        with suppress(OSError):
            control.send(b"r")

    server._announce = announce


def _end_after(seconds: float) -> None:
    """End the process after a while, whatever hangs: a thread of the app, a disk, a name server."""

    def end() -> None:
        say("error: something did not end in time and was cut off")
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _allow_many_files() -> None:
    """Each reader is an open file, and the usual limit is 1,024; any process may raise it up to the hard limit."""
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# --- what is logged -----------------------------------------------------------------------------------------------------


def set_up_logging(*, several: bool, access_log: bool = True) -> None:
    """Log uvicorn and the hub to standard error. Call it after creating the `HubServer`."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s {'[%(process)d] ' if several else ''}%(message)s", "%H:%M:%S"))
    access, errors, ours = map(logging.getLogger, ("uvicorn.access", "uvicorn.error", "resumable_stream"))
    access.setLevel(logging.INFO)
    access.addFilter(_without_secrets)
    errors.addFilter(_without_wanted_cuts)
    # uvicorn uses a logger of requests that has a handler, whatever its configuration says.
    for each in (access, errors) if access_log else (errors,):
        each.addHandler(handler)
    for each in (access, errors):
        each.propagate = False
    if not logging.getLogger().handlers:
        # Otherwise the module has set up logging itself.
        ours.addHandler(handler)


def _without_secrets(record: logging.LogRecord) -> bool:
    """Log method, path and status of a request; not the query, nor the end of long path segments: either may be a key."""
    if isinstance(record.args, tuple) and len(record.args) == 5:
        _, method, path, _, status = record.args
        parts = str(path).partition("?")[0].split("/")
        shown = "/".join(part if len(part) <= _SHOWN else f"{part[: _SHOWN - 4]}…" for part in parts)
        record.msg, record.args = "%s %s %s", (method, shown, status)
    return True


def _without_wanted_cuts(record: logging.LogRecord) -> bool:
    """An intended cut of a body is an exception for uvicorn, but not for people."""
    error = record.exc_info[1] if record.exc_info else None
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, ReaderCut):
        record.msg, record.args, record.exc_info, record.exc_text = "%s", (error,), None, None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True
