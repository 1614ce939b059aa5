"""Train, afterwards: what the adapter gained, in figures and pictures."""

import os
import re

import qt

from .qt_helpers import fit_height, quiet, set_text, set_visible

_PICTURE = re.compile(r"(case-\d+)-(.+)-(before|after)\.png")
_WIDTH = 190  # pixels of a picture


class Results:
    """Fills the table and the pictures of a finished training."""

    def __init__(self, ui):
        self.ui = ui
        self._items = []  # of the table, which some bindings drop when nobody holds them
        self._pictures = {}  # "case 1, 1 box" -> {"before": path, "after": path}
        self.report = None
        ui.gainsTable.verticalHeader().setDefaultSectionSize(22)
        for column, width in enumerate((66, 76, 140)):
            ui.gainsTable.setColumnWidth(column, width)
        set_visible(ui.resultsFrame, False)

    def show(self, event, report):
        """`event` is the training's last word, `report` the path of its page."""
        self.report = report
        sentences = [event.get("evidence", ""), *event.get("notes", [])]
        set_text(self.ui.evidenceText, " ".join(sentence for sentence in sentences if sentence))
        self._fill_table(event.get("gains", []))
        self._find_pictures(os.path.dirname(report))
        set_visible(self.ui.resultsFrame, True)

    def hide(self):
        set_visible(self.ui.resultsFrame, False)

    def open_report(self):
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(self.report))

    def _fill_table(self, gains):
        table = self.ui.gainsTable
        table.setRowCount(len(gains))
        self._items = []
        for row, gain in enumerate(gains):
            cells = (gain["prompt"], gain["label"], figure(gain, "before"), figure(gain, "after"))
            for column, text in enumerate(cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                table.setItem(row, column, item)
                self._items.append(item)
        table.resizeColumnsToContents()
        fit_height(table, len(gains), 1, 8)
        set_visible(table, bool(gains))

    def _find_pictures(self, folder):
        self._pictures = {}
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            found = _PICTURE.fullmatch(name)
            if found:
                title = f"{found[1].replace('-', ' ')}, {found[2].replace('-', ' ')}"
                self._pictures.setdefault(title, {})[found[3]] = os.path.join(folder, name)
        with quiet(self.ui.pictureSelector):
            self.ui.pictureSelector.clear()
            for title in self._pictures:
                self.ui.pictureSelector.addItem(title)
        set_visible(self.ui.pictureSelector, bool(self._pictures))
        self.show_picture(0)

    def show_picture(self, index):
        titles = list(self._pictures)
        shown = self._pictures[titles[index]] if 0 <= index < len(titles) else {}
        for stage, widget in (("before", self.ui.beforePicture), ("after", self.ui.afterPicture)):
            set_visible(widget, stage in shown)
            if stage in shown:
                widget.setPixmap(qt.QPixmap(shown[stage]).scaledToWidth(_WIDTH))


def figure(gain, stage):
    """ "0.812 (0.780–0.840)"; a dash where there was no answer."""
    if gain[stage] is None:
        return "–"
    span = gain["interval_" + stage]
    return f"{gain[stage]:.3f}" + (f" ({span[0]:.3f}–{span[1]:.3f})" if span else "")
