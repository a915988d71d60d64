"""
Decode a `Content-Encoding` that came although identity was requested.

The libraries decode too, but only through their own nested generators. A driver that re-arms timeouts and leaves in
mid-stream cannot use those. Output comes in bounded pieces: 64 KiB of deflate may hold 64 MiB.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

__all__ = ["CodingError", "Decoding", "can_decode", "decoding_of"]

PIECE: Final = 64 * 1024


class CodingError(ValueError):
    """The body is not encoded as its header says."""


class _Zlib:
    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._bare_next = wbits == zlib.MAX_WBITS
        self._inner = zlib.decompressobj(wbits)

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inner.eof:
                # A gzip body may have several members (RFC 1952 section 2.2).
                self._inner = zlib.decompressobj(self._wbits)
            try:
                piece = self._inner.decompress(data, PIECE)
            except zlib.error as exc:
                if not self._bare_next:
                    raise CodingError(f"cannot inflate: {exc}") from exc
                # "deflate" means zlib (RFC 9110 section 8.4.1.2), but some servers send raw deflate.
                self._wbits, self._bare_next = -zlib.MAX_WBITS, False
                self._inner = zlib.decompressobj(self._wbits)
                continue
            self._bare_next = False
            if piece:
                yield piece
            data = self._inner.unused_data if self._inner.eof else self._inner.unconsumed_tail


class _Foreign:
    """An optional library's decompressor."""

    def __init__(self, decode: Callable[[bytes], bytes]) -> None:
        self._decode = decode

    def decode(self, data: bytes) -> Iterator[bytes]:
        try:
            decoded = self._decode(data)
        except Exception as exc:  # each library has its own error class
            raise CodingError(f"cannot decode: {exc}") from exc
        if decoded:
            yield decoded


def _brotli() -> _Foreign:
    try:
        brotli = importlib.import_module("brotlicffi")
    except ImportError:
        brotli = importlib.import_module("brotli")
    inner: Any = brotli.Decompressor()
    return _Foreign(getattr(inner, "decompress", None) or inner.process)


def _zstd() -> _Foreign:
    return _Foreign(importlib.import_module("zstandard").ZstdDecompressor().decompressobj().decompress)


_CODINGS: Final[dict[str, Callable[[], Any]]] = {
    "gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _Zlib(zlib.MAX_WBITS | 16),
    "deflate": lambda: _Zlib(zlib.MAX_WBITS),
    "br": _brotli,
    "zstd": _zstd,
}
# The other codings in IANA's registry. Any other word (servers send "none" and "utf-8") does not change the body.
_UNDECODED: Final = frozenset({"aes128gcm", "compress", "dcb", "dcz", "exi", "pack200-gzip", "x-compress"})


class Decoding:
    """
    A chain of decoders, for the last applied coding first.

    Args:
        codings: Names from `Content-Encoding`, in the order of the header.
    """

    def __init__(self, codings: list[str]) -> None:
        self._codings = codings
        self._decoders: list[Any] = []

    def decode(self, data: bytes) -> Iterator[bytes]:
        """
        Yield non-empty pieces of the decoded body.

        Raises:
            CodingError: The body is not encoded this way, or the library for it is missing.
        """
        if not self._decoders:
            self._decoders = [_make(coding) for coding in reversed(self._codings)]
        return self._through(data, 0)

    def _through(self, data: bytes, index: int) -> Iterator[bytes]:
        if index == len(self._decoders):
            yield data
            return
        for piece in self._decoders[index].decode(data):
            yield from self._through(piece, index + 1)


def _make(coding: str) -> Any:
    try:
        return _CODINGS[coding]()
    except ImportError as exc:
        raise CodingError(f"the server answers in the content encoding {coding!r}; install a library for it: {exc}") from exc


def decoding_of(header: str) -> Decoding | None:
    """The decoder for a `Content-Encoding` header; `None` for identity."""
    # A word that is not a coding (servers send "utf-8") counts as identity, as in the libraries.
    codings = [coding for part in header.split(",") if (coding := part.strip().lower()) in _CODINGS]
    return Decoding(codings) if codings else None


def can_decode(header: str) -> bool:
    """Whether every coding of a `Content-Encoding` header is supported and its library installed."""
    codings = [part.strip().lower() for part in header.split(",")]
    try:
        for coding in codings:
            if coding in _CODINGS:
                _CODINGS[coding]()
    except ImportError:
        return False
    return _UNDECODED.isdisjoint(codings)
