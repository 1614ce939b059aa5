"""A disk that takes no more, for tests that are not root: the system refuses files above a size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

LIMIT = 64 << 10  # bytes


@contextmanager
def small_files_only(limit: int = LIMIT) -> Iterator[None]:
    """Writers that overlook this overlook a full disk as well. Skips where the system has no such limit."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
