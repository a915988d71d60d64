"""Read a stream whose connection breaks three times, as if nothing had happened."""

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, numbered

BREAKS = [
    Fault.cut(after_events=3),  # a reset: a process died
    Fault.cut(after_bytes=50, how="clean_inside"),  # a proxy closed the body cleanly, inside an event
    Fault.status(503),  # and then the server was busy
]

with FlakyServer(numbered(10), BREAKS) as server:
    with rs.connect("GET", server.url) as stream:
        for event in stream:
            print(event.offset, event.id, event.data)

    print(stream.outcome, stream.stats)
    assert stream.stats.events == 10
