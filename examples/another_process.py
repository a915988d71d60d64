"""Read half of a stream, and let another process read the rest."""

import subprocess
import sys

import resumable_stream as rs
from resumable_stream.testing import FlakyServer, numbered


def first_half(url: str) -> str:
    with rs.connect("GET", url) as stream:
        for event in stream:
            print("first process: ", event.data)
            if event.id == "5":
                break  # leaving without an exception commits the current event
    return stream.token


def second_half(token: str, origin: str) -> None:
    # The token is neither signed nor secret; `origin` is the server that may get requests with your credentials.
    with rs.resume(token, origin=origin) as stream:
        for event in stream:
            print("second process:", event.data)


if len(sys.argv) > 1:
    second_half(sys.argv[1], origin=sys.argv[2])
else:
    with FlakyServer(numbered(10)) as server:
        token = first_half(server.url)
        run = subprocess.run([sys.executable, __file__, token, server.url], check=True, capture_output=True, text=True)
    print(run.stdout, end="")
    assert run.stdout.split() == [word for n in range(6, 11) for word in ("second", "process:", "event", str(n))]
