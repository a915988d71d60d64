"""A client of httpx reads one body over a connection that breaks twice; an SDK over such a client does the same."""

import httpx

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, ServerEvent, numbered
from resumable_stream.transports.httpx import ResumableTransport

LOG = [*numbered(8), ServerEvent(data="[DONE]")]
BREAKS = [
    Fault.cut(after_events=3),  # a reset
    Fault.cut(after_events=2, how="clean"),  # a close that looks like the end
]


def read(client: httpx.Client, url: str) -> tuple[httpx.Response, int]:
    """Stands for an SDK, which knows nothing about us."""
    with client.stream("GET", url) as response:
        return response, sum(line.startswith("data:") for line in response.iter_lines())


with FlakyServer(LOG, BREAKS) as server, httpx.Client(transport=ResumableTransport()) as client:
    response, events = read(client, server.url)
    below = rs.stream_of(response)
    print(events, "events over", below.stats.connections, "connections:", below.outcome)
    assert events == len(LOG)
