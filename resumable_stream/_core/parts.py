"""State that an interrupted batch leaves as it was."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

__all__ = ["Part"]


class Part:
    """
    A part of the ledger: its values are kept before a batch is entered, and put back if that is interrupted.

    Every slot is kept, and none by name, so none can be forgotten. Values are replaced, not changed in place; a part that owns
    another one keeps that too.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()
    _values: ClassVar[Any]
    """Takes the part, and gives the values of all its slots."""

    def __init_subclass__(cls) -> None:
        # One call of C for all slots: they are kept for every batch that is looked at carefully.
        first, *rest = cls.__slots__
        cls._values = attrgetter(first, *rest)

    def kept(self) -> tuple[Any, ...]:
        """Its values, for `put_back()`."""
        return self._values(self)  # type: ignore[no-any-return]

    def put_back(self, kept: tuple[Any, ...]) -> None:
        """As it was when `kept()` was called."""
        for name, value in zip(self.__slots__, kept, strict=True):
            setattr(self, name, value)
