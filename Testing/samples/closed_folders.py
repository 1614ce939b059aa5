"""A folder that this user may not look into, also where the tests run as root, who may."""

from __future__ import annotations

import os
from pathlib import Path


def close_to_all(monkeypatch, folder: Path) -> None:
    """Make a new folder that cannot be listed."""
    folder.mkdir()
    real = os.scandir

    def scanning(path):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scanning)
