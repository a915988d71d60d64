"""
Two streams at once on trio. Each resumes by itself, and leaving the nursery closes everything.

Needs trio, which the library does not install: pip install trio
"""

try:
    import trio
except ModuleNotFoundError:
    raise SystemExit("this example needs trio: pip install trio") from None

import resumable_stream as rs
from resumable_stream.testing import Fault, FlakyServer, numbered


async def read(name: str, url: str, received: list[str]) -> None:
    async with rs.aconnect("GET", url) as stream:
        async for event in stream:
            print(name, event.data)
            received.append(f"{name} {event.data}")


async def main() -> None:
    received: list[str] = []
    with FlakyServer(numbered(5), [Fault.cut(after_events=1), Fault.cut(after_events=2)]) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, "left", server.url, received)
            nursery.start_soon(read, "right", server.url, received)
    assert sorted(received) == sorted(f"{name} event {n}" for name in ("left", "right") for n in range(1, 6))


trio.run(main)
