"""CMake's lists name the files in the folders, CMake installs these files, and the installed extension works."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile

import pytest
from list_files import LISTS, listed, present, update


@pytest.mark.parametrize(("cmake", "name", "folder", "python"), LISTS, ids=[row[1] for row in LISTS])
def test_every_file_is_listed(root, cmake, name, folder, python):
    names = listed((root / cmake).read_text(encoding="utf-8"), name)
    assert names == present(root / folder, python), "run: python Testing/packaging/list_files.py"


def test_the_lists_follow_the_folders(root, tmp_path):
    for cmake, *_ in LISTS:
        (tmp_path / cmake).parent.mkdir(exist_ok=True)
        shutil.copy(root / cmake, tmp_path / cmake)
    for path in ("SAMFineTuneLib/new/part.py", "SAMFineTuneLib/__pycache__/c.py", "Resources/a/b", "Resources/.c"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert len(update(tmp_path)) >= 1
    text = (tmp_path / "SAMFineTuneLib/CMakeLists.txt").read_text()
    assert listed(text, "LIBRARY_PYTHON_SCRIPTS") == ["new/part.py"]
    assert listed(text, "LIBRARY_RESOURCES") == ["a/b"]
    assert listed((tmp_path / "SAMFineTune/CMakeLists.txt").read_text(), "MODULE_PYTHON_SCRIPTS") == []
    assert update(tmp_path) == []


def expected(root) -> set[str]:
    """The files that must be in Slicer's folder of scripted modules."""
    library = {f"SAMFineTuneLib/{file}" for file in present(root / "SAMFineTuneLib", python=True)}
    resources = {f"SAMFineTuneLib/Resources/{file}" for file in present(root / "Resources", python=False)}
    module = {file for python in (True, False) for file in present(root / "SAMFineTune", python)}
    return library | resources | module


@pytest.mark.parametrize("place", ["built", "installed"])
def test_module_library_and_resources_lie_side_by_side(extension, root, place):
    folder = getattr(extension, place)
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert there == expected(root)
    model = "models/compact/encoder.onnx"
    assert (folder / "SAMFineTuneLib/Resources" / model).read_bytes() == (root / "Resources" / model).read_bytes()


def test_the_package_holds_the_same(extension, root):
    with tarfile.open(extension.package) as package:
        names = [member.name for member in package if member.isfile()]
    inside = "/lib/Slicer-5.11/qt-scripted-modules/"
    assert {name.partition(inside)[2] for name in names} == expected(root)


# Only what Slicer's Python has, and ONNX Runtime, can be imported from elsewhere.
AS_IN_SLICER = """
import importlib.metadata, sys

class Absent:
    names = set(importlib.metadata.packages_distributions()) - {
        "numpy", "scipy", "SimpleITK", "pydicom", "PIL", "onnxruntime", "SAMFineTuneLib"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"Slicer has no {name}", name=name)

sys.meta_path.insert(0, Absent())
assert {"torch", "tqdm"} <= Absent.names
"""

# Prints where the library and its resources lie, and one Dice.
SEGMENT = """
import SAMFineTuneLib
from SAMFineTuneLib.files import resources
from SAMFineTuneLib.images import aligned_plane, body_phantom
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import BoxPrompt

volume, labels, names = body_phantom(shape=(16, 160, 160), spacing=(2.2, 2.2, 6.0))
value = next(value for value, name in names.items() if name == "liver")
truth = labels[8] == value
rows, columns = truth.nonzero()
corners = aligned_plane(volume, "axial", 8).pixel_to_ras(
    [(columns.min(), rows.min()), (columns.max(), rows.max())])
session = Session(volume, Predictor(open_engine(Store().get(), device="cpu"), EmbeddingCache()))
session.add_segment("liver")
session.add_prompt(1, BoxPrompt(*map(tuple, corners)))
found = session.labelmap()[8] == 1
print(SAMFineTuneLib.__file__)
print(resources())
print(2 * (found & truth).sum() / (found.sum() + truth.sum()))
"""


def test_the_installed_library_segments_with_the_bundled_model(extension, tmp_path):
    environment = {"PYTHONPATH": str(extension.installed), "SAMFINETUNE_HOME": str(tmp_path / "home"), "PATH": ""}
    command = [sys.executable, "-c", AS_IN_SLICER + SEGMENT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    library, resources, dice = done.stdout.splitlines()
    assert library == str(extension.installed / "SAMFineTuneLib" / "__init__.py")
    assert resources == str(extension.installed / "SAMFineTuneLib" / "Resources")
    assert float(dice) > 0.8


def test_the_installed_program_starts(extension, tmp_path):
    environment = {"PYTHONPATH": str(extension.installed), "PATH": ""}
    done = subprocess.run([sys.executable, "-m", "SAMFineTuneLib.cli", "--help"], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_a_file_that_vanished_stops_the_build(extension, root, tmp_path):
    for part in ("CMakeLists.txt", "LICENSE", "README.md"):
        shutil.copy(root / part, tmp_path)
    ignore = shutil.ignore_patterns("__pycache__", "errors.py")
    for folder in ("SAMFineTune", "SAMFineTuneLib", "Resources"):
        shutil.copytree(root / folder, tmp_path / folder, ignore=ignore)
    stand_in = root / "Testing" / "packaging" / "slicer_build"
    done = subprocess.run(["cmake", "-S", tmp_path, "-B", tmp_path / "build", f"-DSlicer_DIR={stand_in}"],
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode != 0
    assert "errors.py" in done.stderr
