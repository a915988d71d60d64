"""A relay that is killed (`kill -9`) in the middle of a stream of an upstream that can resume: the other one goes on."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

import resumable_stream as rs
from resumable_stream.testing import FlakyServer, RecordedRequest, Reply

from ..protocols.test_openai_responses import BODY, FRAMES, ID
from ..server.relay_wires import KEY, OTHER_KEY, PROMPT
from .test_relay import client_of, dump_of, outcome_in_the_end, relay, store
from .test_serve import PATIENCE, Served

__all__ = ["store"]

QUESTION = {**BODY, "input": PROMPT}
HEADERS = {"authorization": f"Bearer {KEY}", "openai-organization": "org-1"}
WHOLE = b"".join(FRAMES)


class RoundRobin:
    """A TCP proxy: each connection goes to the next server, or to one after it if that is gone."""

    def __init__(self, servers: list[Served]) -> None:
        self._ports = [urlsplit(each.url).port or 0 for each in servers]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.taken: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                for _ in self._ports:
                    self._ports.append(self._ports.pop(0))
                    with contextlib.suppress(OSError):
                        server = socket.create_connection(("127.0.0.1", self._ports[-1]))
                        break
                else:
                    client.close()
                    continue
                self.taken.append(self._ports[-1])
                threading.Thread(target=self._join, args=(client, server), daemon=True).start()

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        with client, server:
            there = threading.Thread(target=self._pump, args=(client, server), daemon=True)
            there.start()
            self._pump(server, client)
            there.join()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Responses:
    """OpenAI's Responses API with one background response. The answer to the POST stops after so many events."""

    def __init__(self, count: int) -> None:
        self.server = FlakyServer(FRAMES[:count], hold_open=True, keep_alive=False, on_request=self._answer)
        self.refuses = False

    def _answer(self, request: RecordedRequest) -> Reply | None:
        if request.method == "POST":
            return None
        parts = urlsplit(request.url)
        asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        assert (parts.path, asked.get("stream")) == (f"/v1/responses/{ID}", "true")
        if self.refuses:
            return Reply(status=401, headers={"content-type": "application/json"}, body=b"{}")
        after = int(asked["starting_after"]) + 1 if "starting_after" in asked else 0
        return Reply(headers={"content-type": "text/event-stream"}, body=b"".join(FRAMES[after:]))

    @property
    def posts(self) -> int:
        """What costs money."""
        return sum(request.method == "POST" for request in self.server.requests)


@contextlib.contextmanager
def two_relays(upstream: FlakyServer, store: str, tmp_path: Path) -> Iterator[list[Served]]:
    # On a busy machine a process may be late by seconds, and must not be taken for dead.
    (tmp_path / "relay.toml").write_text("lease = 4.0")
    arguments = ("--upstream", upstream.origin, "--store", store, "--config", "relay.toml")
    with relay(*arguments, cwd=tmp_path) as first, relay(*arguments, cwd=tmp_path) as second:
        yield [first, second]


def begin(client: httpx.Client, count: int, stack: contextlib.ExitStack) -> tuple[str, str]:
    """Read the first events of a stream; where the rest is."""
    answer = stack.enter_context(client.stream("POST", "/v1/responses", json=QUESTION, headers=HEADERS))
    pieces, got = answer.iter_raw(), b""
    while got != b"".join(FRAMES[:count]):
        got += next(pieces)
    return answer.headers["content-location"], answer.headers["stream-epoch"]


def kill(server: Served) -> None:
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(200)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(count, marks=() if count == 6 else [pytest.mark.soak, pytest.mark.timeout(900)])
        for count in range(1, len(FRAMES))
    ],
)
def test_the_other_relay_goes_on_at_the_exact_event_and_no_secret_is_kept(store: str, tmp_path: Path, count: int) -> None:
    fake = Responses(count)
    with fake.server, contextlib.ExitStack() as stack:
        first, second = stack.enter_context(two_relays(fake.server, store, tmp_path))
        location, epoch = begin(stack.enter_context(client_of(first)), count, stack)
        kill(first)
        with client_of(second) as client:
            for theirs in ({"authorization": f"Bearer {OTHER_KEY}"}, {}):
                assert client.get(location, headers=theirs).status_code == 404
            # It waits for the lease, and then for the upstream.
            rest = client.get(f"{location}?view=verbatim&after={epoch}.{count}", headers=HEADERS)
            assert rest.content == b"".join(FRAMES[count:])
            assert outcome_in_the_end(client, location, HEADERS) == "completed"
            assert client.get(f"{location}?view=verbatim", headers=HEADERS).content == WHOLE
            metrics = client.get("/.metrics").text
            assert "relay_takeovers_total 1" in metrics
        assert second.end(signal.SIGTERM) == 0
        kept = dump_of(store, tmp_path)
        for secret in (KEY, OTHER_KEY, PROMPT):
            assert secret.encode() not in kept
            assert secret not in first.text + second.text + metrics
        assert b"response.output_text.delta" in kept
    assert fake.posts == 1
    resumed = fake.server.requests[-1]
    assert (resumed.method, resumed.headers["openai-organization"]) == ("GET", "org-1")
    assert resumed.headers["authorization"] == f"Bearer {KEY}"


def test_our_client_after_a_round_robin_proxy_notices_nothing(store: str, tmp_path: Path) -> None:
    fake = Responses(5)
    with fake.server, contextlib.ExitStack() as stack:
        relays = stack.enter_context(two_relays(fake.server, store, tmp_path))
        proxy = RoundRobin(relays)
        stack.callback(proxy.close)
        client = stack.enter_context(httpx.Client(trust_env=False))
        events: list[Any] = []
        with rs.connect("POST", f"{proxy.url}/v1/responses", client=client, json=QUESTION, headers=HEADERS) as stream:
            for event in stream:
                events.append(event.data)
                if len(events) == 5:
                    (port,) = set(proxy.taken)
                    kill(next(each for each in relays if each.url.endswith(f":{port}")))
        assert stream.outcome is rs.Outcome.COMPLETED
        assert events == [frame.decode().split("data: ")[1].strip() for frame in FRAMES]
    assert fake.posts == 1


def test_a_key_that_the_upstream_refuses_leaves_the_stream_for_the_next_reader(store: str, tmp_path: Path) -> None:
    fake = Responses(4)
    fake.refuses = True
    with fake.server, contextlib.ExitStack() as stack:
        first, second = stack.enter_context(two_relays(fake.server, store, tmp_path))
        location, epoch = begin(stack.enter_context(client_of(first)), 4, stack)
        kill(first)
        rest = f"{location}?view=verbatim&after={epoch}.4"
        with client_of(second) as client:
            # Whoever reads already when the key is refused is cut, and is answered so when he comes again.
            answer = None
            deadline = time.monotonic() + PATIENCE
            while answer is None:
                with contextlib.suppress(httpx.RemoteProtocolError):
                    answer = client.get(rest, headers=HEADERS)
                assert time.monotonic() < deadline
            assert (answer.status_code, answer.json()["error"]) == (401, "upstream_refused")
            assert client.head(location, headers=HEADERS).headers.get("stream-outcome") is None
            fake.refuses = False
            assert client.get(rest, headers=HEADERS).content == b"".join(FRAMES[4:])
            assert outcome_in_the_end(client, location, HEADERS) == "completed"
        assert KEY not in first.text + second.text and PROMPT not in first.text + second.text
    assert fake.posts == 1
