"""Installs a set of Python packages with pip, in a process of its own.

pip first downloads, and keeps what has arrived, so that a second attempt continues there; then it unpacks into a folder
that appears only when it is complete.

Why QProcess: its output arrives as signals, while a thread that reads a pipe would starve whenever Slicer idles.
Why closing its input ends it: Slicer's Python is a launcher, and killing that leaves the real Python running.
"""

import logging
import os
import re
import shutil
import sys

import qt
import slicer
from slicer.i18n import tr as _

from .packages import packages_folder

_PIP = """
import os, runpy, sys, threading
def end_with_parent():
    while os.read(0, 1):  # not sys.stdin, whose lock would be held when Python finishes
        pass
    os._exit(3)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv = ["pip", *sys.argv[1:]]
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


class Installer:
    """Installs one set of packages at a time.

    Args:
        parent: Qt object that owns the process.
        progress: called with a text and a fraction from 0 to 1, or None where it is not known.
        done: called at the end with a sentence about what failed, empty after success.
    """

    def __init__(self, parent, progress, done):
        self._parent = parent
        self._progress = progress
        self._done = done
        self._process = None
        self._packages = None
        self._steps = []
        self._output = ""
        self._cancelled = False

    @property
    def running(self):
        return self._process is not None

    @property
    def what(self):
        return self._packages

    def start(self, packages):
        if self.running:
            return
        self._packages = packages
        self._cancelled = False
        downloads = self._downloads()
        os.makedirs(downloads, exist_ok=True)
        shutil.rmtree(self._building(), ignore_errors=True)
        common = ["--disable-pip-version-check", "--no-input", "--no-deps", "--only-binary", ":all:"]
        common += ["--require-hashes", "-r", packages.requirements]
        unpack = ["install", "--no-index", "--find-links", downloads, "--target", self._building(), *common]
        download = ["download", "--find-links", downloads, "-d", downloads, *_raw_progress(), *common]
        self._steps = [download, unpack]
        if any(name.endswith(".whl") for name in os.listdir(downloads)):  # perhaps copied there by the user
            self._steps = [unpack, *self._steps]
        self._next()

    def cancel(self):
        """Stop the installation. What has been downloaded stays."""
        if self.running:
            self._cancelled = True
            self._process.closeWriteChannel()

    def close(self):
        """End the installation without calling `done`, because the panel closes."""
        process, self._process = self._process, None
        if process is not None:
            for signal, handler in zip(_SIGNALS, self._handlers(), strict=True):
                process.disconnect(signal, handler)
            process.closeWriteChannel()
            if not process.waitForFinished(3000):
                process.kill()
                process.waitForFinished(1000)
            process.deleteLater()

    # ---- inside

    def _downloads(self):
        return os.path.join(packages_folder(), "downloads-" + self._packages.name)

    def _building(self):
        return os.path.join(packages_folder(), ".building-" + self._packages.name)

    def _next(self):
        arguments = self._steps.pop(0)
        self._output = ""
        downloading = arguments[0] == "download"
        doing = _("Downloading {title}") if downloading else _("Unpacking {title}")
        self._progress(doing.format(title=self._packages.title), None)
        process = qt.QProcess(self._parent)
        self._process = process
        environment = qt.QProcessEnvironment()
        for name, value in slicer.util.startupEnvironment().items():
            environment.insert(name, value)
        environment.insert("PYTHONUNBUFFERED", "1")
        process.setProcessEnvironment(environment)
        process.setProcessChannelMode(qt.QProcess.MergedChannels)
        for signal, handler in zip(_SIGNALS, self._handlers(), strict=True):
            process.connect(signal, handler)
        process.start(sys.executable, ["-c", _PIP, *arguments])

    def _handlers(self):
        return self._read, self._finished, self._failed

    def _read(self):
        text = bytes(self._process.readAllStandardOutput().data()).decode("utf-8", "replace")
        self._output = (self._output + text)[-20000:]
        steps = re.findall(r"Progress (\d+) of (\d+)", self._output)
        if steps and int(steps[-1][1]):
            received, total = map(int, steps[-1])
            self._progress(_("Downloading {title}: {received:.0f} of {total:.0f} MB").format(
                title=self._packages.title, received=received / 1e6, total=total / 1e6), received / total)

    def _failed(self, error):
        if error == qt.QProcess.FailedToStart:  # Qt then never calls finished()
            self._end(_("Slicer's Python could not be started; install Slicer again."))

    def _finished(self, exit_code, exit_status):
        self._read()
        if self._cancelled:
            self._end(_("The installation was cancelled; press Install to go on where it stopped."))
            return
        failed, left = exit_code != 0, len(self._steps)
        if failed:
            logging.log(logging.ERROR if left < 2 else logging.INFO, "SAMFineTune: pip failed\n%s", self._output)
        if failed and left < 2:
            self._end(self._reason())
        elif failed or left == 1:  # first download the missing files, then unpack
            self._forget_process()
            self._next()
        else:
            shutil.rmtree(self._packages.folder, ignore_errors=True)
            try:
                os.replace(self._building(), self._packages.folder)
            except OSError as error:
                self._end(_("{title} could not be put into {folder} ({why}).").format(
                    title=self._packages.title, folder=self._packages.folder, why=error))
                return
            shutil.rmtree(self._downloads(), ignore_errors=True)
            self._end("")

    def _reason(self):
        errors = [line.strip() for line in self._output.splitlines() if line.startswith("ERROR")]
        why = errors[-1][len("ERROR:"):].strip() if errors else _("see Slicer's log")
        if "DO NOT MATCH THE HASHES" in self._output:
            why = _("a downloaded file is not the one that this version of SAMFineTune expects")
        return _(
            "{title}: the installation failed ({why}). Check the network or proxy and press Install again; without a "
            "network, first put the files (.whl) for Python {python} that {requirements} names into {folder}."
        ).format(
            title=self._packages.title, why=why.rstrip("."), requirements=self._packages.requirements,
            python=f"{sys.version_info[0]}.{sys.version_info[1]}", folder=self._downloads(),
        )  # fmt: skip

    def _end(self, error):
        self._forget_process()
        shutil.rmtree(self._building(), ignore_errors=True)
        self._done(error)

    def _forget_process(self):
        process, self._process = self._process, None
        if process is not None:
            process.deleteLater()


_SIGNALS = ("readyReadStandardOutput()", "finished(int,QProcess::ExitStatus)", "errorOccurred(QProcess::ProcessError)")


def _raw_progress():
    """pip's option for progress as plain numbers, where this pip has it."""
    from importlib.metadata import version

    try:
        major, minor = (int(part) for part in version("pip").split(".")[:2])
    except Exception:
        return []
    return ["--progress-bar", "raw"] if (major, minor) >= (24, 1) else []
