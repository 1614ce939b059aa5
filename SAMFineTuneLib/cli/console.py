"""What a command prints: lines for people, or with --json one document for programs; --quiet, --verbose, --log-file.

Also asks for confirmation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import require_log

_MOMENT = 0.5  # s
_document: dict[str, Any] = {}  # of the command that runs
_quiet = _json = False


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --quiet, --verbose and --log-file to a command and to its actions."""
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in nested:
        for child in action.choices.values():
            add_options(child)
    if nested or "--verbose" in parser._option_string_actions:  # `serve` logs in its own way
        return
    group = parser.add_argument_group("output")
    group.add_argument("--quiet", "-q", action="store_true", help="print nothing but notes and errors, both on stderr")
    group.add_argument("--verbose", "-v", action="store_true", help="also print what the library logs, on stderr")
    group.add_argument("--log-file", metavar="FILE", help="append what the library logs to a file")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")


@contextlib.contextmanager
def opened(args: argparse.Namespace) -> Iterator[None]:
    """Print as the options ask while a command runs, and its document at the end, unless it raises."""
    global _quiet, _json, _document
    _quiet, _json, _document = getattr(args, "quiet", False), getattr(args, "json", False), {}
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_logging(getattr(args, "verbose", False), getattr(args, "log_file", None)))
            if _quiet or _json:
                stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            yield
        if _json:
            print(json.dumps(_document, indent=2, ensure_ascii=False, allow_nan=False))
    finally:
        _quiet = _json = False


def is_quiet() -> bool:
    """Whether --quiet asks to print no progress."""
    return _quiet


def note(text: str, width: int = 12) -> None:
    """Print a note to the user; with --json it is one of the document's `notes`."""
    if _json:
        _document.setdefault("notes", []).append(text)
    elif _quiet:
        print(f"note: {text}", file=sys.stderr)
    else:
        print(f"{'note':<{width}}{text}")


def confirmed(question: str) -> bool:
    """Ask a yes-no question with the default no; UserError without a terminal."""
    if not sys.stdin.isatty():
        raise UserError("This needs a confirmation, but there is no terminal to ask; add --yes to agree.")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False


def document(**values: Any) -> None:
    """Add to what --json prints; paths become text."""
    for name, value in values.items():
        _document[name] = str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, if that is a terminal, for work that takes longer than a moment.

    The function that it yields takes the number of slices done, and of all.
    """
    from tqdm import tqdm

    hidden = _quiet or not sys.stderr.isatty()
    with tqdm(desc=name, unit="slice", disable=hidden, leave=False, delay=_MOMENT) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


@contextlib.contextmanager
def _logging(verbose: bool, path: str | None) -> Iterator[None]:
    logger = logging.getLogger("SAMFineTuneLib")
    handlers: list[logging.Handler] = []
    if path:
        path = os.path.expanduser(path)
        try:
            require_log(path)
            handlers.append(logging.FileHandler(path, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"The log file “{path}” cannot be written ({error.strerror}); choose another.") from error
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    if verbose:
        handlers.append(logging.StreamHandler(sys.stderr))
        handlers[-1].setFormatter(logging.Formatter("%(name)s: %(message)s"))
    before = logger.level
    for handler in handlers:
        logger.addHandler(handler)
    if handlers:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
