"""Shared by several suites: the checkout, and the folder of the real images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A change is judged by the same examples everywhere; HYPOTHESIS_PROFILE=search tries others at each run.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", derandomize=False, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Tests that run side by side (pytest -n) take one core each; read when PyTorch and its like are first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory):
    """The tests leave the user's models and cache alone, and do not depend on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMFINETUNE_HOME", str(tmp_path_factory.mktemp("home")))
        yield
