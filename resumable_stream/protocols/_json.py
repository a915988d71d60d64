"""
Read JSON payloads in full, or read one value from them quickly.

Parsing every payload in full to read a counter costs as much as the rest of the library.
Payloads of one event type share the text before the counter. That text is learned once, proven to be at the
top level, and from then on only compared. Anything else is parsed in full, and the result is shared with the caller.
"""

from __future__ import annotations

import json
from typing import Any, Final

__all__ = ["JSONPath", "documents_of", "kind_of", "object_of", "parsed", "payload_of"]

# Event types per stream (OpenAI has 53). Beyond this bound no more are learned.
_TYPES: Final = 256
# After this many failures, a type whose payloads share no prefix is not tried again.
_PATIENCE: Final = 8


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text; `None` if it is not JSON or is nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def object_of(value: Any) -> dict[str, Any]:
    """`value` if it is a JSON object, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def documents_of(event: Any) -> list[dict[str, Any]]:
    """
    The JSON objects in an event's data: one object, or several with one per line; an empty list for anything else.

    There are several when a proxy removed the blank line between two events.
    """
    if payload := payload_of(event):
        return [payload]
    found = [parsed(line) for line in event.data.split("\n") if line.strip()]
    return found if all(isinstance(each, dict) for each in found) else []


def payload_of(event: Any) -> dict[str, Any]:
    """The JSON object in an event's data; an empty one if the data is not an object."""
    try:
        return object_of(event.json())
    except ValueError:
        return {}


def kind_of(event: Any, field: str = "type") -> str:
    """The event's name; without one, the type in its JSON, since proxies drop names and compatible servers leave them out."""
    return str(event.event if event.event != "message" else payload_of(event).get(field, ""))


class JSONPath:
    """
    A dotted path into a JSON object: `"sequence_number"`, `"response.id"`.

    Calling it with an event returns the value, or `None` if it is absent or the payload has no such object.

    Attributes:
        learned: For each event type whose payloads share it, the text before a number.
        guess: The number that the next event may have.
    """

    __slots__ = ("_misses", "_needle", "guess", "learned", "path")

    def __init__(self, path: str) -> None:
        if not path or any(not key for key in path.split(".")):
            raise ValueError(f"expected a dotted path of JSON keys, got {path!r}")
        self.path = tuple(path.split("."))
        self._needle = f"{json.dumps(path)}:" if len(self.path) == 1 else None
        self.learned: dict[str, str] = {}
        self._misses: dict[str, int] = {}
        self.guess = 0

    def __call__(self, event: Any) -> Any:
        prefix = self.learned.get(event.event)
        if prefix is not None:
            data = event.data
            if data.startswith(prefix):
                start = len(prefix)
                stop = data.find(",", start, start + 21)
                if stop < 0:
                    stop = data.find("}", start, start + 21)
                digits = data[start:stop]
                # A JSON integer survives the round trip through int(); "01", "1.5", "1_0" and digits of other scripts do not.
                if digits.isdigit() and (str(value := int(digits))) == digits:
                    return value
        return self._parse(event)

    def _parse(self, event: Any) -> Any:
        try:
            value = event.json()
        except ValueError:
            return None
        for key in self.path:
            if not isinstance(value, dict):
                return None
            value = value.get(key)
        if self._needle is not None and type(value) is int and value >= 0:
            self._learn(event, value)
        return value

    def _learn(self, event: Any, value: int) -> None:
        kind, data = event.event, event.data
        misses = self._misses.get(kind, 0)
        if misses > _PATIENCE or len(self._misses) >= _TYPES:
            return
        self._misses[kind] = misses + 1
        assert self._needle is not None
        at = data.find(self._needle)
        if at < 0:
            return
        prefix = data[: at + len(self._needle)]
        # Closing one brace gives an object that holds the key only if the key is at the top level.
        try:
            proof = json.loads(prefix + "0}")
        except ValueError:
            return
        if isinstance(proof, dict) and proof.get(self.path[0]) == 0:
            self.learned[kind] = prefix
