"""Names by which somebody new finds things: a file name occurs once, and says what is inside."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

FOLDERS = ("SAMFineTune", "SAMFineTuneLib")
EVERYWHERE = ("__init__.py", "__main__.py")


def code_files(root: Path) -> list[Path]:
    return [file for folder in FOLDERS for file in sorted((root / folder).rglob("*.py"))]


def test_a_file_name_occurs_once_in_the_project(root):
    places = defaultdict(list)
    for file in code_files(root):
        if file.name not in EVERYWHERE:
            places[file.name].append(str(file.relative_to(root)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_every_module_says_in_one_sentence_what_it_is_for(root):
    for file in code_files(root):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert text and text.split("\n\n")[0].endswith((".", "?", ":")), file
