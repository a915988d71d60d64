"""Which protocol a response speaks, when the caller named none, and which one a checkpoint means."""

from __future__ import annotations

import re
from typing import Final

from .._contract import Head, ResumeProtocol, StreamState
from .a2a import A2A
from .ably import AblySSE
from .agno import Agno
from .ai_sdk import AISDKStream
from .anthropic_messages import AnthropicMessages
from .anthropic_session import AnthropicSession
from .byte_range import ByteRange
from .durable_streams import DurableStreams
from .gemini_generate import GeminiGenerate
from .gemini_interactions import GeminiInteractions
from .hub import HubStream
from .langgraph import LangGraphRun, LangGraphThread
from .last_event_id import LastEventID
from .letta import Letta
from .mcp import MCPStreamableHTTP
from .ndjson import NDJSON
from .ollama import OllamaNDJSON
from .openai_chat import OpenAIChat
from .openai_responses import OpenAIResponses
from .relayed import Relayed, can_relay, relayed
from .resumable_stream_npm import ResumableStreamNPM
from .s2 import S2
from .tanstack import TanStackAI, TanStackAINDJSON
from .trigger_dev import TriggerDev
from .upstash import UpstashRealtime
from .workflow import WorkflowRun

__all__ = ["claimed", "detect", "named"]

# The most specific first; the last ones are the plainest honest behaviour.
_CANDIDATES: tuple[type[ResumeProtocol], ...] = (
    HubStream,
    WorkflowRun,
    OpenAIResponses,
    OpenAIChat,
    AnthropicMessages,
    AnthropicSession,
    GeminiInteractions,
    GeminiGenerate,
    LangGraphRun,
    LangGraphThread,
    MCPStreamableHTTP,
    A2A,
    DurableStreams,
    AISDKStream,
    ResumableStreamNPM,
    AblySSE,
    S2,
    Agno,
    Letta,
    TriggerDev,
    UpstashRealtime,
    TanStackAI,
    TanStackAINDJSON,
    LastEventID,
    OllamaNDJSON,
    NDJSON,
    ByteRange,
)
# From here on the content type is all that is asked for.
_PLAIN = LastEventID
_RELAYED: Final = re.compile(r"Relayed\((\w+)\)", re.ASCII)


def detect(request: StreamState, head: Head) -> ResumeProtocol | None:
    """
    Choose by the request and the head of its response.

    Returns:
        A protocol with its default options, within `Relayed` where the answer came through a relay; or `None` when it is no
        stream (a page, a JSON document).
    """
    for candidate in _CANDIDATES:
        if candidate is _PLAIN and (found := claimed(request, head)) is not None:
            return found
        protocol = candidate.for_request(request)
        if protocol.matches(request, head):
            return relayed(protocol, request, head)
    return None


def claimed(request: StreamState, head: Head) -> ResumeProtocol | None:
    """The protocol whose stream the request asks for, where the answer has another content type than its own, or none."""
    if head.content_type == "text/event-stream":
        # An event stream of another kind than the request suggests.
        return None
    for candidate in _CANDIDATES:
        protocol = candidate.for_request(request)
        if protocol.claims(request, head):
            return relayed(protocol, request, head)
    return None


def named(name: str) -> ResumeProtocol | None:
    """The protocol with default options that a checkpoint's `protocol` names, or `None` for one of your own."""
    if (within := _RELAYED.fullmatch(name)) is not None:
        inner = named(within[1])
        return Relayed(inner) if inner is not None and can_relay(inner) else None
    return next((candidate() for candidate in _CANDIDATES if candidate.__name__ == name), None)
