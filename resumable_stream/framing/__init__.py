"""
From bytes to items: one decoder for each way of framing a body, all used alike.

    feed(data) -> items that the chunk completed; never raises
    eof()      -> items that only the end of the body completes
    error      -> why decoding stopped (a limit), or `None`
    partial    -> an item has begun and not ended

A WebSocket is framed in the same way (`websocket.py`); what has to be said to its server is in the decoder's `outgoing`.
A decoder reads bytes and knows nothing else: no connection, no clock, no resuming.
"""

from .document import DocumentDecoder
from .ndjson import NDJSONDecoder
from .raw import RawDecoder, TextView
from .sse import SSEDecoder
from .verbatim import VerbatimDecoder, encoded
from .websocket import CloseMeaning, WebSocketDecoder

__all__ = [
    # sse
    "SSEDecoder",
    # document
    "DocumentDecoder",
    # ndjson
    "NDJSONDecoder",
    # raw
    "RawDecoder",
    "TextView",
    # verbatim
    "VerbatimDecoder",
    "encoded",
    # websocket
    "CloseMeaning",
    "WebSocketDecoder",
]
