"""Every text of the panel can be translated."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

MODULE = Path(__file__).resolve().parents[2] / "SAMFineTune"
FILES = sorted(
    path for path in (MODULE / "SAMFineTune.py", *(MODULE / "SAMFineTunePanels").glob("*.py"))
    if path.name not in ("self_test.py", "simulated_user.py")  # what they say is for developers
)  # fmt: skip
WORDS = re.compile(r"[A-Za-z]{2,}[.,:;…]? +[A-Za-z(]{2,}")  # two of them: a part of a sentence
FILLED = re.compile(r"(^|\s)[A-Za-z]{2,}[,:;]?\s|\s[A-Za-z]{2,}([,:;.]|$)")  # a word beside what is filled in
LOGGED = {"error", "warning", "info", "exception", "log"}
SHOWING = {  # which argument of a call is shown
    "set_text": 1, "setText": 0, "setToolTip": 0, "addItem": 0, "addAction": 0, "QTableWidgetItem": 0, "warn": 0,
    "say": 0,
}  # fmt: skip


def shown_texts(source: str):
    """(line, text) of literals that users see and that are not given to `_`: what looks like part of a sentence
    anywhere, and every word that goes straight into a widget."""
    tree = ast.parse(source)
    exempt, shown = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            exempt.add(id(node.body[0].value))
        elif isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name == "_" or name in LOGGED:
                exempt |= {id(part) for argument in node.args for part in ast.walk(argument)}
            elif name in SHOWING:
                shown.add(id(node.args[SHOWING[name]]))
        elif isinstance(node, ast.Compare):
            exempt |= {id(part) for part in (node.left, *node.comparators)}
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "attr", "") in ("text", "toolTip"):
            shown.add(id(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            exempt |= {id(part) for part in node.values}
            words = FILLED
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text, words = node.value, WORDS
            if text.startswith("\n"):  # a program
                continue
        else:
            continue
        looks = words.search(text) or (id(node) in shown and re.search("[A-Za-z]{3}", text))
        if looks and id(node) not in exempt:
            yield node.lineno, text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_texts_are_translated(path):
    assert list(shown_texts(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_function_that_translates_calls_something_else_so(path):
    """A loop over `_` would hide the function of that name."""
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef):
            names = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "_"]
            stored = any(isinstance(node.ctx, ast.Store) for node in names)
            assert not (stored and _called(function)), f"{path.name}: {function.name}"


def _called(function):
    return any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_" for node in ast.walk(function))


@pytest.mark.parametrize(
    "source",
    ['warn("No volume.")', 'warn(f"No {thing} is there.")', "label.text = 'Ready'", 'say("Gone to " + name + " now")'],
)
def test_a_text_that_is_not_translated_is_found(source):
    assert list(shown_texts(source))


@pytest.mark.parametrize(
    "source", ['warn(_("No volume."))', 'say(_("No {thing}.").format(thing=thing))', 'tell("Warning", text)']
)
def test_a_text_that_is_translated_is_right(source):
    assert not list(shown_texts(source))
