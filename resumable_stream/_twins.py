"""
Errors with two types: the one that users of an HTTP library catch already, and ours, which knows the place.

    except httpx.TransportError           a `RetriesExhaustedConnectError` is an httpx.ConnectError
    except rs.ResumableStreamError        and an rs.RetriesExhausted, with .checkpoint, .attempts, .last_error

The native base comes first, so that the library's attributes (`.request`) are found before ours. Which one it is
follows from the network error behind ours where there is one: what the user saw without us.
"""

from __future__ import annotations

import sys
from functools import cache
from types import ModuleType
from typing import Any, Final

from ._errors import (
    DeadlineExceeded,
    ResumableStreamError,
    RetriesExhausted,
    StreamBusy,
    StreamClosed,
    StreamConsumed,
    StreamInterrupted,
)

__all__ = ["library_of", "twin"]

# Tracebacks show the module that users know.
_HOME: Final = "resumable_stream"
_CLOCKS: Final = ("first_event", "idle", "stall")


def library_of(thing: Any) -> ModuleType:
    """
    `httpx` or `httpx2`: whose client, response or exception this is.

    Raises:
        TypeError: It is of neither.
    """
    for cls in type(thing).__mro__:
        root = cls.__module__.partition(".")[0]
        if root in ("httpx", "httpx2"):
            return sys.modules[root]
    raise TypeError(f"expected an object of httpx or httpx2, got {type(thing).__module__}.{type(thing).__qualname__}")


def twin(error: ResumableStreamError, library: ModuleType, request: Any = None, *, natives: tuple[type, ...] = ()) -> Any:
    """
    The same error with a second type. Raise it `from error.__cause__`.

    Args:
        error: Ours; message and attributes are taken over.
        library: `httpx` or `httpx2`.
        request: For the native `.request`.
        natives: The native types. Default: what fits the error.
    """
    ours: Any = type(error)
    made: Any = _class(natives or _natives(error, library), ours)(error)
    if isinstance(made, library.RequestError):
        made.request = request
    return made


@cache
def _class(natives: tuple[type, ...], ours: Any) -> type[Exception]:
    """Made when first needed: 20 errors of ours meet a dozen of each library, and most pairs never happen."""
    name = ours.__name__ if natives[0].__name__ == ours.__name__ else ours.__name__ + natives[0].__name__

    def __init__(self: Exception, error: ResumableStreamError) -> None:
        # The bases want different arguments; all of them keep to args and __dict__.
        Exception.__init__(self, *error.args)
        self.__dict__.update(error.__dict__)
        self._request = None  # type: ignore[attr-defined]  # what httpx.HTTPError.__init__ sets

    def __reduce__(self: Exception) -> tuple[object, ...]:
        # The class has no place of its own that another process could find it at.
        return _made_again, (natives, ours, self.args, self.__dict__)

    doc = f"`{ours.__name__}`, also for those who catch `{natives[0].__module__}.{natives[0].__name__}`."
    return type(name, (*natives, ours), {"__init__": __init__, "__reduce__": __reduce__, "__module__": _HOME, "__doc__": doc})


def _made_again(natives: tuple[type, ...], ours: Any, args: tuple[object, ...], attributes: dict[str, object]) -> Exception:
    cls = _class(natives, ours)
    made = cls.__new__(cls, *args)
    made.args = args
    made.__dict__.update(attributes)
    return made


def _natives(error: ResumableStreamError, library: ModuleType) -> tuple[type, ...]:
    match error:
        case StreamConsumed():
            return (library.StreamConsumed,)
        case StreamBusy():
            # Not a `RequestError`, which an SDK would take for the network's and try again.
            return (library.StreamError,)
        case StreamClosed():
            return (library.StreamClosed,)
    last = error.last_error if isinstance(error, RetriesExhausted) else error.__cause__
    reason = error.reason if isinstance(error, StreamInterrupted) else last
    for cls in type(last).__mro__:
        if cls.__module__.partition(".")[0] == library.__name__ and issubclass(cls, library.RequestError):
            return (cls,)
    if isinstance(error, DeadlineExceeded) or isinstance(last, TimeoutError) or reason in _CLOCKS:
        return (library.ReadTimeout,)
    if isinstance(last, BaseException) and not isinstance(last, ResumableStreamError):
        # A socket's or a TLS library's own: httpx says ReadError where it sees them.
        return (library.ReadError,)
    return (library.RemoteProtocolError,)
