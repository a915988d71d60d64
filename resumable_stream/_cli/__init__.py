"""
The command line: `resumable-stream`, or `python -m resumable_stream`.

    app.py      the commands
    demo.py     mission.py reads a story from server.py; live.py or plain.py shows it
    tail.py     reads any endpoint; output.py writes the events, notes.py what happens to the connection

Exit codes: 0 well, 1 the stream failed, 2 asked wrongly, 130 Ctrl-C, 141 the reader of the pipe left, 143 terminated.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that `sys.argv` names, and exit."""
    try:
        from .app import app
    except ImportError as error:
        if "resumable-stream-sdk[cli]" not in str(error):
            raise
        sys.stderr.write(f"resumable-stream: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    app(prog_name="resumable-stream")
