"""Observe every reconnect, and keep what arrived when the server gives up."""

import logging
from itertools import repeat

from tenacity import wait_none

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, numbered

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")


def show(notice: rs.Notice) -> None:
    print("notice:", notice)


faults = [Fault.cut(after_events=4), *repeat(Fault.status(503), 10)]
received = []
with FlakyServer(numbered(10), faults) as server:
    try:
        with rs.connect("GET", server.url, observer=show, retry=rs.RetryPolicy(attempts=3, wait=wait_none())) as stream:
            for event in stream:
                received.append(event.data)
    except rs.RetriesExhausted as error:
        print(error)
        print("continue later from:", error.checkpoint.token())

assert len(received) == 4
