"""A TCP proxy that ends a response in its body, as a lost network does."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time

# With a linger time of zero a close is an RST.
_RESET = struct.pack("ii", 1, 0)


class Listener:
    """Takes connections on a port of its own, until it is closed."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True, name=type(self).__name__).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            # Wakes the thread that waits in accept().
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.take(client)

    def take(self, client: socket.socket) -> None:
        """A connection has come; the next one waits until this returns."""
        raise NotImplementedError


def hang_up(server: socket.socket, client: socket.socket) -> None:
    """The server is told first, so that it knows when the client comes back; a socket that is being read is not closed."""
    for end, how in ((server, socket.SHUT_RDWR), (client, socket.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)


def reset(client: socket.socket) -> None:
    """Closing it is an RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class CuttingProxy(Listener):
    """
    Pass bytes on to a server of this machine, and end the next connection after so many bytes of its first response's body.

    Bytes of the body are counted as they are on the wire, chunk sizes included. Later connections pass through.

    Args:
        upstream: Port of the server.
        pause: Seconds that a connection waits which is not cut.
        head: Count the bytes of the head too.
    """

    def __init__(self, upstream: int, *, pause: float = 0.0, head: bool = False) -> None:
        self._pause = pause
        self._head = head
        self.connections = 0
        # Of the connection after cut().
        self.body = bytearray()
        # False from a cut until the next connection is answered: who has more to say may wait for that.
        self.settled = True
        self.upstream = upstream
        self._cut: tuple[int, str] | None = None
        super().__init__()

    def cut(self, after: int, how: str) -> None:
        """Cut the next connection after so many bytes, by `"rst"` or `"fin"`."""
        self.connections, self.settled, self._cut = 0, True, (after, how)

    def take(self, client: socket.socket) -> None:
        self.connections += 1
        cut, self._cut = self._cut, None
        if cut is None:
            time.sleep(self._pause)
        server = socket.create_connection(("127.0.0.1", self.upstream))
        up = threading.Thread(target=self._up, args=(client, server), daemon=True)
        up.start()
        threading.Thread(target=self._down, args=(client, server, up, cut), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)

    def _down(self, client: socket.socket, server: socket.socket, up: threading.Thread, cut: tuple[int, str] | None) -> None:
        with client, server:
            with contextlib.suppress(OSError):
                self._pass_on(client, server, cut[0] if cut else None)
            hang_up(server, client)
            up.join()
            if cut is not None and cut[1] == "rst":
                reset(client)

    def _pass_on(self, client: socket.socket, server: socket.socket, after: int | None) -> None:
        head, body = b"", bytearray()
        if after == 0 and self._head:
            # The server has taken the request once it answers.
            server.recv(1)
            self.settled = False
            return
        while data := server.recv(65536):
            if after is None:
                client.sendall(data)
                self.settled = True
                continue
            self.body = body
            if not self._head and b"\r\n\r\n" not in head:
                head += data
                end = head.find(b"\r\n\r\n") + 4
                if end < 4:
                    continue
                client.sendall(head[:end])
                data = head[end:]
            passed = data[: after - len(body)]
            # First, since the reader may be done with the last of it before this thread runs again.
            body += passed
            client.sendall(passed)
            if len(body) == after:
                self.settled = False
                return


def sample(length: int) -> list[int]:
    """Where to cut a body: the first and last 20 positions, and every 97th."""
    return sorted({*range(20), *range(0, length, 97), *range(length - 20, length)})
