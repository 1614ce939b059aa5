"""Export: the segments as a label map in the scene or as a file beside the others of the study."""

import os
import sys

import ctk
import slicer
from slicer.i18n import tr as _

from . import packages, user_settings
from .exporting import Exporting
from .qt_helpers import Connections, chosen_in, confirmed, fill_menu, load_ui, set_visible

ENDINGS = (
    ("", _("Label map in this scene")),
    (".nii.gz", _("NIfTI (.nii.gz)")),
    (".nrrd", _("NRRD (.nrrd)")),
    (".seg.nrrd", _("Slicer segmentation (.seg.nrrd)")),
    (".dcm", _("DICOM SEG (.dcm)")),
)
_TOPIC = "export"


class ExportSection:
    """Writes into a folder; a file that is there already is replaced only when the user says so."""

    def __init__(self, host, resource_path, ask_to_install):
        self.host = host
        self._ask_to_install = ask_to_install
        self.widget, self.ui = load_ui(resource_path, "Export")
        self._connections = Connections()
        fill_menu(self.ui.formatSelector, ENDINGS)
        self.ui.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        self.ui.folderEdit.currentPath = user_settings.read("ExportFolder", os.path.expanduser("~"))
        self.last = None  # what was written last: a path or a node
        for sender, signal, handler in (
            (self.ui.formatSelector, "currentIndexChanged(int)", self._format_chosen),
            (self.ui.exportButton, "clicked()", self.export),
        ):
            self._connections.add(sender, signal, handler)
        host.listen("Turn", self.refresh)
        self._format_chosen(0)

    def close(self):
        self._connections.close()

    def refresh(self):
        session = self.host.session
        usable = session is not None and session.segmentation_node is not None and self.host.task is None
        if self.ui.exportButton.enabled != usable:
            self.ui.exportButton.setEnabled(usable)

    @property
    def ending(self):
        return chosen_in(self.ui.formatSelector)

    def _format_chosen(self, index):
        set_visible(self.ui.folderEdit, bool(self.ending))
        set_visible(self.ui.folderLabel, bool(self.ending))

    def export(self):
        """What cannot be exported is said in the panel."""
        session = self.host.session
        if session is not None and session.segmentation_node is not None:
            self.last = None
            self._guarded(self._export, session)

    def _guarded(self, action, *arguments):
        """What it is refused for stays to be read until the next export."""
        try:
            action(*arguments)
        except Exception as error:
            self.host.refused(error, _("The export"), _TOPIC)

    def _export(self, session):
        from SAMFineTuneLib.mrml import segment_export as export

        segmentation, volume = session.segmentation_node, session.volume_node
        ids = self._segment_ids(segmentation)
        if not self.ending:
            self._run(_("Making a label map"), export.labelmap_node_steps(segmentation, volume, ids), self._made)
            return
        path = self._path(segmentation.GetName())
        files = ()
        if self.ending == ".dcm":
            files = dicom_files(volume)
            export.require_series(files)  # before anything is installed or asked
            if packages.DICOM_SEG.missing():
                packages.DICOM_SEG.require_slicers()
                self._ask_to_install(packages.DICOM_SEG, self.export)
                return
            if packages.DICOM_SEG.folder not in sys.path and os.path.isdir(packages.DICOM_SEG.folder):
                sys.path.append(packages.DICOM_SEG.folder)  # last: what Slicer has itself counts first
        if os.path.exists(path) and not self._may_replace(path):
            self.host.say(_("Nothing was written: {file} is there already.").format(file=path), _TOPIC)
            return
        steps = export.export_steps(path, segmentation, volume, ids, files)
        count = len(segmentation.GetSegmentation().GetSegmentIDs() if ids is None else ids)
        text = _("Writing {file}").format(file=os.path.basename(path))
        self._run(text, steps, lambda notes: self._wrote(path, count, notes))

    def _run(self, text, steps, done):
        self.host.run(Exporting(text, steps, done, lambda error: self.host.refused(error, text, _TOPIC)))

    def _made(self, node):
        self.last = node
        self.host.say(_("Made the label map {name}, which is in this scene.").format(name=node.GetName()), _TOPIC)

    def _wrote(self, path, count, notes):
        self.last = path
        folder, file = os.path.split(path)
        user_settings.write("ExportFolder", folder)
        wrote = _("Wrote {file} into {folder}; segments: {count}.").format(file=file, folder=folder, count=count)
        self.host.say(" ".join([wrote, *notes]), _TOPIC, folder)

    @staticmethod
    def _may_replace(path):
        question = _("{file} is in {folder} already. It will be replaced.")
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


def dicom_files(volume_node):
    """Files of the series a volume was loaded from, as Slicer's DICOM database knows them; empty without."""
    uids = (volume_node.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if not uids or database is None:
        return ()
    files = [database.fileForInstance(uid) for uid in uids]
    return [path for path in files if path]
