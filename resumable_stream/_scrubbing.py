"""Keep what somebody logs in with out of messages and out of the exceptions behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

__all__ = ["Scrubber"]

_DEEPEST: Final = 20
"""Causes that are followed: exceptions of clients have a handful, and a chain may be a circle."""


class Scrubber:
    """
    Knows the secrets of one client.

    Args:
        secrets: Its user names and passwords.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [re.compile(rf"(?<!\w){re.escape(secret)}(?!\w)") for secret in secrets]

    def scrubbed(self, text: str) -> str:
        """The text with an ellipsis for each secret."""
        # A server that does not know a command, be it AUTH or HELLO, repeats it with what was passed to it.
        text = re.sub(r"(with args beginning with:).*", r"\1 …", text, flags=re.DOTALL)
        for secret in self._secrets:
            text = secret.sub("…", text)
        return text

    def harmless(self, exc: BaseException | None) -> BaseException | None:
        """The exception, if neither it nor what it came from names a secret; otherwise `None`."""
        current = exc
        for _ in range(_DEEPEST):
            if current is None:
                break
            text = f"{current} {current!r}"
            if self.scrubbed(text) != text:
                return None
            current = current.__cause__ or current.__context__
        return exc
