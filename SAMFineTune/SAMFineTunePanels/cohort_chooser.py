"""Choosing a cohort by its folder, or making one from a folder of scans: the upper part of the Cohort tab."""

import os
import sys

import ctk
from slicer.i18n import tr as _

from .qt_helpers import enable, read_setting, set_text

_TOPIC = "cohort"


class CohortChooser:
    """Follows the typed folder; `opened(folder)` gets the cohort that was chosen or made."""

    def __init__(self, host, ui, environment, opened):
        self.host, self.ui = host, ui
        self._environment, self._opened = environment, opened
        self._found = ""  # what the typed folder holds: "cohort", "images" or ""
        self._creating = None  # (queue, number) while a cohort is being made
        self._progress = {}  # the last event of it
        ui.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        host.connect(
            (ui.folderEdit, "currentPathChanged(QString)", lambda path: self.look()),
            (ui.openButton, "clicked()", self.open),
            (ui.cancelButton, "clicked()", self.cancel),
        )
        ui.folderEdit.currentPath = read_setting("CohortFolder")
        self.look()

    def close(self):
        if self._creating is not None:
            self._creating[0].close()

    def look(self):
        """Say what Open will do with the typed folder."""
        path, ui = self._path, self.ui
        self._found = what_is_in(path)
        ui.labelsFrame.setVisible(self._found == "images")
        set_text(ui.openButton, _("Create cohort") if self._found == "images" else _("Open"))
        if self._found == "images":
            where = _("Makes the cohort in {folder}, beside the scans, which stay as they are.")
            set_text(ui.whereLabel, where.format(folder=beside(path)))
        enable((ui.openButton, self._found))

    def choose(self, folder):
        """Choose a folder, as if it were typed."""
        self.ui.folderEdit.currentPath = folder

    def open(self):
        """Open the cohort of the typed folder, or make one from its scans."""
        if self._found == "cohort":
            self._opened(cohort_in(self._path))
        elif self._found == "images":
            self.host.act(self._create, self._path)

    def cancel(self):
        """Give up making a cohort."""
        if self._creating is not None:
            self._creating[0].stop()

    def follow_creation(self):
        """At every turn: open the cohort that is being made once it exists."""
        if self._creating is None:
            return
        work, number = self._creating
        for event in work.poll_piece(number):
            if event["event"] == "progress":
                self._progress = event
            elif event["event"] in ("done", "failed", "stopped", "ended"):
                self._creating = None
                work.close()
                for note in event.get("notes", []):
                    self.host.warn(note)
                if event["event"] == "done":
                    self._opened(str(work.cohort))
                elif event["event"] == "failed":
                    self.host.warn(event["text"], _TOPIC)
                elif event["event"] == "ended":
                    self.host.warn(_("The cohort was not created ({why}); try again.").format(**event), _TOPIC)

    def show(self):
        """At every turn without an open cohort: show the progress of making one."""
        ui, busy = self.ui, self._creating is not None
        ui.cancelButton.setVisible(busy)
        enable((ui.openButton, self._found and not busy), (ui.folderEdit, not busy), (ui.pacsButton, not busy))
        if busy:
            set_text(ui.whereLabel, _("Reading scan {done} of {total}.").format(
                done=self._progress.get("done", 0) + 1, total=self._progress.get("total") or "…"))

    @property
    def _path(self):
        return typed_folder(self.ui.folderEdit.currentPath)

    def _create(self, images):
        from SAMFineTuneLib.service.cohort_work import CohortWork

        folder = beside(images)
        work = CohortWork(folder, "create")
        work.forget()
        number = work.put("create", images=images, labels=self.ui.labelsEdit.text.split(","))
        work.start(sys.executable, self._environment(folder))
        self._creating, self._progress = (work, number), {}


def typed_folder(path):
    """The absolute path of a typed folder, because processes run in folders of their own; "" without one."""
    return os.path.abspath(os.path.expanduser(path.strip())) if path.strip() else ""


def beside(path):
    """The folder in which the cohort of a folder of scans is made."""
    return path + "-cohort"


def cohort_in(path):
    """The cohort folder that this folder is, contains, or lies beside; "" without one."""
    places = (path, os.path.join(path, "cohort"), beside(path))
    return next((place for place in places if os.path.isfile(os.path.join(place, "cohort.json"))), "")


def what_is_in(path):
    """ "cohort" where one can be opened, "images" for another folder, or "". """
    if not path or not os.path.isdir(path):
        return ""
    return "cohort" if cohort_in(path) else "images"
