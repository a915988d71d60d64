"""
The cost of a token on its way through a relay: CPU time of the relay's process alone.

Fifty streams run at once, and each token comes alone, timed by the API's clock. The relay is compared with an app that makes the
same tokens itself, with our hub and the same log, and with proxies without a log, over httpx and over aiohttp. All run in the
same server and have the same readers. The servers are in `relayed.py`.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import lru_cache, partial
from statistics import median

import logs
from measure import Measured, in_turn, ratio, ratios
from serving import Readers, Server, running

__all__ = ["against_hub", "against_proxy", "answer"]

STREAMS = 50
ALONE = 20
"""
Tokens per stream and second. With fifty streams, 20 is one a millisecond: each is read alone, a window of the hub holds one, and
the slowest of these servers keeps up.
"""
FAST = 100
"""The pace of a fast model: several come in one window of the hub."""
_SECONDS = 1.7
_EDGE = 2
"""The first and last tokens of a stream are not measured, because connections begin and end around them."""
_EVENT = b"data: {"
_END = b"0\r\n\r\n"
_QUESTION = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Why?"}]}


@lru_cache
def answer(tokens: int) -> tuple[bytes, ...]:
    """The events of a stream."""
    *events, last = logs.chat(tokens, seed="relay")
    return (*events, last.replace(b'"finish_reason":null', b'"finish_reason":"stop"'), b"data: [DONE]\n\n")


def _one(server: Server, clock: Server, together: list[float], *, per_second: int = ALONE) -> float:
    """CPU seconds of a server per token. Every reader must get every token, in order."""
    count = int(_SECONDS * per_second)
    body = json.dumps({**_QUESTION, "max_tokens": count, "per_second": per_second}).encode()
    # The bytes as sent on both sides: an app with a hub would send ids, too.
    head = b"POST /v1/chat/completions?view=verbatim HTTP/1.1\r\nhost: benchmark\r\nauthorization: Bearer sk-benchmark\r\n"
    head += b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    with Readers(server.port, [], requests=[head + body] * STREAMS) as group:
        group.until(lambda body: b"\r\n\r\n" in body)
        clock.tell("go")
        group.until(lambda body: body.count(_EVENT) >= _EDGE)
        begun, before = server.cpu(), _tokens(group)
        reads = group.reads
        group.until(lambda body: body.count(_EVENT) >= count - _EDGE)
        used, tokens = server.cpu() - begun, _tokens(group) - before
        together.append(tokens / (group.reads - reads))
        group.until(lambda body: body.endswith(_END))
        bodies = {_sent(body) for body in group.bodies}
    if bodies != {b"".join(answer(count))}:
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
    """The CPU seconds per token of each server, by round, and how many tokens a reader got at once."""
    with ExitStack() as stack:
        upstream = stack.enter_context(running("relayed.py", "upstream"))
        port = str(upstream.port)
        stores = {"MemoryLog": ""}
        if "RedisLog" in logs.available():
            stores["RedisLog"] = stack.enter_context(logs.redis())
        clocks: dict[str, Server] = {}
        servers: dict[str, Server] = {}
        for name, store in stores.items():
            hub = f"hub, {name}"
            servers[hub] = clocks[hub] = stack.enter_context(running("relayed.py", "hub", store))
            servers[f"relay, {name}"] = stack.enter_context(running("relayed.py", "relay", store, port))
        for peer in ("httpx", "aiohttp"):
            servers[peer] = stack.enter_context(running("relayed.py", peer, "", port))
        together: dict[str, list[float]] = {name: [] for name in servers}
        samples = {name: partial(_one, server, clocks.get(name, upstream), together[name]) for name, server in servers.items()}
        taken = in_turn(samples, rounds)
        for name, server in servers.items():
            taken[f"{name}, fast"] = [_one(server, clocks.get(name, upstream), [], per_second=FAST) for _ in range(2)]
    return taken, {name: median(found) for name, found in together.items()}


def _against(relay: str, peer: str, rounds: int) -> Measured:
    """The ratio of two servers, with the figures of both."""
    taken, together = _taken(rounds)
    found = ratios({peer: ratio(taken[relay], taken[peer])})
    parts = {f"{name}, CPU µs per token": median(taken[name]) * 1e6 for name in (relay, peer)}
    parts |= {f"{name}, tokens in a read": together[name] for name in (relay, peer)}
    parts |= {f"{name}, {FAST} tokens a second, CPU µs": median(taken[f"{name}, fast"]) * 1e6 for name in (relay, peer)}
    return Measured(found.value, found.low, found.high, parts)


def against_hub(log: str, rounds: int) -> Measured:
    """As a multiple of an app that makes its tokens with a hub over the same log."""
    if log == "RedisLog":
        logs.redis_binary()
    return _against(f"relay, {log}", f"hub, {log}", rounds)


def against_proxy(peer: str, rounds: int) -> Measured:
    """As a multiple of a proxy without a log over `httpx` or `aiohttp`."""
    return _against("relay, MemoryLog", peer, rounds)
