"""
The package's own test tools, for the tests of your application: a server that fails on schedule, a client that needs no server.

Importing it loads neither pytest nor an HTTP client; the fixtures are in `resumable_stream.testing.pytest_plugin`.
"""

from __future__ import annotations

from .faults import Fault
from .scripted import ScriptedClient, ScriptedSocket
from .server import FlakyServer, RecordedRequest, Reply, ServerEvent, numbered
from .websocket import Expect, ServerSocket, close_frame, message_frames

__all__ = [
    "Expect",
    "Fault",
    "FlakyServer",
    "RecordedRequest",
    "Reply",
    "ScriptedClient",
    "ScriptedSocket",
    "ServerEvent",
    "ServerSocket",
    "close_frame",
    "message_frames",
    "numbered",
]
