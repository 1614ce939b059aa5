"""Train: an adapter from one's own annotated cases, in a process of its own."""

import json
import os
import re
import sys
import time

import ctk
import qt
import slicer

from . import packages, settings, worker
from .model import BUNDLED, install_torch, torch_is_there
from .qt_helpers import Connections, load_ui, quiet, set_text, set_visible
from .train_options import PRESETS, settings_of, show_values, values_of
from .train_run import RunBox

FROM_SCENE, FROM_FOLDER = 0, 1
LOOK_EVERY = 1.0  # s between two looks at the scene's segmentations
WRITE_FOR = 0.015  # s of a turn in which cases are written
_PARAMETER = "Train"
_LEFT_OUT = "TrainLeftOut"  # role of segmentations that are not learned from


class TrainSection:
    """What to learn from and how; the training itself is followed by the RunBox."""

    def __init__(self, host, resource_path, install, use_adapter):
        self.host = host
        self._install = install
        self._use_adapter = use_adapter
        self.widget, self.ui = load_ui(resource_path, "Train")
        self._connections = Connections()
        self._cases, self._seen = [], None  # of the scene, and what they looked like
        self._left_out = set()  # segmentations that are not ticked, by ID
        self._known = set()  # those that the user could tick
        self._unlearned = set()  # labels that are not ticked
        self._labels = []  # (what is shown, what the training is told)
        self._items = []  # of lists and tables, which some bindings drop when nobody holds them
        self._look_after = 0.0
        self._writing = None  # (steps that write cases, what comes then)
        self._check = None  # the run that looks at cases
        self._looked = False  # whether trainings were looked for
        self.runs = RunBox(host, self.ui, self._training_ended)
        ui = self.ui
        ui.folderEdit.filters = ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Files
        ui.folderEdit.currentPath = settings.read("TrainFolder")
        ui.deviceSelector.setCurrentIndex(int(settings.read("TrainDevice", "0") or 0))
        ui.outlivesBox.checked = settings.read_flag("TrainOutlives")
        ui.casesTable.setColumnWidth(0, 240)
        ui.casesTable.verticalHeader().setDefaultSectionSize(22)
        for sender, signal, handler in (
            (ui.sourceSelector, "currentIndexChanged(int)", self._source_chosen),
            (ui.folderEdit, "currentPathChanged(QString)", self._folder_chosen),
            (ui.casesTable, "itemChanged(QTableWidgetItem*)", self._case_ticked),
            (ui.labelsList, "itemChanged(QListWidgetItem*)", self._label_ticked),
            (ui.checkButton, "clicked()", self.check),
            (ui.startButton, "clicked()", self.start),
            (ui.useButton, "clicked()", self.use),
            (ui.packagesButton, "clicked()", self.install),
            (ui.outlivesBox, "toggled(bool)", self._outlives_chosen),
            (ui.deviceSelector, "activated(int)", self._device_chosen),
        ):
            self._connections.add(sender, signal, handler)
        host.listen("Turn", self.refresh)
        host.listen("SessionStarted", lambda _: self.show_stored())
        self._fill_bases()
        self._source_chosen(0)

    def close(self):
        self._connections.close()
        self._give_up_writing()
        if self._check is not None:
            self._check.kill()
        self.runs.close()

    @property
    def unfolded(self):
        return not self.ui.trainSection.collapsed

    def refresh(self):
        """Looks at the scene only while the section is open, and at a training always."""
        if not self._looked and (self.unfolded or time.monotonic() > self._look_after > 0):
            self._looked = True
            self.runs.find()
        self._look_after = self._look_after or time.monotonic() + LOOK_EVERY  # not while Slicer opens the panel
        self.runs.refresh()
        self._write_some()
        self._follow_check()
        if self.unfolded and time.monotonic() > self._look_after and not self.host.drawing():
            self._look_after = time.monotonic() + LOOK_EVERY
            self._look_at_scene()
            self._show_packages()
        self._enable()

    def _enable(self):
        busy = self._writing is not None or self._check is not None
        missing = self.missing()
        for button, usable in (
            (self.ui.checkButton, not busy),
            (self.ui.startButton, not busy and not missing and not self.runs.is_running),
        ):
            if button.enabled != usable:
                button.setEnabled(usable)

    def scene_closes(self):
        """What belongs to the scene goes with it; a training goes on."""
        self._give_up_writing()
        self._cases, self._seen, self._left_out, self._known = [], None, set(), set()
        self.ui.casesTable.setRowCount(0)
        if self.from_scene:
            self._set_labels([])
        self.runs.scene_closes()

    # ---- what it needs

    def missing(self):
        """Titles of what training needs and is not here. Looks, imports nothing."""
        return [] if torch_is_there() and not packages.TRAINING.missing() else ["PyTorch and PEFT"]

    def _show_packages(self):
        missing = bool(self.missing())
        set_visible(self.ui.packagesFrame, missing)
        if missing:
            wanted = packages.TRAINING
            torch = "" if torch_is_there() else "PyTorch (from Slicer's extension PyTorch, hundreds of megabytes) and "
            set_text(self.ui.packagesLabel, f"Training needs {torch}{wanted.title}: {wanted.size}.")

    def install(self):
        """What is missing: PyTorch through its extension, the rest into our own folder."""
        if not torch_is_there() and not install_torch(self.host, "Training", "open this section again"):
            return
        if packages.TRAINING.missing():
            self._install(packages.TRAINING, self._show_packages)
        self._show_packages()

    # ---- what to learn from

    @property
    def from_scene(self):
        return self.ui.sourceSelector.currentIndex == FROM_SCENE

    @property
    def chosen_cases(self):
        usable = [case for case in self._cases if not case.problem]
        return [case for case in usable if case.segmentation_node.GetID() not in self._left_out]

    @property
    def wanted(self):
        """Labels to learn, as the training is told; none means all."""
        told = [label for title, label in self._labels if title not in self._unlearned]
        return told if len(told) < len(self._labels) or self.from_scene else []

    def _source_chosen(self, index):
        set_visible(self.ui.casesTable, self.from_scene)
        set_visible(self.ui.folderEdit, not self.from_scene)
        self._seen = None
        self._set_labels([])
        set_text(self.ui.checkLabel, "" if self.from_scene else "Check cases lists the labels that there are.")

    def _folder_chosen(self, path):
        settings.write("TrainFolder", path)
        if not self.from_scene:
            self._set_labels([])

    def _look_at_scene(self):
        from SAMFineTuneLib.mrml.training_cases import scene_cases

        if not self.from_scene or slicer.mrmlScene.IsBatchProcessing():
            return
        cases = scene_cases(slicer.mrmlScene)
        seen = [(case.segmentation_node.GetID(), case.title, case.names, case.problem) for case in cases]
        if seen != self._seen:
            self._leave_out_second_ones(cases)
            self._cases, self._seen = cases, seen
            self._fill_cases()
            self._labels_of_cases()

    def _leave_out_second_ones(self, cases):
        """Of several segmentations of a volume, the first one is learned from unless the user says otherwise."""
        volumes = set()
        for case in cases:
            volume, node = case.volume_node.GetID(), case.segmentation_node.GetID()
            if volume in volumes and node not in self._known:
                self._left_out.add(node)
            volumes.add(volume)
            self._known.add(node)

    def _fill_cases(self):
        table = self.ui.casesTable
        with quiet(table):
            table.setRowCount(len(self._cases))
            self._items = []
            for row, case in enumerate(self._cases):
                title = qt.QTableWidgetItem(case.title)
                if not case.problem:
                    out = case.segmentation_node.GetID() in self._left_out
                    title.setCheckState(qt.Qt.Unchecked if out else qt.Qt.Checked)
                names = qt.QTableWidgetItem(case.problem or ", ".join(case.names))
                names.setToolTip(case.problem or ", ".join(case.names))
                for column, item in enumerate((title, names)):
                    table.setItem(row, column, item)
                    self._items.append(item)
        if not self._cases:
            set_text(self.ui.checkLabel, "No segmentation in the scene has segments yet: load annotated volumes, or "
                                         "choose a folder.")  # fmt: skip
        elif self.ui.checkLabel.text.startswith("No segmentation"):
            set_text(self.ui.checkLabel, "")

    def _case_ticked(self, item):
        row = item.row()
        if item.column() == 0 and row < len(self._cases):
            known = self._cases[row].segmentation_node.GetID()
            (self._left_out.discard if item.checkState() == qt.Qt.Checked else self._left_out.add)(known)
            self._labels_of_cases()

    def _labels_of_cases(self):
        self._set_labels([(name, name) for name in sorted({n for case in self.chosen_cases for n in case.names})])

    def _set_labels(self, labels):
        if labels == self._labels:
            return
        self._labels = labels
        view = self.ui.labelsList
        with quiet(view):
            view.clear()
            self._label_items = []
            for title, _ in labels:
                item = qt.QListWidgetItem(title)
                item.setCheckState(qt.Qt.Unchecked if title in self._unlearned else qt.Qt.Checked)
                view.addItem(item)
                self._label_items.append(item)

    def _label_ticked(self, item):
        ticked = item.checkState() == qt.Qt.Checked
        (self._unlearned.discard if ticked else self._unlearned.add)(item.text())

    def _fill_bases(self):
        """Models of this computer that have weights to learn from."""
        from SAMFineTuneLib.models.store import Store

        self._bases = [model.spec for model in Store().list() if model.has("weights")]
        self._bases.sort(key=lambda spec: spec.id != BUNDLED)
        for spec in self._bases:
            self.ui.baseSelector.addItem(spec.name)

    # ---- kept in the scene

    def _store(self):
        from SAMFineTuneLib.mrml.storage import ParameterNode

        values = values_of(self.ui) | {
            "source": self.ui.sourceSelector.currentIndex, "base": self._base, "unlearned": sorted(self._unlearned),
        }  # fmt: skip
        parameters = ParameterNode(slicer.mrmlScene)
        parameters.set(_PARAMETER, json.dumps(values))
        parameters.node.RemoveNodeReferenceIDs(_LEFT_OUT)
        for node_id in sorted(self._left_out):
            if slicer.mrmlScene.GetNodeByID(node_id) is not None:
                parameters.node.AddNodeReferenceID(_LEFT_OUT, node_id)

    def show_stored(self):
        """What the scene says, after it was loaded or a session began."""
        from SAMFineTuneLib.mrml.storage import ParameterNode

        parameters = ParameterNode(slicer.mrmlScene)
        try:
            values = json.loads(parameters.get(_PARAMETER, "{}"))
            if not values:
                return
            show_values(self.ui, values)
            self._unlearned = {str(name) for name in values.get("unlearned", ())}
            self.ui.sourceSelector.setCurrentIndex(int(values.get("source", FROM_SCENE)))
            ids = [spec.id for spec in self._bases]
            self.ui.baseSelector.setCurrentIndex(ids.index(values["base"]) if values.get("base") in ids else 0)
        except (ValueError, TypeError, AttributeError):
            return  # written by something else
        node = parameters.node
        count = node.GetNumberOfNodeReferences(_LEFT_OUT)
        self._left_out = {node.GetNthNodeReferenceID(_LEFT_OUT, index) for index in range(count)}
        self._known = set(values.get("known", ()))
        self._seen = None

    def _outlives_chosen(self, wanted):
        settings.write("TrainOutlives", bool(wanted))

    def _device_chosen(self, index):
        settings.write("TrainDevice", str(index))

    # ---- checking and starting

    @property
    def _base(self):
        index = self.ui.baseSelector.currentIndex
        return self._bases[index].id if 0 <= index < len(self._bases) else BUNDLED

    def check(self):
        """Look at the cases, in a process of its own: reading them takes long."""
        from SAMFineTuneLib.service.training_runs import check_run

        self.host.act(self._begin, lambda: check_run(), True)

    def start(self):
        """Check the settings, write the scene's cases into a folder of the training, and start it."""
        from SAMFineTuneLib.service.training_runs import free_name, new_run

        name = self.ui.nameEdit.text.strip()
        if not name:
            name = free_name(self._proposed_name())
        self.host.act(self._begin, lambda: new_run(name), False)

    def _proposed_name(self):
        labels = [title for title, _ in self._labels if title not in self._unlearned]
        folder = os.path.basename(os.path.normpath(self.ui.folderEdit.currentPath or "adapter"))
        stem = "-".join(labels[:2]) or folder.partition(".")[0]
        return f"{stem}-{PRESETS[self.ui.presetSelector.currentIndex]}"

    def _begin(self, make_run, only_check):
        from SAMFineTuneLib.errors import UserError
        from SAMFineTuneLib.mrml.training_cases import are_all_ct, export_of
        from SAMFineTuneLib.service.exported_cases import write_cases
        from SAMFineTuneLib.service.training_job import CASES, TrainingJob

        cases = self.chosen_cases if self.from_scene else []
        source = "" if self.from_scene else self.ui.folderEdit.currentPath.strip()
        if self.from_scene and not cases:
            raise UserError("No case is ticked: load volumes with segmentations, and tick those to learn from.")
        if not self.from_scene and not source:
            raise UserError("No folder is chosen: choose one with images/ and labels/.")
        if self._labels and all(title in self._unlearned for title, _ in self._labels):
            raise UserError("No label is ticked; tick those to learn.")
        wanted = self.wanted
        how = settings_of(self.ui, () if only_check and not self.from_scene else wanted, are_all_ct(cases))
        exported = export_of(cases, wanted)
        run = make_run()
        TrainingJob(run.name, self._base, how, source, only_check).write(run.folder)
        self._store()
        steps = write_cases(exported, run.folder / CASES) if exported else iter(())
        self._writing = (run, steps, only_check)
        set_text(self.ui.checkLabel, "Copying the cases." if exported else "")
        self.host.wake()

    def _write_some(self):
        """Go on writing cases for a moment; then the process starts."""
        from SAMFineTuneLib.errors import UserError

        if self._writing is None:
            return
        run, steps, only_check = self._writing
        self.host.wake()
        end = time.monotonic() + WRITE_FOR
        try:
            for done in steps:
                if time.monotonic() > end:
                    set_text(self.ui.checkLabel, f"Copying the cases: {100 * done:.0f} %.")
                    return
        except UserError as error:
            self._give_up_writing()
            self.host.warn(str(error))
            return
        self._writing = None
        set_text(self.ui.checkLabel, "Checking the cases." if only_check else "")
        if only_check:
            self._check = run
            self.host.act(run.start, sys.executable, worker.environment())
        else:
            self.runs.add(run)
            self.runs.start(self.ui.outlivesBox.checked)

    def _give_up_writing(self):
        writing, self._writing = self._writing, None
        if writing is not None:
            writing[1].close() if hasattr(writing[1], "close") else None
            writing[0].discard()
            set_text(self.ui.checkLabel, "")

    def _follow_check(self):
        run = self._check
        if run is None:
            return
        run.poll()
        if run.state == "running":
            return
        self._check = None
        set_text(self.ui.checkLabel, self._findings(run))
        if run.state == "checked" and not self.from_scene:
            names, wanted = run.last["names"], run.last["wanted"]
            self._set_labels(list(zip(names, wanted or [], strict=False)))
        run.discard()

    def _findings(self, run):
        if run.state == "failed":
            return self._with_titles(run.last.get("text", ""))
        if run.state != "checked":
            return "The check ended before it was done; check again."
        found = run.last
        cases, patients = found["cases"], found["patients"]
        text = f"{cases} case{'s' * (cases != 1)} of {patients} patient{'s' * (patients != 1)}: "
        text += f"{found['slices']} labelled slices of {', '.join(found['names'])}."
        if patients == 1:
            text += " With one patient nothing can be tested: what the adapter gains will not be known."
        return " ".join([text, *map(self._with_titles, found["notes"])])

    def _with_titles(self, sentence):
        """What leaves the scene has numbers; people know the volumes by their names."""
        if not self.from_scene:
            return sentence
        titles = {str(number): case.volume_node.GetName() for number, case in enumerate(self.chosen_cases, start=1)}
        return re.sub(r"\b([Cc]ases?) (\d+)\b", lambda m: f"{m[1]} {titles.get(m[2], m[2])}", sentence)

    # ---- afterwards

    def _training_ended(self, run):
        if run.state == "done":
            self.host.say(f"The adapter {run.last['adapter']} is ready.")
            self.host.tell("TrainingDone", run)
            self.use()

    def use(self):
        """Answer with the adapter of the training that is shown."""
        run = self.runs.run
        if run is None or run.state != "done":
            return
        if self.host.remote:
            self.host.say("The adapter is on this computer; to use it, choose This computer under Server, or give its "
                          "folder to whoever runs the server.")  # fmt: skip
        elif "promptable" not in run.last["heads"]:
            self.host.say("This adapter answers no prompts; choose it under Automatic.")
        else:
            self._use_adapter(run.last["base"], run.last["adapter"])
