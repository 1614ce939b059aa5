"""What several suites share: the checkout, and where the real images lie."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL_IMAGES = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: where pyproject.toml lies."""
    return ROOT


@pytest.fixture(scope="session")
def real_images() -> Path:
    """Folder of the annotated real images, which are never part of the repository."""
    if not REAL_IMAGES.is_dir():
        pytest.skip("the real images are not on this machine")
    return REAL_IMAGES
