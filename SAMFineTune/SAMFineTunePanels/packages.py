"""The Python packages that the worker needs and Slicer lacks: what they are, where they lie, and which are missing.

Nothing is ever installed into Slicer's own Python, where it could replace a package that other extensions rely on.
`package_installer` installs them into folders of their own.
"""

import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

_PINNED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "Resources", "Packages")


@dataclass
class PackageSet:
    """Packages that are installed together."""

    name: str  # of the folder that they are installed into
    title: str  # what the user reads
    requirements: str  # file that lists them, each with its version and hashes
    probe: str  # module that can be imported once they are installed
    size: str  # of download and folder, as a phrase
    needs: tuple = ()  # pairs of a package of Slicer and the oldest version that they work with

    @property
    def folder(self):
        return os.path.join(packages_folder(), self.name)

    def missing(self):
        """Whether neither Slicer's Python nor the folder has them. Imports nothing."""
        if os.path.isdir(os.path.join(self.folder, self.probe)):
            return False
        return importlib.util.find_spec(self.probe) is None

    def require_slicers(self):
        """Raise UserError when a package of Slicer is too old for these; it is never replaced."""
        from importlib.metadata import PackageNotFoundError, version

        from SAMFineTuneLib.errors import UserError

        for package, least in self.needs:
            try:
                there = version(package)
            except PackageNotFoundError:
                there = "0"
            if [int(part) for part in re.findall(r"\d+", there)[:3]] < [int(part) for part in least.split(".")]:
                raise UserError(
                    _("{title} needs {package} {least}, and this Slicer has {there}; use a newer Slicer.").format(
                        title=self.title, package=package, least=least, there=there if there != "0" else _("none")))


# NumPy, SciPy, Pillow and pydicom are not listed, because Slicer has them.
ONNX_RUNTIME = PackageSet(
    "onnxruntime",
    _("ONNX Runtime, which runs the models"),
    os.path.join(_PINNED, "onnxruntime.txt"),
    "onnxruntime",
    _("about 17 MB to download, 55 MB on the disk"),
)
DICOM_SEG = PackageSet(
    "highdicom",
    _("highdicom, which writes DICOM SEG"),
    os.path.join(_PINNED, "highdicom.txt"),
    "highdicom",
    _("about 4 MB to download, 12 MB on the disk"),
    needs=(("pydicom", "3.0.1"),),
)
TRAINING = PackageSet(
    "training",
    _("PEFT, which fine-tunes models, and its dependencies"),
    os.path.join(_PINNED, "training.txt"),
    "peft",
    _("about 45 MB to download, 260 MB on the disk"),
)


def packages_folder():
    """The folder with all packages, for this Python version: compiled packages work in one version only."""
    from SAMFineTuneLib.files import data_folder

    return os.path.join(str(data_folder()), "packages", f"python{sys.version_info[0]}.{sys.version_info[1]}")


def installed_folders():
    """The folders that the processes behind the panel add to their module path."""
    return [one.folder for one in (ONNX_RUNTIME, TRAINING, DICOM_SEG) if os.path.isdir(one.folder)]


def environment():
    """The environment of a process behind the panel: Slicer's, without the launcher's settings, which its Python sets
    again, and with the folders of these packages.
    """
    surroundings = dict(slicer.util.startupEnvironment())
    before = surroundings.get("PYTHONPATH")
    surroundings["PYTHONPATH"] = os.pathsep.join([*installed_folders(), *([before] if before else [])])
    return surroundings


def remove_all():
    """Delete everything that was installed. The worker must have ended; UserError when a program still uses it."""
    from SAMFineTuneLib.errors import UserError

    folder = packages_folder()
    going = folder + ".removing"
    shutil.rmtree(going, ignore_errors=True)
    try:
        os.replace(folder, going)  # at once, because half a package would look like a complete one
    except OSError as error:
        sentence = _("{folder} is in use ({why}); restart Slicer and remove it then.")
        raise UserError(sentence.format(folder=folder, why=error.strerror)) from error
    shutil.rmtree(going, ignore_errors=True)
