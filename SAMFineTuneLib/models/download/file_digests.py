"""Checks a file against the size and digests that its authors published."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import hex_digest

_STRONGEST_FIRST = ("sha256", "md5", "xxh128")


def file_digest(path: str | Path, kind: str) -> str | None:
    """Hex digest of a file, or None when this Python cannot compute that kind.

    "xxh128" needs the package xxhash, which is not a dependency; a strict system may forbid "md5".
    """
    try:
        if kind == "xxh128":
            import xxhash

            digest = xxhash.xxh128()
        else:
            digest = hashlib.new(kind, usedforsecurity=False)
    except (ImportError, ValueError):  # not installed, or forbidden by the system's policy
        return None
    return hex_digest(path, digest)


def check_file(path: str | Path, what: str, size: int | None, digests: Mapping[str, str]) -> str:
    """Compare a file with its published size and digests.

    Args:
        path: the file.
        what: names the file in sentences.
        size: bytes, or None when its authors publish none.
        digests: hex digests by kind: "sha256", "md5" or "xxh128".

    Returns:
        A sentence that says what was checked, also when a digest cannot be computed here.

    Raises:
        UserError: naming both values when one differs.
    """
    path = Path(path)
    actual_size = path.stat().st_size
    if size is not None and actual_size != size:
        raise UserError(f"{what} has {actual_size:,} bytes where {size:,} are published; "
                        "the file is incomplete or another version, so get it again from its source.")
    verdict = "its authors publish no digest"
    for kind in sorted(digests, key=_STRONGEST_FIRST.index):
        actual = file_digest(path, kind)
        if actual is None:
            why = " without the package xxhash" if kind == "xxh128" else ""
            verdict = f"its published {kind} could not be checked here{why}"
        elif actual != digests[kind].lower():
            raise UserError(f"{what} has {kind} {actual} where {digests[kind]} is published; "
                            "the file is damaged or another version, so get it again from its source.")
        else:
            return f"Its {kind} {actual} is the published one."
    sized = "Its size is the published one, but " if size is not None else ""
    return (sized + verdict if sized else verdict.capitalize()) + "; its sha256 is recorded from now on."
