"""The user guide names what the panel shows: every section, button, tick box, choice of a list, and key."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from SAMFineTuneLib.prompts.prompt_kind import tools

BUTTONS = {"QPushButton", "QToolButton", "QCheckBox", "QRadioButton", "qMRMLSegmentationShow3DButton"}
LABELLED = BUTTONS | {"ctkCollapsibleButton"}
TITLED = {"QGroupBox"}
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
        elif widget.get("class") in TITLED:
            yield from widget.findall("property[@name='title']/string")
        elif widget.get("class") == "QComboBox":
            yield from widget.findall("item/property[@name='text']/string")


@pytest.fixture(scope="module")
def guide(root) -> str:
    return re.sub(r"\s+", " ", (root / "docs" / "user-guide.md").read_text(encoding="utf-8"))


def test_everything_in_the_panel_is_in_the_guide(root, guide):
    texts = {(file.stem, entry.text) for file in ui_files(root) for entry in shown(file)}
    missing = {(where, text) for where, text in texts if text not in SELF_EXPLAINING and text not in guide}
    assert missing == set()


def test_every_tool_and_every_key_is_in_the_guide(root, guide):
    module = ast.parse((root / "SAMFineTune/SAMFineTunePanels/shortcuts.py").read_text(encoding="utf-8"))
    keys = next(ast.literal_eval(node.value) for node in module.body
                if isinstance(node, ast.Assign) and node.targets[0].id == "KEYS")  # fmt: skip
    assert keys and tools()
    for tool in tools().values():
        assert f"**{tool.label}**" in guide
    for key in (*(tool.key for tool in tools().values()), *(key for key, _ in keys)):
        assert f"**{key.replace('Escape', 'Esc')}**" in guide, key


def sentences(root: Path) -> list[str]:
    """Every text in the code; what is filled in when it runs is a line break here."""
    found = []
    for folder in ("SAMFineTune", "SAMFineTuneLib"):
        for file in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(getattr(part, "value", "") if isinstance(part, ast.Constant) else "\n"
                                         for part in node.values))  # fmt: skip
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_the_messages_explained_are_the_messages_shown(root):
    guide = (root / "docs" / "user-guide.md").read_text(encoding="utf-8")
    table = guide.partition("## Messages")[2].partition("\n## ")[0]
    texts = sentences(root)
    quoted = [message for row in table.splitlines() if row.startswith("| *")
              for message in re.findall(r"\*([^*]+)\*", row.split("|")[1])]  # fmt: skip
    assert len(quoted) > 10
    for message in quoted:
        for piece in filter(None, (part.strip(" ()") for part in message.split("…"))):
            assert any(piece in text for text in texts), f"{message}: nothing says “{piece}”"


def test_the_tutorial_uses_what_is_registered(root):
    tutorial = (root / "docs" / "tutorial.md").read_text(encoding="utf-8")
    module = ast.parse((root / "SAMFineTune/SAMFineTunePanels/sample_data.py").read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(module) if isinstance(node, ast.Constant)}
    pressed = re.findall(r"In \*Sample Data\*,.*?press\s+\*\*(\w+)\*\*", tutorial, re.DOTALL)
    assert len(pressed) == 3
    assert set(pressed) <= texts
