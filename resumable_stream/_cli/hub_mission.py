"""
The server's demo: one generation, three readers, none of which is affected by what happens to another.

    reader 1   posts, which starts the generation; reads to the end
    reader 2   a separate process, `resumable-stream tail`; killed in the middle, and restarted after its last id
    reader 3   comes when half is written; reads from the start, catches up, and continues live

The server is a real one, uvicorn with `create_app(hub)`, in a thread. A reporter is called as things happen, and may read the
mission at any time from its own thread.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx

import resumable_stream as rs

from ..server import Generation, Hub, MemoryLog
from ..server.asgi import create_app
from ._uvicorn import uvicorn
from .story import digest, tokens

__all__ = ["TOTAL", "HubMission", "HubPace", "HubReporter", "Lane", "Note"]

TOTAL = 600
"""Tokens from the beginning of the story: six seconds at a hundred a second."""
_KILL_AT = 200
_LATE_AT = 380
_LONGEST = 120.0
"""Seconds after which the demo gives up; normally it takes a few seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubPace:
    """
    The demo's times.

    Attributes:
        story: Seconds for generating the answer.
        away: Seconds between killing reader 2 and its return.
    """

    story: float = 6.0
    away: float = 1.0

    @classmethod
    def fast(cls) -> HubPace:
        """As fast as processes can start."""
        return cls(story=1.5, away=0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A line of the log: `at` seconds after the beginning."""

    at: float
    lane: int
    text: str


class Lane:
    """
    One reader, as the demo sees it.

    Attributes:
        name: For people.
        state: `"waiting"`, `"reading"`, `"killed"`, `"ended"`.
        count: Tokens received.
        text: The received text.
        cut_at: Tokens received when it was killed.
        digest: SHA-256 of the text, after the end.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = f"reader {number}"
        self.state: Literal["waiting", "reading", "killed", "ended"] = "waiting"
        self.count = 0
        self.text = ""
        self.cut_at: int | None = None
        self.digest: str | None = None

    def take(self, token: str) -> None:
        self.text += token
        self.count += 1

    def end(self) -> None:
        self.digest, self.state = digest(self.text), "ended"


class HubReporter(Protocol):
    """Shows the mission to a person."""

    def started(self, mission: HubMission) -> None: ...

    def noted(self, mission: HubMission, note: Note) -> None: ...

    def ended(self, mission: HubMission) -> None: ...


class HubMission:
    """
    One run of the demo.

    Attributes:
        total: Tokens of the answer.
        written: Tokens generated so far.
        lanes: The readers.
        log: What happened, oldest first.
        url: URL of the stream; empty before the server listens.
        sent_digest: SHA-256 of the generated text.
    """

    def __init__(self, pace: HubPace, reporter: HubReporter) -> None:
        self._tokens = tokens()[:TOTAL]
        self.total = TOTAL
        self.sent_digest = digest("".join(self._tokens))
        self.written = 0
        self.lanes = (Lane(1), Lane(2), Lane(3))
        self.log: tuple[Note, ...] = ()
        self.url = ""
        self._pace = pace
        self._reporter = reporter
        self._lock = threading.Lock()
        self._exists, self._late, self._stopping = threading.Event(), threading.Event(), threading.Event()
        self._errors: list[BaseException] = []
        self._process: subprocess.Popen[str] | None = None
        self._began = time.monotonic()
        self._ended: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return (self._ended or time.monotonic()) - self._began

    @property
    def identical(self) -> bool:
        """All three have received the generated text."""
        return all(lane.digest == self.sent_digest for lane in self.lanes)

    def run(self) -> bool:
        """
        Returns:
            Whether each reader received the generated text.

        Raises:
            ResumableStreamError, OSError: A reader failed.
        """
        hub = Hub(MemoryLog())
        hub.kind("story")(self._generate)
        with _Server(create_app(hub)) as server:
            self.url = f"{server.url}/streams/story-1"
            self._began = time.monotonic()
            self._reporter.started(self)
            threads = [
                threading.Thread(target=self._guarded, args=(work, lane), name=lane.name, daemon=True)
                for work, lane in zip((self._post, self._be_killed, self._come_late), self.lanes, strict=True)
            ]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    # In small steps: on some systems Ctrl-C does not end a long wait.
                    while thread.is_alive() and not self._errors and self.elapsed < _LONGEST:
                        thread.join(0.05)
            finally:
                self._stopping.set()
                self._kill()
        if self._errors:
            raise self._errors[0]
        if any(lane.digest is None for lane in self.lanes):
            raise TimeoutError(f"the readers did not finish within {_LONGEST:g} s")
        self._ended = time.monotonic()
        self._reporter.ended(self)
        return self.identical

    async def _generate(self, gen: Generation) -> None:
        began, interval = time.monotonic(), self._pace.story / self.total
        for number, token in enumerate(self._tokens, 1):
            await gen.text(token)
            self.written = number
            if number >= _LATE_AT:
                self._late.set()
            await asyncio.sleep(max(0.0, began + number * interval - time.monotonic()))
        self._note(0, f"the generation has ended: {self.total:,} tokens")

    # --- the readers, each in a thread

    def _guarded(self, work: Callable[[Lane], None], lane: Lane) -> None:
        try:
            work(lane)
        except BaseException as error:  # noqa: BLE001  # raised by `run()`
            self._errors.append(error)

    def _post(self, lane: Lane) -> None:
        collection = self.url.rpartition("/")[0]
        with httpx.Client(trust_env=False) as client:
            stream = rs.connect("POST", collection, json={"kind": "story"}, headers={"idempotency-key": "story-1"}, client=client)
            self._note(1, "reader 1 posts, which starts the generation")
            self._read(lane, stream)

    def _come_late(self, lane: Lane) -> None:
        self._wait(self._late)
        with httpx.Client(trust_env=False) as client:
            self._note(3, f"reader 3 comes when {self.written:,} are written, and reads from the start")
            self._read(lane, rs.connect("GET", self.url, client=client))

    def _read(self, lane: Lane, stream: rs.ResumableStream) -> None:
        with stream:
            lane.state = "reading"
            for item in stream:
                self._exists.set()
                if self._stopping.is_set():
                    return
                if isinstance(item, rs.StreamEvent) and item.event == "message":
                    lane.take(json.loads(item.data)["text"])
        lane.end()

    def _be_killed(self, lane: Lane) -> None:
        self._wait(self._exists)
        lane.state = "reading"
        self._note(2, "reader 2 joins, in a separate process")
        cursor = self._tail(lane, None, until=_KILL_AT)
        if self._stopping.is_set():
            return
        lane.cut_at, lane.state = lane.count, "killed"
        self._note(2, f"reader 2 is killed at token {lane.count:,} (kill -9); the generation continues")
        self._stopping.wait(self._pace.away)
        self._note(2, f"reader 2 returns with only its last id, {cursor}")
        lane.state = "reading"
        self._tail(lane, cursor, until=None)
        lane.end()

    def _tail(self, lane: Lane, cursor: str | None, *, until: int | None) -> str:
        """Run `resumable-stream tail`, and kill it after `until` tokens. Returns the last id that it wrote."""
        command = [sys.executable, "-m", "resumable_stream", "tail", self.url, "--json"]
        command += [] if cursor is None else ["--last-event-id", cursor]
        # The environment's proxy does not apply to the loopback interface.
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        found = cursor or ""
        before = lane.count
        with subprocess.Popen(  # noqa: S603  # this program
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
            env=environment,
        ) as process:  # fmt: skip
            self._process = process
            assert process.stdout is not None
            for line in process.stdout:
                if self._stopping.is_set() or not line.endswith("\n"):
                    break
                event = json.loads(line)
                if event["event"] != "message":
                    continue
                if cursor is not None and lane.count == before:
                    self._note(2, f"reader 2 continues at token {lane.count + 1:,}")
                lane.take(json.loads(event["data"])["text"])
                found = event["id"]
                if lane.count == until:
                    break
            if until is not None or self._stopping.is_set():
                process.kill()
        return found

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def _wait(self, event: threading.Event) -> None:
        while not event.wait(0.05):
            if self._stopping.is_set():
                raise InterruptedError

    def _note(self, lane: int, text: str) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            note = Note(at=self.elapsed, lane=lane, text=text)
            self.log = (*self.log, note)
            self._reporter.noted(self, note)


class _Server:
    """uvicorn in a thread, on a free port."""

    def __init__(self, app: object) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            lifespan="on",
            log_config=None,
            log_level="critical",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True)

    def __enter__(self) -> _Server:
        # Connections queue on the socket from now on, so there is no need to wait until it serves.
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(5.0)
        self._listener.close()
