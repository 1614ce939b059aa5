"""The worker on this computer: which Python runs it, and what that finds."""

import os
import sys

import slicer

from . import packages


def local_connection(starter):
    """The worker as a child of Slicer; `starter`, a `ChildProcess`, starts it when something is first asked of it.

    The standard library starts it rather than QProcess: looking whether it lives and closing its pipe do not wait, and
    no signal can arrive after the panel is gone. The worker ends when its standard input closes: a crash of Slicer
    therefore leaves no worker behind, and neither does ending it, although a kill would only hit the launcher that
    stands before Slicer's Python.
    """
    from SAMFineTuneLib.service.worker import LocalWorker

    return LocalWorker(executable=sys.executable, environment=environment(), starter=starter)


def environment():
    """Without what Slicer's launcher has set, since its Python sets that anew; with the packages of our own."""
    surroundings = dict(slicer.util.startupEnvironment())
    folders = packages.installed_folders()
    before = surroundings.get("PYTHONPATH")
    surroundings["PYTHONPATH"] = os.pathsep.join([*folders, *([before] if before else [])])
    return surroundings
