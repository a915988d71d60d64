"""
Where a protocol is registered. Add its import and its name to the list below to export, detect and document it.

A protocol also needs a module here, a page and rows in the tables (`tests/docs/test_pages.py` reports what is missing), a row
in `tests/protocols/scenarios.py`, and an entry in `tests/protocols/recorded_checkpoints.json`, which that file's test writes.
"""

from __future__ import annotations

from typing import Final

from .._contract import ResumeProtocol
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
    # For your own endpoints: tried last, by content type alone.
    "LastEventID",
    "CursorProtocol",
    "ReplayFromZero",
    "NDJSON",
    "ByteRange",
    # Our own server, and relays.
    "HubStream",
    "Relayed",
    # Providers, in order of detection: if two could match, the more specific one comes first.
    "WorkflowRun",
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
    "AblySSE",
    "S2",
    "Agno",
    "Letta",
    "TriggerDev",
    "UpstashRealtime",
    "TanStackAI",
    "TanStackAINDJSON",
]

_PLAIN: Final = frozenset({LastEventID, CursorProtocol, ReplayFromZero, NDJSON, ByteRange})
_BY_HAND: Final = frozenset({CursorProtocol, ReplayFromZero, Relayed, LlamaCpp})
"""Only the caller knows their options, so they are neither detected nor created from the name in a checkpoint."""

_EVERY: Final[tuple[type[ResumeProtocol], ...]] = tuple(globals()[name] for name in __all__)
_DETECTED: Final = tuple(each for each in _EVERY if each not in _BY_HAND)

SPECIFIC: Final = tuple(each for each in _DETECTED if each not in _PLAIN)
"""Each requires more than a content type."""
PLAIN: Final = tuple(each for each in _DETECTED if each in _PLAIN)
"""The simplest honest behaviour for a content type."""
