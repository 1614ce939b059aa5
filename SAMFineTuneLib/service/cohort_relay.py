"""Passes the pieces of work on a server's cohort to that server, and follows the cohort's state there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from SAMFineTuneLib.cohort.cohort_state import LEASE_ON_SERVER
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service import cohort_work as queue
from SAMFineTuneLib.service.cohort_client import ServedCohort
from SAMFineTuneLib.service.cohort_messages import CohortNews, CohortPiece
from SAMFineTuneLib.service.cohort_pieces import RESULTS, Piece, few
from SAMFineTuneLib.service.worker import TOKEN_VARIABLE

_LOOK_EVERY = 0.03  # s between two checks while waiting
_FOLLOW_EVERY = 1.0  # s between two checks at a cohort on a server
_AGAIN_AFTER = 3.0  # s until a server that did not answer is asked again
_ALONE_FOR = 60.0  # s for which to retry after the window has gone; a later window continues


class CohortRelay:
    """Passes the pieces of one queue on to a server.

    Args:
        folder: of the queue, whose name is the window's.
        tell: writes an event, of a name and values.
        alone: set when the window is gone.
    """

    def __init__(self, folder: Path, tell: Callable[..., None], alone: threading.Event) -> None:
        self._folder, self._tell, self._alone = folder, tell, alone
        self.by = ""
        """The reviewer whose leases are renewed while the cohort is followed; "" for none."""
        self._server: ServedCohort | None = None
        self._follow_after: float | None = None  # None: no window follows the server's cohort
        self._unreached = False
        self._alone_since: float | None = None

    def do(self, piece: Piece) -> dict[str, Any]:
        """Have a piece done by the server that has the cohort."""
        values = piece.asked
        what, folder, window = values["what"], Path(values["cohort"]), self._folder.name
        if self._server is None or self._server.folder != folder:
            self._server = ServedCohort(folder, os.environ.get(TOKEN_VARIABLE, ""))
        server, told = self._server, {}
        if what == "list":
            return {"names": server.names()}
        if what == "add":
            told = self._sent_images(piece)
        elif what != "follow":
            labels = piece.labels() if what in ("keep", "accept") else None
            known = {name for one in fields(CohortPiece) if (name := one.name) not in ("cohort", "window", "number")}
            asked = {name: value for name, value in values.items() if name in known - {"what"}}
            if what in ("open", "take"):
                asked["seconds"] = LEASE_ON_SERVER
            follow = lambda *_: self.follow()  # noqa: E731 - a case stays taken while it is read and fetched
            watch = piece.all_or_nothing("Stopped; nothing was written.") if what in RESULTS else follow
            told = dict(server.do(what, window, piece.number, labels, watch, **asked))
        if what in RESULTS:
            server.fetch_results(window, piece.number, Path(values["folder"]))
            told["folder"] = values["folder"]
        if what == "open" and told["case"]:
            told |= server.fetch_case(told, window, piece.number, self._folder, follow)
        if what in ("open", "picture") and told["case"]:
            server.fetch("picture", told["case"], queue.picture_path(folder, told["case"]))
        if what in ("open", "follow", "add"):  # the window then draws from the mirror
            self._tell_news(server.follow())
        self._unreached = False
        self._follow_after = 0.0 if what == "follow" or self._follow_after is not None else None
        return {name: value for name, value in told.items() if name not in ("event", "what", "number")}

    def _sent_images(self, piece: Piece) -> dict[str, Any]:
        from SAMFineTuneLib.cohort.find_images import find_images
        from SAMFineTuneLib.service.send_images import send_images

        self._server.follow()
        tell = piece.all_or_nothing("Stopped; the scans that had arrived by then were added.")
        progress = lambda done, total, name, part: tell(done, total, f"({part:.0%})")  # noqa: E731 - names stay here
        added, notes = send_images(self._server, find_images(piece.asked["images"]), progress)
        return {"added": len(added), "notes": few(notes)}

    def follow(self) -> None:
        """Update the cohort's state from its server, if a window follows it."""
        if self._follow_after is None or time.monotonic() < self._follow_after:
            return
        try:
            self._tell_news(self._server.follow(self.by))
            self._follow_after, self._unreached = time.monotonic() + _FOLLOW_EVERY, False
        except UserError as error:
            self._follow_after = time.monotonic() + _AGAIN_AFTER
            self._tell_unreached(error)

    def _tell_news(self, news: CohortNews) -> None:
        self._tell("server", busy=news.busy, events=list(news.events), problem="")

    def _tell_unreached(self, error: UserError) -> None:
        if not self._unreached:
            self._unreached = True
            self._tell("server", busy=False, events=[], problem=f"{error} Corrected and accepted labels wait on this "
                      "computer, and are sent when the server answers.")  # fmt: skip

    def wait(self, error: UserError) -> None:
        """Wait a while, because the server did not answer."""
        self._tell_unreached(error)
        until = time.monotonic() + _AGAIN_AFTER
        while time.monotonic() < until and not self.has_waited_enough():
            time.sleep(_LOOK_EVERY)

    def has_waited_enough(self) -> bool:
        """Whether the window is gone, and the server has not answered for a while since."""
        if not (self._alone.is_set() and self._unreached):
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()
        return self._alone_since is not None and time.monotonic() - self._alone_since > _ALONE_FOR
