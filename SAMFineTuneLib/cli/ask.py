"""Asking the user before something is done."""

from __future__ import annotations

import sys

from SAMFineTuneLib.errors import UserError


def confirmed(question: str) -> bool:
    """Ask a yes-no question, no being the default; UserError where nobody can answer."""
    if not sys.stdin.isatty():
        raise UserError("This asks first, and there is nobody to answer here; add --yes to agree.")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        return False
