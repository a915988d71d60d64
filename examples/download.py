"""Download a file over a connection that keeps breaking; no byte is fetched twice."""

import hashlib
import tempfile
from itertools import repeat

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer

DOCUMENT = bytes(range(256)) * 2000

with FlakyServer(DOCUMENT, repeat(Fault.cut(after_bytes=200_000), 3), format="bytes", etag='"v1"') as server:
    with tempfile.TemporaryFile() as file:
        with rs.connect("GET", server.url) as stream:
            for chunk in stream:
                file.seek(chunk.sequence)  # position of its first byte
                file.write(chunk.data)
        file.seek(0)
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(DOCUMENT).digest()

    print(stream.outcome, stream.stats.bytes, "bytes over", stream.stats.connections, "connections")
    print([request.headers.get("range") for request in server.requests])
    assert stream.stats.bytes == len(DOCUMENT)
