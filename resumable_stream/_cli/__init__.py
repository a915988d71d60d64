"""
The command line: `resumable-stream`, or `python -m resumable_stream`.

    app.py      the commands
    demo.py     mission.py reads a story from server.py; live.py or plain.py shows it
                with --server: hub_mission.py serves an answer and reads it three times, hub_shown.py shows it
    serve.py    serves a hub; serving.py is uvicorn with draining, workers.py several processes of it
    chat.py     serves the chat of examples/fastapi_chat, likewise
    tail.py     reads any endpoint; output.py writes the events, notes.py reports on the connection
    kept.py     lists, shows and deletes the contents of a store; places.py opens the store that --store names

    Exit codes: 0 success, 1 the stream failed, 2 usage error, 130 Ctrl-C, 141 the reader of the pipe left, 143 terminated.
"""

from __future__ import annotations

import importlib
import signal
import sys

__all__ = ["main"]

# Modules that the commands would otherwise load at their first request.
_LOADED_EARLY = ("resumable_stream._api", "httpcore")


def main() -> None:
    """Run the command that `sys.argv` names, and exit."""
    # The import system runs code in weak reference callbacks, where Python drops a `KeyboardInterrupt`.
    # So until everything is loaded, Ctrl-C ends the process at once: there is nothing to clean up yet.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from .app import app

        for name in _LOADED_EARLY:
            importlib.import_module(name)
    except ImportError as error:
        if "resumable-stream-sdk[cli]" not in str(error):
            raise
        sys.stderr.write(f"resumable-stream: {error}\n")
        sys.exit(1)
    signal.signal(signal.SIGINT, handler)
    app(prog_name="resumable-stream")
