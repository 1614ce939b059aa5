"""The developer page's tables: where to change what, and the files that handle a click, at most thirty."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 30


def test_the_files_that_handle_a_click_exist_and_are_few():
    page = (ROOT / "docs" / "developer.md").read_text(encoding="utf-8")
    table = page.split("## From a click to the voxels")[1].split("\n\n")[1]
    named = dict.fromkeys(re.findall(r"(\w+)\.py", table))
    names = [path.stem for folder in ("SAMFineTune", "SAMFineTuneLib") for path in (ROOT / folder).rglob("*.py")]
    assert 10 < len(named) <= MOST, named
    assert [name for name in named if names.count(name) != 1] == []


def test_what_the_page_says_is_to_be_changed_is_in_the_files_that_it_names():
    folder = ROOT / "docs"
    page = (folder / "developer.md").read_text(encoding="utf-8")
    rows = page.split("## Where to change what")[1].split("\n\n")[1].splitlines()[2:]
    names = []
    for row in rows:
        _, task, answer, _ = row.split("|")
        paths = [folder / target for target in re.findall(r"\]\((.*?)\)", answer)]
        assert paths and all(path.exists() for path in paths), task
        written = "".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
        named = re.findall(r"(?<!\[)`(\w+)`", answer)
        assert all(name in written for name in named), (task, named)
        names += named
    assert len(rows) >= 5 and {"CT_PRESETS", "OUTPUT_ENDINGS", "COMMANDS"} <= set(names)
