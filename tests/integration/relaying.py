"""
A relay as a process of its own, an API behind it that counts, and a network in front of it that cuts: what SDKs are read through.

    SDK ──▶ Cuts ──▶ resumable-stream relay ──▶ Provider
                              ▲
    SDK ──────────────────────┘   or directly:  SDK ──▶ Provider

Many calls run at the same time, so what is to happen to a call stands in its prompt, the one thing that every SDK passes on.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks import wires

from .dropping import Way, head_of, joined, pieces_of, watching
from .proxy import Listener, reset

_SPOKEN: Final = re.compile(rb"answer (\d+) like (\d+)(?: cut after (\d+) by (\w+))?")
_SYLLABLES: Final = ("no", "wö", "rd ", " 🦊", "\n\n", "data: x\n", '"q" ', "世界", ". ", "[DONE] ")
_numbers = itertools.count()


# --- what is asked


@dataclass(frozen=True)
class Call:
    """
    One call of an SDK.

    Attributes:
        like: Which of the answers it gets.
        after: Where its first connection is cut: bytes of the head, then of the body without sizes of chunks. `None`: nowhere.
        number: Of this call, among all.
    """

    like: int = 0
    after: int | None = None
    way: Way = "rst"
    number: int = -1

    @classmethod
    def new(cls, like: int = 0, after: int | None = None, way: Way = "rst") -> Call:
        return cls(like, after, way, next(_numbers))

    @property
    def prompt(self) -> str:
        cut = "" if self.after is None else f" cut after {self.after} by {self.way}"
        return f"answer {self.number} like {self.like}{cut}."

    @classmethod
    def in_body(cls, body: bytes) -> Call | None:
        if (found := _SPOKEN.search(body)) is None:
            return None
        number, like, after, way = found.groups()
        return cls(int(like), int(after) if after else None, (way or b"rst").decode(), int(number))  # type: ignore[arg-type]


# --- the API


@functools.cache
def words(like: int) -> list[str]:
    """Of 3 to 24 pieces; the first one has 20."""
    chance = random.Random(like)
    return [chance.choice(_SYLLABLES) for _ in range(20 if like == 0 else chance.randint(3, 24))]


def lines(said: Sequence[str]) -> list[bytes]:
    """Ollama's."""
    found = [{"model": "m", "message": {"role": "assistant", "content": word}, "done": False} for word in said]
    last = {"model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
    return [json.dumps(line).encode() + b"\n" for line in [*found, last]]


def run(said: Sequence[str]) -> list[bytes]:
    """A run of LangGraph without ids, which its server cannot continue."""
    events: list[tuple[str, Any]] = [("metadata", {"run_id": "1f0a0000-0000-4000-8000-000000000000", "attempt": 1})]
    events += [("messages", [{"type": "AIMessageChunk", "id": "m1", "content": word}, {"langgraph_node": "n"}]) for word in said]
    events += [("values", {"messages": [{"type": "ai", "id": "m1", "content": "".join(said)}]}), ("end", None)]
    return [f"event: {name}\r\ndata: {json.dumps(data)}\r\n\r\n".encode() for name, data in events]


def task(said: Sequence[str], id: object) -> list[bytes]:
    """An A2A task."""
    names = {"taskId": "t1", "contextId": "c1"}

    def part(n: int, word: str) -> dict[str, Any]:
        artifact = {"artifactId": "answer", "parts": [{"text": word}]}
        return {"artifactUpdate": {**names, "artifact": artifact, "append": n > 0, "lastChunk": n == len(said) - 1}}

    results = [
        {"task": {"id": "t1", "contextId": "c1", "status": {"state": "TASK_STATE_SUBMITTED"}}},
        {"statusUpdate": {**names, "status": {"state": "TASK_STATE_WORKING"}}},
        *itertools.starmap(part, enumerate(said)),
        {"statusUpdate": {**names, "status": {"state": "TASK_STATE_COMPLETED"}}},
    ]
    return wires.sse(*({"jsonrpc": "2.0", "id": id, "result": result} for result in results))


_FRAMES: Final[dict[str, Callable[[Sequence[str]], Sequence[bytes]]]] = {
    "/chat/completions": lambda said: wires.chat(said).frames,
    "/responses": lambda said: wires.responses(said, background=False).frames,
    "/messages": lambda said: wires.messages(said).frames,
    ":streamGenerateContent": lambda said: wires.gemini(said).frames,
    "/interactions": lambda said: wires.interactions(said).frames,
    "/api/chat": lines,
    "/runs/stream": run,
}


@functools.cache
def _frames(path: str, like: int) -> Sequence[bytes]:
    return next(frames for end, frames in _FRAMES.items() if path.endswith(end))(words(like))


class _Threaded(Listener):
    """Serves each connection in a thread of its own."""

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        raise NotImplementedError


class Provider(_Threaded):
    """
    Every API that streams, without a way to ask for the rest.

    Attributes:
        calls: How often each call was made; what was no call is -1.
    """

    def __init__(self) -> None:
        self.calls: collections.Counter[int] = collections.Counter()
        self._lock = threading.Lock()
        super().__init__()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError), client.makefile("rb") as reader:
            first, fields = head_of(reader)
            body = reader.read(int(fields.get("content-length", 0)))
            path = first.split(" ")[1].partition("?")[0]
            call = Call.in_body(body)
            with self._lock:
                self.calls[-1 if call is None else call.number] += 1
            if call is None:
                client.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                return
            frames = task(words(call.like), json.loads(body)["id"]) if path == "/a2a" else _frames(path, call.like)
            kind = "application/x-ndjson" if path == "/api/chat" else "text/event-stream"
            head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            client.sendall(head.encode())
            self._send(client, frames, random.Random(call.number))
            client.sendall(b"0\r\n\r\n")

    def _send(self, client: socket.socket, frames: Sequence[bytes], chance: random.Random) -> None:
        """In pieces of about one to four events, with short rests, so that what is cut may be live or not."""
        body, at = b"".join(frames), 0
        while at < len(body):
            piece = body[at : at + chance.randint(1, 4) * len(frames[0])]
            client.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            at += len(piece)
            time.sleep(chance.choice((0.0, 0.0, 0.002)))


