"""Links and pictures in README and docs lead to files and headings that exist."""

from __future__ import annotations

import re

import pytest

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What GitHub makes of a document's headings."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text))
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.fixture(scope="module")
def documents(root):
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def test_every_relative_link_leads_to_a_file_and_a_heading(documents):
    broken = []
    for document in documents:
        for link in LINK.findall(document.read_text(encoding="utf-8")):
            if re.match(r"\w+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (document.parent / path) if path else document
            if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
                broken.append(f"{document.name}: {link}")
    assert broken == []


def test_every_page_is_reached_from_the_readme(root, documents):
    reached, waiting = set(), [root / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.is_file():
                waiting.append(target)
    assert set(documents) <= reached


def test_every_picture_is_shown_somewhere(root, documents):
    text = "".join(document.read_text(encoding="utf-8") for document in documents)
    for picture in (root / "docs" / "pictures").glob("*.png"):
        assert picture.name in text, f"{picture.name} is shown nowhere"
