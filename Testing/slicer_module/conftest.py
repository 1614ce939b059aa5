"""The stand-in for the desktop, and modules in it. Scenes and rendered views are those of Testing/mrml."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("PySide6", reason="PySide6-Essentials is not installed")

_HERE = Path(__file__).resolve().parent
for _folder in (_HERE, _HERE.parent, _HERE.parents[1] / "SAMFineTune"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

import standin  # noqa: E402

standin.install()

from desktop import Desktop  # noqa: E402
from mrml.scenes import SlicerScene  # noqa: E402
from warm_processes import start_warm  # noqa: E402

_OF_THE_START = ("test_dicomweb_dialog", "test_life", "test_packages", "test_self_test", "test_train")


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path, monkeypatch):
    """No model, cache or package of the developer's own."""
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module", autouse=True)
def warm_processes(request, root):
    """Processes behind the panel begin with their modules imported, but for tests of their start."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux" and request.module.__name__ not in _OF_THE_START:
            start_warm(patch, root)
        yield


@pytest.fixture
def desktop():
    """Slicer with three slice views and an empty scene; the module is not opened yet."""
    scene = SlicerScene()
    desktop = Desktop(scene)
    yield desktop
    desktop.close()
    scene.close()
