"""A POST starts a generation, and its answer names the URL of the rest; it is sent once, even if the connection breaks."""

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, ServerEvent, numbered

LOG = [*numbered(8), ServerEvent(data="[DONE]")]

with FlakyServer(LOG, [Fault.cut(after_events=3), Fault.cut(after_events=2)], location="/runs/1") as server:
    with rs.connect("POST", server.url, json={"prompt": "Count to eight"}) as stream:
        for event in stream:
            print(event.data)

    asked = [(request.method, request.path, request.last_event_id) for request in server.requests]
    print(stream.outcome, asked)
    assert asked == [("POST", "/stream", None), ("GET", "/runs/1", "3"), ("GET", "/runs/1", "5")]
