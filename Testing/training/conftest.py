"""What the tests of trainings share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch computes with one thread: more would only wait for each other in networks as small as these."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
