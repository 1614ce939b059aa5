"""The cases and labels of a training: segmentations of the scene or a folder, and which of their labels are learned."""

import os
import re

import ctk
import qt
import slicer
from slicer.i18n import tr as _

from .qt_helpers import (
    Connections,
    TextTable,
    choose_in,
    chosen_in,
    fill_menu,
    fit_height,
    quiet,
    read_setting,
    set_text,
    write_setting,
)

FROM_SCENE, FROM_FOLDER, FROM_LIST = "scene", "folder", "list"
SOURCES = (
    (FROM_SCENE, _("From this scene")),
    (FROM_FOLDER, _("From a folder")),
    (FROM_LIST, _("From a list (.csv)")),
)  # a folder and a list apart, because Slicer's button beside a path opens a dialog for either folders or files
NOTHING_THERE = _("No segmentation in the scene holds anything yet: load annotated volumes, or choose a folder.")
_CASES_SHOWN, _LABELS_SHOWN = (3, 8), (2, 6)  # rows: at least, at most
_LEFT_OUT = "TrainLeftOut"  # role of segmentations that are not learned from


class TrainCases:
    """The list of cases and the list of labels to learn."""

    def __init__(self, ui):
        self.ui = ui
        self._cases, self._seen = [], None  # of the scene, and what they looked like
        self._left_out = set()  # segmentations that are not ticked, by ID
        self._known = set()  # those that the user could tick
        self._unlearned = set()  # labels that are not ticked
        self._labels = []  # (as shown, as the training takes it)
        fill_menu(ui.sourceSelector, SOURCES)
        ui.folderEdit.currentPath = read_setting("TrainFolder")
        self._table = TextTable(ui.casesTable, (0, 1), *_CASES_SHOWN)
        self._connections = Connections(
            (ui.sourceSelector, "currentIndexChanged(int)", self._source_chosen),
            (ui.folderEdit, "currentPathChanged(QString)", self._folder_chosen),
            (ui.casesTable, "itemChanged(QTableWidgetItem*)", self._case_ticked),
            (ui.labelsList, "itemChanged(QListWidgetItem*)", self._label_ticked),
        )
        fit_height(ui.labelsList, 0, *_LABELS_SHOWN)
        self._source_chosen(0)

    def close(self):
        self._connections.close()

    # ---- what is chosen

    @property
    def from_scene(self):
        return chosen_in(self.ui.sourceSelector) == FROM_SCENE

    @property
    def _from_list(self):
        return chosen_in(self.ui.sourceSelector) == FROM_LIST

    @property
    def folder(self):
        """The folder or list that cases are read from; empty when they are the scene's."""
        return "" if self.from_scene else self.ui.folderEdit.currentPath.strip()

    @property
    def chosen(self):
        """The scene's cases that are ticked."""
        usable = [case for case in self._cases if not case.problem] if self.from_scene else []
        return [case for case in usable if case.segmentation_node.GetID() not in self._left_out]

    @property
    def titles(self):
        """Labels that are ticked, as the list shows them."""
        return [title for title, _ in self._labels if title not in self._unlearned]

    @property
    def wanted(self):
        """Labels to learn, as the training takes them; none means all."""
        told = [label for title, label in self._labels if title not in self._unlearned]
        return told if len(told) < len(self._labels) or self.from_scene else []

    def require(self):
        """Raise UserError when there is nothing to learn from."""
        from SAMFineTuneLib.errors import UserError

        if self.from_scene and not self.chosen:
            raise UserError(_("No case is ticked: load volumes with segmentations, and tick those to learn from."))
        if not self.from_scene and not self.folder:
            raise UserError(
                _("No list is chosen: choose a .csv file of image,label,patient.")
                if self._from_list
                else _("No folder is chosen: choose one with images/ and labels/.")
            )
        if self._labels and not self.titles:
            raise UserError(_("No label is ticked; tick those to learn."))

    def proposed_name(self):
        """A name for the adapter, after its labels or else after the folder."""
        folder = os.path.basename(os.path.normpath(self.folder or "adapter"))
        return "-".join(self.titles[:2]) or folder.partition(".")[0]

    def with_titles(self, sentence):
        """Replace case numbers in a sentence by names of volumes: exported cases have numbers only."""
        if not self.from_scene:
            return sentence
        titles = {str(number): case.volume_node.GetName() for number, case in enumerate(self.chosen, start=1)}
        return re.sub(
            r"\b([Cc]ases?) (\d+(?:, \d+)*)\b",
            lambda m: f"{m[1]} {', '.join(titles.get(number, number) for number in m[2].split(', '))}",
            sentence,
        )

    def take_labels(self, names, wanted):
        """Show the labels that were found in a folder."""
        if not self.from_scene:
            self._set_labels(list(zip(names, wanted or [], strict=False)))

    # ---- the scene

    def look(self):
        """List the cases of the scene when they have changed."""
        from SAMFineTuneLib.mrml.training_cases import scene_cases

        if not self.from_scene or slicer.mrmlScene.IsBatchProcessing():
            return
        cases = scene_cases(slicer.mrmlScene)
        seen = [(case.segmentation_node.GetID(), case.title, case.names, case.problem) for case in cases]
        if seen != self._seen:
            self._leave_out_second_ones(cases)
            self._cases, self._seen = cases, seen
            self._fill()
            self._labels_of_cases()

    def scene_closes(self):
        self._cases, self._seen, self._left_out, self._known = [], None, set(), set()
        self._table.fill(())
        if self.from_scene:
            self._set_labels([])

    def store(self, parameters):
        """Keep in the scene which cases are left out; returns everything else to be kept."""
        parameters.node.RemoveNodeReferenceIDs(_LEFT_OUT)
        for node_id in sorted(self._left_out):
            if slicer.mrmlScene.GetNodeByID(node_id) is not None:
                parameters.node.AddNodeReferenceID(_LEFT_OUT, node_id)
        return {"source": chosen_in(self.ui.sourceSelector), "unlearned": sorted(self._unlearned)}

    def show_stored(self, parameters, values):
        self._unlearned = {str(name) for name in values.get("unlearned", ())}
        choose_in(self.ui.sourceSelector, values.get("source"))
        node = parameters.node
        count = node.GetNumberOfNodeReferences(_LEFT_OUT)
        self._left_out = {node.GetNthNodeReferenceID(_LEFT_OUT, index) for index in range(count)}
        self._seen = None

    # ---- inside

    def _source_chosen(self, index):
        self.ui.casesTable.setVisible(self.from_scene)
        self.ui.folderEdit.setVisible(not self.from_scene)
        self.ui.folderEdit.filters = ctk.ctkPathLineEdit.Files if self._from_list else ctk.ctkPathLineEdit.Dirs
        self._seen = None
        self._set_labels([])
        set_text(self.ui.checkLabel, "" if self.from_scene else _("Check cases lists the labels that are there."))

    def _folder_chosen(self, path):
        write_setting("TrainFolder", path)
        if not self.from_scene:
            self._set_labels([])

    def _leave_out_second_ones(self, cases):
        """Untick all but the first of several segmentations of a volume that the user has not seen yet."""
        volumes = set()
        for case in cases:
            volume, node = case.volume_node.GetID(), case.segmentation_node.GetID()
            if volume in volumes and node not in self._known:
                self._left_out.add(node)
            volumes.add(volume)
            self._known.add(node)

    def _fill(self):
        self._table.fill([(case.title, case.problem or ", ".join(case.names)) for case in self._cases])
        with quiet(self.ui.casesTable):
            for row, case in enumerate(self._cases):
                if not case.problem:
                    out = case.segmentation_node.GetID() in self._left_out
                    self.ui.casesTable.item(row, 0).setCheckState(qt.Qt.Unchecked if out else qt.Qt.Checked)
        if not self._cases:
            set_text(self.ui.checkLabel, NOTHING_THERE)
        elif self.ui.checkLabel.text == NOTHING_THERE:
            set_text(self.ui.checkLabel, "")

    def _case_ticked(self, item):
        row = item.row()
        if item.column() == 0 and row < len(self._cases):
            node_id = self._cases[row].segmentation_node.GetID()
            (self._left_out.discard if item.checkState() == qt.Qt.Checked else self._left_out.add)(node_id)
            self._labels_of_cases()

    def _labels_of_cases(self):
        self._set_labels([(name, name) for name in sorted({n for case in self.chosen for n in case.names})])

    def _set_labels(self, labels):
        if labels == self._labels:
            return
        self._labels = labels
        view = self.ui.labelsList
        with quiet(view):
            view.clear()
            for row, (title, _) in enumerate(labels):
                view.addItem(title)
                view.item(row).setToolTip(title)  # which may be cut
                view.item(row).setCheckState(qt.Qt.Unchecked if title in self._unlearned else qt.Qt.Checked)
        fit_height(view, len(labels), *_LABELS_SHOWN)

    def _label_ticked(self, item):
        ticked = item.checkState() == qt.Qt.Checked
        (self._unlearned.discard if ticked else self._unlearned.add)(item.text())
