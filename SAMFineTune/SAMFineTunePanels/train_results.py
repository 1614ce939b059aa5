"""The gain of a training, in figures and pictures."""

import os
import re

import qt

from .qt_helpers import TextTable, fill_menu, quiet, set_text

_PICTURE = re.compile(r"(case-\d+)-(.+)-(before|after)\.png")
_WIDTH = 190  # pixels of a picture


class TrainResults:
    """Fills the table and the pictures of a finished training."""

    def __init__(self, ui):
        self.ui = ui
        self._pictures = {}  # "case 1, 1 box" -> {"before": path, "after": path}
        self.report = None
        self._table = TextTable(ui.gainsTable, (1,), 1, 8)
        ui.resultsFrame.setVisible(False)

    def show(self, event, report):
        """Show the last event of a training; `report` is the path of its page."""
        self.report = report
        sentences = [event.get("evidence", ""), *event.get("notes", [])]
        set_text(self.ui.evidenceText, " ".join(sentence for sentence in sentences if sentence))
        gains = event.get("gains", [])
        self._table.fill(
            [(gain["prompt"], gain["label"], figure(gain, "before"), figure(gain, "after")) for gain in gains]
        )
        self.ui.gainsTable.setVisible(bool(gains))
        self._find_pictures(os.path.dirname(report))
        self.ui.resultsFrame.setVisible(True)

    def hide(self):
        self.ui.resultsFrame.setVisible(False)

    def open_report(self):
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(self.report))

    def _find_pictures(self, folder):
        self._pictures = {}
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            found = _PICTURE.fullmatch(name)
            if found:
                title = f"{found[1].replace('-', ' ')}, {found[2].replace('-', ' ')}"
                self._pictures.setdefault(title, {})[found[3]] = os.path.join(folder, name)
        with quiet(self.ui.pictureSelector):
            fill_menu(self.ui.pictureSelector, [(title, title) for title in self._pictures])
        self.ui.pictureSelector.setVisible(bool(self._pictures))
        self.show_picture(0)

    def show_picture(self, index):
        titles = list(self._pictures)
        shown = self._pictures[titles[index]] if 0 <= index < len(titles) else {}
        for stage, widget in (("before", self.ui.beforePicture), ("after", self.ui.afterPicture)):
            widget.setVisible(stage in shown)
            if stage in shown:
                widget.setPixmap(qt.QPixmap(shown[stage]).scaledToWidth(_WIDTH))


def figure(gain, stage):
    """ "0.812 (0.780–0.840)"; a dash where there was no answer."""
    if gain[stage] is None:
        return "–"
    span = gain["interval_" + stage]
    return f"{gain[stage]:.3f}" + (f" ({span[0]:.3f}–{span[1]:.3f})" if span else "")
