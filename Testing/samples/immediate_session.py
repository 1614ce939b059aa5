"""A session that makes masks at once, so that a test sees what an intent leads to when it returns."""

from __future__ import annotations

from typing import Any

from SAMFineTuneLib.session.session import Session


class ImmediateSession(Session):
    """Finishes the masks of every new state; `immediate = False` leaves them to `work`, as in every host."""

    immediate = True

    def do(self, intent: Any, moment: int | None = None) -> Any:
        try:
            return super().do(intent, moment)
        finally:
            if self.immediate:
                self._tell_state()

    def _travel(self, *change: Any) -> str | None:
        name = super()._travel(*change)
        if self.immediate:
            self._masks.finish()
        return name
