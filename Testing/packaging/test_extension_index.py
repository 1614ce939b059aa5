"""The checks of the Extensions Index before it lists an extension, as far as they work without its server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

NAME = "SAMFineTune"
ALLOWED = {"$schema", "build_dependencies", "build_subdirectory", "category", "dicom_support_rule", "enabled",
           "scm_revision", "scm_type", "scm_url", "tier"}  # fmt: skip


@pytest.fixture(scope="module")
def entry(root) -> dict:
    return json.loads((root / f"{NAME}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cmake(root) -> str:
    return (root / "CMakeLists.txt").read_text(encoding="utf-8")


def metadata(cmake: str, name: str) -> str:
    """What the top CMake file sets, quoted and on one line, as the index reads it."""
    return re.search(rf'set\s*\(EXTENSION_{name}\s*"([^"\n]+)"[ ]*\)', cmake)[1]


def test_the_entry_has_what_it_must_and_nothing_else(entry):
    assert {"$schema", "category", "scm_url"} <= set(entry) <= ALLOWED
    version = re.search(r"/slicer-extension-catalog-entry-schema-v(\d+)\.(\d+)\.(\d+)\.json#?$", entry["$schema"])
    assert tuple(map(int, version.groups())) >= (1, 0, 1)
    assert entry["category"] == "Segmentation"
    assert entry["build_subdirectory"] == "."
    assert entry["tier"] in (1, 3, 5)


def test_the_entry_is_plain_text_as_the_index_wants_it(root):
    content = (root / f"{NAME}.json").read_bytes()
    assert b"\r" not in content and b"\t" not in content and content.endswith(b"}\n")


def test_names_are_those_the_index_expects(entry, cmake):
    address = urlsplit(entry["scm_url"])
    assert address.scheme == "https"
    assert address.path.rpartition("/")[2] == f"Slicer{NAME}"
    assert re.findall(r"project\s*\(\s*([^\s\)\n\r]+)", cmake, re.IGNORECASE)[0] == NAME


def test_the_entry_and_cmake_say_the_same(entry, cmake):
    assert metadata(cmake, "DEPENDS").split() == (entry["build_dependencies"] or ["NA"])
    assert metadata(cmake, "CATEGORY") == entry["category"]
    assert metadata(cmake, "HOMEPAGE") == entry["scm_url"]


def test_the_description_is_one_or_two_sentences(cmake):
    sentences = re.findall(r"[^.]+\.(?= |$)", metadata(cmake, "DESCRIPTION"))
    assert 1 <= len(sentences) <= 2
    assert metadata(cmake, "CONTRIBUTORS")


@pytest.mark.parametrize("kind", ["ICONURL", "SCREENSHOTURLS"])
def test_pictures_are_named_by_raw_addresses_of_files_that_exist(entry, cmake, root, kind):
    raw = entry["scm_url"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    for address in metadata(cmake, kind).split():
        assert address.startswith(raw)
        with Image.open(root / address.removeprefix(raw)) as picture:
            assert picture.format == "PNG"
            assert kind == "SCREENSHOTURLS" or picture.size == (128, 128)


def test_the_files_come_in_the_order_that_slicer_needs(cmake):
    steps = (
        "project(",
        "find_package(Slicer REQUIRED)",
        "include(${Slicer_USE_FILE})",
        "add_subdirectory(SAMFineTune)",
        "include(${Slicer_EXTENSION_GENERATE_CONFIG})",
        "include(${Slicer_EXTENSION_CPACK})",
    )
    places = [cmake.index(step) for step in steps]
    assert places == sorted(places)


def test_the_licence_is_permissive_and_named(root):
    assert "Apache License" in (root / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License 2.0" in (root / "README.md").read_text(encoding="utf-8")


def test_the_readme_says_what_a_homepage_must(root):
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# {NAME}\n")
    assert re.search(r"!\[[^\]]+\]\(docs/pictures/\w+\.png\)", readme)
    assert "docs/tutorial.md" in readme and "docs/user-guide.md" in readme
    assert re.search(r"^## How to cite$", readme, re.MULTILINE)


def cloned_bytes(root: Path, folder: Path, *options: str) -> int:
    """Size of a clone of what is committed, working tree and `.git` together. Only file:// heeds a depth."""
    command = ["git", "clone", "--quiet", "--single-branch", *options, root.as_uri(), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir() or file.is_symlink())


def test_the_index_can_clone_the_repository(root, entry, tmp_path):
    """The index clones the whole history when an entry names a revision, else the last commit alone: 100 MB at most."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        pytest.skip("there is no git history here, as in a source archive")
    sizes = {"the last commit": cloned_bytes(root, tmp_path / "last", "--depth", "1"),
             "all history": cloned_bytes(root, tmp_path / "all")}  # fmt: skip
    cloned = "all history" if "scm_revision" in entry else "the last commit"
    print({what: f"{size / 1e6:.1f} MB" for what, size in sizes.items()})
    assert sizes[cloned] < 100e6, f"the index would clone {cloned}: {sizes}"
    assert sizes["the last commit"] < 40e6, "leave room: every large file that ever changes stays in the history"
