"""
The agent of the example in a process of its own, with tools that a test holds in its hand:

    python -m tests.examples.agent_process STORE LEASE

In the working directory, `allowed` says up to which number calls of tools may come to their end, and from 100 on the answer may,
after its first word; `begun` and `ended` get the key of each call. It prints the port that it listens on.
"""

from __future__ import annotations

import asyncio
import importlib.util
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn

from resumable_stream.server import log_of

FOLDER = Path(__file__).parents[2] / "examples" / "agent_backend"
ALLOWED, BEGUN, ENDED = Path("allowed"), Path("begun"), Path("ended")
Tool = Callable[..., Awaitable[Any]]


def load() -> ModuleType:
    """The module of the example, without its pauses."""
    spec = importlib.util.spec_from_file_location("tests.examples.agent_backend_server", FOLDER / "server.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.PAUSE = 0.0
    return module


def allowed() -> int:
    return int(ALLOWED.read_text())


def note(path: Path, key: str) -> None:
    with path.open("a") as file:
        file.write(f"{key}\n")


def gated(tool: Tool) -> Tool:
    async def call(*, key: str, **arguments: Any) -> Any:
        note(BEGUN, key)
        # It is opened in another process.
        while int(key.rpartition(".")[2]) > allowed():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        result = await tool(key=key, **arguments)
        note(ENDED, key)
        return result

    return call


def gated_answer(answer: Callable[[Any], AsyncIterator[str]]) -> Callable[[Any], AsyncIterator[str]]:
    async def words(state: Any) -> AsyncIterator[str]:
        async for word in answer(state):
            yield word
            while allowed() < 100:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    return words


def main(store: str, lease: str) -> None:
    server = load()
    server.TOOLS.update({name: gated(tool) for name, tool in server.TOOLS.items()})
    server.answer = gated_answer(server.answer)
    app = server.agent_app(log_of(store), drain_on=[signal.SIGTERM], lease=float(lease), poll=0.5)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    asyncio.run(uvicorn.Server(uvicorn.Config(app, log_level="warning")).serve(sockets=[listener]))


if __name__ == "__main__":
    main(*sys.argv[1:])
