"""
Wrong code that a type checker has to refuse. Type-checked, never run.

Methods that exist for their error message must not make it pass: an unused `type: ignore` here is an error.
"""

import resumable_stream as rs

stream = rs.connect("GET", "https://api.example.com")
astream = rs.aconnect("GET", "https://api.example.com")


def sync_code() -> None:
    with astream:  # type: ignore[attr-defined]
        pass
    for _ in astream:  # type: ignore[attr-defined]
        pass
    for _ in astream.iter_text():  # type: ignore[attr-defined]
        pass


async def async_code() -> None:
    await stream  # type: ignore[misc]
    await astream  # type: ignore[misc]
    async with stream:  # type: ignore[attr-defined]
        pass
    async for _ in stream:  # type: ignore[attr-defined]
        pass
    async for _ in stream.iter_text():  # type: ignore[attr-defined]
        pass
