"""The intents that a server still has to confirm, and those that a replay needs to rebuild the session after a restart.

When a job has ended, the journal holds the stored session in its place, as a step that can be undone: a replay restores
results, undo and redo without running the job again. Intents that failed, were answered or have ended are dropped. When
the journal has grown long, everything before a stored session is dropped as well, and undo ends there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from SAMFineTuneLib.session import intents

LONG = 600  # entries; the session's own history knows 200 steps
_KEPT = 250
_MOST_BYTES = 48 << 20  # of stored sessions
_AT_ONCE = 16 << 20  # bytes of stored sessions in one request
_LASTING = (
    intents.Propagate | intents.Everything | intents.FindLabels | intents.Download
    | intents.Ask | intents.Install | intents.AskForMasks | intents.TakeSnapshot | intents.SetVolumetric
)  # fmt: skip
# Running jobs, open questions and the switch In 3-D are not part of a stored session.


@dataclass
class Entry:
    """An intent with its number and moment.

    `kept` says whether a replay needs it. `checkpoint` is the session after a `Checkpoint`, which only the client
    knows.
    """

    number: int
    intent: intents.Intent
    moment: int | None = None
    kept: bool = True
    checkpoint: bytes | None = None

    @property
    def document(self) -> bytes | None:
        """The stored session of a `Restore` or a `Checkpoint`."""
        return self.intent.document if isinstance(self.intent, intents.Restore) else self.checkpoint


class Journal:
    """Intents in order, and which of them the server has confirmed."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self.last = 0
        """Number of the newest intent."""
        self._confirmed = 0

    @property
    def all_confirmed(self) -> bool:
        """Whether the server has confirmed every intent."""
        return self._confirmed >= self.last

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, intent: intents.Intent, moment: int | None = None, kept: bool = True) -> Entry:
        """Append a new intent; `moment` and `kept` are those of `Entry`."""
        self.last += 1
        self._entries.append(Entry(self.last, intent, moment, kept))
        return self._entries[-1]

    def unconfirmed(self, most: int = 200) -> list[Entry]:
        """The oldest intents that the server has not confirmed, as many as go into one request."""
        first = len(self._entries)
        while first and self._entries[first - 1].number > self._confirmed:
            first -= 1
        found, size = [], 0
        for entry in self._entries[first : first + most]:
            size += len(entry.document or b"")
            if found and size > _AT_ONCE:
                break
            found.append(entry)
        return found

    def confirm(self, number: int) -> None:
        """Note that the server has all intents up to this number."""
        if number > self._confirmed:
            self._confirmed = number
            self._entries = [entry for entry in self._entries if entry.kept or entry.number > number]

    def start_over(self, first: list[intents.Intent], last: list[intents.Intent]) -> None:
        """Send everything once more to a new server session, with `first` before it and `last` after it."""
        entries = [entry for entry in self._entries if entry.kept]
        self._entries = []
        self._confirmed = self.last
        for intent in first:
            self.add(intent, kept=False)
        for entry in entries:
            self.add(entry.intent, entry.moment).checkpoint = entry.checkpoint
        for intent in last:
            self.add(intent, kept=False)

    def forget(self, unwanted: Callable[[Any], bool]) -> None:
        """Drop the intents for which `unwanted` is true."""
        self._entries = [entry for entry in self._entries if not unwanted(entry.intent)]
        self._mend_end()

    def drop(self, number: int) -> None:
        """Drop the intent with this number."""
        self._entries = [entry for entry in self._entries if entry.number != number]
        self._mend_end()

    def insert(self, number: int, intent: intents.Restore, replaces: bool = False) -> None:
        """Insert the stored session after intent `number`; with `replaces`, instead of that intent, whose result it
        is."""
        at = next((i for i, entry in enumerate(self._entries) if entry.number > number), len(self._entries))
        before = self._entries[:at]
        if replaces and before and before[-1].number == number and before[-1].document is None:
            before.pop()
        self._entries = [*before, Entry(number, intent), *self._entries[at:]]
        self._limit_bytes()

    def keep_checkpoint(self, request: int, document: bytes) -> None:
        """Keep the stored session that answers this request for a checkpoint."""
        for entry in self._entries:
            if isinstance(entry.intent, intents.TakeSnapshot) and entry.intent.request == request:
                entry.intent, entry.checkpoint = intents.Checkpoint(), document
        self._limit_bytes()

    def clear(self) -> None:
        """Forget everything."""
        self._entries = []
        self._confirmed = self.last

    def shorten(self) -> None:
        """Begin with a stored session, if one has enough intents after it."""
        bases = [at for at in self._bases() if at <= len(self._entries) - _KEPT]
        if bases:
            self._begin_with(bases[-1])

    # ---- inside

    def _bases(self) -> list[int]:
        """Positions of the stored sessions that the server has confirmed."""
        entries = enumerate(self._entries)
        return [at for at, entry in entries if at and entry.document is not None and entry.number <= self._confirmed]

    def _begin_with(self, at: int) -> None:
        base = self._entries[at]
        lasting = [entry for entry in self._entries[:at] if isinstance(entry.intent, _LASTING)]
        base = Entry(base.number, intents.Restore(base.document))
        self._entries = [base, *lasting, *self._entries[at + 1 :]]

    def _limit_bytes(self) -> None:
        """Drop the oldest stored sessions when all of them are too large."""
        while sum(len(entry.document or b"") for entry in self._entries) > _MOST_BYTES and self._bases():
            self._begin_with(self._bases()[0])

    def _mend_end(self) -> None:
        """Add an empty intent when the newest one was dropped, because its number must reach the server."""
        if self.last > self._confirmed and (not self._entries or self._entries[-1].number != self.last):
            self.add(intents.Checkpoint(), kept=False)
