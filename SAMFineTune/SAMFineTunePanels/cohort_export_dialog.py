"""The dialog that exports the accepted cases of a cohort."""

import os

import ctk
from slicer.i18n import tr as _

from . import packages
from .qt_helpers import Connections, chosen_in, fill_menu, load_dialog

FORMS = (
    ("nnunet", _("nnU-Net dataset")),
    ("nifti", _("NIfTI label maps (.nii.gz)")),
    ("dicom-seg", _("DICOM SEG (.dcm)")),
)


class CohortExportDialog:
    """The dialog: in which format, and into which folder."""

    def __init__(self, resource_path, ask_to_install, begin):
        self._ask_to_install, self._begin = ask_to_install, begin
        self._cohort = self._suggested = ""
        self.dialog, self._widget, self.ui = load_dialog(resource_path, "ExportDialog", _("Export accepted cases"))
        ui = self.ui
        ui.visibleOnlyBox.hide()
        ui.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        ui.folderEdit.toolTip = _("A new or an empty folder; the export appears complete or not at all")
        fill_menu(ui.formatSelector, FORMS)
        self._connections = Connections(
            (ui.formatSelector, "currentIndexChanged(int)", lambda index: self._suggest()),
            (ui.exportButton, "clicked()", self.export),
            (ui.cancelButton, "clicked()", lambda: self.dialog.hide()),
        )

    def close(self):
        self._connections.close()
        self.dialog.hide()
        self.dialog.deleteLater()

    def open(self, cohort):
        """Open the dialog for the cohort of a folder."""
        if cohort != self._cohort:
            self._cohort = cohort
            self.ui.folderEdit.currentPath = self._suggested
        self._suggest()
        self._say("")
        self.dialog.open()

    def _suggest(self):
        """Suggest a folder until the user has chosen another one."""
        edit = self.ui.folderEdit
        if edit.currentPath.strip() in ("", self._suggested):
            self._suggested = f"{place_beside(self._cohort)}-{chosen_in(self.ui.formatSelector)}"
            edit.currentPath = self._suggested

    def export(self):
        """Export as chosen. If that cannot be done, the dialog stays open and says why."""
        from SAMFineTuneLib.errors import UserError
        from SAMFineTuneLib.service.cohort_client import place_of

        folder, form = self.ui.folderEdit.currentPath.strip(), chosen_in(self.ui.formatSelector)
        folder = folder and os.path.abspath(os.path.expanduser(folder))  # the process runs in another folder
        problem = in_the_way(folder)
        self._say(problem)
        if problem:
            return
        if form == "dicom-seg" and place_of(self._cohort) is None and packages.DICOM_SEG.missing():
            try:
                self._ask_to_install(packages.DICOM_SEG, self.export)
            except UserError as error:
                self._say(str(error))
            return
        self.dialog.hide()
        self._begin("export", folder=folder, form=form)

    def _say(self, sentence):
        self.ui.problemLabel.text = sentence
        self.ui.problemLabel.setVisible(bool(sentence))


def place_beside(cohort):
    """A folder beside the cohort, or for one on a server a folder of its name in the user's home."""
    from SAMFineTuneLib.service.cohort_client import place_of

    place = place_of(cohort)
    return cohort if place is None else os.path.join(os.path.expanduser("~"), place.cohort)


def in_the_way(folder):
    """Why nothing can be exported into a folder, as a sentence; "" where it can."""
    if not folder:
        return _("Choose a folder to export into.")
    if os.path.exists(folder) and (not os.path.isdir(folder) or os.listdir(folder)):
        return _("“{folder}” exists already; choose a new or an empty folder.").format(folder=folder)
    parent = os.path.dirname(folder)
    if not os.path.isdir(parent):
        return _("“{folder}” does not exist; choose a folder inside one that does.").format(folder=parent)
    return ""
