"""An error advises only options that the command has which shows it, or names the command that they belong to.

Which functions a command can reach is read from the source: a name in a function's body reaches what it is imported or
defined as, and `x.name` the methods of that name of each class that is reached. That is too much rather than too
little; `NEVER` says which of it does not happen.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest

from SAMFineTuneLib.cli.arguments import Parser
from SAMFineTuneLib.cli.main import COMMANDS

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*\d*")
COMMAND = re.compile(r"samfinetune ([a-z]+)(?: ([a-z]+))?")
ERRORS = ("UserError", "DiskError")
SPECIAL = ("__init__", "__post_init__", "__call__", "__enter__", "__exit__", "__iter__", "__next__")

BOTH = "in a list of cases as"  # the sentence goes on to say what to do where there is no such option
NEVER = {
    ("--match-labels", "cohort locate"): "it looks for images, and reads no labels",
    ("--match-labels", "cohort train"): "accepted labels are in the grid of their image",
    ("--match-labels", "pretrain"): "it reads images alone",
    ("--label", "cohort train"): "the labels are the cohort's, and their files are not pictures",
    ("--resume", "cohort train"): "it finds out itself whether there is something to go on with",
    ("--id", "models download"): "a published model has its own id",
    ("--like", "models download"): "the manifest says how pictures are prepared for a published model",
    ("--base", "models download"): "a published model is complete",
}
OTHERS = ("demo", "serve")  # read only what they made themselves; show only what clients' commands would


class Source:
    """The functions and classes of the library by (module, name), and what each refers to."""

    def __init__(self, root: Path) -> None:
        files = (root / "SAMFineTuneLib").rglob("*.py")
        trees = {path.relative_to(root).with_suffix("").parts: ast.parse(path.read_text("utf-8")) for path in files}
        self.trees = {".".join(parts).removesuffix(".__init__"): tree for parts, tree in trees.items()}
        self.defined, self.methods, self.members = {}, defaultdict(list), defaultdict(list)
        for module, tree in self.trees.items():
            for node in tree.body:
                self._define(module, node)
        self.imported = {module: dict(self._imports(tree)) for module, tree in self.trees.items()}

    def _define(self, module: str, node: ast.stmt) -> None:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            self.defined[module, node.name] = node
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    self.defined[module, f"{node.name}.{method.name}"] = method
                    self.methods[method.name].append((module, f"{node.name}.{method.name}"))
                    self.members[module, node.name].append((module, f"{node.name}.{method.name}"))
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                self.defined[module, target.id] = node

    def _imports(self, tree: ast.Module):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("SAMFineTuneLib"):
                for one in node.names:
                    yield one.asname or one.name, (node.module, one.name)

    def found(self, module: str, name: str) -> tuple[str, str] | None:
        """What a name of a module is, through all imports."""
        while (module, name) not in self.defined:
            if name not in self.imported.get(module, {}):
                return None
            module, name = self.imported[module][name]
        return module, name

    @functools.cache  # noqa: B019  (commands share most of what they reach)
    def references(self, key: tuple[str, str]) -> tuple[set, set]:
        """What a function or class refers to, and the names of the methods it may call."""
        (module, name), node = key, self.defined[key]
        known, methods, parts = set(), set(), [node]
        if isinstance(node, ast.ClassDef):
            own = [one for one in node.body if isinstance(one, ast.FunctionDef)]
            known = {(module, f"{name}.{one.name}") for one in own if one.name in SPECIAL}
            parts = [one for one in node.body if one not in own]
        for one in (inner for part in parts for inner in ast.walk(part)):
            if isinstance(one, ast.Name):
                known.add(self.found(module, one.id))
            elif isinstance(one, ast.Attribute):
                owner = self.imported[module].get(one.value.id) if isinstance(one.value, ast.Name) else None
                if owner and ".".join(owner) in self.trees:
                    known.add(self.found(".".join(owner), one.attr))
                else:
                    methods.add(one.attr)
        return known - {None}, methods

    def reached(self, start: tuple[str, str]) -> set[tuple[str, str]]:
        """Everything that a function can come to."""
        seen, todo, classes, called = {start}, [start], set(), set()
        while todo:
            key = todo.pop()
            known, methods = self.references(key)
            candidates = {one for name in methods - called for one in self.methods[name]}
            found = {one for one in candidates if (one[0], one[1].partition(".")[0]) in classes}
            called |= methods
            if isinstance(self.defined[key], ast.ClassDef):
                classes.add(key)
                found |= {one for one in self.members[key] if one[1].partition(".")[2] in called}
            new = (known | found) - seen
            todo += new
            seen |= new
        return seen

    @functools.cache  # noqa: B019
    def texts(self, key: tuple[str, str]) -> list[str]:
        """The sentences of a function that advise options: of commands, those of errors; of the library, all."""
        node = self.defined[key]
        if isinstance(node, ast.ClassDef):
            return []
        about = [ast.get_docstring(node, clean=False)] if isinstance(node, ast.FunctionDef) else []
        places = [node]
        if key[0].startswith("SAMFineTuneLib.cli"):
            places = [one for one in ast.walk(node) if isinstance(one, ast.Call) and ast.unparse(one.func) in ERRORS]
        found = [one for place in places for one in ast.walk(place)]
        inside = {id(part) for one in found if isinstance(one, ast.JoinedStr) for part in one.values}
        told = [_written(one) for one in found if id(one) not in inside]
        return [text for text in told if OPTION.search(text) and text not in about]


def _written(node: ast.AST) -> str:
    """The text of a string, with … for what is put into it."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    if not all(isinstance(part, (ast.Constant, ast.FormattedValue)) for part in parts):
        return ""
    texts = [part.value if isinstance(part, ast.Constant) else "…" for part in parts]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else ""


