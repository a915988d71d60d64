"""
Clear errors for `async with` on a sync stream, `for` on an async one, and the like, in place of Python's bare `TypeError`.

These methods exist only for their messages, so they are hidden from type checkers: wrong code must not pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

__all__ = ["AsyncOnly", "SyncOnly"]


class SyncOnly:
    """Base class for what only sync code may use."""

    __slots__ = ()
    _sync_use = "for … in stream"
    _async_twin = "aconnect() or aresume()"

    if not TYPE_CHECKING:

        def __aiter__(self) -> NoReturn:
            raise _wrong(self, "async for", f"`{self._sync_use}`", self._async_twin)

        async def __aenter__(self) -> NoReturn:
            raise _wrong(self, "async with", "`with … as stream`", self._async_twin)

        async def __aexit__(self, *exc: object) -> None:
            """`async with` looks it up before it enters."""

        def __await__(self) -> NoReturn:
            raise _wrong(self, "await", "`with … as stream`", self._async_twin)


class AsyncOnly:
    """Base class for what only async code may use."""

    __slots__ = ()
    _async_use = "async for … in stream"
    _sync_twin = "connect() or resume()"

    if not TYPE_CHECKING:

        def __iter__(self) -> NoReturn:
            raise _wrong(self, "for", f"`{self._async_use}`", self._sync_twin)

        def __enter__(self) -> NoReturn:
            raise _wrong(self, "with", "`async with … as stream`", self._sync_twin)

        def __exit__(self, *exc: object) -> None:
            """`with` looks it up before it enters."""

        def __await__(self) -> NoReturn:
            raise _wrong(self, "await", "`async with … as stream`, which opens it", None)


def _wrong(thing: Any, used: str, use: str, twin: str | None) -> TypeError:
    kind = "async" if isinstance(thing, AsyncOnly) else "sync"
    other = "sync" if kind == "async" else "async"
    where = f"; in {other} code, take it from {twin}" if twin is not None else ""
    return TypeError(f"`{used}` does not work on the {kind} {type(thing).__name__.lstrip('_')}: use {use}{where}")
