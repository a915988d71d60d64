"""A relay over real sockets: uvicorn in front, fakes of the providers behind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from resumable_stream.server import MemoryLog, Relay
from resumable_stream.testing import FlakyServer

from .relay_wires import KEY, TEXT, WIRES, Wire
from .serving import Served

PATIENCE = 30.0


@contextlib.contextmanager
def relayed(upstream: FlakyServer | str | dict[str, str], log: Any = None, **options: Any) -> Iterator[Served]:
    target = upstream.origin if isinstance(upstream, FlakyServer) else upstream
    with Served(Relay(target, log or MemoryLog(), flush=0.0, **options)) as served:
        yield served


def post(client: httpx.Client, wire: Wire, key: str = KEY, **headers: str) -> httpx.Response:
    return client.post(wire.target, json=wire.body, headers={**wire.credentials(key), **headers})


def outcome(client: httpx.Client, location: str, headers: dict[str, str]) -> str | None:
    """How a stream has ended; `None` while it runs."""
    return client.head(location, headers=headers).headers.get("stream-outcome")


# --- what passes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", WIRES, ids=repr)
def test_a_stream_is_passed_on_byte_for_byte_and_can_be_read_again(wire: Wire) -> None:
    with wire.server() as upstream, relayed(upstream) as served, served.client() as client:
        answer = post(client, wire)
        assert answer.status_code == 200
        assert answer.content == wire.transcript
        assert answer.headers["content-type"] == wire.content_type
        location, id = answer.headers["content-location"], answer.headers["stream-id"]
        assert location == f"/.streams/{id}"

        again = client.get(f"{location}?view=verbatim", headers=wire.credentials())
        assert again.content == wire.transcript
        assert again.headers["stream-epoch"] == answer.headers["stream-epoch"]
        end = f"{location}?view=verbatim&after={answer.headers['stream-epoch']}.{wire.events}"
        seen = client.get(end, headers=wire.credentials())
        assert (seen.status_code, seen.headers["stream-outcome"]) == (204, "completed")
        events = client.get(location, headers=wire.credentials())
        assert events.text.count("\nid: ") == wire.events + 1
        assert 'event: end\ndata: {"outcome":"completed"}' in events.text
        message = client.get(f"{location}/message", headers=wire.credentials()).json()
        assert (message["text"], message["outcome"], message["events"]) == ("".join(TEXT), "completed", wire.events)
    assert len(upstream.requests) == 1
