"""The strip under the tabs: progress, the worker's state, messages, and the button that installs its runtime.

It always has the same height and place, so that nothing moves under the mouse and progress is seen from every tab.
"""

import html
import logging
import operator
import time
from dataclasses import dataclass, field

import qt
import slicer
from slicer.i18n import tr as _

from . import packages
from .package_installer import Installer
from .qt_helpers import confirmed, load_ui, set_elided

MOST_MESSAGES = 3
MESSAGE_LINES = 3  # visible messages; more can be scrolled to
NOTICE_SECONDS = 20.0
_SLOW = 1.0  # s after which a prompt without an answer is said to be waited for
_CANCELLING = _("Cancelling…")
_ROOM = 14  # pixels that a button is higher than its text
_TO_COME = object()  # the prompts that a message is about, before they are known
_MARGINS = 8  # pixels above and below a document


@dataclass(eq=False)
class Message:
    """A message for the user."""

    text: str
    warning: bool
    topic: str = ""  # its topic: a later message on the same topic replaces it
    folder: str = ""  # that a link opens
    about: object = None  # the prompts it is about, when it is about prompts; it goes when they change
    since: float = field(default_factory=time.monotonic)

    @property
    def html(self):
        text = html.escape(self.text)
        if self.folder:
            address = qt.QUrl.fromLocalFile(self.folder).toString()
            text += ' <a href="{}">{}</a>'.format(html.escape(address), _("Open the folder"))
        return text


