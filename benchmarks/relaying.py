"""
What a token costs on its way through a relay: CPU time of the relay's process alone.

Fifty streams run at once, and each token comes alone, when the clock of the API says so. The relay is held against an app that
makes the same tokens itself, with our hub and the same log, and against proxies without a log, over httpx and over aiohttp. All
stand behind the same server, and have the same readers. The servers are `relayed.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from statistics import median

import logs
from measure import Measured, in_turn, ratio, ratios
from serving import Readers, Server

__all__ = ["against", "against_hub", "answer"]

STREAMS = 50
TOKENS = 34
"""Of a stream; the first two and the last two are not measured, since connections begin and end about then."""
_EDGE = 2
_EVENT = b"data: {"
_END = b"0\r\n\r\n"
_BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": TOKENS}


@lru_cache
def answer(tokens: int) -> tuple[bytes, ...]:
    """The events of a stream."""
    *events, last = logs.chat(tokens, seed="relay")
    return (*events, last.replace(b'"finish_reason":null', b'"finish_reason":"stop"'), b"data: [DONE]\n\n")


@contextmanager
def _server(*arguments: str) -> Iterator[Server]:
    command = [sys.executable, str(Path(__file__).with_name("relayed.py")), *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Server(process, int(process.stdout.readline()))
    finally:
        process.stdin.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _one(server: Server, clock: Server, taken: list[float]) -> float:
    """CPU seconds of a server for a token. Every reader must get every token, in order."""
    body = json.dumps(_BODY).encode()
    # As it came on both sides: an app of its own would send ids, too.
    head = b"POST /v1/chat/completions?view=verbatim HTTP/1.1\r\nhost: benchmark\r\nauthorization: Bearer sk-benchmark\r\n"
    head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with Readers(server.port, [], requests=[head + body] * STREAMS) as group:
        group.until(lambda body: b"\r\n\r\n" in body)
        clock.tell("go")
        group.until(lambda body: body.count(_EVENT) >= _EDGE)
        begun, before = server.cpu(), _tokens(group)
        reads = group.reads
        group.until(lambda body: body.count(_EVENT) >= TOKENS - _EDGE)
        used, tokens = server.cpu() - begun, _tokens(group) - before
        taken.append(tokens / (group.reads - reads))
        group.until(lambda body: body.endswith(_END))
        bodies = {_sent(body) for body in group.bodies}
    if bodies != {b"".join(answer(TOKENS))}:
        raise AssertionError("a reader got other bytes than were sent")
    return used / tokens


def _tokens(group: Readers) -> int:
    return sum(body.count(_EVENT) for body in group.bodies)


def _sent(response: bytes) -> bytes:
    """The body of a response, without what HTTP puts around its chunks."""
    rest, pieces = response.partition(b"\r\n\r\n")[2], []
    while rest:
        line, _, rest = rest.partition(b"\r\n")
        size = int(line, 16)
        pieces.append(rest[:size])
        rest = rest[size + 2 :]
    return b"".join(pieces)


@lru_cache
def _taken(rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The CPU seconds for a token of each server, round by round, and how many tokens a reader got at once."""
    with ExitStack() as stack:
        upstream = stack.enter_context(_server("upstream"))
        port = str(upstream.port)
        stores = {"MemoryLog": ""}
        if "RedisLog" in logs.available():
            stores["RedisLog"] = stack.enter_context(logs.redis())
        clocks: dict[str, Server] = {}
        servers: dict[str, Server] = {}
        for name, store in stores.items():
            hub = f"hub, {name}"
            servers[hub] = clocks[hub] = stack.enter_context(_server("hub", store))
            servers[f"relay, {name}"] = stack.enter_context(_server("relay", store, port))
        for peer in ("httpx", "aiohttp"):
            servers[peer] = stack.enter_context(_server(peer, "", port))
        together: dict[str, list[float]] = {name: [] for name in servers}
        samples = {name: partial(_one, server, clocks.get(name, upstream), together[name]) for name, server in servers.items()}
        taken = in_turn(samples, rounds)
    return taken, {name: median(found) for name, found in together.items()}


def _against(peer: str, relays: Sequence[str], rounds: int) -> Measured:
    """The worst of some relays, with what it is made of."""
    taken, together = _taken(rounds)
    found = [ratios({peer: ratio(taken[relay], taken[peer])}) for relay in relays]
    worst = max(found, key=lambda each: each.value)
    shown = (*relays, peer)
    parts = {f"{name}, CPU µs per token": median(taken[name]) * 1e6 for name in shown}
    parts |= {f"{name}, tokens in a read": together[name] for name in shown}
    return Measured(worst.value, worst.low, worst.high, parts)


def against_hub(log: str, rounds: int) -> Measured:
    """As a multiple of an app with a hub over the same log, that makes its tokens."""
    if log == "RedisLog":
        logs.redis_binary()
    return _against(f"hub, {log}", [f"relay, {log}"], rounds)


def against(peer: str, rounds: int) -> Measured:
    """As a multiple of a proxy over `httpx` or `aiohttp`, with the log that takes most."""
    taken, _ = _taken(rounds)
    return _against(peer, [name for name in taken if name.startswith("relay")], rounds)
