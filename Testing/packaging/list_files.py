"""Writes the lists of files that CMake packages, from what the folders hold.

    python Testing/packaging/list_files.py     after adding, renaming or removing a file

CMake could collect the files itself, but would then package everything that lies in a working copy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# (CMake file, name of its list, folder of the files, whether Python files or all others)
LISTS = (
    ("SAMFineTune/CMakeLists.txt", "MODULE_PYTHON_SCRIPTS", "SAMFineTune", True),
    ("SAMFineTune/CMakeLists.txt", "MODULE_PYTHON_RESOURCES", "SAMFineTune", False),
    ("SAMFineTuneLib/CMakeLists.txt", "LIBRARY_PYTHON_SCRIPTS", "SAMFineTuneLib", True),
    ("SAMFineTuneLib/CMakeLists.txt", "LIBRARY_RESOURCES", "Resources", False),
)


def listed(text: str, name: str) -> list[str]:
    """The entries of `set(name …)` in a CMake file's text, in its order."""
    return _block(name).search(text)[2].split()


def present(folder: Path, python: bool) -> list[str]:
    """Files below `folder` that are to be packaged, sorted, with forward slashes."""
    return sorted(file.relative_to(folder).as_posix() for file in _files(folder) if (file.suffix == ".py") == python)


def update(root: Path = ROOT) -> list[Path]:
    """Make every list say what its folder holds; the CMake files that changed."""
    changed = []
    for cmake, name, folder, python in LISTS:
        path = root / cmake
        old = path.read_text(encoding="utf-8")
        rows = "".join(f"  {file}\n" for file in present(root / folder, python))
        new = _block(name).sub(lambda found, rows=rows: f"{found[1]}{rows}{found[3]}", old)
        if new != old:
            path.write_text(new, encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        parts = file.relative_to(folder).parts
        leftovers = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if file.is_file() and not leftovers and file.name != "CMakeLists.txt":
            yield file


def _block(name: str) -> re.Pattern:
    return re.compile(rf"(^set\({name}\n)(.*?)(^  \))", re.MULTILINE | re.DOTALL)


if __name__ == "__main__":
    for changed in update():
        print(f"updated {changed.relative_to(ROOT)}")
