"""What several suites share: where the real images lie, and a small volume whose every voxel is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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


@pytest.fixture
def oblique_affine() -> np.ndarray:
    """Voxel → RAS of a tilted, anisotropic, left-handed grid: what goes unnoticed on an upright one shows here."""
    angle = np.deg2rad(12.0)
    tilt = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = tilt @ np.diag([-0.8, 0.9, 2.5])
    affine[:3, 3] = (31.0, -24.0, 17.0)
    return affine
