"""One contract for all logs."""

from __future__ import annotations

from resumable_stream.server import MemoryLog, StreamLog
from resumable_stream.testing.log_contract import LogContract


class TestMemoryLog(LogContract):
    lease = 15.0

    def make_log(self) -> StreamLog:
        self.now = 1000.0
        return MemoryLog(clock=lambda: self.now)

    async def pass_time(self, log: StreamLog, seconds: float) -> None:
        self.now += seconds

    async def lose_spans(self, log: StreamLog, stream_id: str) -> bool:
        # Nothing evicts them in reality; the rules are the same for all logs.
        assert isinstance(log, MemoryLog)
        stream = log._streams[stream_id]
        log._grow(stream, -stream.held, spans=True)
        stream.spans.clear()
        return True