@pytest.fixture(scope="module")
def source(root) -> Source:
    return Source(root)


@functools.cache
def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command, and of each action of those that consist of some."""
    parser, found = Parser(), {}
    subparsers = parser.add_subparsers()
    for name in COMMANDS:
        importlib.import_module(f"SAMFineTuneLib.cli.{name}").add_parser(subparsers)
    for name, command in subparsers.choices.items():
        nested = [one for one in command._actions if isinstance(one, argparse._SubParsersAction)]
        found[name] = command
        found |= {f"{name} {action}": one for place in nested for action, one in place.choices.items()}
    return found


def misplaced(text: str, command: str, parsers: dict[str, argparse.ArgumentParser]) -> list[str]:
    """The options in a text that the command does not have, or the command that the text names before them."""
    text, wrong = re.sub(r"pip install.*", "", text), []
    for option in OPTION.finditer(text):
        owner = command
        for named in COMMAND.finditer(text, 0, option.start()):
            action = f"{named[1]} {named[2]}"
            owner = action if action in parsers else named[1]
        known = owner in parsers and option[0] in parsers[owner]._option_string_actions
        if not known and BOTH not in text and (option[0], owner) not in NEVER:
            wrong.append(option[0])
    return wrong


def test_errors_advise_options_of_the_command_that_shows_them(source):
    parsers, wrong, seen = commands(), [], set()
    for command, parser in parsers.items():
        act = parser.get_default("act")
        if command in OTHERS or (act is None and any(one.startswith(command + " ") for one in parsers)):
            continue
        start = (act.__module__, act.__name__) if act else (f"SAMFineTuneLib.cli.{command}", "run")
        for key in source.reached(start):
            for text in source.texts(key):
                seen.add(key)
                wrong += [f"{command}: {key}: {option} in “{text}”" for option in misplaced(text, command, parsers)]
    assert not wrong, "\n".join(wrong)
    assert ("SAMFineTuneLib.cases.label_grid", "_OPTIONS") in seen and len(seen) > 20, "errors are found"


def test_commands_that_texts_name_are_there(source):
    parsers, wrong = commands(), []
    groups = {name.partition(" ")[0] for name in parsers if " " in name}
    for module, tree in source.trees.items():
        for text in (one.value for one in ast.walk(tree) if isinstance(one, ast.Constant)):
            for named in COMMAND.finditer(text) if isinstance(text, str) else ():
                action = named[2] and named[1] in groups and f"{named[1]} {named[2]}"
                if named[1] in parsers and action and action not in parsers:
                    wrong.append(f"{module}: {named[0]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("give --token-file FILE", []),
        ("use it with --match-labels index", []),
        ("go on with --resume", ["--resume"]),
        ("go on with “samfinetune train” and --resume", []),
        ("use it with `samfinetune segment --resume`", ["--resume"]),
        ('pip install --upgrade "samfinetune"', []),
    ],
)
def test_a_misplaced_option_is_found(text, wrong):
    assert misplaced(text, "cohort accept", commands()) == wrong
