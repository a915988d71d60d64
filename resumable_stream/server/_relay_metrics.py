"""
The counters of a relay, as text for Prometheus.

Text format 0.0.4 has one number per line, so no library is needed. `prometheus_client` would keep its numbers in a registry of
the whole process, which belongs to the application that mounts the relay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from .._errors import LogUnavailable
from .log import Append, StreamLog, Unavailable

__all__ = ["CONTENT_TYPE", "Metrics", "counted"]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_HELP: Final = {
    "relay_requests_total": "Requests that were sent to an upstream, or would have been, by result.",
    "relay_streams_total": "Streams of upstreams that have ended, by outcome and reason.",
    "relay_upstream_bytes_total": "Bytes of streams received from upstreams.",
    "relay_log_calls_total": "Calls of the log.",
    "relay_log_failures_total": "Calls of the log that failed, at least for some of their streams.",
    "relay_log_bytes_total": "Bytes of events appended to the log, including repeats.",
    "relay_resumes_total": "Connections to upstreams that were lost and then resumed.",
    "relay_takeovers_total": "Streams of a lost relay that this process has continued or ended.",
    "relay_holes_filled_total": "Reads of the log that filled a hole left by a late or lost notice.",
    "relay_streams_running": "Streams of upstreams that are being read now.",
    "relay_readers": "Readers of streams now.",
    "relay_passing": "Answers that are being passed through now without being kept.",
}
_VERBS: Final = frozenset(
    {"create", "append", "restore", "finish", "read", "renew", "claim", "say", "inbox", "compact", "delete", "orphans"}
)


class Metrics:
    """
    Counters of one process.

    Args:
        gauges: Current values, and counts kept elsewhere, by name.
    """

    def __init__(self, gauges: Mapping[str, Callable[[], int]]) -> None:
        self._gauges = gauges
        self._counters: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {}

    def count(self, name: str, amount: int = 1, **labels: str) -> None:
        """Add to a counter. Labels have few values, none of them from a request."""
        self.counter(name, **labels)(amount)

    def counter(self, name: str, **labels: str) -> Callable[[int], None]:
        """A function that adds to one counter, for frequent use."""
        key, counters = (name, tuple(sorted(labels.items()))), self._counters

        def add(amount: int) -> None:
            counters[key] = counters.get(key, 0) + amount

        return add

    def text(self) -> str:
        """All numbers, in Prometheus' text format."""
        lines = []
        for name, explanation in _HELP.items():
            lines += [f"# HELP {name} {explanation}", f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}"]
            if name in self._gauges:
                lines.append(f"{name} {self._gauges[name]()}")
            for (counter, labels), value in sorted(self._counters.items()):
                if counter == name:
                    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
                    lines.append(f"{name}{{{told}}} {value}" if told else f"{name} {value}")
        return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def counted(log: StreamLog, metrics: Metrics) -> StreamLog:
    """The same log, with its calls counted."""
    return cast(StreamLog, _Counted(log, metrics))


class _Counted:
    def __init__(self, log: StreamLog, metrics: Metrics) -> None:
        self._log = log
        self._metrics = metrics

    def __repr__(self) -> str:
        return repr(self._log)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._log, name)
        if name not in _VERBS:
            return found
        called = self._metrics.counter("relay_log_calls_total", verb=name)
        appended = self._metrics.counter("relay_log_bytes_total")

        async def call(*args: Any, **options: Any) -> Any:
            called(1)
            if name == "append":
                appended(sum(map(_size, args[0])))
            try:
                answer = await found(*args, **options)
            except LogUnavailable:
                self._metrics.count("relay_log_failures_total", verb=name)
                raise
            if name in ("append", "renew") and any(isinstance(each, Unavailable) for each in answer):
                self._metrics.count("relay_log_failures_total", verb=name)
            return answer

        setattr(self, name, call)
        return call


def _size(item: Any) -> int:
    span = item.span if isinstance(item, Append) else item[1]
    return 0 if span is None else len(span.data)
