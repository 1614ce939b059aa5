"""The developer page's table of the files that handle a click: they exist, and there are at most thirty."""

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
