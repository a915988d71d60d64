"""
Processes of their own that need not import everything first, which takes half a second each.

A server process of the standard library (`multiprocessing`, "forkserver") has imported what they need. Each process is forked
from it, gets arguments, variables and a directory of its own, writes to a pipe, and is sent real signals.
How a command behaves while it is imported, and what the interpreter does at its exit, is tested by starting it as people do.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

__all__ = ["Forked"]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("resumable_stream._api", "resumable_stream._cli.app", "resumable_stream._cli.serving", "resumable_stream.server.hub"),
        *("resumable_stream.server.redis", "resumable_stream.server.relay", "resumable_stream.server.sqlite", "httpcore"),
    ]
)


class Forked:
    """
    `python -m MODULE`, as `subprocess.Popen` would start it; its output and its errors are one.

    Args:
        module: What runs.
        arguments: After the name of the module.
        cwd: Where it runs.
        environment: All variables; `None`: those of this process.
    """

    def __init__(
        self, module: str, *arguments: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        reading, writing = CONTEXT.Pipe(duplex=False)
        where, variables = os.fspath(cwd or Path.cwd()), dict(environment or os.environ)
        self._process = CONTEXT.Process(target=run, args=(module, arguments, where, variables, writing))
        self._process.start()
        writing.close()
        self.stdout: TextIO | None = os.fdopen(os.dup(reading.fileno()), encoding="utf-8")
        reading.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it still runs."""
        self.kill()
        self.wait(30.0)
        if self.stdout is not None:
            self.stdout.close()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code


def run(module: str, arguments: Sequence[str], cwd: str, environment: dict[str, str], output: Connection) -> None:
    """In the new process: what `python -m` does."""
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, cwd)
    sys.argv = [module, *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # `multiprocessing` leaves them out.
        atexit._run_exitfuncs()
