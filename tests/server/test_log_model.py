"""The suite itself: a log that breaks a rule fails it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from resumable_stream.server import MemoryLog, StreamLog
from resumable_stream.server.log import Append, Appended, Cursor, Page
from resumable_stream.testing.log_contract import LogContract


class StoresNothing(MemoryLog):
    """Says `Appended` to everything."""

    async def append(self, batch: Sequence[Any]) -> list[Any]:
        return [Appended(Append(*item).last) for item in batch]


class ForgetsTheFence(MemoryLog):
    async def append(self, batch: Sequence[Any]) -> list[Any]:
        current = {writer.stream_id: self._streams[writer.stream_id].record for writer, *_ in batch}
        return await super().append(
            [
                (type(writer)(writer.stream_id, current[writer.stream_id].epoch, current[writer.stream_id].fence), *rest)
                for writer, *rest in batch
            ]
        )


class SkipsAnEvent(MemoryLog):
    async def read(self, stream_id: str, after: Cursor | None = None, **options: Any) -> Any:
        page = await super().read(stream_id, after, **options)
        if isinstance(page, Page) and len(page.spans) > 1:
            return type(page)(
                head=page.head,
                epoch=page.epoch,
                oldest=page.oldest,
                n=page.n,
                b=page.b,
                spans=page.spans[1:],
                ending=page.ending,
                running_until=page.running_until,
            )
        return page


@pytest.mark.parametrize("wrong", [StoresNothing, ForgetsTheFence, SkipsAnEvent])
def test_a_log_that_breaks_a_rule_fails(wrong: type[MemoryLog]) -> None:
    class Tried(LogContract):
        lease = 15.0

        def make_log(self) -> StreamLog:
            return wrong()

    with pytest.raises(AssertionError):
        Tried().test_every_interleaving_of_two_writers()
