"""The user guide names what the panel shows: every section, button, tick box, choice of a list, and key."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

BUTTONS = {"QPushButton", "QToolButton", "QCheckBox", "QRadioButton", "qMRMLSegmentationShow3DButton"}
LABELLED = BUTTONS | {"ctkCollapsibleButton"}
SELF_EXPLAINING = {"✕", "Here", "Axial", "Coronal", "Sagittal", "Axial slices", "Coronal slices", "Sagittal slices"}


def ui_files(root: Path) -> list[Path]:
    files = sorted((root / "SAMFineTune" / "Resources" / "UI").glob("*.ui"))
    assert files
    return files


def shown(file: Path):
    """Texts of what a user can press or choose in a .ui file."""
    for widget in ElementTree.parse(file).iter("widget"):
        if widget.get("class") in LABELLED:
            yield from widget.findall("property[@name='text']/string")
        elif widget.get("class") == "QComboBox":
            yield from widget.findall("item/property[@name='text']/string")


@pytest.fixture(scope="module")
def guide(root) -> str:
    return re.sub(r"\s+", " ", (root / "docs" / "user-guide.md").read_text(encoding="utf-8"))


def test_everything_in_the_panel_is_in_the_guide(root, guide):
    texts = {(file.stem, entry.text) for file in ui_files(root) for entry in shown(file)}
    missing = {(where, text) for where, text in texts if text not in SELF_EXPLAINING and text not in guide}
    assert missing == set()


def test_every_key_is_in_the_guide(root, guide):
    module = ast.parse((root / "SAMFineTune/SAMFineTunePanels/shortcuts.py").read_text(encoding="utf-8"))
    keys = next(ast.literal_eval(node.value) for node in module.body
                if isinstance(node, ast.Assign) and node.targets[0].id == "KEYS")  # fmt: skip
    assert keys
    for key, _ in keys:
        assert f"**{key.replace('Escape', 'Esc')}**" in guide, key
