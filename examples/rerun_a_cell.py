"""A notebook cell: run again, it shows the whole answer, and asks the server only for what is missing."""

import tempfile
from itertools import islice

import resumable_stream as rs
from resumable_stream.stores import SQLiteStore
from resumable_stream.testing import FlakyServer, ServerEvent, numbered

LOG = [*numbered(6), ServerEvent(id="7", data="[DONE]")]


def cell(url: str, store: SQLiteStore, most: int | None = None) -> None:
    # The key is made from the request: another URL or body is another answer.
    with rs.connect("GET", url, store=store, key=rs.request_key("GET", url)) as stream:
        for event in islice(stream, most):
            print("kept " if event.replayed else "fresh", event.data)
    print(stream.outcome)


with FlakyServer(LOG) as server, tempfile.TemporaryDirectory() as directory:
    store = SQLiteStore(f"{directory}/answers.db", keep_events=True)
    cell(server.url, store, most=3)  # interrupted after three events
    cell(server.url, store)  # three kept, the rest from the server
    cell(server.url, store)  # all kept: no request at all
    assert len(server.requests) == 2
