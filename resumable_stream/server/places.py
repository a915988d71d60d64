"""Makes a log from a text: for the command line, for settings, for environment variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .log import StreamLog

__all__ = ["log_of"]

_REDIS: Final = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_EXPECTED: Final = (
    "memory:, sqlite:///streams.db (relative), sqlite:////var/lib/streams.db (absolute), redis://host:6379/0, rediss://… (TLS), "
    "redis+sentinel://host:26379/name/0 or redis+cluster://host:6379"
)


def log_of(text: str) -> StreamLog:
    """
    Make the log that a text names. It is opened at its first use.

        hub = Hub(log_of(os.environ.get("STREAMS", "memory:")))

    | text | log |
    |---|---|
    | `memory:` | `MemoryLog()`: gone with the process |
    | `sqlite:///streams.db` | `SQLiteLog`, relative to the working directory |
    | `sqlite:////var/lib/streams.db` | `SQLiteLog`, absolute |
    | `redis://host:6379/0`, `rediss://…`, `redis+sentinel://host:26379/name/0`, `redis+cluster://host:6379` | `RedisLog` |

    All settings have their defaults; to change them, use the class of the log.

    Raises:
        ValueError: The text is none of these. The message omits it, since it may hold a password.
        ImportError: A dependency of the log is missing; the message says how to install it.
    """
    if text == "memory:":
        from .memory import MemoryLog

        return MemoryLog()
    scheme, separator, rest = text.partition("://")
    if separator and scheme in _REDIS:
        from .redis import RedisLog

        return RedisLog(text)
    if separator and scheme == "sqlite":
        if not rest.startswith("/") or rest in ("/", "//", "/:memory:"):
            hint = "; for a log in memory use memory:" if rest == "/:memory:" else ""
            raise ValueError(f"sqlite:// needs a file: expected sqlite:///relative/path or sqlite:////absolute/path{hint}")
        try:
            from .sqlite import SQLiteLog
        except ImportError as error:
            if (error.name or "").partition(".")[0] not in ("sqlite3", "_sqlite3"):
                raise
            raise ImportError("SQLiteLog needs sqlite3, which this Python was built without", name=error.name) from error
        return SQLiteLog(rest[1:])
    seen = f"{scheme}://…" if separator and scheme.replace("+", "").isalnum() else "a text of another form"
    raise ValueError(f"expected the name of a log: {_EXPECTED}; got {seen}")
