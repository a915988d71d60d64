"""
Follow a conversation of the page in a terminal.

    python examples/fastapi_chat/reader.py http://127.0.0.1:8000/c/…
"""

import json
import sys
from urllib.parse import urljoin

import resumable_stream as rs
from resumable_stream.protocols import LastEventID


def read_along(address: str) -> None:
    """Print every message with its answer, as long as the conversation lasts."""
    asked: dict[str, str] = {}  # by the id of the answer
    feed_url = urljoin(address, f"/sessions/{address.rstrip('/').rpartition('/')[2]}/feed")
    with rs.connect("GET", feed_url, protocol=LastEventID(end="never")) as feed:
        for event in feed:
            data = json.loads(event.data)
            if event.event in ("message", "edited"):
                asked[data["data"]["answer"]] = data["data"]["text"]
            elif event.event == "started":
                print(f"\n> {asked.get(data['id'], '')}\n")
                print_answer(urljoin(address, f"/streams/{data['id']}"))


def print_answer(url: str) -> None:
    """Print an answer: first what exists, then the rest as it is written, through every lost connection."""
    with rs.connect("GET", url) as stream:
        for text in stream.iter_text():
            print(text, end="", flush=True)
    print(f"\n[{stream.outcome and stream.outcome.value}]")


if __name__ == "__main__":
    try:
        read_along(sys.argv[1])
    except KeyboardInterrupt:
        pass
