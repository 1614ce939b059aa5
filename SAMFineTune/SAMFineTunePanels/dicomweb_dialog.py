"""The dialog for a DICOMweb server, such as a PACS: fetches series into a folder, and stores accepted cases.

A process for each piece of work talks to the server. It gets user, password and token in its environment; the dialog
keeps them as long as the panel exists, and they are never written to a file.
"""

import os
import secrets
import sys

import ctk
from slicer.i18n import tr as _

from . import packages
from .qt_helpers import TextTable, enable, load_dialog, read_setting, set_text, write_setting

_TOPIC = "dicomweb"
_TITLES = {"fetch": _("Fetch scans from a PACS (DICOMweb)"), "store": _("Store accepted cases on a PACS (DICOMweb)")}
_DOES = {
    "list_series": _("Asking the server."),
    "fetch_series": _("Fetching image {number} of {total}."),
    "store": _("Storing case {number} of {total}."),
}
_ROWS = 6  # of the table


class DicomwebDialog:
    """`environment(folder)` is that of a process that works on a cohort."""

    def __init__(self, host, resource_path, ask_to_install, environment):
        self.host, self._ask_to_install, self._environment = host, ask_to_install, environment
        self._work = None  # (queue, number, what) while a process talks to the server
        self._ended = []  # queues whose process has ended or will end soon
        self._rows, self._listed = [], []  # series that are shown, and that arrive
        self._cohort, self._then = "", None
        self.dialog, self._widget, self.ui = load_dialog(resource_path, "DicomwebDialog", "")
        ui = self.ui
        self._table = TextTable(ui.seriesTable, (0,), _ROWS, _ROWS)
        ui.folderEdit.filters, ui.certificateEdit.filters = ctk.ctkPathLineEdit.Dirs, ctk.ctkPathLineEdit.Files
        ui.addressEdit.text = read_setting("DicomwebAddress")
        ui.certificateEdit.currentPath = read_setting("DicomwebCertificate")
        ui.folderEdit.currentPath = read_setting("DicomwebFolder", os.path.join(os.path.expanduser("~"), "scans"))
        host.connect(
            (ui.addressEdit, "textChanged(QString)", lambda text: self._say(about_encryption(text.strip()))),
            (ui.listButton, "clicked()", lambda: host.act(self.list_series)),
            (ui.patientEdit, "returnPressed()", lambda: host.act(self.list_series)),
            (ui.seriesTable, "itemSelectionChanged()", lambda: self._show()),
            (ui.goButton, "clicked()", lambda: host.act(self.go)),
            (ui.stopButton, "clicked()", self.stop),
            (ui.closeButton, "clicked()", lambda: self.dialog.hide()),
        )

    def close(self):
        self._end()
        self.dialog.hide()
        self.dialog.deleteLater()

    def fetch(self, then):
        """Open the dialog to fetch series; `then(folder)` is called when they have been fetched."""
        self._open("fetch", "", then)

    def store(self, cohort):
        """Open the dialog to store the accepted cases of a cohort's folder."""
        self._open("store", cohort, None)

    def _open(self, what, cohort, then):
        if self._work is None:  # otherwise the dialog shows what it is doing
            self._cohort, self._then = cohort, then
            self.dialog.setWindowTitle(_TITLES[what])
            self.ui.fetchFrame.setVisible(not cohort)
            self.dialog.adjustSize()
            self._say(about_encryption(self._typed("addressEdit")))
        self.dialog.show()

    # ---- what is asked of the server

    def list_series(self):
        """Ask the server for its series."""
        self._table.fill([])
        self._rows, self._listed = [], []
        self._begin("list_series", modality=self._typed("modalityEdit"))

    def go(self):
        """Fetch the series that are selected, or store the accepted cases."""
        from SAMFineTuneLib.service.cohort_client import place_of

        if self._cohort:
            if place_of(self._cohort) is None and packages.DICOM_SEG.missing():  # a server has its own
                self._ask_to_install(packages.DICOM_SEG, self.go)
                return
            self._begin("store", cohort=self._cohort)
            return
        folder = os.path.abspath(os.path.expanduser(self.ui.folderEdit.currentPath.strip()))
        write_setting("DicomwebFolder", folder)
        wanted = [self._rows[row][0] for row in self._table.selected_rows]
        self._begin("fetch_series", modality=self._typed("modalityEdit"), series=wanted, folder=folder)

    def stop(self):
        """Stop at the next image."""
        if self._work is not None:
            self._work[0].stop()
            set_text(self.ui.statusLabel, _("Stopping."))

    def _begin(self, what, **values):
        from SAMFineTuneLib.cohort.dicomweb_store import PASSWORD, PATIENT, TOKEN, USER
        from SAMFineTuneLib.files import data_folder
        from SAMFineTuneLib.service.cohort_work import CohortWork

        if self._work is not None:
            return
        address, certificate = self._typed("addressEdit"), self.ui.certificateEdit.currentPath.strip()
        write_setting("DicomwebAddress", address)
        write_setting("DicomwebCertificate", certificate)
        environment = dict(self._environment(self._cohort or values.get("folder", "")))
        environment[PATIENT] = self._typed("patientEdit")
        if secret := self.ui.passwordEdit.text:
            user = self._typed("userEdit")
            environment |= {USER: user, PASSWORD: secret, TOKEN: ""} if user else {TOKEN: secret, USER: ""}
        work = CohortWork(data_folder() / "cohorts" / "dicomweb", f"{secrets.token_hex(8)}-pacs")
        number = work.put(what, address=address, certificate=certificate, **values)
        work.start(sys.executable, environment)
        self._work = work, number, what
        self._say(_DOES["list_series"])

    # ---- every turn

    def refresh(self):
        self._ended = [queue for queue in self._ended if queue.is_running or queue.forget()]
        if self._work is None:
            return
        work, number, what = self._work
        for event in work.poll_piece(number):
            kind = event["event"]
            if kind == "progress":
                self._show_progress(what, event["done"], event["total"])
            elif kind == "series":
                self._listed += event["rows"]
            elif kind in ("done", "failed", "stopped", "ended"):
                self._end()
                self._told(what, event)
                return

    def _told(self, what, event):
        if event["event"] == "ended":
            self._tell(_("The server could not be reached ({why}); try again.").format(**event))
        elif event["event"] != "done":
            self._tell(event.get("text") or _("Stopped."))
        elif what == "list_series":
            self._rows = self._listed
            self._table.fill([(name or "?", kind, str(images or "?")) for folder, name, kind, images in self._rows])
            self.ui.seriesTable.selectAll()
            text = _("{count} series; deselect those that you do not want.").format(count=len(self._rows))
            if event["more"]:
                text = _("The first {count} series of {total}; enter a patient or a modality to see others.").format(
                    count=len(self._rows), total=len(self._rows) + event["more"])
            self._say(text if self._rows else _("The server has no such image series."))
        elif what == "fetch_series":
            self.dialog.hide()
            self._say("")
            self.host.say(_("Fetched: {count} series into {folder}.").format(**event), _TOPIC, event["folder"])
            self._then(event["folder"])
        else:
            self._tell(" ".join([_("Stored: {stored} DICOM SEG.").format(**event), *event["notes"]]))

    def _tell(self, sentence):
        """Say something in the dialog, or among the messages once it was closed."""
        self._say(sentence)
        if not self.dialog.visible:
            self.host.warn(sentence, _TOPIC)

    def _end(self):
        work, self._work = self._work, None
        if work is not None:
            work[0].close()
            self._ended.append(work[0])
        self._show()

    # ---- what is shown

    def _typed(self, name):
        return getattr(self.ui, name).text.strip()

    def _say(self, sentence):
        self._show()
        set_text(self.ui.statusLabel, sentence)

    def _show_progress(self, what, done, total):
        self.ui.workBar.setMaximum(1000)
        self.ui.workBar.value = int(1000 * done / max(total, 1))
        if self.ui.statusLabel.text != _("Stopping."):
            set_text(self.ui.statusLabel, _DOES[what].format(number=min(done + 1, total), total=total))

    def _show(self):
        ui, busy = self.ui, self._work is not None
        chosen = len(self._table.selected_rows)
        fetch = _("Fetch {count} series").format(count=chosen) if chosen else _("Fetch")
        set_text(ui.goButton, _("Store") if self._cohort else fetch)
        enable((ui.goButton, not busy and (self._cohort or chosen)), (ui.listButton, not busy),
               (ui.addressEdit, not busy))
        ui.workBar.setVisible(busy)
        ui.stopButton.setVisible(busy)
        if not busy:
            ui.workBar.setMaximum(0)  # until the amount is known


def about_encryption(address):
    """A warning for an address to which passwords would travel unencrypted; "" for others."""
    from SAMFineTuneLib.cohort.dicomweb_store import is_private

    if not address.startswith("http:") or is_private(address):
        return ""
    return _("Images and passwords travel without encryption; use https:// where the server has a certificate.")
