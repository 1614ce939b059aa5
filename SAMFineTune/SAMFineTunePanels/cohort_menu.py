"""The ⋯ menu of the Cohort tab: add scans, export accepted cases, write a report."""

import os

import qt
import slicer
from slicer.i18n import tr as _

from .cohort_export_dialog import CohortExportDialog, place_beside
from .qt_helpers import Connections, read_flag, read_setting, write_setting


class CohortMenu:
    """`begin(what, **values)` starts work in the background."""

    def __init__(self, button, resource_path, ask_to_install, begin, show_curve, dicomweb):
        self._begin, self._dicomweb = begin, dicomweb
        self.folder = ""  # of the cohort that is open
        self.export = CohortExportDialog(resource_path, ask_to_install, begin)
        self._menu = qt.QMenu(button)
        self.addAction = self._menu.addAction(_("Add scans…"))
        self.fetchAction = self._menu.addAction(_("Add scans from a PACS…"))
        self.exportAction = self._menu.addAction(_("Export accepted cases…"))
        self.storeAction = self._menu.addAction(_("Store accepted cases on a PACS…"))
        self.reportAction = self._menu.addAction(_("Report"))
        self._menu.addSeparator()
        self.curveAction = self._menu.addAction(_("Learning curve"))
        self.automaticAction = self._menu.addAction(_("Train and propose by itself"))
        for action in (self.curveAction, self.automaticAction):
            action.setCheckable(True)
        self.automaticAction.setChecked(read_flag("CohortAutomatic"))
        button.setMenu(self._menu)
        self._connections = Connections(
            (self.addAction, "triggered()", self.add),
            (self.fetchAction, "triggered()", self.add_fetched),
            (self.storeAction, "triggered()", lambda: dicomweb.store(self.folder)),
            (self.exportAction, "triggered()", lambda: self.export.open(self.folder)),
            (self.reportAction, "triggered()", lambda: begin("report", folder=os.path.join(self.folder, "report"))),
            (self.curveAction, "toggled(bool)", show_curve),
            (self.automaticAction, "toggled(bool)", lambda on: write_setting("CohortAutomatic", bool(on))),
        )

    def close(self):
        self._connections.close()
        self.export.close()

    def show(self, busy, drawable):
        """Enable what can be done: `busy`: one of these runs; `drawable`: there is a curve to draw."""
        for action in (self.addAction, self.exportAction, self.reportAction):
            action.setEnabled(not busy)
        self.curveAction.setEnabled(drawable)

    def add(self):
        """Add the scans of a folder that the user chooses."""
        start = read_setting("CohortScans", os.path.dirname(place_beside(self.folder)))
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Add the scans of a folder"), start)
        if folder:
            write_setting("CohortScans", folder)
            self._begin("add", images=folder)

    def add_fetched(self):
        """Add the scans that the user fetches from a DICOMweb server, unless another cohort is open by then."""
        cohort = self.folder
        self._dicomweb.fetch(lambda folder: self.folder == cohort and self._begin("add", images=folder))
