"""The list of a cohort's cases: picture, name, state, confidence."""

import os
import time

import qt
from slicer.i18n import tr as _

from .qt_helpers import TextTable, quiet

STATES = {"untouched": _("Untouched"), "proposed": _("Proposed"), "corrected": _("Corrected"),
          "accepted": _("Accepted"), "refused": _("Refused")}  # fmt: skip
TROUBLES = {
    "moved": (_(", moved"), _("The image was moved; point to it with “samfinetune cohort locate”.")),
    "gone": (_(", image gone"), _("The image is gone; point to it with “samfinetune cohort locate”, or put it back.")),
    "changed": (_(", image changed"), _("The image has changed since it was added; put the old one back.")),
    "unreadable": (_(", unreadable"),
                   _("The image can no longer be read; put the old one back, or ask for permission to read it.")),
}  # of images: in the list, and as a hint
FILTERS = (("", _("All cases")), ("todo", _("To do")), *STATES.items())
_TO_DO = ("untouched", "proposed", "corrected")
_LEAST = 2  # rows seen in a low window
_AT_ONCE = 0.008  # s of a turn
_PICTURE = 32  # pixels
_NO_PICTURE_FOR = 60.0  # s until a picture that could not be made is requested again


class CohortList:
    """Follows the cohort's state in pieces, so that many cases do not stop the window."""

    def __init__(self, table):
        self.table = TextTable(table, (0,))
        table.iconSize = qt.QSize(_PICTURE, _PICTURE)
        table.verticalHeader().setDefaultSectionSize(_PICTURE + 4)
        table.setMinimumHeight((1 + _LEAST) * (_PICTURE + 4))  # with the heading
        self.keys = []  # by row
        self._texts = []
        self._opened = ""  # key of the case in the views
        self._pictured = {}  # key -> when its picture was requested, None once it is shown
        self._steps = iter(())

    def show(self, state, wanted, opened, by):
        """List the cases in the wanted states; `opened`: key of the one in the views; `by`: this window."""
        cases = [one for one in state.cases
                 if not wanted or one.state == wanted or (wanted == "todo" and one.state in _TO_DO)]  # fmt: skip
        keys, texts = [one.key for one in cases], [self._text(one, one.key == opened, by) for one in cases]
        if keys != self.keys:
            self._steps = self._fill(keys, texts)
        elif texts != self._texts and len(texts) == len(self._texts):  # otherwise it is still being filled
            with quiet(self.table.widget):
                for row, (before, now) in enumerate(zip(self._texts, texts, strict=True)):
                    if before != now:
                        self._write(row, now)
            self._texts = texts
        if opened != self._opened and opened in keys and len(self._texts) == len(keys):
            self._opened = opened
            self.table.widget.scrollToItem(self.table.widget.item(keys.index(opened), 0))

    def clear(self):
        self.keys, self._texts, self._pictured, self._steps = [], [], {}, iter(())
        self.table.fill(())

    def go_on(self):
        """List a few more; returns whether there are more."""
        end = time.monotonic() + _AT_ONCE
        while time.monotonic() < end:
            if next(self._steps, self) is self:
                return False
        return True

    def show_pictures(self, path_of, ask):
        """Show the pictures of the visible rows, and request one that is missing."""
        now, view = time.monotonic(), self.table.widget
        first, last = view.rowAt(1), view.rowAt(view.viewport().height - 1)
        count = min(len(self._texts), view.rowCount)
        for row in range(max(0, first), count if last < 0 else min(last + 1, count)):
            key = self.keys[row]
            if self._pictured.get(key, 0.0) is None:
                continue
            path = path_of(key)
            if os.path.exists(path):
                self._pictured[key] = None
                with quiet(view):
                    view.item(row, 0).setIcon(qt.QIcon(qt.QPixmap(str(path))))
                return
            if now - self._pictured.get(key, -_NO_PICTURE_FOR) >= _NO_PICTURE_FOR:
                self._pictured[key] = now
                ask(key)
                return

    def _fill(self, keys, texts):
        self.keys, self._texts = keys, []
        self._pictured = {key: when for key, when in self._pictured.items() if when is not None}
        self.table.fill(())
        for text in texts:
            self.table.add(text[:3])
            self._texts.append(text)
            self._write(len(self._texts) - 1, text)
            yield

    def _write(self, row, texts):
        for column in range(3):
            item = self.table.widget.item(row, column)
            item.setText(texts[column])
            item.setToolTip(texts[4] or texts[column])
            font = item.font()
            font.setBold(texts[3])
            item.setFont(font)

    @staticmethod
    def _text(case, is_open, by):
        """(name, state, confidence, whether it is open, hint)"""
        state = STATES[case.state] + (_(", taken") if case.taken(by) else "") + TROUBLES.get(case.trouble, ("", ""))[0]
        sure = "" if case.proposal is None else f"{case.proposal.lowest:.2f}"
        return case.name, state, sure, is_open, TROUBLES[case.trouble][1] if case.trouble in TROUBLES else case.problem
