"""The origin of a URL, and how URLs that a server names are resolved."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

from .._errors import OriginMismatch, ProtocolViolation

__all__ = ["origin_of", "resolved", "same_origin"]


def origin_of(url: str) -> str:
    """
    Scheme, host and port of a URL, normalized.

    >>> origin_of("HTTPS://API.example.com/v1"), origin_of("https://api.example.com:443")
    ('https://api.example.com:443', 'https://api.example.com:443')
    """
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme.lower(), 0)
    host = parts.hostname or ""
    return f"{parts.scheme.lower()}://{f'[{host}]' if ':' in host else host}:{port}"


def same_origin(url: str, *, base: str, origin: str) -> str:
    """
    Resolve a URL to resume from, and check its origin.

    Args:
        url: The URL as the server or the caller gave it.
        base: The URL that it is relative to.
        origin: The origin that the credentials belong to.

    Raises:
        OriginMismatch: The URL is on another origin.
        ProtocolViolation: The text is not a URL.
    """
    absolute, seen = resolved(base, url)
    if seen != origin:
        raise OriginMismatch(
            f"the resume URL is on {seen}, but the stream and its credentials belong to {origin}", expected=origin, received=seen
        )
    return absolute


def resolved(base: str, url: str) -> tuple[str, str]:
    """The absolute URL, and its origin."""
    try:
        absolute = urljoin(base, url)
        return absolute, origin_of(absolute)
    except ValueError as exc:
        raise ProtocolViolation(f"the server sent an invalid URL: {url[:200]!r} ({exc})") from exc
