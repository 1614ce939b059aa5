"""Settings of the server: models run on this computer, or on one in the network."""

import ctk
from slicer.i18n import tr as _

from . import packages
from .qt_helpers import confirmed, read_flag, read_setting, set_text, write_setting


class ServerSettings:
    """Nothing is sent to a server before the user presses Use."""

    def __init__(self, host, ui, changed, remove_packages):
        self.host, self.ui = host, ui
        self._changed = changed  # called when another server is to be used
        self._remove_packages = remove_packages
        self._probe = None
        ui.addressEdit.text = read_setting("ServerAddress")
        ui.tokenEdit.text = read_setting("ServerToken")
        ui.keepTokenBox.checked = bool(ui.tokenEdit.text)
        ui.certificateEdit.filters = ctk.ctkPathLineEdit.Files
        ui.certificateEdit.currentPath = read_setting("ServerCertificate")
        remote = read_flag("UseServer") and bool(ui.addressEdit.text)
        problem = self._problem() if remote else ""
        if problem:  # the settings were edited by hand, or by an earlier version
            host.warn(_("{problem} Models run on this computer for now.").format(problem=problem))
            remote = False
        ui.remoteButton.checked = remote
        ui.localButton.checked = not remote
        self.used = self._entered() if remote else None  # (address, token, certificate) in use, None: this computer
        host.connect(
            (ui.remoteButton, "toggled(bool)", self._show),
            (ui.testButton, "clicked()", self.test),
            (ui.applyButton, "clicked()", self.apply),
            (ui.keepTokenBox, "toggled(bool)", self._keep_token),
            (ui.removePackagesButton, "clicked()", self.remove_packages),
        )
        host.listen("Turn", self._follow_test)
        self._show(remote)
        self.show_packages()

    def close(self):
        self._end_test()

    @property
    def remote(self):
        return self.used is not None

    def _entered(self):
        ui = self.ui
        return (ui.addressEdit.text.strip(), ui.tokenEdit.text.strip(), ui.certificateEdit.currentPath.strip())

    def _show(self, remote):
        self.ui.remoteRow.setVisible(remote)
        self.ui.testButton.setVisible(remote)
        set_text(self.ui.serverLabel, "")

    def _keep_token(self, keep):
        """Remove the token from the settings at once when the box is unticked."""
        if not keep:
            write_setting("ServerToken", None)

    def _problem(self):
        """A sentence about an address that cannot be used, empty when it can."""
        from SAMFineTuneLib.errors import UserError

        try:
            self.connection(self._entered()).close()
        except UserError as error:
            return str(error)
        return ""

    def apply(self):
        """Use the entered settings from now on."""
        remote = self.ui.remoteButton.checked
        problem = self._problem() if remote else ""
        if problem:
            set_text(self.ui.serverLabel, problem)
            return
        self._end_test()
        self.used = self._entered() if remote else None
        write_setting("UseServer", remote)
        if remote:
            address, token, certificate = self.used
            write_setting("ServerAddress", address)
            write_setting("ServerCertificate", certificate)
            write_setting("ServerToken", token if self.ui.keepTokenBox.checked else None)
        sent = _("Volumes are now sent to {address}.")
        set_text(self.ui.serverLabel, sent.format(address=self.used[0]) if remote else _("Used: this computer."))
        self._changed()

    @staticmethod
    def connection(entered):
        from SAMFineTuneLib.service.remote_server import RemoteServer

        address, token, certificate = entered
        return RemoteServer(address, token, certificate or None)

    # ---- what was installed

    def show_packages(self):
        """Offer to remove packages when any were installed."""
        self.ui.packagesRow.setVisible(bool(packages.installed_folders()))

    def remove_packages(self):
        folder = packages.packages_folder()
        question = _("The packages of this module will be deleted: {folder}. Models then run on this computer only "
                     "after you install them again.")
        if confirmed(question.format(folder=folder), _("Remove")):
            self.host.act(self._remove_packages)
        self.show_packages()

    # ---- test

    def test(self):
        """Test the connection to the entered server; nothing of the scene is sent."""
        from SAMFineTuneLib.errors import UserError
        from SAMFineTuneLib.service.client import SessionClient

        self._end_test()
        try:
            self._probe = SessionClient(self.connection(self._entered()))
            self._probe.ask("models")
        except UserError as error:
            set_text(self.ui.serverLabel, str(error))
            return
        set_text(self.ui.serverLabel, _("Asking the server…"))
        self.host.wake()

    def _follow_test(self):
        if self._probe is None:
            return
        self.host.go_on()
        for event in self._probe.pump(0.01):
            kind = type(event).__name__
            if kind == "Answered":
                version = self._probe.status.version
                known = _(" (version {version})").format(version=version) if version else ""
                text = _("The server answers{known} and offers {count} models.").format(
                    known=known, count=len(event.value))
                set_text(self.ui.serverLabel, text)
                self._end_test()
                return
            if kind == "Failed" or (kind == "StatusChanged" and event.status.state == "failed"):
                set_text(self.ui.serverLabel, event.text if kind == "Failed" else event.status.sentence)
                self._end_test()
                return

    def _end_test(self):
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()
