"""Undo and redo over immutable states."""

from __future__ import annotations

from collections.abc import Callable

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.session.state import State

_MOST_STEPS = 200  # that can be undone


class History:
    """The current state and those before and after it; each step has a name."""

    def __init__(self, state: State) -> None:
        self.state = state
        self._past: list[tuple[str, State]] = []
        self._future: list[tuple[str, State]] = []

    @property
    def undo_name(self) -> str | None:
        """Name of the step that `undo` takes back, None without one."""
        return self._past[-1][0] if self._past else None

    @property
    def redo_name(self) -> str | None:
        """Name of the step that `redo` repeats, None without one."""
        return self._future[-1][0] if self._future else None

    def reset(self, state: State) -> None:
        """Continue from a state, with nothing to undo or redo."""
        self.state = state
        self._past, self._future = [], []

    def push(self, name: str, state: State) -> None:
        """Make `state` the current one; undone steps can then no longer be redone. Without a name it becomes part of
        the step before.
        """
        if name:
            self._past = [*self._past, (name, self.state)][-_MOST_STEPS:]
            self._future = []
        self.state = state

    def undo(self) -> str | None:
        """Return to the state before the last step; returns the name of that step, None without one."""
        return self._travel(self._past, self._future)

    def redo(self) -> str | None:
        """Redo the last step that was undone; returns its name, None without one."""
        return self._travel(self._future, self._past)

    def rewrite(self, edit: Callable[[State], State]) -> None:
        """Edit every state, so that undo and redo do not take the edit back.

        Steps that then change nothing are dropped, and so are all states beyond one that cannot be edited.
        """
        self.state = edit(self.state)
        self._past = self._edited(self._past, edit)
        self._future = self._edited(self._future, edit)

    def _edited(self, steps: list[tuple[str, State]], edit: Callable[[State], State]) -> list[tuple[str, State]]:
        kept, nearer = [], self.state
        for name, state in reversed(steps):
            try:
                state = edit(state)
            except UserError:
                break
            if not state.same_as(nearer):
                kept.append((name, state))
                nearer = state
        return kept[::-1]

    def _travel(self, source: list[tuple[str, State]], target: list[tuple[str, State]]) -> str | None:
        if not source:
            return None
        name, state = source.pop()
        target.append((name, self.state))
        self.state = state
        return name
