"""Packed images on their way into a cohort of this server.

Each is known by its SHA-256, so that sending continues where it stopped, even from another connection or after a
restart, and an incomplete or damaged one is never read. Until it is complete it lies under a hidden name in the
cohort's folder, from which it is deleted a day after its last part.
"""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import remove_abandoned, sha256_of
from SAMFineTuneLib.service.cohort_messages import CohortUpload
from SAMFineTuneLib.service.protocol import Limits, Refused
from SAMFineTuneLib.service.wire import WireError

NOTHING_ADDED = "adding"
"""Kind of a refusal that any other image would meet, too."""
_lock = threading.Lock()


def upload_path(cohort: Path, digest: str) -> Path:
    """The file of an image that is arriving; WireError for an invalid digest."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise WireError("its digest is not one")
    return cohort / "added" / f".{digest[:12]}.partial-{digest}"


def add_part(cohort: Path, message: CohortUpload, limits: Limits) -> int:
    """Append the next part of an image.

    Args:
        cohort: the cohort's folder.
        message: the part.
        limits: the server's.

    Returns:
        The number of bytes that have arrived; the next part begins there.

    Raises:
        UserError: for an image that is too large or damaged.
        Refused: when the disk is full.
    """
    path = upload_path(cohort, message.digest)
    if not 0 < message.size <= limits.volume_bytes:
        raise UserError(f"The image has {message.size / 1e9:.1f} GB, and this server takes at most "
                        f"{limits.volume_bytes / 1e9:.1f} GB; crop or resample it.")  # fmt: skip
    with _lock:
        try:
            path.parent.mkdir(exist_ok=True)
            there = path.stat().st_size if path.exists() else 0
            if not there:
                remove_abandoned(path.parent)
            if shutil.disk_usage(path.parent).free < 2 * message.size - there:  # it is unpacked there, too
                raise Refused(507, NOTHING_ADDED, "The server's disk is full; ask its administrator for space.")
            if message.offset == there and there + len(message.data) <= message.size:
                with open(path, "ab") as file:
                    file.write(message.data)
                there += len(message.data)
        except OSError as error:
            path.unlink(missing_ok=True)
            if disk_error(error) is None:
                raise
            text = "The server's disk takes no images; ask its administrator to check it."
            raise Refused(507, NOTHING_ADDED, text) from error
    if there == message.size and message.data and sha256_of(path) != message.digest:
        path.unlink(missing_ok=True)
        raise UserError("The image arrived damaged; send it again.")
    return there
