"""The embedding cache: addressing, damage, cap, several processes, killed writers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache, embedding_key, open_cache

KEY = embedding_key(np.zeros((4, 4), np.uint8), "engine")


def some_embedding(seed: int = 0, size: int = 64) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image_embeddings": random.normal(size=(1, 8, size, size)).astype(np.float32),
        "high_res_0": random.normal(size=(1, 2, 4, 4)).astype(np.float32),
    }


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def must_not_compute() -> dict[str, np.ndarray]:
    raise AssertionError("the embedding was computed again")


def test_an_embedding_is_computed_once_and_found_by_another_process_exactly_as_it_was(tmp_path):
    first = EmbeddingCache(tmp_path).get_or_compute(KEY, some_embedding)
    later = EmbeddingCache(tmp_path)
    assert same(later.get_or_compute(KEY, must_not_compute), first)
    assert same(first, some_embedding())
    assert later.hits == 1


def test_what_the_cache_hands_out_cannot_be_altered(tmp_path):
    cache = EmbeddingCache(tmp_path)
    for _ in range(2):
        with pytest.raises(ValueError):
            cache.get_or_compute(KEY, some_embedding)["image_embeddings"][:] = 0
        cache = EmbeddingCache(tmp_path)


def test_the_key_changes_with_any_pixel_the_shape_and_the_engine():
    picture = np.arange(24, dtype=np.uint8).reshape(4, 6)
    other = picture.copy()
    other[3, 5] += 1
    keys = {
        embedding_key(picture, "a"),
        embedding_key(picture, "b"),
        embedding_key(other, "a"),
        embedding_key(picture.reshape(6, 4), "a"),
    }
    assert len(keys) == 4
    assert embedding_key(picture[:, ::2], "a") == embedding_key(np.ascontiguousarray(picture[:, ::2]), "a")


@given(position=st.floats(0, 0.999999), change=st.integers(1, 255))
def test_a_flipped_byte_anywhere_never_gives_a_wrong_embedding(tmp_path_factory, position, change):
    folder = tmp_path_factory.mktemp("cache")
    EmbeddingCache(folder).get_or_compute(KEY, lambda: some_embedding(size=4))
    (path,) = folder.glob("*.npz")
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= change
    path.write_bytes(content)
    found = EmbeddingCache(folder).get(KEY)
    assert found is None or same(found, some_embedding(size=4))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_truncated_entry_is_computed_again(tmp_path, part):
    EmbeddingCache(tmp_path).get_or_compute(KEY, some_embedding)
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    cache = EmbeddingCache(tmp_path)
    assert cache.get(KEY) is None
    assert same(cache.get_or_compute(KEY, some_embedding), some_embedding())
    assert cache.hits == 0 and same(EmbeddingCache(tmp_path).get(KEY), some_embedding())


def test_an_entry_under_another_entrys_name_is_not_believed(tmp_path):
    EmbeddingCache(tmp_path).get_or_compute(KEY, some_embedding)
    other = embedding_key(np.ones((4, 4), np.uint8), "engine")
    (tmp_path / f"{KEY}.npz").rename(tmp_path / f"{other}.npz")
    assert EmbeddingCache(tmp_path).get(other) is None


def test_the_cap_evicts_what_was_used_longest_ago(tmp_path):
    entry = sum(array.nbytes for array in some_embedding().values())
    cache = EmbeddingCache(tmp_path, memory_bytes=0, disk_bytes=int(4.5 * entry))
    keys = [embedding_key(np.full((2, 2), value, np.uint8), "engine") for value in range(6)]
    for age, key in enumerate(keys[:4]):
        cache.get_or_compute(key, lambda: some_embedding())
        os.utime(tmp_path / f"{key}.npz", (1000 + age, 1000 + age))
    fresh = EmbeddingCache(tmp_path, memory_bytes=0, disk_bytes=int(4.5 * entry))
    assert fresh.get(keys[0]) is not None  # using the oldest makes it the newest
    fresh.get_or_compute(keys[4], some_embedding)
    left = {path.stem for path in tmp_path.glob("*.npz")}
    assert keys[0] in left and keys[4] in left and keys[1] not in left
    assert fresh.info().size <= 4.5 * entry


def test_memory_stays_under_its_cap_and_keeps_what_is_in_use():
    entry = sum(array.nbytes for array in some_embedding().values())
    cache = EmbeddingCache(None, memory_bytes=2 * entry)
    keys = [embedding_key(np.full((2, 2), value, np.uint8), "engine") for value in range(3)]
    for key in keys:
        cache.get_or_compute(key, some_embedding)
    assert [cache.get(key) is not None for key in keys] == [False, True, True]


def test_clear_frees_everything_and_says_how_much(tmp_path):
    cache = EmbeddingCache(tmp_path)
    cache.get_or_compute(KEY, some_embedding)
    size = cache.info().size
    (tmp_path / f".{KEY[:12]}.partial-{KEY[-36:]}.npz").write_bytes(b"half")
    assert cache.clear() == size > 0
    assert cache.get(KEY) is None and list(tmp_path.iterdir()) == []


def test_other_peoples_files_in_the_folder_stay(tmp_path):
    """The folder may be any: SAMFINETUNE_CACHE names it."""
    others = [tmp_path / name for name in ("results.npz", f"{KEY[:-1]}.npz", ".draft.partial-results.npz")]
    for file in others:
        file.write_bytes(b"mine")
        os.utime(file, (1, 1))
    cache = EmbeddingCache(tmp_path, disk_bytes=400_000)
    for seed in range(6):
        cache.get_or_compute(embedding_key(np.full((2, 2), seed, np.uint8), "engine"), lambda: some_embedding(1))
    held = cache.info()
    assert 0 < held.entries < 6 and held.size <= 400_000
    assert cache.clear() == held.size and cache.info().entries == 0
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_answer(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    cache = EmbeddingCache(blocked / "cache")
    assert same(cache.get_or_compute(KEY, some_embedding), some_embedding())
    assert same(cache.get_or_compute(KEY, must_not_compute), some_embedding())


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_a_link_in_a_circle_in_an_entry_s_place_is_replaced(tmp_path):
    entry = tmp_path / f"{KEY}.npz"
    entry.symlink_to(entry)
    assert same(EmbeddingCache(tmp_path).get_or_compute(KEY, some_embedding), some_embedding())
    assert same(EmbeddingCache(tmp_path).get_or_compute(KEY, must_not_compute), some_embedding())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may list every folder")
def test_a_folder_that_cannot_be_listed_costs_the_cache_not_the_answer(tmp_path):
    (tmp_path / "cache").mkdir(mode=0o300)
    cache = EmbeddingCache(tmp_path / "cache")
    assert same(cache.get_or_compute(KEY, some_embedding), some_embedding()) and cache.failure is not None


def test_a_senseless_size_setting_is_refused_with_a_sentence(monkeypatch):
    for text in ("much", "nan", "-1"):
        monkeypatch.setenv("SAMFINETUNE_CACHE_GB", text)
        with pytest.raises(UserError, match="SAMFINETUNE_CACHE_GB"):
            open_cache()


WRITER = """
import sys, numpy as np
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache, embedding_key
cache = EmbeddingCache(sys.argv[1], disk_bytes=40 << 20)
print("ready", flush=True)
for value in range(100000):
    key = embedding_key(np.full((2, 2, 1), value % 50, np.uint8) + int(sys.argv[2]), "engine")
    cache._memory.clear()
    cache.get_or_compute(key, lambda: {"x": np.full((1, 256, 64, 64), value % 50 + int(sys.argv[2]), np.float32)})
"""


def test_killed_writers_beside_each_other_leave_a_cache_that_verifies(tmp_path):
    root = Path(__file__).resolve().parents[2]
    for delay in (0.05, 0.15, 0.3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(tmp_path), str(seed)], stdout=subprocess.PIPE, cwd=root
            )
            for seed in (0, 25)
        ]
        for writer in writers:
            assert writer.stdout.readline().strip() == b"ready"
        time.sleep(delay)
        for writer in writers:
            writer.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            writer.wait()
            writer.stdout.close()
    cache = EmbeddingCache(tmp_path)
    assert cache.info().entries > 0
    whole = [path for path in tmp_path.glob("*.npz") if not path.name.startswith(".")]
    assert whole and all(cache.get(path.stem) is not None for path in whole)
    for value in range(50):
        found = cache.get(embedding_key(np.full((2, 2, 1), value, np.uint8), "engine"))
        assert found is None or np.all(found["x"] == value)
