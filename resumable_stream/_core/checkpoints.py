"""
The checkpoint for every position that a caller may be at, and when one is saved (rule 1).

A checkpoint is requested rarely but changes with every event, so it is built only on request. State that events change and
checkpoints keep is recorded as changes: see `Timeline`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, unquote

from .._checkpoint import CORE_EXTRA, Checkpoint, public_url, withheld
from .._contract import ResumeProtocol, Stepped, StreamState
from .._events import Outcome
from . import actions as act
from .ending import Ending
from .ledger import Ledger, Place
from .saving import Blocks, Saving
from .settings import Settings
from .timeline import Timeline

__all__ = ["LOCATION_KEY", "UNKNOWN", "WITHHELD_KEY", "Checkpoints"]

OUTCOME_KEY, LOCATION_KEY, FIRST_KEY, RESET_KEY, OPTIONS_KEY, SETTLED_KEY, STEP_KEY, UNVERIFIED_KEY, WITHHELD_KEY = CORE_EXTRA
# `Checkpoint.protocol` before the first answer, when the protocol is not yet detected.
UNKNOWN: Final = "auto"


class Checkpoints:
    """
    Attributes:
        saving: What the store has.
    """

    def __init__(
        self, protocol: ResumeProtocol, ledger: Ledger, state: StreamState, settings: Settings, *, ending: Ending, saving: Saving
    ) -> None:
        self.saving = saving
        self._protocol = protocol
        self._ledger = ledger
        self._state = state
        self._settings = settings
        self._ending = ending
        self._known_withheld = ""
        """What the restored checkpoint lacked."""
        self._kept: Timeline[dict[str, str]] = Timeline(settings.limits.window)
        self._stepped = protocol.ability(Stepped)
        self._step: int | None = 0 if self._stepped is not None else None
        """Offset at which the latest step began."""
        self._steps: Timeline[int | None] = Timeline(settings.limits.window)

    def restore(self, checkpoint: Checkpoint) -> None:
        """The stream continues from this checkpoint, which the ledger has restored."""
        extra = checkpoint.extra
        self._known_withheld = extra.get(WITHHELD_KEY, "")
        if self._stepped is not None and checkpoint.offset:
            began = extra.get(STEP_KEY, "")
            self._step = int(began[:18]) if began.isascii() and began.isdecimal() else None
        self.saving.restored(self._ledger.place(0), self._ledger.pending_reset)
        settled = extra.get(SETTLED_KEY)
        self._ending.restore(
            Outcome(settled) if settled else None,
            Outcome(extra.get(OUTCOME_KEY, Outcome.ENDED.value)) if checkpoint.complete else None,
            verified=not (checkpoint.complete and UNVERIFIED_KEY in extra),
        )

    def start_over(self) -> None:
        """What was delivered is void."""
        self._kept.clear()
        self._steps.clear()
        self._step = 0 if self._stepped is not None else None

    # --- what events change

    def kept(self) -> dict[str, str]:
        """The current texts that the protocol wants kept."""
        return {name: value for name, value in self._state.texts().items() if name in self._protocol.keeps}

    def changed(self, before: Iterable[tuple[Any, dict[str, str]]]) -> None:
        """Delivered events changed the kept texts; `before` holds each event with the texts before it."""
        for item, texts in before:
            self._kept.changed(item.offset, texts)
        self._kept.forget(self._oldest())

    def stepped(self, items: Iterable[Any]) -> None:
        """Events of a protocol that has steps were delivered."""
        assert self._stepped is not None
        for item in items:
            if self._stepped.step(item) == "begin":
                self._steps.changed(item.offset, self._step)
                self._step = item.offset
        self._steps.forget(self._oldest())

    def step_at(self, offset: int) -> int | None:
        """Offset at which the step of an event began; `None` if the protocol has no steps, or the start is not known."""
        return self._steps.at(offset + 1, self._step)

    def _oldest(self) -> int:
        return self._ledger.oldest(manual=self._settings.manual)

    # --- the checkpoint

    def place(self, taken: int, batch: Sequence[Any] | None) -> Place:
        """The caller's position after `taken` items of `batch` (`None`: the latest), or the position that it has committed."""
        return self._ledger.committed if self._settings.manual else self._ledger.place(taken, batch)

    def make(self, taken: int, batch: Sequence[Any] | None, outcome: Outcome | None) -> Checkpoint:
        """Build the checkpoint of a `place()`. `outcome`: how the stream ended, if the latest event said so."""
        state, ledger, protocol, ending = self._state, self._ledger, self._protocol, self._ending
        place = self.place(taken, batch)
        extra = dict(self._kept.at(place.offset, self.kept()))
        if state.location is not None:
            extra[LOCATION_KEY] = public_url(state.location, state.private)
        if place.offset and (first := ledger.beginning()) is not None:
            extra[FIRST_KEY] = first
        if (reset := ledger.pending_reset) is not None:
            extra[RESET_KEY] = str(reset)
        if protocol.options:
            extra[OPTIONS_KEY] = protocol.options
        if (settled := ending.settled_at(place.offset)) is not None:
            extra[SETTLED_KEY] = settled.value
        if place.offset and (began := self.step_at(place.offset - 1)) is not None:
            extra[STEP_KEY] = str(began)
        if names := self._withheld():
            extra[WITHHELD_KEY] = names
        complete = outcome is not None and place.offset == ledger.offset and not ending.resumes_later
        if complete and outcome is not None:
            extra[OUTCOME_KEY] = outcome.value
            if not ending.verified:
                extra[UNVERIFIED_KEY] = "1"
        return Checkpoint(
            protocol=protocol.name,
            method=state.method,
            url=state.public_url,
            stream_id=state.stream_id,
            cursor=place.cursor,
            sequence=place.sequence,
            offset=place.offset,
            since=ledger.since(place),
            recent_ids=ledger.recent_ids(place),
            extra=extra,
            complete=complete,
        )

    def _withheld(self) -> str:
        """Names of query parameters withheld from the checkpoint's URLs, including those that the restored one lacked."""
        state, known = self._state, self._known_withheld
        if "?" not in state.url and (state.location is None or "?" not in state.location):
            return known
        names = [*known.split("&"), *withheld(state.url, state.private), *withheld(state.location or "", state.private)]
        # Bounded: this is only an aid, and the position itself must fit.
        found = dict.fromkeys(quote(unquote(name), safe="") for name in names if 0 < len(name) <= 64)
        return "&".join(list(found)[:16])

    # --- the store

    def save(
        self, now: float, taken: int, batch: Sequence[Any] | None, outcome: Outcome | None, *, force: bool, blocks: Blocks
    ) -> act.Save | None:
        """Return the save that is due, if any; see `Saving.due()`."""
        place, reset = self.place(taken, batch), self._ledger.pending_reset
        final = self._ending.outcome is not None
        if not self.saving.due(place, reset, now, force=force, final=final, blocks=blocks):
            return None
        checkpoint = self.make(taken, batch, outcome)
        if self._settings.request is not None:
            checkpoint = replace(checkpoint, request=self._settings.request)
        return act.Save(checkpoint, self.saving.begin(place, reset))
