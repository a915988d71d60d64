"""
Read JSON payloads: whole, or one value of them quickly.

Parsing every payload in full to read a counter costs as much as the rest of the library.
Payloads of one event type share what stands in front of the counter, so that text is learned once, proven to be at the
top level, and from then on compared. Anything else is parsed in full, and the result is shared with the caller.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

__all__ = ["JSONPath", "documents_of", "object_of", "parsed", "payload_of"]

# Event types of one stream: OpenAI has 53. Beyond the bound nothing more is learned.
_TYPES: Final = 256
# A type whose payloads never share a prefix is not worth trying again.
_PATIENCE: Final = 8


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text; `None` for what is no JSON, or is nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def object_of(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def documents_of(event: Any) -> list[dict[str, Any]]:
    """
    The JSON objects in the data of an event: one, or several whole ones, one a line; none where it is something else.

    Several are what is left of two events whose blank line a proxy took for one line feed too many.
    """
    if payload := payload_of(event):
        return [payload]
    found = [parsed(line) for line in event.data.split("\n") if line.strip()]
    return found if all(isinstance(each, dict) for each in found) else []


def payload_of(event: Any) -> dict[str, Any]:
    """The JSON object in the data of an event; an empty one for what is none."""
    try:
        return object_of(event.json())
    except ValueError:
        return {}


class JSONPath:
    """
    A dotted path into a JSON object: `"sequence_number"`, `"response.id"`.

    Calling it with an event gives the value, or `None` when it is absent or the payload is no such object.
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

    def numbers(self, events: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """
        Pairs of event and value.

        A counter is most often one more than the last: then comparing the text is all, and nothing is parsed.
        The guess is a hint only, so that streams may share it.
        """
        learned, guess = self.learned, self.guess
        for event in events:
            prefix = learned.get(event.event)
            if prefix is not None and event.data.startswith(f"{prefix}{guess},"):
                yield event, guess
                guess += 1
            else:
                value = self(event)
                yield event, value
                if type(value) is int:
                    guess = value + 1
        self.guess = guess

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
                # The text of a number as JSON writes it is itself again; "01", "1.5", "1_0" and other scripts are not.
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
        # Only at the top level does closing one brace make it an object that holds the key.
        try:
            proof = json.loads(prefix + "0}")
        except ValueError:
            return
        if isinstance(proof, dict) and proof.get(self.path[0]) == 0:
            self.learned[kind] = prefix
