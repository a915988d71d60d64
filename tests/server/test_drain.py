"""A deploy, as it happens: SIGTERM to uvicorn, with streams open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from resumable_stream.server import Hub, SQLiteLog
from resumable_stream.server.asgi import create_app

from .serving import PATIENCE

ROOT = Path(__file__).parents[2]


def app() -> Starlette:
    """Served by `uvicorn --factory`, over the log that the environment names."""
    hub = Hub(SQLiteLog(os.environ["LOG"]))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with hub:
            hub.drain_on(timeout=4.0, spread=0.1)
            yield

    async def endless() -> AsyncIterator[str]:
        while True:
            yield "tick"
            await asyncio.sleep(0.01)

    async def short() -> AsyncIterator[str]:
        yield "first"
        while not hub.draining:  # noqa: ASYNC110  a signal sets it
            await asyncio.sleep(0.005)
        yield "last"

    hub.kind("endless")(endless)
    hub.kind("short")(short)
    served = Starlette(lifespan=lifespan)
    served.mount("/", create_app(hub))
    return served


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "uvicorn", "--factory", "tests.server.test_drain:app", "--port", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "LOG": str(tmp_path / "streams.db")}, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def url_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise AssertionError("it never started")


def test_sigterm_sends_readers_away_lets_short_work_end_and_stops_the_server(
    process: subprocess.Popen[str], tmp_path: Path
) -> None:
    url = url_of(process)
    with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as client:
        for kind in ("short", "endless"):
            key = {"Idempotency-Key": kind, "Prefer": "respond-async"}
            assert client.post("/streams", json={"kind": kind}, headers=key).status_code == 202
        with client.stream("GET", "/streams/endless") as response:
            pieces = response.iter_raw()
            assert next(pieces)
            process.send_signal(signal.SIGTERM)
            body = b"".join(pieces)
        # A clean goodbye that tells when to come back, and no end that is none.
        assert body.rstrip().rpartition(b"\n")[2].startswith(b"retry: ")
        assert b"event: end" not in body
    process.wait(PATIENCE)
    with contextlib.closing(sqlite3.connect(tmp_path / "streams.db")) as log:
        found = {id: (n, out) for id, n, out in log.execute("SELECT id, n, out FROM stream")}
    assert found["short"][0] == 2 and '"completed"' in found["short"][1]
    assert '"shutdown"' in found["endless"][1]
