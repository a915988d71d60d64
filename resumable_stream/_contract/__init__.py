"""
The values and verdicts that a protocol and the core exchange. Neither imports the other; both import this package.
"""

from __future__ import annotations

from . import abilities, judging, origins, protocol, values, verdicts
from .abilities import *  # noqa: F403
from .judging import *  # noqa: F403
from .origins import *  # noqa: F403
from .protocol import *  # noqa: F403
from .values import *  # noqa: F403
from .values import KEPT, KEY, SENTINEL, Notes
from .verdicts import *  # noqa: F403

__all__ = ["KEPT", "KEY", "SENTINEL", "Notes"]
__all__ += abilities.__all__
__all__ += judging.__all__
__all__ += origins.__all__
__all__ += protocol.__all__
__all__ += values.__all__
__all__ += verdicts.__all__
