"""
The start of a stream whose server joins a repeated request to the stream that the first one started.

Before a stream has begun, requests below an SDK are usually not retried, since a second POST would be billed as a second answer.
Here it is not one, because both carry the same `Idempotency-Key`. The SDK's own retry would carry another key or none. So once an
answer is lost, the request is sent again here until there is one, under the retry policy.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final

from .._core.budget import Budget, retry_after
from .._core.settings import Settings
from .._drivers.http import classify, network_errors
from .._notices import Notice, Retrying
from .._observe import log_notice, printable

__all__ = ["Start", "with_key"]

_KEY: Final = "Idempotency-Key"


def with_key(library: Any, request: Any, content: bytes, headers: Mapping[str, str]) -> Any:
    """The SDK's request with a random key and some headers; the SDK's own values stay."""
    ours = request.headers.copy()
    for name, value in {_KEY: secrets.token_hex(16), **headers}.items():
        ours.setdefault(name, value)
    return library.Request(request.method, request.url, headers=ours, content=content, extensions=request.extensions)


class Start:
    """
    Decides after each attempt to start a stream whether the request is sent again, and when.

    Args:
        settings: The retry policy, and the deadline.
        label: The request's label, for notices.
        observer: Called with a notice of each retry.
    """

    def __init__(self, settings: Settings, *, label: str, observer: Callable[[Notice], object] | None) -> None:
        self._settings = settings
        self._label = printable(label)
        self._observer = observer
        self._budget = Budget(settings)
        self._began = monotonic()
        self._lost = False

    def wait_after(self, failure: BaseException) -> float | None:
        """Seconds until the request is sent again after it brought no answer; `None`: it is not sent again."""
        if not isinstance(failure, network_errors()) or type(failure).__name__ in ("UnsupportedProtocol", "LocalProtocolError"):
            return None
        if classify(failure) == "unsent" and not self._lost:
            # The server does not have the request, so the SDK decides about a retry.
            return None
        self._lost = True
        return self._wait(type(failure).__name__, failure)

    def wait_for(self, response: Any) -> float | None:
        """The same after an answer. Unless an earlier answer was lost, the SDK decides about a retry."""
        if not self._lost or response.status_code not in self._settings.statuses:
            return None
        headers = {name.lower(): value for name, value in response.headers.items()}
        found = retry_after(headers, now=time.time(), ceiling=self._settings.max_server_wait)
        self._budget.server_retry_after(found)
        return self._wait(f"status {response.status_code}", None)

    def _wait(self, reason: str, error: BaseException | None) -> float | None:
        now, deadline = monotonic(), self._settings.timeouts.deadline
        wait = self._budget.failed(now, error)
        if wait is None or (deadline is not None and now + wait - self._began > deadline):
            return None
        self._budget.slept(wait)
        attempt, attempts = self._budget.next_attempt, self._settings.attempts
        notice = Retrying(attempt, wait, attempts=attempts, reason=f"start: {reason}", stream=self._label)
        log_notice(notice)
        if self._observer is not None:
            self._observer(notice)
        return wait
