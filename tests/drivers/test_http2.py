"""HTTP/2: the same stream, cut by RST_STREAM, by GOAWAY and by the loss of the connection."""

# ruff: noqa: PT012  -- the exception comes out of a whole `async with` block: that is what is tested

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest

import resumable_stream as rs
from resumable_stream.protocols import LastEventID
from resumable_stream.testing import numbered

if TYPE_CHECKING:
    from tests.conftest import Row

pytestmark = pytest.mark.usefixtures("spotless")

ALL = [str(n) for n in range(1, 13)]
How = Literal["reset", "lost", "goaway", "silence", "clean"]


class H2Server:
    """
    A server of twelve events over HTTP/2 with prior knowledge, one thread for each connection.

    Args:
        schedule: For each request: how many events to send, and what to do then. When it is used up: all, and the end.
    """

    def __init__(self, schedule: Iterable[tuple[int, How]] = ()) -> None:
        self._schedule = iter(schedule)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True, name="flaky-server-h2")]
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/stream"
        self.cursors: list[str | None] = []
        self.resets = 0
        self.connections = 0
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(sock)
            self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True, name="flaky-server-h2"))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        with sock:
            try:
                connection.initiate_connection()
                sock.sendall(connection.data_to_send())
                while data := sock.recv(65536):
                    for event in connection.receive_data(data):
                        if isinstance(event, h2.events.RequestReceived):
                            assert event.stream_id is not None and event.headers is not None
                            self._answer(connection, event.stream_id, dict(event.headers))  # type: ignore[arg-type]
                        elif isinstance(event, h2.events.StreamReset):
                            self.resets += 1
                    sock.sendall(connection.data_to_send())
                    if getattr(connection, "lost", False):
                        return
            except (OSError, h2.exceptions.ProtocolError):
                return

    def _answer(self, connection: Any, stream: int, headers: dict[str, str]) -> None:
        cursor = headers.get("last-event-id")
        self.cursors.append(cursor)
        start = int(cursor or 0)
        count, how = next(self._schedule, (12, "clean"))
        connection.send_headers(stream, [(":status", "200"), ("content-type", "text/event-stream")])
        for event in numbered(12)[start : start + count]:
            connection.send_data(stream, event.encode())
        match how:
            case "clean":
                connection.end_stream(stream)
            case "reset":
                connection.reset_stream(stream, error_code=2)
            case "goaway":
                connection.close_connection(last_stream_id=0)
                connection.lost = True
            case "lost":
                connection.lost = True

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(200)


@contextmanager
def serving(*schedule: tuple[int, How]) -> Iterator[H2Server]:
    server = H2Server(schedule)
    try:
        yield server
    finally:
        server.close()


async def ids(row: Row, stream: Any) -> list[str]:
    return [event.id for event in await row.read(stream)]


@pytest.mark.parametrize("how", ["reset", "lost", "goaway", "clean"])
async def test_every_event_arrives_once_however_the_stream_is_cut(row: Row, how: How) -> None:
    with serving((5, how), (0, how), (3, how), (1, how)) as server:
        client = row.client(http1=False, http2=True)
        stream = row.connect("GET", server.url, client=client, protocol=LastEventID(end=lambda event: event.id == "12"))
        assert await ids(row, stream) == ALL
        assert stream.response is not None
        assert server.cursors == [None, "5", "5", "8", "9"]
        await row.close_clients()


async def test_a_reset_stream_leaves_the_connection_in_use(row: Row) -> None:
    with serving((5, "reset"), (3, "reset")) as server:
        assert await ids(row, row.connect("GET", server.url, client=row.client(http1=False, http2=True))) == ALL
        assert server.connections == 1
        await row.close_clients()


async def test_silence_is_noticed_within_idle(row: Row) -> None:
    with serving((5, "silence")) as server:
        client = row.client(http1=False, http2=True)
        started = time.monotonic()
        stream = row.connect("GET", server.url, client=client, timeouts=rs.Timeouts(first_event=30.0, idle=0.15))
        assert await ids(row, stream) == ALL
        assert 0.14 < time.monotonic() - started < 25.0
        await row.close_clients()


async def test_a_post_that_is_reset_before_its_head_is_not_repeated(row: Row) -> None:
    with serving((0, "lost")) as server:
        client = row.client(http1=False, http2=True)
        with pytest.raises(rs.StreamInterrupted):
            await row.read(row.connect("POST", server.url, client=client, json={}))
        assert len(server.cursors) == 1
        await row.close_clients()


async def test_leaving_in_the_middle_leaves_the_client_usable(row: Row) -> None:
    with serving((5, "silence"), (12, "clean")) as server:
        client = row.client(http1=False, http2=True)
        async with row.connect("GET", server.url, client=client) as stream:
            async for event in stream:
                if event.id == "3":
                    break
        assert stream.checkpoint.offset == 3
        again = row.connect("GET", server.url, client=client, checkpoint=stream.checkpoint)
        assert await ids(row, again) == ALL[3:]
        await row.close_clients()


async def test_two_streams_of_one_connection_do_not_disturb_each_other(row: Row) -> None:
    if row.sync:
        pytest.skip("one thread reads one stream")
    import anyio

    with serving((5, "reset"), (4, "reset"), (3, "reset"), (2, "reset")) as server:
        client = row.client(http1=False, http2=True)
        found: list[list[str]] = []

        async def read() -> None:
            found.append(await ids(row, row.connect("GET", server.url, client=client)))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            group.start_soon(read)
        assert found == [ALL, ALL]
        await row.close_clients()


async def test_close_from_elsewhere_ends_a_reader_in_time(row: Row) -> None:
    with serving((5, "silence")) as server:
        client = row.client(http1=False, http2=True)
        stream = row.connect("GET", server.url, client=client, timeouts=rs.Timeouts(idle=0.5 if row.sync else 60.0))
        seen: list[str] = []

        async def closer() -> None:
            await row.until(lambda: len(seen) == 5)
            await row.sleep(0.03)
            await stream.aclose()

        async with row.beside(closer):
            async with stream:
                started = time.monotonic()
                with pytest.raises(rs.StreamClosed):
                    async for event in stream:
                        seen.append(event.id)
                # Sync: the socket carries other streams and cannot be shut down, so the byte clock has to end the wait.
                assert time.monotonic() - started < 50.0
        await row.close_clients()
