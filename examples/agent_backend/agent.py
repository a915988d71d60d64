"""
Start an agent and watch it. Lines that you type are posted to it, and Ctrl-C stops it.

    python examples/agent_backend/agent.py "bread, milk" [http://127.0.0.1:8000]
"""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time

import httpx

import resumable_stream as rs
from resumable_stream.protocols import HubStream


def run(goal: str, url: str = "http://127.0.0.1:8000") -> None:
    """Start an agent, show its work through every lost connection, and cancel it at Ctrl-C."""
    # A named protocol sends a key with the POST, so a repeated POST does not start a second agent.
    with rs.connect("POST", f"{url}/agents", json={"goal": goal}, protocol=HubStream()) as stream:
        messages = f"{url}/streams/{stream.stream_id}/messages"
        threading.Thread(target=steer, args=[messages], daemon=True).start()
        cancelled = False
        while stream.outcome is None:
            try:
                for event in stream:
                    show(event)
            except KeyboardInterrupt:
                if cancelled:
                    raise
                cancelled = True
                stream.cancel()
    print(f"\n[{stream.outcome.value}]")


def show(event: rs.StreamEvent) -> None:
    """Print an event."""
    data = json.loads(event.data)
    match event.event:
        case "step":
            print(f"\nstep {data['step']}: {', '.join(data['plan'])}")
        case "tool_call":
            print(f"  {data['tool']} {data['arguments']}", end=" ", flush=True)
        case "tool_result":
            print(f"→ {data['result']}")
        case "steered" | "refused":
            print(f"\n  {event.event}: {data['data']}")
        case "reset":
            print("\n(once more)")
        case "message":
            print(data["text"], end="", flush=True)


def steer(url: str) -> None:
    """Post each typed line, until the agent has ended."""
    with httpx.Client() as client:
        for line in sys.stdin:
            key = {"Idempotency-Key": secrets.token_urlsafe(16)}
            while (status := post(client, url, line.strip(), key)) is None or status >= 500:
                time.sleep(0.5)  # with the same key, a repeated POST is the same message
            if status != 202:
                print(f"\n  not taken: {status}")


def post(client: httpx.Client, url: str, text: str, key: dict[str, str]) -> int | None:
    """Post a message. Returns the status, or `None` without an answer."""
    try:
        return client.post(url, json={"data": text}, headers=key).status_code
    except httpx.TransportError:
        return None


if __name__ == "__main__":
    run(*sys.argv[1:])
