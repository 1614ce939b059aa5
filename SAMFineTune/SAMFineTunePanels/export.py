"""Export: the segments as a label map in the scene or as a file beside the others of the study."""

import os
import sys

import ctk
import slicer
from slicer.i18n import tr as _

from . import packages, settings
from .exporting import Exporting
from .qt_helpers import Connections, load_ui, set_text, set_visible

ENDINGS = ("", ".nii.gz", ".nrrd", ".seg.nrrd", ".dcm")


class ExportSection:
    """Writes into a folder; a file that is there already gets a neighbour, it is never replaced."""

    def __init__(self, host, resource_path, install):
        self.host = host
        self._install = install
        self.widget, self.ui = load_ui(resource_path, "Export")
        self._connections = Connections()
        self.ui.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        self.ui.folderEdit.currentPath = settings.read("ExportFolder", os.path.expanduser("~"))
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
        return ENDINGS[self.ui.formatSelector.currentIndex]

    def _format_chosen(self, index):
        set_visible(self.ui.folderEdit, bool(self.ending))
        set_visible(self.ui.folderLabel, bool(self.ending))

    def export(self):
        """What cannot be exported is said in the panel."""
        session = self.host.session
        if session is None or session.segmentation_node is None:
            return
        if self.ending == ".dcm" and packages.DICOM_SEG.missing():
            wanted = packages.DICOM_SEG
            self.host.say(_("DICOM SEG needs {title} ({size}); it is being installed.").format(
                title=wanted.title, size=wanted.size))
            self._install(wanted, self.export)
            return
        self.last = None
        set_text(self.ui.exportLabel, "")
        self.host.act(self._export, session)

    def _export(self, session):
        from SAMFineTuneLib.mrml import export

        segmentation, volume = session.segmentation_node, session.volume_node
        ids = self._segment_ids(segmentation)
        if not self.ending:
            self._run(_("Making a label map"), export.labelmap_node_steps(segmentation, volume, ids), self._made)
            return
        path = self._free_path(segmentation.GetName())
        files = ()
        if self.ending == ".dcm":
            files = dicom_files(volume)
            if packages.DICOM_SEG.folder not in sys.path and os.path.isdir(packages.DICOM_SEG.folder):
                sys.path.append(packages.DICOM_SEG.folder)  # last: what Slicer has itself counts first
        steps = export.export_steps(path, segmentation, volume, ids, files)
        text = _("Writing {file}").format(file=os.path.basename(path))
        self._run(text, steps, lambda notes: self._wrote(path, notes))

    def _run(self, text, steps, done):
        self.host.run(Exporting(text, steps, done, lambda error: self.host.refused(error, text)))

    def _made(self, node):
        self.last = node
        set_text(self.ui.exportLabel, _("Made the label map {name}.").format(name=node.GetName()))

    def _wrote(self, path, notes):
        self.last = path
        settings.write("ExportFolder", os.path.dirname(path))
        set_text(self.ui.exportLabel, " ".join([_("Wrote {path}.").format(path=path), *notes]))

    def _segment_ids(self, node):
        if not self.ui.visibleOnlyBox.checked:
            return None
        display = node.GetDisplayNode()
        return [i for i in node.GetSegmentation().GetSegmentIDs() if display is None or display.GetSegmentVisibility(i)]

    def _free_path(self, name):
        from SAMFineTuneLib.errors import UserError

        folder = self.ui.folderEdit.currentPath.strip()
        if not os.path.isdir(folder):
            raise UserError(_("“{folder}” is no folder; choose one to export into.").format(folder=folder))
        stem = "".join(c if c.isalnum() or c in " -_()" else "_" for c in name).strip() or "segmentation"
        number, path = 1, os.path.join(folder, stem + self.ending)
        while os.path.exists(path):
            number += 1
            path = os.path.join(folder, f"{stem} {number}{self.ending}")
        return path


def dicom_files(volume_node):
    """Files of the series a volume was loaded from, as Slicer's DICOM database knows them; empty without."""
    uids = (volume_node.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if not uids or database is None:
        return ()
    files = [database.fileForInstance(uid) for uid in uids]
    return [path for path in files if path]
