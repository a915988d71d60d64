"""
Which messages a conversation has and which answers run, as one feed.

It stands in for the feed of a session that the hub will serve, with the same routes, events and verbs.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from functools import cached_property
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from resumable_stream import StreamUnknown
from resumable_stream.server import Hub, SQLiteLog
from resumable_stream.server.wire import event_block


class Sessions:
    """The feeds of a hub."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.tasks: set[asyncio.Task[None]] = set()

    @cached_property
    def db(self) -> sqlite3.Connection:
        path = f"{self.hub.log._file.path}-feed" if isinstance(self.hub.log, SQLiteLog) else ":memory:"
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute("CREATE TABLE IF NOT EXISTS feed (sid, n, event, data, PRIMARY KEY (sid, n))")
        return db

    def __call__(self, sid: str) -> Session:
        return Session(self, sid)

    async def read(self, request: Request, sid: str) -> Response:
        """`GET /sessions/{sid}/feed`."""
        session = self(sid)
        after = request.headers.get("last-event-id") or request.query_params.get("after")
        live = {"Cache-Control": "no-cache, no-transform"}
        if self.hub.draining:
            return Response("retry: 5000\n\n", 200, live, "text/event-stream")
        if after and not after.startswith("feed."):
            return Response('{"error":"history_gone","snapshot":1}', 410)
        n = int(after[5:]) if after else 0
        first = "retry: 500\n\n"
        if not after and request.query_params.get("view") == "snapshot":
            n = session.n
            state = {"messages": await session.messages(), "active": await session.active()}
            first += event_block(json.dumps(state), event="snapshot", id=f"feed.{n}").decode()
        if request.method == "HEAD":
            return Response(None, 200, live, "text/event-stream")

        async def body() -> AsyncIterator[str]:
            seen = n
            yield first
            while not self.hub.draining:
                for seen, event, data in session.rows(seen):  # noqa: B020
                    yield event_block(data, event=event, id=f"feed.{seen}").decode()
                await asyncio.sleep(0.05)
                yield ":\n\n"

        return StreamingResponse(body(), 200, live, "text/event-stream")


class Session:
    """One feed."""

    def __init__(self, sessions: Sessions, sid: str) -> None:
        self.sessions, self.sid = sessions, sid

    @property
    def n(self) -> int:
        return self.sessions.db.execute("SELECT coalesce(max(n), 0) FROM feed WHERE sid = ?", (self.sid,)).fetchone()[0]

    def rows(self, after: int = 0) -> list[tuple[int, str, str]]:
        order = "SELECT n, event, data FROM feed WHERE sid = ? AND n > ? ORDER BY n"
        return self.sessions.db.execute(order, (self.sid, after)).fetchall()

    def _have(self, event: str, **fields: Any) -> bool:
        found = [json.loads(data) for _, name, data in self.rows() if name == event]
        return any(all(each.get(key) == value for key, value in fields.items()) for each in found)

    async def _append(self, event: str, data: dict[str, Any]) -> None:
        row = (self.sid, self.n + 1, event, json.dumps(data))
        self.sessions.db.execute("INSERT INTO feed VALUES (?, ?, ?, ?)", row)

    async def publish(self, event: str, data: dict[str, Any], mid: str | None = None) -> None:
        if not self._have(event, mid=mid):
            await self._append(event, {"mid": mid, **data})

    async def edit(self, mid: str, data: Any) -> None:
        if not self._have("edited", mid=mid, data=data):
            await self._append("edited", {"mid": mid, "data": data})

    async def messages(self) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for _, event, text in self.rows():
            data = json.loads(text)
            if event == "message":
                found[data["mid"]] = data
            elif event == "edited" and data["mid"] in found:
                found[data["mid"]]["data"] = data["data"]
        return list(found.values())

    async def active(self) -> list[dict[str, Any]]:
        running: dict[str, dict[str, Any]] = {}
        for _, event, text in self.rows():
            data = json.loads(text)
            if event == "started":
                running[data["id"]] = data
            elif event == "ended":
                running.pop(data["id"], None)
        return list(running.values())

    async def began(self, id: str, supersedes: str | None = None) -> None:
        if not self._have("started", id=id):
            await self._append("started", {"id": id, "by": "", **({"supersedes": supersedes} if supersedes else {})})
            task = asyncio.create_task(self._watch(id))
            self.sessions.tasks.add(task)
            task.add_done_callback(self.sessions.tasks.discard)

    async def _watch(self, id: str) -> None:
        while True:
            try:
                ending = (await self.sessions.hub.state(id)).ending
            except StreamUnknown:
                return
            if ending is not None:
                more = {"reason": ending.reason} if ending.reason else {}
                await self._append("ended", {"id": id, "outcome": ending.outcome.value, **more})
                return
            await asyncio.sleep(0.05)
