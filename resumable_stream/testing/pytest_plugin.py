"""
pytest fixtures. Register them in your top `conftest.py`:

    pytest_plugins = ["resumable_stream.testing.pytest_plugin"]

Both are factories, because a test may need two servers (for a redirect to another origin) and its own events.
They are sync fixtures, and also work in async tests of any plugin (anyio, pytest-asyncio, pytest-trio).
This is the only module of the package that imports pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .scripted import ScriptedClient
from .server import FlakyServer

__all__ = ["flaky_server", "scripted_client"]


@pytest.fixture
def flaky_server() -> Iterator[Callable[..., FlakyServer]]:
    """
    Start servers that are closed at the end of the test; an error in what they say over a WebSocket fails it.

    Yields:
        A function with the parameters of `FlakyServer`, which returns a running server:
        `server = flaky_server(numbered(20), [Fault.cut(after_events=7)])`.
    """
    servers: list[FlakyServer] = []

    def start(*args: Any, **options: Any) -> FlakyServer:
        servers.append(FlakyServer(*args, **options))
        return servers[-1].start()

    yield start
    for server in servers:
        server.close()
    for error in (error for server in servers for error in server.errors):
        raise error


@pytest.fixture
def scripted_client() -> Iterator[Callable[..., ScriptedClient]]:
    """
    Make scripted clients; a body that the test leaves open fails it, because in a real network that would leak a connection.

    Yields:
        A function with the parameters of `ScriptedClient`, which returns one:
        `script = scripted_client([Reply(body=[b"data: 1\\n\\n"])], family="httpx2")`.
    """
    scripts: list[ScriptedClient] = []

    def make(*args: Any, **options: Any) -> ScriptedClient:
        scripts.append(ScriptedClient(*args, **options))
        return scripts[-1]

    yield make
    unclosed = sum(script.unclosed for script in scripts)
    assert not unclosed, f"{unclosed} response bodies were never closed"
