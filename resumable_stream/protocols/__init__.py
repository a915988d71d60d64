"""
How to resume each kind of endpoint: one module per wire protocol, and the class that yours extends.

Modules here are pure functions of frames; they import no HTTP client.
"""

from __future__ import annotations

from .._contract import (
    Alarm,
    Answer,
    Ask,
    Backfill,
    Consume,
    Document,
    Finished,
    Head,
    Interrupted,
    Lost,
    Position,
    Promises,
    Reject,
    Request,
    Resume,
    ResumeProtocol,
    Retry,
    Settled,
    Snapshot,
    StreamState,
    Unproven,
    Verdict,
    Verify,
)
from ._detect import detect, named
from .a2a import A2A
from .ably import AblySSE
from .agno import Agno
from .ai_sdk import AISDKStream
from .anthropic_messages import AnthropicMessages
from .anthropic_session import AnthropicSession
from .byte_range import ByteRange
from .cursor import CursorProtocol
from .durable_streams import DurableStreams
from .gemini_generate import GeminiGenerate
from .gemini_interactions import GeminiInteractions
from .hub import HubStream
from .langgraph import LangGraphRun, LangGraphThread
from .last_event_id import LastEventID
from .letta import Letta
from .llama_cpp import LlamaCpp
from .mcp import MCPStreamableHTTP
from .ndjson import NDJSON
from .ollama import OllamaNDJSON
from .openai_chat import OpenAIChat
from .openai_responses import OpenAIResponses
from .relayed import Relayed
from .replay import ReplayFromZero
from .resumable_stream_npm import ResumableStreamNPM
from .s2 import S2
from .tanstack import TanStackAI, TanStackAINDJSON
from .trigger_dev import TriggerDev
from .upstash import UpstashRealtime
from .workflow import WorkflowRun

__all__ = [
    # protocols
    "LastEventID",
    "CursorProtocol",
    "ReplayFromZero",
    "ByteRange",
    "NDJSON",
    # our own server
    "HubStream",
    "Relayed",
    # providers
    "OpenAIResponses",
    "OpenAIChat",
    "AnthropicMessages",
    "AnthropicSession",
    "GeminiInteractions",
    "GeminiGenerate",
    "OllamaNDJSON",
    "LlamaCpp",
    "LangGraphRun",
    "LangGraphThread",
    "MCPStreamableHTTP",
    "A2A",
    "DurableStreams",
    "AISDKStream",
    "ResumableStreamNPM",
    "WorkflowRun",
    "AblySSE",
    "S2",
    "Agno",
    "Letta",
    "TriggerDev",
    "UpstashRealtime",
    "TanStackAI",
    "TanStackAINDJSON",
    # to write your own
    "ResumeProtocol",
    "Request",
    "Head",
    "StreamState",
    "Unproven",
    "Position",
    "Alarm",
    "Promises",
    "Settled",
    "Answer",
    "Snapshot",
    "Backfill",
    "Document",
    # verdicts
    "Verdict",
    "Ask",
    "Consume",
    "Finished",
    "Interrupted",
    "Lost",
    "Reject",
    "Resume",
    "Retry",
    "Verify",
    # choosing
    "detect",
    "named",
]