class StatusStrip:
    """Shows messages as sentences. A warning stays until the user dismisses it or it no longer holds."""

    def __init__(self, host, resource_path, parent):
        self.host = host
        self.widget, self.ui = load_ui(resource_path, "StatusStrip")
        self._messages = []
        self._standing = None  # a message that stays as long as it is true
        self._prompts = ()  # of the session, after its last event
        self.installer = Installer(parent, self._installing, self._installed)
        self._install_text = None
        self._install_fraction = None
        self._after_installation = None
        self._runtime_is_missing = False
        self._cancelled = set()  # jobs that still run: they end with the picture that the model is reading
        host.connect(
            (self.ui.dismissButton, "clicked()", self.dismiss),
            (self.ui.cancelButton, "clicked()", self.cancel),
            (self.ui.installButton, "clicked()", self.install_runtime),
            (self.ui.retryButton, "clicked()", self.retry),
            (self.ui.messageText, "anchorClicked(QUrl)", lambda address: qt.QDesktopServices.openUrl(address)),
        )
        host.listen("Warning", self._add)
        host.listen("Say", self._add)
        host.listen("Refused", lambda text: self._told(text, True))
        host.listen("Notice", lambda event: self._told(event.text, False))
        host.listen("Failed", lambda event: self._told(event.text, True))
        host.listen("StateChanged", self._state_changed)
        host.listen("Finished", lambda event: self._cancelled.discard(event.job))
        host.listen("SessionEnded", lambda event: self._cancelled.clear())
        host.listen("Turn", self.refresh)
        self._icons = {}
        self._fix_height()
        self._show_messages()
        self.check_runtime()
        self.refresh()

    def close(self):
        self.installer.close()

    def _fix_height(self):
        """Give every row the height it has with everything shown, so that nothing moves."""
        line = self.widget.fontMetrics().lineSpacing()
        for place, height in (
            (self.ui.doingRow, line + _ROOM),
            (self.ui.messageRow, MESSAGE_LINES * line + _MARGINS),
        ):
            place.setFixedHeight(height)

    # ---- messages

    @property
    def messages(self):
        return [message.text for message in self._messages]

    def _add(self, message):
        if not message.text:
            return
        if message.warning:
            logging.warning("SAMFineTune: %s", message.text)
        self._messages = [
            old
            for old in self._messages
            if old.text != message.text and not (message.topic and old.topic == message.topic)
        ]
        self._messages = [*self._messages, message][-MOST_MESSAGES:]
        self._show_messages()

    def _told(self, text, warning):
        """Add a message about the prompts that the session has once it has settled; it disappears when they change."""
        session = self.host.session
        known = session is not None and session.state is not None and session.at_rest
        self._add(Message(text, warning, about=self._prompts if known else _TO_COME))

    def _state_changed(self, event):
        self._prompts = event.prompts
        self._keep([one for one in self._messages if self._holds(one)])
        if event.settled:
            for message in self._messages:
                if message.about is _TO_COME:
                    message.about = self._prompts

    def _holds(self, message):
        if message.about is None or message.about is _TO_COME:
            return True
        return len(message.about) == len(self._prompts) and all(map(operator.is_, message.about, self._prompts))

    def _keep(self, messages):
        if len(messages) != len(self._messages):
            self._messages = messages
            self._show_messages()

    def dismiss(self):
        self._keep([])

    def dismiss_warnings(self):
        """Remove warnings, because another volume was chosen. Notices go by themselves: one may say why there was no
        volume."""
        self._keep([one for one in self._messages if not one.warning])

    def _show_messages(self):
        """Show the messages, the latest first."""
        lines = [message.html for message in reversed(self._messages)]
        if self._standing:
            lines.append(html.escape(self._standing))
        self.ui.dismissButton.setVisible(bool(self._messages))
        self.ui.messageIcon.setVisible(bool(lines))
        way = "rtl" if self.widget.layoutDirection == qt.Qt.RightToLeft else "ltr"  # whatever name comes first
        self.ui.messageText.setHtml("".join(f'<div dir="{way}">{line}</div>' for line in lines))
        warning = bool(self._standing) or any(message.warning for message in self._messages)
        self.ui.messageIcon.setPixmap(self._icon(warning))

    def _icon(self, warning):
        if warning not in self._icons:
            style = self.widget.style()
            kind = qt.QStyle.SP_MessageBoxWarning if warning else qt.QStyle.SP_MessageBoxInformation
            self._icons[warning] = style.standardIcon(kind).pixmap(20, 20)
        return self._icons[warning]

    # ---- what runs

    def refresh(self):
        now = time.monotonic()
        self._keep([one for one in self._messages if one.warning or one.folder or now - one.since < NOTICE_SECONDS])
        text, fraction, cancellable = self._running()
        failed = self.host.worker_state == "failed"
        self._show_standing(failed)
        set_elided(self.ui.statusLabel, text or self._status())
        self.ui.busyBar.setVisible(bool(text))
        if text:
            self._show_fraction(fraction)
        self.ui.cancelButton.setVisible(bool(text) and cancellable)
        self.ui.cancelButton.setEnabled(text != _CANCELLING)
        self.ui.retryButton.setVisible(failed and not text)
        self.ui.installButton.setVisible(self._runtime_is_missing and not text)

    def _show_standing(self, failed):
        standing = self.host.status.sentence if failed else None
        if self._runtime_is_missing:
            wanted = packages.ONNX_RUNTIME
            standing = _(
                "SAMFineTune needs {title}: {size}. It goes into a folder of its own; Slicer's packages stay as they "
                "are."
            ).format(title=wanted.title, size=wanted.size)
        if standing != self._standing:
            self._standing = standing
            self._show_messages()

    def retry(self):
        """Try again to start or reach the worker."""
        if self.host.client is not None:
            self.dismiss()
            self.host.client.retry()
            self.host.wake()

    def _show_fraction(self, fraction):
        bar = self.ui.busyBar
        maximum = 0 if fraction is None else 1000  # 0: the bar moves to and fro
        if bar.maximum != maximum:
            bar.maximum = maximum
        if fraction is not None:
            bar.value = int(1000 * min(max(fraction, 0.0), 1.0))

    def _running(self):
        """(text, fraction or None, whether it can be cancelled) of the running work, most urgent first."""
        if self.installer.running:
            return self._install_text, self._install_fraction, True
        task, jobs = self.host.task, self.host.jobs
        if task is not None:
            return task.text, task.fraction, task.cancellable
        number = max(jobs, key=lambda number: -1 if number is None else number, default=None)
        if number in jobs and number in self._cancelled:
            return _CANCELLING, None, True
        if self.host.worker_state in ("starting", "connecting", "uploading"):
            status = self.host.status
            waiting = _(" Then: {work}").format(work=jobs[number].text.partition(":")[0]) if jobs else ""
            return status.sentence + waiting, status.progress, bool(jobs)
        if jobs:
            busy = jobs[number]
            return busy.text + time_left(busy.seconds_left), busy.fraction, True
        if self.host.waited > _SLOW:
            return _("Waiting for the model: {count} s").format(count=int(self.host.waited)), None, False
        if self.host.training is not None:  # the Train tab has a Stop of its own, which can be resumed
            return *self.host.training, False
        return "", None, False

    def cancel(self):
        if self.installer.running:
            self.installer.cancel()
            return
        if self.host.task is not None:
            self.host.end_task()
            return
        for job in list(self.host.jobs):
            if job is None:
                self.host.act(self.host.client.stop_embedding)
            else:
                self.host.act(self.host.client.cancel, job)
            self._cancelled.add(job)
        self.refresh()

    def _status(self):
        status = self.host.status
        if self._runtime_is_missing:
            return _("Not ready yet")
        if status is None:
            return _("Open a volume to begin.") if slicer.mrmlScene.GetNumberOfNodesByClass(
                "vtkMRMLScalarVolumeNode") == 0 else ""
        if status.state == "ready":
            if not status.model:
                return status.sentence
            where = _(" on {device}").format(device=status.device) if status.device else ""
            return _("Ready: {model}").format(model=status.model) + where
        return _("The worker failed") if status.state == "failed" else status.sentence

    # ---- the worker's runtime

    def check_runtime(self):
        """Check whether the worker on this computer can run."""
        self._runtime_is_missing = self.runtime_missing()
        self.refresh()

    def runtime_missing(self):
        return not self.host.remote and packages.ONNX_RUNTIME.missing()

    def install_runtime(self):
        self.install(packages.ONNX_RUNTIME, self._runtime_installed)

    def _runtime_installed(self):
        self.check_runtime()
        self.host.say(_("ONNX Runtime is installed."), "install")
        self.host.tell("RuntimeInstalled", None)

    def ask_to_install(self, wanted, afterwards):
        """Ask the user to install packages that an action needs, then call `afterwards()`. Raises UserError when Slicer
        is too old for them."""
        wanted.require_slicers()
        question = _("This needs {title}: {size}. It goes into a folder of SAMFineTune's own; Slicer's packages stay "
                     "as they are. Install it?").format(title=wanted.title, size=wanted.size)  # fmt: skip
        if confirmed(question, _("Install")):
            self.install(wanted, afterwards)

    def install(self, wanted, afterwards):
        """Install packages that the user has agreed to, then call `afterwards()`."""
        if self.installer.running:
            self.host.warn(_("An installation is running; wait for it or cancel it."), "install")
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
            self.host.warn(error, "install")
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
