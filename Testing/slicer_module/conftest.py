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


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path, monkeypatch):
    """No model, cache or package of the developer's own."""
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def desktop():
    """Slicer with three slice views and an empty scene; the module is not opened yet."""
    scene = SlicerScene()
    desktop = Desktop(scene)
    yield desktop
    desktop.close()
    scene.close()
