"""State that is restored if a batch is interrupted."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

__all__ = ["Part"]


class Part:
    """
    A part of the examiner: its values are saved before a batch is entered, and restored if that is interrupted.

    All slots are saved without listing names, so none can be forgotten. Values are replaced, not changed in place; a part that
    owns another part saves that too.
    """

    __slots__: ClassVar[tuple[str, ...]] = ()
    _values: ClassVar[Any]
    """Takes the part, and returns the values of all its slots."""

    def __init_subclass__(cls) -> None:
        # One C call reads all slots, since this runs for every batch in the careful lane.
        first, *rest = cls.__slots__
        cls._values = attrgetter(first, *rest)

    def kept(self) -> tuple[Any, ...]:
        """The part's values, for `put_back()`."""
        return self._values(self)  # type: ignore[no-any-return]

    def put_back(self, kept: tuple[Any, ...]) -> None:
        """Restore the values that `kept()` returned."""
        for name, value in zip(self.__slots__, kept, strict=True):
            setattr(self, name, value)
