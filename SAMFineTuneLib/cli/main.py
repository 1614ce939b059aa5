"""`samfinetune`: finds the sub-command, runs it, and turns errors into a sentence and an exit code.

A sub-command is the module of its name in this package. It offers `add_parser(subparsers)` and
`run(args) -> int`, and imports nothing heavier than NumPy at file scope: only the requested module is loaded, and only
help needs all of them.

Exit codes: 0 done, 2 wrong input, a missing package or a disk that refuses (one sentence on stderr), 130
interrupted by Ctrl-C or SIGTERM, 141 done, but the reader of the output went away; anything else is a defect.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from SAMFineTuneLib import __version__
from SAMFineTuneLib.cli import console
from SAMFineTuneLib.cli.arguments import Parser
from SAMFineTuneLib.disk_errors import explained
from SAMFineTuneLib.errors import UserError

COMMANDS = ("demo", "info", "segment", "embed", "models", "adapters", "cache", "serve", "pretrain", "train",
            "evaluate", "cohort")  # fmt: skip

_OUT_OF_MEMORY = ("this computer has too little free memory for that; close other programs, or take a smaller model or "
                  "volume.")  # fmt: skip
_MISSING_PACKAGE = ("The package “{}”, which this needs, is not installed: install SAMFineTune again, with pip, in the "
                    "same Python.")  # fmt: skip

_EPILOG = """examples:
  samfinetune demo                                         try it on a phantom: no data, no download needed
  samfinetune info path/to/dicom                           what was understood of a volume
  samfinetune segment path/to/dicom -o liver.seg.nrrd --box 120,60,-40,-10,-80,-40
  samfinetune models list                                  installed models, and those that could be added

Every sub-command has its own help: samfinetune segment --help
The tab key completes commands, options and names after: eval "$(register-python-argcomplete samfinetune)"
"""


def main(argv: list[str] | None = None) -> int:
    """Run `samfinetune` with `argv` (the process's own arguments when None); returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # PyTorch may multiply with OpenBLAS, too, and needs all cores there.
    if argv[:1] not in (["train"], ["pretrain"]) and argv[:2] != ["cohort", "train"]:
        # OpenBLAS's threads spin after each of NumPy's products, and take the cores from those that run the model: a
        # click takes up to a third longer. NumPy reads this when it is first imported, which has not happened yet.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for name in ("stdin", "stdout", "stderr"):  # None if a caller has closed it; a file could get its number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show must not end the program
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    stdout, stderr = _Output(sys.stdout), _Output(sys.stderr)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), _ended_politely():
        try:
            code = _dispatch(argv)
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            return _say(str(error) or "interrupted; nothing half-written was left behind.", 130)
        except Exception as error:
            sentence = explained(error, _OUT_OF_MEMORY, _MISSING_PACKAGE)
            if not sentence:
                raise
            return _say(sentence, 2)
    return code or 141 * (stdout.unread or stderr.unread)


@contextlib.contextmanager
def _ended_politely() -> Iterator[None]:
    """Let SIGTERM, which schedulers and `kill` send, end a command as Ctrl-C does; a second one ends it at once."""

    def interrupt(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    usual = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    try:
        with contextlib.suppress(ValueError):  # signals can be caught in the main thread only
            if usual:
                signal.signal(signal.SIGTERM, interrupt)
        yield
    finally:
        with contextlib.suppress(ValueError):
            if usual:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Output:
    """A stream of text whose reader may go away, as in `samfinetune segment … | head`: the command continues without
    output.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self.unread = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._unheard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._unheard():
            self._stream.flush()

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.unread = True
            _discard(self._stream)


def _dispatch(argv: list[str]) -> int:
    _require_words(argv)
    completing = "_ARGCOMPLETE" in os.environ  # a shell asks for completions
    names = COMMANDS if completing or not argv or argv[0] not in COMMANDS else (argv[0],)
    parser = Parser(
        prog="samfinetune",
        description="Segment DICOM and NIfTI volumes from points and boxes with SAM and its variants.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"samfinetune {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    modules = {name: importlib.import_module(f"SAMFineTuneLib.cli.{name}") for name in names}
    for module in modules.values():
        module.add_parser(subparsers)
    console.add_options(parser)
    if completing:
        import argcomplete

        argcomplete.autocomplete(parser)
    if not argv:
        parser.print_help()
        return 0
    try:
        args = parser.parse_args(argv)
    except SystemExit as exit_:  # argparse has already printed its help or error
        return int(exit_.code or 0)
    with console.opened(args):
        return int(modules[args.command].run(args) or 0)


def _require_words(argv: list[str]) -> None:
    """UserError for an empty argument: a script's unset variable, which must not mean an option's default."""
    for place, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if word.startswith("--") and equals and not value.strip():
            raise UserError(f"{option} is empty; give it a value, or leave it out.")
        if not word.strip():
            after = f" after {argv[place - 1]}" if place else ""
            raise UserError(f"The argument{after} is empty; give it a value, or leave it out.")


def _say(sentence: str, code: int) -> int:
    """Print a sentence to stderr, on one line, and return `code`."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard(sys.stdout)
    print("samfinetune:", " ".join(sentence.splitlines()), file=sys.stderr)
    return code


def _discard(stream: TextIO) -> None:
    """After the reader of a pipe has gone, or its disk is full, prevent an error message from the interpreter's last
    flush.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
