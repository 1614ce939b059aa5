"""Render the API pages from the docstrings: `python docs/build_api_pages.py FOLDER`.

Needs the extra `test`, and no network. Left out are the command line, the scene in Slicer and the service between them,
which no Python program calls.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import SAMFineTuneLib

NOT_CALLED = ("cli", "mrml", "service", "__main__")


def module_names() -> list[str]:
    """Every module that a Python program may call."""
    found = pkgutil.walk_packages(SAMFineTuneLib.__path__, "SAMFineTuneLib.", onerror=lambda name: None)
    names = (module.name for module in found)
    return ["SAMFineTuneLib", *(name for name in names if name.split(".")[1] not in NOT_CALLED)]


def build(folder: Path) -> None:
    """Write the pages; UserWarning for a module that cannot be imported or a public name that does not exist."""
    names = module_names()
    for name in names:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):  # names that are loaded when they are first asked for
            module.__dict__.setdefault(public, getattr(module, public))
    pdoc.render.configure(
        docformat="google", show_source=False, footer_text=f"SAMFineTune {SAMFineTuneLib.__version__}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Types that are imported for type checkers alone, and methods named like a type, are printed as written.
        warnings.filterwarnings("ignore", message="Error parsing type annotation")
        # Packages with and without `__all__` are walked differently; here every module is named.
        warnings.filterwarnings("ignore", message=".*has already been added")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        pdoc.pdoc(*names, output_directory=folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/build_api_pages.py FOLDER")
    os.environ.setdefault("SAMFINETUNE_HOME", str(Path(sys.argv[1]) / "home"))
    build(Path(sys.argv[1]))
    print(f"open {Path(sys.argv[1]) / 'index.html'}")
