"""Segments from an adapter that finds its labels by itself, without prompts."""

from slicer.i18n import tr as _

from .qt_helpers import chosen_in, enable, fill_menu
from .shown_views import shown_slice

ON_SLICE = "slice"  # an entry of the menu of what to search


class AdapterLabels:
    """Adapters with an automatic head, and the job that runs one. `keep(job, numbers, names)` makes segments, with a
    number after a name that another segment has.
    """

    def __init__(self, host, ui, keep):
        self.host, self.ui = host, ui
        self._keep = keep
        self._adapters = []  # the worker's adapters that find labels
        self._asked = False
        self._job = None
        self._wanted = None  # the adapter that the job runs
        host.connect((ui.labelsButton, "clicked()", self.find))
        host.listen("Turn", self.refresh)
        host.listen("Objects", self._found)
        host.listen("Finished", self._finished)
        for event in ("TabShown", "SessionEnded", "TrainingDone"):
            host.listen(event, lambda _: self.forget())
        ui.labelsFrame.setVisible(False)

    def forget(self):
        """Ask the worker again which adapters there are."""
        self._asked = False

    def refresh(self):
        ready = self.host.ready
        if ready and not self._asked and self.ui.findButton.visible:
            self._asked = True
            self.host.ask(self.host.client.ask("adapters"), self._known)
        running = self.host.runs("everything")
        enable((self.ui.labelsButton, ready and self.host.has_volume and self._adapters and not running))

    def _known(self, rows):
        self._adapters = [row for row in rows if len(row.get("classes", ())) > 1]
        entries = [(row["id"], f"{row['id']}: {', '.join(row['classes'][1:])}") for row in self._adapters]
        fill_menu(self.ui.labelsSelector, entries)
        self.ui.labelsFrame.setVisible(bool(self._adapters))

    def find(self):
        """Search the slice shown or the volume, as chosen above."""
        from SAMFineTuneLib.cases.case_slices import learned_orientations

        session, index = self.host.session, self.ui.labelsSelector.currentIndex
        if session is None or session.volume is None or not 0 <= index < len(self._adapters):
            return
        row = self._adapters[index]
        orientation, first = "", None  # as it learned
        if chosen_in(self.ui.whereSelector) == ON_SLICE:
            orientation = learned_orientations(session.volume, {"orientation": row.get("orientation")})[0]
            first = shown_slice(session.volume, orientation)
            if first is None:
                self.host.warn(_(
                    "This adapter looks at {orientation} slices, and no view shows one; show one, or take the whole "
                    "volume."
                ).format(orientation=orientation))  # fmt: skip
                return
        self._wanted = row
        asked = (row["model"], row["id"], session.device, orientation, first, first)
        self._job = self.host.act(self.host.client.find_labels, *asked)

    def _found(self, event):
        if event.job != self._job or not event.objects:
            return
        self._job = None
        numbers = [info.number for info in event.objects]
        self._keep(event.job, numbers, [self._wanted["classes"][number] for number in numbers])

    def _finished(self, event):
        """Report that nothing was found, when the job ended without objects."""
        if event.job is None or event.job != self._job:
            return
        self._job = None
        if not event.cancelled:
            self.host.say(_("{adapter} found none of its labels there.").format(adapter=self._wanted["id"]))
