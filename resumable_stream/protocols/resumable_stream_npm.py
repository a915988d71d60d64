"""
Routes made with npm `resumable-stream` (or its Python port): the whole answer is replayed while it is being made.

Source: github.com/vercel/resumable-stream, readme; npm `resumable-stream` 2.2.13, PyPI `resumable-stream` 0.2.0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._contract import Finished, Lost, StreamState, Verdict
from .._events import Outcome
from ._ends import DONE, End
from .replay import ReplayFromZero

__all__ = ["ResumableStreamNPM"]


class ResumableStreamNPM(ReplayFromZero):
    """
    An endpoint that keeps its answer with the `resumable-stream` package, as the package's readme shows.

    The package is for servers and defines no wire format. Its routes have this in common: a GET with the stream's id replays the
    answer while it is being made, and afterwards reports that it is done (422 in the readme, 204 in the AI SDK's guide, 404 for
    an unknown stream). So a replay is compared with what was delivered, and that part is dropped.

    The routes can skip characters (`resumeAt`). That is not used: one port counts UTF-16 units of the whole text with its
    framing, the other code points, and a skip may land inside an event.

    Args:
        end: What ends the stream, as for `LastEventID`. The default is `[DONE]`: if the package lost a producer's last message,
            it closes the body as if everything had come, so a clean close proves nothing. `"close"` believes it anyway.
        resume: Where to GET the answer: a URL, absolute or relative to the first one, or a callable of the `StreamState`.
            `None`: the first request again, if it was a GET.

    >>> ResumableStreamNPM()
    <ResumableStreamNPM: resumable, has_end>
    """

    def __init__(self, *, end: End = DONE, resume: str | Callable[[StreamState], str | None] | None = None) -> None:
        super().__init__(end=end, resume=resume)

    def on_status(self, status: int, headers: Mapping[str, str], body: bytes, state: StreamState) -> Verdict | None:
        if state.resuming and status in (204, 422):
            return Lost(f"the server answered {status}: the answer is done and cannot be replayed")
        if status == 422 and state.safe:
            # The first GET came after the end: the stream is empty, as with 204.
            return Finished(Outcome.ENDED, verified=True)
        return None