# --- the network


class Cuts(_Threaded):
    """
    Passes on to a server of this machine what comes, and cuts the first answer of each call where its prompt says.

    Attributes:
        answers: Of each call that was not to be cut: how long its head was, and its body.
        cut: Numbers of the calls that were cut.
    """

    def __init__(self, upstream: int) -> None:
        self.answers: dict[int, tuple[int, bytes]] = {}
        self.cut: set[int] = set()
        self._upstream = upstream
        self._lock = threading.Lock()
        super().__init__()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError), client.makefile("rb") as reader:
            first, fields = head_of(reader)
            body = reader.read(int(fields.get("content-length", 0)))
            call, after = Call.in_body(body), None
            with self._lock:
                if call is not None and call.after is not None and call.number not in self.cut:
                    self.cut.add(call.number)
                    after = call.after
            with socket.create_connection(("127.0.0.1", self._upstream)) as server:
                server.sendall(joined(first, fields) + body)
                try:
                    with watching(client, server):
                        self._answer(server, client, call, after)
                finally:
                    if after is not None and call is not None and call.way == "rst":
                        reset(client)

    def _answer(self, server: socket.socket, client: socket.socket, call: Call | None, after: int | None) -> None:
        with server.makefile("rb") as reader:
            first, fields = head_of(reader)
            head = joined(first, fields)
            client.sendall(head[:after])
            if after is not None and after < len(head):
                self._end(server, client, call, in_body=False)
                return
            if fields.get("transfer-encoding") != "chunked":
                client.sendall(reader.read(int(fields.get("content-length", 0))))
                return
            passed, body = len(head), bytearray()
            for data in pieces_of(reader):
                if after is not None and passed + len(data) > after:
                    part = data[: after - passed]
                    if call is not None and call.way == "clean":
                        client.sendall(b"%x\r\n%b\r\n" % (len(part), part) if part else b"")
                    else:
                        client.sendall(b"%x\r\n%b" % (len(data), part))
                    self._end(server, client, call, in_body=True)
                    return
                client.sendall(b"%x\r\n%b\r\n" % (len(data), data))
                passed += len(data)
                body += data
            if call is not None and call.after is None:
                self.answers[call.number] = len(head), bytes(body)
            client.sendall(b"0\r\n\r\n")

    def _end(self, server: socket.socket, client: socket.socket, call: Call | None, *, in_body: bool) -> None:
        way = call.way if call is not None else "rst"
        if way == "clean" and in_body:
            client.sendall(b"0\r\n\r\n")
        elif way == "silence":
            # Until the client has enough of it.
            while server.recv(65536):
                pass


# --- the relay


@contextlib.contextmanager
def relaying(upstreams: Mapping[str, str]) -> Iterator[str]:
    """`resumable-stream relay`, with these URLs under these paths, or one under `""`. Yields its own URL."""
    named = [argument for mount, url in upstreams.items() for argument in ("--upstream", f"{mount}={url}" if mount else url)]
    command = [sys.executable, "-m", "resumable_stream", "relay", "--port", "0", "--no-access-log", *named]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RESUMABLE_STREAM_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                said.append(line)
                if found := re.match(r"relaying .* on (http://\S+)", line):
                    break
            else:
                raise AssertionError(f"the relay did not start:\n{''.join(said)}")
            # All that it says, so that it never waits for somebody to read it.
            threading.Thread(target=said.extend, args=(process.stdout,), daemon=True).start()
            yield found[1]
        finally:
            process.kill()
