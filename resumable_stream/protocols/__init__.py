"""
How to resume each kind of endpoint: one module per wire protocol, and the base class for your own.

The modules are pure functions of frames; they import no HTTP client.
"""

from __future__ import annotations

from .._contract import ResumeProtocol, abilities, values, verdicts
from .._contract.abilities import *  # noqa: F403  # what it lists, and type checkers know
from .._contract.values import *  # noqa: F403
from .._contract.verdicts import *  # noqa: F403
from . import _registry
from ._detect import detect, named
from ._registry import *  # noqa: F403

__all__ = ["ResumeProtocol", "detect", "named"]
__all__ += abilities.__all__
__all__ += values.__all__
__all__ += verdicts.__all__
__all__ += _registry.__all__
