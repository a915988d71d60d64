"""A server behind a `CuttingProxy`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from .dropping import DroppingProxy
from .proxy import CuttingProxy


@contextlib.contextmanager
def serving(app: Any) -> Iterator[CuttingProxy]:
    """Run an ASGI app behind a `CuttingProxy`, on a thread of its own."""
    import uvicorn

    # Not uvloop, which some package here brings along: it complains of connections that clients have not closed yet.
    config = uvicorn.Config(
        app, log_level="critical", ws="none", lifespan="on", timeout_graceful_shutdown=1, timeout_keep_alive=600, loop="asyncio"
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        proxy = CuttingProxy(listener.getsockname()[1])
        try:
            yield proxy
        finally:
            proxy.close()
            server.should_exit = True
            thread.join(200)


def closing(app: Any, log: Any) -> Any:
    """The app, which closes a log when it ends: in its own event loop, where the connections of the log are."""

    async def closed(scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await log.aclose()
            await send(message)

        await app(scope, receive, sent if scope["type"] == "lifespan" else send)

    return closed


async def settle(proxy: CuttingProxy | DroppingProxy, turns: int = 200) -> None:
    """
    Wait, in the server, until a client that was cut is back. After so many turns of 5 ms it is not waited for any longer, since
    one that has all it needs does not come back.

    What the servers say while they take up a client again may be lost or said twice; that is theirs, and not tested here.
    """
    await asyncio.sleep(0.005)
    for turn in range(turns):
        if proxy.settled:
            break
        if turn == 20 and isinstance(proxy, DroppingProxy):
            # By now the loop has done what was under way, however slow it is.
            proxy.holding.set()
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.005)
