"""Export of the segments, as a label map of the scene or as a file beside the others of the study."""

import os
import sys
from pathlib import Path

import ctk
import slicer
from slicer.i18n import tr as _

from . import packages
from .export_task import ExportTask
from .qt_helpers import chosen_in, confirmed, enable, fill_menu, load_dialog, read_setting, write_setting

ENDINGS = (
    ("", _("Label map in this scene")),
    (".nii.gz", _("NIfTI (.nii.gz)")),
    (".nrrd", _("NRRD (.nrrd)")),
    (".seg.nrrd", _("Slicer segmentation (.seg.nrrd)")),
    (".dcm", _("DICOM SEG (.dcm)")),
)
_TOPIC = "export"


class ExportDialog:
    """Opened by the button beside the segments. An existing file is replaced only when the user agrees."""

    def __init__(self, host, open_button, resource_path, ask_to_install):
        self.host = host
        self._open_button = open_button
        self._ask_to_install = ask_to_install
        self.last = None  # what was written last: a path or a node
        self.dialog, self.widget, self.ui = load_dialog(resource_path, "ExportDialog", _("Export segments"))
        ui = self.ui
        fill_menu(ui.formatSelector, ENDINGS)
        ui.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        ui.folderEdit.currentPath = read_setting("ExportFolder", os.path.expanduser("~"))
        host.connect(
            (open_button, "clicked()", self.open),
            (ui.formatSelector, "currentIndexChanged(int)", self._format_chosen),
            (ui.exportButton, "clicked()", self.export),
            (ui.cancelButton, "clicked()", lambda: self.dialog.hide()),
        )
        host.listen("Turn", self._refresh)
        host.listen("SessionEnded", lambda event: self.dialog.hide())
        self._format_chosen(0)

    def close(self):
        self.dialog.hide()
        self.dialog.deleteLater()

    def open(self):
        self._say("")
        self.dialog.open()

    def _refresh(self):
        session = self.host.session
        usable = session is not None and session.segmentation_node is not None and self.host.task is None
        enable((self._open_button, usable), (self.ui.exportButton, usable))

    @property
    def ending(self):
        return chosen_in(self.ui.formatSelector)

    def _format_chosen(self, index):
        enable((self.ui.folderEdit, self.ending))

    def export(self):
        """Export as chosen. When that fails, the dialog stays open and says why."""
        session = self.host.session
        if session is None or session.segmentation_node is None:
            return
        self.last = None
        self._say("")
        try:
            self._export(session)
        except Exception as error:
            self._say(self.host.refused(error, _("The export"), _TOPIC))

    def _say(self, sentence):
        self.ui.problemLabel.text = sentence or ""
        self.ui.problemLabel.setVisible(bool(sentence))

    def _export(self, session):
        from SAMFineTuneLib.mrml import segment_export as export

        segmentation, volume = session.segmentation_node, session.volume_node
        ids = self._segment_ids(segmentation)
        if not self.ending:
            self._run(_("Making a label map"), export.labelmap_node_steps(segmentation, volume, ids), self._made)
            return
        path = self._path(segmentation.GetName())
        files = dicom_files(volume)
        require_apart_from_images(path, files)
        if self.ending == ".dcm":
            export.require_series(files)  # before anything is installed or the user is asked
            if packages.DICOM_SEG.missing():
                self._ask_to_install(packages.DICOM_SEG, self.export)
                return
            if packages.DICOM_SEG.folder not in sys.path and os.path.isdir(packages.DICOM_SEG.folder):
                sys.path.append(packages.DICOM_SEG.folder)  # last, so that Slicer's own packages come first
        if os.path.exists(path) and not self._may_replace(path):
            self.host.say(_("Nothing was written: {file} exists already.").format(file=path), _TOPIC)
            return
        steps = export.export_steps(path, segmentation, volume, ids, files)
        count = len(segmentation.GetSegmentation().GetSegmentIDs() if ids is None else ids)
        text = _("Writing {file}").format(file=os.path.basename(path))
        self._run(text, steps, lambda notes: self._wrote(path, count, notes))

    def _run(self, text, steps, done):
        self.dialog.hide()
        self.host.run(ExportTask(text, steps, done, lambda error: self.host.refused(error, text, _TOPIC)))

    def _made(self, result):
        self.last, notes = result
        if slicer.mrmlScene.IsClosing():  # and the label map with it
            return
        made = _("Made the label map {name}, which is in this scene.").format(name=self.last.GetName())
        self.host.say(" ".join([made, *notes]), _TOPIC)

    def _wrote(self, path, count, notes):
        self.last = path
        folder, file = os.path.split(path)
        write_setting("ExportFolder", folder)
        wrote = _("Wrote {file} into {folder}; segments: {count}.").format(file=file, folder=folder, count=count)
        self.host.say(" ".join([wrote, *notes]), _TOPIC, folder)

    @staticmethod
    def _may_replace(path):
        question = _("{folder} already contains {file}. It will be replaced.")
        return confirmed(question.format(file=os.path.basename(path), folder=os.path.dirname(path)), _("Replace"))

    def _segment_ids(self, node):
        if not self.ui.visibleOnlyBox.checked:
            return None
        display = node.GetDisplayNode()
        return [i for i in node.GetSegmentation().GetSegmentIDs() if display is None or display.GetSegmentVisibility(i)]

    def _path(self, name):
        from SAMFineTuneLib.errors import UserError

        folder = self.ui.folderEdit.currentPath.strip()
        if not os.path.isdir(folder):
            raise UserError(_("“{folder}” is not a folder; choose one to export into.").format(folder=folder))
        stem = "".join(c if c.isalnum() or c in " -_()" else "_" for c in name).strip() or "segmentation"
        return os.path.join(folder, stem + self.ending)


def require_apart_from_images(path, series):
    """Raise UserError when a file to be written is an image of the scene, or would lie among the files of a series."""
    from SAMFineTuneLib.files import require_apart
    from SAMFineTuneLib.mrml.volume_nodes import files_of

    images = slicer.util.getNodesByClass("vtkMRMLVolumeNode")
    for read in (series, *(files_of(node) for node in images if not node.IsA("vtkMRMLLabelMapVolumeNode"))):
        require_apart(Path(path), map(Path, read))


def dicom_files(volume_node):
    """Files of the series a volume was loaded from, as Slicer's DICOM database knows them; empty without."""
    uids = (volume_node.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if not uids or database is None:
        return ()
    return [path for path in map(database.fileForInstance, uids) if path]
