"""The log in SQLite: the contract of all logs, and what is peculiar to a file."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

pytest.register_assert_rewrite("resumable_stream.testing.log_contract")

from resumable_stream.server import SQLiteLog, StreamLog  # noqa: E402
from resumable_stream.testing.log_contract import LogContract  # noqa: E402


class TestSQLiteLog(LogContract):
    lease = 15.0

    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "streams.db"
        self.now = 1000.0

    def make_log(self) -> StreamLog:
        return SQLiteLog(self.path, clock=lambda: self.now)

    def another_log(self, log: StreamLog) -> StreamLog:
        return self.make_log()

    async def pass_time(self, log: StreamLog, seconds: float) -> None:
        self.now += seconds

    async def lose_spans(self, log: StreamLog, stream_id: str) -> bool:
        self.tamper("DELETE FROM span WHERE stream = ?", stream_id)
        return True

    async def damage(self, log: StreamLog, stream_id: str) -> bool:
        self.tamper("UPDATE span SET l = '1' WHERE stream = ?1 AND n = (SELECT max(n) FROM span WHERE stream = ?1)", stream_id)
        return True

    def tamper(self, statement: str, stream_id: str) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None)) as database:
            database.execute(statement, (stream_id,))
