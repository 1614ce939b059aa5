"""A short run of the random user; an hour of it is `python Testing/mrml/random_use.py --minutes 60`."""

from __future__ import annotations

import pytest

pytest.importorskip("slicer")


@pytest.mark.skipif(not __import__("pathlib").Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("seed", [23])
def test_random_use_leaves_nothing_and_loses_nothing(seed):
    from mrml.random_use import use

    used = use(seed, steps=40)
    assert not used.failures
    assert used.counts["kill_worker"] and used.counts["save_and_load"] and used.counts["propagate"]
