"""The Train tab: an adapter from one's own annotated cases, in a process of its own."""

import json
import sys
import time

import slicer
from slicer.i18n import tr as _

from . import packages
from .model_settings import BUNDLED, install_torch, torch_is_there
from .qt_helpers import (
    choose_in,
    chosen_in,
    enable,
    fill_menu,
    load_ui,
    read_flag,
    read_setting,
    set_text,
    write_setting,
)
from .train_cases import TrainCases
from .train_options import fill_menus, settings_of, show_values, values_of
from .train_run import TrainRuns

LOOK_EVERY = 1.0  # s between two checks at the scene's segmentations
WRITE_FOR = 0.01  # s of a turn in which cases are written
_PARAMETER = "Train"


class TrainTab:
    """Starts trainings: `TrainCases` chooses the cases, `train_options` the settings, `TrainRuns` follows running ones.
    """

    def __init__(self, host, resource_path, install, use_adapter):
        self.host = host
        self._install = install
        self._use_adapter = use_adapter
        self.widget, self.ui = load_ui(resource_path, "TrainTab")
        self._look_after = 0.0
        self._writing = None  # (the run, steps that write its cases, whether it only checks them)
        self._check = None  # the run that checks cases
        self._looked = False  # whether earlier trainings were looked up
        ui = self.ui
        self.cases = TrainCases(ui)
        self.runs = TrainRuns(host, ui, self._training_ended)
        fill_menus(ui)
        choose_in(ui.deviceSelector, read_setting("TrainDevice"))
        ui.outlivesBox.checked = read_flag("TrainOutlives")
        host.connect(
            (ui.checkButton, "clicked()", self.check),
            (ui.startButton, "clicked()", self.start),
            (ui.useButton, "clicked()", self.use),
            (ui.packagesButton, "clicked()", self.install),
            (ui.outlivesBox, "toggled(bool)", lambda wanted: write_setting("TrainOutlives", bool(wanted))),
            (ui.deviceSelector, "activated(int)", lambda _: write_setting("TrainDevice", chosen_in(ui.deviceSelector))),
        )
        host.listen("Turn", self.refresh)
        host.listen("SessionStarted", lambda _: self.show_stored())
        self._fill_bases()
        ui.packagesFrame.setVisible(False)

    def close(self):
        self._give_up_writing()
        if self._check is not None:
            self._check.kill()
        self.cases.close()
        self.runs.close()

    def refresh(self):
        """Look at the scene while the tab is open, and at the training always."""
        now = time.monotonic()
        if not self._looked and (self.widget.visible or now > self._look_after > 0):
            self._looked = True
            self.runs.find()
        self._look_after = self._look_after or now + LOOK_EVERY  # not while Slicer opens the panel
        self.runs.refresh()
        self._write_some()
        self._follow_check()
        if self.widget.visible and now > self._look_after and not self.host.drawing():
            self._look_after = now + LOOK_EVERY
            self.cases.look()
            self.runs.find()
            self._show_packages()
        self._enable()
        self.host.training = self._going_on()

    def _going_on(self):
        """(text, fraction or None) for the status strip, None when nothing runs."""
        if self._writing is not None or self._check is not None:
            return self.ui.checkLabel.text, None
        return self.runs.going_on

    def _enable(self):
        busy = self._writing is not None or self._check is not None
        ready = not busy and not self.runs.is_running and self.ui.packagesFrame.isHidden()
        enable((self.ui.checkButton, not busy), (self.ui.startButton, ready))

    def scene_closes(self):
        """Forget what belongs to the scene; a training that runs is not stopped."""
        self._give_up_writing()
        self.cases.scene_closes()
        self.runs.scene_closes()

    # ---- what it needs

    def _show_packages(self):
        there = torch_is_there()
        missing = not there or packages.TRAINING.missing()
        self.ui.packagesFrame.setVisible(missing)
        if missing:
            wanted = packages.TRAINING
            torch = "" if there else _("PyTorch (from Slicer's extension PyTorch, hundreds of megabytes) and ")
            set_text(self.ui.packagesLabel, _("Training needs {torch}{title}: {size}.").format(
                torch=torch, title=wanted.title, size=wanted.size))

    def install(self):
        """Install what is missing: PyTorch through its extension, the rest into the folder of SAMFineTune."""
        words = _("Training"), _("press Install again")
        if not torch_is_there() and not self.host.act(install_torch, self.host, *words):
            return
        if packages.TRAINING.missing():
            self._install(packages.TRAINING, self._show_packages)
        self._show_packages()

    # ---- the base model

    def _fill_bases(self):
        """List the models of this computer whose weights can be trained."""
        from SAMFineTuneLib.models.store import Store

        bases = [model.spec for model in Store().list() if model.has("weights")]
        bases.sort(key=lambda spec: spec.id != BUNDLED)
        fill_menu(self.ui.baseSelector, [(spec.id, spec.name) for spec in bases])

    @property
    def _base(self):
        return chosen_in(self.ui.baseSelector) or BUNDLED

    # ---- kept in the scene, and for the user

    def store(self):
        """Keep what was chosen in the scene."""
        from SAMFineTuneLib.mrml.storage import ParameterNode

        parameters = ParameterNode(slicer.mrmlScene)
        values = values_of(self.ui) | {"base": self._base} | self.cases.store(parameters)
        parameters.set(_PARAMETER, json.dumps(values))

    def show_stored(self):
        """Show what the scene keeps, after it was loaded or a session began."""
        from SAMFineTuneLib.mrml.storage import ParameterNode

        parameters = ParameterNode(slicer.mrmlScene)
        try:
            values = json.loads(parameters.get(_PARAMETER, "{}"))
            if values:
                show_values(self.ui, values)
                self.cases.show_stored(parameters, values)
                choose_in(self.ui.baseSelector, values.get("base"))
        except (ValueError, TypeError, AttributeError, OverflowError):
            pass  # not written by this panel

    # ---- checking and starting

    def check(self):
        """Check the cases in a process of its own, because reading them takes long."""
        from SAMFineTuneLib.service.trainings import check_run

        self.host.act(self._begin, check_run, True)

    def start(self):
        """Check the settings, write the scene's cases into a folder of the training, and start it."""
        from SAMFineTuneLib.service.trainings import free_name, new_run

        name = self.ui.nameEdit.text.strip()
        if not name:
            name = free_name(f"{self.cases.proposed_name()}-{chosen_in(self.ui.presetSelector)}")
        self.host.act(self._begin, lambda: new_run(name), False)

    def _begin(self, make_run, only_check):
        from SAMFineTuneLib.cases.exported_cases import write_cases
        from SAMFineTuneLib.mrml.training_cases import are_all_ct, export_of
        from SAMFineTuneLib.service.trainings import CASES, TrainingJob

        self.cases.require()
        chosen, wanted = self.cases.chosen, self.cases.wanted
        how = settings_of(self.ui, wanted if chosen or not only_check else (), are_all_ct(chosen))
        exported = export_of(chosen, wanted)
        run = make_run()
        TrainingJob(run.name, self._base, how, self.cases.folder, only_check).write(run.folder)
        self.store()
        steps = write_cases(exported, run.folder / CASES) if exported else iter(())
        self._writing = (run, steps, only_check)
        set_text(self.ui.checkLabel, _("Copying the cases.") if exported else "")
        self.host.wake()

    def _write_some(self):
        """Write cases for a moment; when all are written, start the process."""
        from SAMFineTuneLib.errors import UserError

        if self._writing is None:
            return
        run, steps, only_check = self._writing
        self.host.go_on()
        end = time.monotonic() + WRITE_FOR
        try:
            for done in steps:
                if time.monotonic() > end:
                    set_text(self.ui.checkLabel, _("Copying the cases: {percent:.0f} %.").format(percent=100 * done))
                    return
        except UserError as error:
            self._give_up_writing()
            self.host.warn(str(error))
            return
        self._writing = None
        set_text(self.ui.checkLabel, _("Checking the cases, and how long they take.") if only_check else "")
        if only_check:
            self._check = run
            self.host.act(run.start, sys.executable, packages.environment())
        else:
            self.runs.add(run)
            self.runs.start(self.ui.outlivesBox.checked)

    def _give_up_writing(self):
        writing, self._writing = self._writing, None
        if writing is not None:
            run, steps, _ = writing
            if hasattr(steps, "close"):
                steps.close()  # closes the file: Windows does not delete one that is open
            run.discard()
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
        if run.state == "checked":
            self.cases.take_labels(run.last["names"], run.last["wanted"])
        run.discard()

    def _findings(self, run):
        found = run.last
        if run.state == "failed":
            return self.cases.with_titles(found.get("text", ""))
        if run.state != "checked":
            return _("The check ended early; check again.")
        count, patients = found["cases"], found["patients"]
        text = _("{cases} of {patients}: {slices} labelled slices of {labels}.").format(
            cases=_("1 case") if count == 1 else _("{count} cases").format(count=count),
            patients=_("1 patient") if patients == 1 else _("{count} patients").format(count=patients),
            slices=found["slices"], labels=", ".join(found["names"]),
        )  # fmt: skip
        if "trainings" in found:
            text += " " + self._effort(found["trainings"], found["steps"], found["seconds"])
        if patients == 1:
            text += _(" With one patient the adapter cannot be tested: its gain will not be known.")
        return " ".join([text, *map(self.cases.with_titles, found["notes"])])

    @staticmethod
    def _effort(trainings, steps, seconds):
        """How many steps the training takes, and how long."""
        from SAMFineTuneLib.wording import duration

        if trainings == 1:
            text = _("One training of {steps} steps takes about {time} on this computer.")
        else:
            text = _("{trainings} trainings of up to {steps} steps, all but one of them to test what is gained, take "
                     "about {time} in all on this computer.")  # fmt: skip
        return text.format(trainings=trainings, steps=steps, time=duration(seconds))

    # ---- afterwards

    def _training_ended(self, run):
        if run.state == "done":
            self.host.say(_("The adapter {adapter} is ready.").format(adapter=run.last["adapter"]))
            self.host.tell("TrainingDone", run)
            self.use()

    def use(self):
        """Use the adapter of the training that is shown."""
        run = self.runs.run
        if run is None or run.state != "done":
            return
        if self.host.remote:
            self.host.say(_(
                "The adapter is on this computer; to use it, choose This computer under Server, or give its folder to "
                "the server's administrator."
            ))  # fmt: skip
        elif "promptable" not in run.last["heads"]:
            self.host.say(_("This adapter answers no prompts; choose it under Automatic."))
        else:
            self._use_adapter(run.last["base"], run.last["adapter"])
