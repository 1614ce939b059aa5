"""Caches image embeddings in memory and on disk, addressed by their content.

The key is a digest of the pixels that the encoder sees (so of voxels, plane and window together) and of the engine's
weights, adapter and precision: a changed input has another key, and neither key nor entry identifies a patient. An
entry is an `.npz` followed by a digest of it and its key; a damaged, renamed or truncated entry counts as missing and
is computed again. Entries are written to a temporary file and renamed, so processes can share a folder without locks
and can be killed at any time. The package diskcache does not serve: it pickles, does not verify what it reads, and
keeps a database that processes lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, data_folder

Embedding = dict[str, np.ndarray]

_FORMAT = "2"  # part of every key: raise it when the content of entries changes
_DIGEST_BYTES = 32
_ENTRY = re.compile(r"[0-9a-f]{64}\.npz")
_PARTIAL = re.compile(r"\.[0-9a-f]{12}\.partial-[0-9a-f]+\.npz")  # as `atomic_write` names them
_STALE_PARTIAL_SECONDS = 3600  # the process that was writing an older one has been killed


def cache_folder() -> Path:
    """Default folder of the disk cache; `SAMFINETUNE_CACHE` overrides it."""
    configured = os.environ.get("SAMFINETUNE_CACHE")
    return Path(configured).expanduser() if configured else data_folder() / "embeddings"


def embedding_key(picture: np.ndarray, engine_digest: str) -> str:
    """Hex SHA-256 of a picture (any shape, `uint8`) and the engine that embeds it."""
    digest = hashlib.sha256(f"{_FORMAT}|{engine_digest}|{picture.dtype}|{picture.shape}|".encode())
    digest.update(np.ascontiguousarray(picture))
    return digest.hexdigest()


@dataclass(frozen=True)
class CacheInfo:
    """Number and size in bytes of the entries in the disk cache."""

    folder: Path
    entries: int
    size: int
    limit: int


class EmbeddingCache:
    """The most recently used embeddings: a memory tier over an optional disk tier.

    Args:
        folder: the disk tier; None keeps everything in memory.
        memory_bytes: limit of the memory tier.
        disk_bytes: limit of the folder, whoever wrote its entries.
    """

    def __init__(self, folder: str | Path | None = None, memory_bytes: int = 512 << 20, disk_bytes: int = 8 << 30):
        self.folder = Path(folder).expanduser() if folder is not None else None
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes
        self.hits = 0
        self._memory: OrderedDict[str, Embedding] = OrderedDict()
        self._memory_size = 0
        self._disk_size: int | None = None  # an estimate; counted again when it reaches the limit
        self.failure: Exception | None = None
        """The error that writing to the folder met; from then on, new embeddings stay in memory only."""

    def get_or_compute(self, key: str, compute: Callable[[], Embedding]) -> Embedding:
        """The embedding of `key`, from memory, disk, or `compute()`; the arrays are read-only."""
        found = self.get(key)
        if found is not None:
            self.hits += 1
            return found
        embedding = {name: np.ascontiguousarray(array) for name, array in compute().items()}
        self._remember(key, embedding)
        self._store(key, embedding)
        return embedding

    def get(self, key: str) -> Embedding | None:
        """The embedding of `key`, or None when it is absent or damaged."""
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        if self.folder is None:
            return None
        path = self._path(key)
        embedding = _read_entry(path, key)
        if embedding is None:
            return None
        with contextlib.suppress(OSError):  # a shared cache may be read-only
            os.utime(path)
        self._remember(key, embedding)
        return embedding

    def info(self) -> CacheInfo:
        """Number and size of the entries on disk."""
        entries = self._entries()
        folder = self.folder if self.folder is not None else Path()
        return CacheInfo(folder, len(entries), sum(size for _, size, _ in entries), self.disk_bytes)

    def clear(self) -> int:
        """Remove all entries, on disk and in memory; return the bytes freed on disk."""
        self._memory.clear()
        self._memory_size = 0
        self._remove_partials(older_than=0)
        freed = 0
        for _, size, path in self._entries():
            if _remove(path):
                freed += size
        self._disk_size = None
        return freed

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.npz"

    def _remember(self, key: str, embedding: Embedding) -> None:
        for array in embedding.values():
            array.flags.writeable = False
        if (old := self._memory.pop(key, None)) is not None:
            self._memory_size -= _size(old)
        self._memory[key] = embedding
        self._memory_size += _size(embedding)
        while self._memory_size > self.memory_bytes and len(self._memory) > 1:
            _, dropped = self._memory.popitem(last=False)
            self._memory_size -= _size(dropped)

    def _store(self, key: str, embedding: Embedding) -> None:
        if self.folder is None or self.failure is not None:
            return
        path = self._path(key)
        archive = io.BytesIO()
        np.savez(archive, **embedding)
        content = archive.getbuffer()
        try:
            with atomic_write(path, durable=False) as temporary, open(temporary, "wb") as file:
                file.write(content)
                file.write(_digest(key, content))
            if self._disk_size is None:
                self._disk_size = self.info().size
            else:
                self._disk_size += len(content) + _DIGEST_BYTES
            if self._disk_size > self.disk_bytes:
                self._evict(keep=path)
        except (OSError, DiskError) as error:  # without the cache the answer only takes longer
            self.failure = error

    def _evict(self, keep: Path) -> None:
        """Remove the least recently used entries until the folder is a tenth below its limit."""
        self._remove_partials(_STALE_PARTIAL_SECONDS)
        entries = sorted(self._entries())
        size = sum(entry_size for _, entry_size, _ in entries)
        for _, entry_size, path in entries:
            if size <= 0.9 * self.disk_bytes:
                break
            if path != keep and _remove(path):
                size -= entry_size
        self._disk_size = size

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of each entry, without those that another process has just removed."""
        if self.folder is None or not self.folder.is_dir():
            return []
        found = []
        for path in filter(lambda path: _ENTRY.fullmatch(path.name), self.folder.iterdir()):  # others are not ours
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        return found

    def _remove_partials(self, older_than: float) -> None:
        if self.folder is None or not self.folder.is_dir():
            return
        for path in filter(lambda path: _PARTIAL.fullmatch(path.name), self.folder.iterdir()):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime >= older_than:
                    path.unlink(missing_ok=True)


def open_cache(disk: bool = True) -> EmbeddingCache:
    """The user's cache: memory and `cache_folder()`, whose limit is set by `SAMFINETUNE_CACHE_GB`."""
    text = os.environ.get("SAMFINETUNE_CACHE_GB", "8")
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e6:
        raise UserError(f"SAMFINETUNE_CACHE_GB is {text!r}; set it to the cache's size in gigabytes, such as 8.")
    return EmbeddingCache(cache_folder() if disk else None, disk_bytes=int(gigabytes * (1 << 30)))


def _read_entry(path: Path, key: str) -> Embedding | None:
    try:
        entry = path.read_bytes()
    except OSError:
        return None
    content = entry[:-_DIGEST_BYTES]
    if _digest(key, content) != entry[-_DIGEST_BYTES:]:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return dict(archive)


def _digest(key: str, content: bytes | memoryview) -> bytes:
    """BLAKE2b of an entry and its key: a zip file's own checksums do not cover names and sizes."""
    digest = hashlib.blake2b(key.encode(), digest_size=_DIGEST_BYTES)
    digest.update(content)
    return digest.digest()


def _size(embedding: Embedding) -> int:
    return sum(array.nbytes for array in embedding.values())


def _remove(path: Path) -> bool:
    try:
        path.unlink(missing_ok=True)
        return True
    except OSError:  # open in another process on Windows; the next eviction removes it
        return False
