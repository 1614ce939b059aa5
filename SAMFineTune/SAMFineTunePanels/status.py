"""Top of the panel: what goes wrong, what runs, how the worker is, and the one button that installs its runtime."""

import logging
import time

import qt
import slicer
from slicer.i18n import tr as _

from . import packages
from .qt_helpers import Connections, load_ui, set_text, set_visible

MOST_MESSAGES = 3
NOTICE_SECONDS = 20.0


class StatusSection:
    """Messages are sentences in the panel, never dialogs; a warning stays until it is dismissed or answered."""

    def __init__(self, host, resource_path, parent):
        self.host = host
        self.widget, self.ui = load_ui(resource_path, "Status")
        self._connections = Connections()
        self._messages = []  # (sentence, whether it is a warning, when)
        self.installer = packages.Installer(parent, self._installing, self._installed)
        self._install_text = None
        self._install_fraction = None
        self._after_installation = None
        for sender, signal, handler in (
            (self.ui.dismissButton, "clicked()", self.dismiss),
            (self.ui.cancelButton, "clicked()", self.cancel),
            (self.ui.installButton, "clicked()", self.install_runtime),
            (self.ui.retryButton, "clicked()", self.retry),
        ):
            self._connections.add(sender, signal, handler)
        host.listen("Warning", self.warn)
        host.listen("Say", self.say)
        host.listen("Notice", lambda event: self.say(event.text))
        host.listen("Failed", lambda event: self.warn(event.text))
        host.listen("Turn", self.refresh)
        self._icons = {}
        self.check_runtime()
        self.refresh()

    def close(self):
        self._connections.close()
        self.installer.close()

    # ---- messages

    @property
    def messages(self):
        return [text for text, _, _ in self._messages]

    def warn(self, text):
        self._add(text, True)

    def say(self, text):
        self._add(text, False)

    def _add(self, text, warning):
        if not text:
            return
        if warning:
            logging.warning("SAMFineTune: %s", text)
        self._messages = [message for message in self._messages if message[0] != text]
        self._messages.append((text, warning, time.monotonic()))
        self._messages = self._messages[-MOST_MESSAGES:]
        self._show_messages()

    def dismiss(self):
        self._messages = []
        self._show_messages()

    def _show_messages(self):
        set_visible(self.ui.messageFrame, bool(self._messages))
        set_text(self.ui.messageLabel, "\n".join(self.messages))
        warning = any(is_warning for _, is_warning, _ in self._messages)
        self.ui.messageIcon.setPixmap(self._icon(warning))

    def _icon(self, warning):
        if warning not in self._icons:
            style = self.ui.messageFrame.style()
            kind = qt.QStyle.SP_MessageBoxWarning if warning else qt.QStyle.SP_MessageBoxInformation
            self._icons[warning] = style.standardIcon(kind).pixmap(20, 20)
        return self._icons[warning]

    # ---- what runs

    def refresh(self):
        now = time.monotonic()
        kept = [message for message in self._messages if message[1] or now - message[2] < NOTICE_SECONDS]
        if len(kept) != len(self._messages):
            self._messages = kept
            self._show_messages()
        text, fraction, cancellable = self._running()
        set_visible(self.ui.busyFrame, bool(text))
        if text:
            set_text(self.ui.busyLabel, text)
            self._show_fraction(fraction)
            set_visible(self.ui.cancelButton, cancellable)
        set_text(self.ui.statusLabel, self._status())
        set_visible(self.ui.retryButton, getattr(self.host.status, "state", "") == "failed")

    def retry(self):
        """The worker could not be reached or started; something may have changed."""
        if self.host.client is not None:
            self.dismiss()
            self.host.client.retry()
            self.host.wake()

    def _show_fraction(self, fraction):
        bar = self.ui.busyBar
        maximum = 0 if fraction is None else 1000  # 0: it moves to and fro
        if bar.maximum != maximum:
            bar.maximum = maximum
        if fraction is not None:
            bar.value = int(1000 * min(max(fraction, 0.0), 1.0))

    def _running(self):
        """(text, fraction or None, whether it can be cancelled) of what is going on, most urgent first."""
        if self.installer.running:
            return self._install_text, self._install_fraction, True
        task, jobs = self.host.task, self.host.jobs
        if task is not None:
            return task.text, task.fraction, task.cancellable
        if jobs:
            busy = jobs[max(jobs, key=lambda number: -1 if number is None else number)]
            return busy.text + time_left(busy.seconds_left), busy.fraction, True
        status = self.host.status
        if status is not None and status.state in ("starting", "connecting", "uploading"):
            return status.sentence, status.progress, False
        return "", None, False

    def cancel(self):
        if self.installer.running:
            self.installer.cancel()
            return
        if self.host.task is not None:
            self.host.end_task()
            return
        session = self.host.session
        for job in list(self.host.jobs):
            if job is None:
                self.host.act(self.host.client.stop_embedding)
            else:
                self.host.act(session.cancel, job)

    def _status(self):
        status = self.host.status
        if status is None:
            return _("Open a volume to begin.") if slicer.mrmlScene.GetNumberOfNodesByClass(
                "vtkMRMLScalarVolumeNode") == 0 else ""
        if status.state == "ready":
            model = f": {status.model}" if status.model else ""
            return f"Ready{model}" + (f" on {status.device}" if status.model and status.device else "")
        return "" if status.state in ("starting", "connecting", "uploading") else status.sentence

    # ---- the worker's runtime

    def check_runtime(self):
        """Whether the local worker can run; asked again when the section of the server changes."""
        missing = self.runtime_missing()
        set_visible(self.ui.runtimeFrame, missing)
        if missing:
            wanted = packages.ONNX_RUNTIME
            self.ui.runtimeLabel.text = _(
                "SAMFineTune needs {title}: {size}. It goes into a folder of its own; Slicer's packages stay as they "
                "are."
            ).format(title=wanted.title, size=wanted.size)
        return missing

    def runtime_missing(self):
        return not self.host.remote and packages.ONNX_RUNTIME.missing()

    def install_runtime(self):
        self.install(packages.ONNX_RUNTIME, self._runtime_installed)

    def _runtime_installed(self):
        self.check_runtime()
        self.say(_("ONNX Runtime is installed."))
        self.host.tell("RuntimeInstalled", None)

    def install(self, wanted, afterwards):
        """Install packages, then call `afterwards()`."""
        if self.installer.running:
            self.warn(_("An installation is running; wait for it or cancel it."))
            return
        self._after_installation = afterwards
        self.ui.installButton.setEnabled(False)
        self.installer.start(wanted)
        self.refresh()

    def _installing(self, text, fraction):
        self._install_text, self._install_fraction = text, fraction

    def _installed(self, error):
        self.ui.installButton.setEnabled(True)
        afterwards, self._after_installation = self._after_installation, None
        self.host.tell("Installed", None)
        if error:
            self.warn(error)
        elif afterwards is not None:
            afterwards()
        self.refresh()


def time_left(seconds):
    """", about 2 min left", empty when unknown or nearly over."""
    if seconds is None or seconds < 3:
        return ""
    if seconds < 90:
        return _(", about {count} s left").format(count=5 * max(1, round(seconds / 5)))
    return _(", about {count} min left").format(count=round(seconds / 60))
