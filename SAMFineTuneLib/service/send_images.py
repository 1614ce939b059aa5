"""Sends images of this computer into a cohort on a server."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cases.cases import SHORT, Case, patients_by_name
from SAMFineTuneLib.cohort.cohort_labels import renumbered
from SAMFineTuneLib.cohort.create_cohort import about_labels
from SAMFineTuneLib.cohort.find_images import FoundImage
from SAMFineTuneLib.cohort.packed_images import pack_image
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume
from SAMFineTuneLib.service.cohort_client import ServedCohort, Unreached
from SAMFineTuneLib.service.cohort_uploads import NOTHING_ADDED
from SAMFineTuneLib.wording import within_sentence


def send_images(
    served: ServedCohort, images: Sequence[FoundImage], progress: Callable[[int, int, str, float], None]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Send images with their labels. Each is added when it has arrived, and those that the cohort has are not sent, so
    the same call continues after an interruption.

    Args:
        served: the cohort.
        images: from `find_images`.
        progress: called with the number of images done, of all, the name of the next one, and the fraction of it that
            has arrived; it may raise to stop.

    Returns:
        The names here and on the server of the added ones, and sentences as in `NewCohort`.

    Raises:
        UserError: when the server cannot be reached, or takes no images.
    """
    named = patients_by_name({str(one.image): one.image for one in images})
    window, added, notes = secrets.token_hex(8), [], []
    with tempfile.TemporaryDirectory() as place:
        packed = Path(place, "image.zip")
        for done, one in enumerate(images):
            name = one.image.name
            notes += one.beside
            tell = partial(progress, done, len(images), name)
            tell(0.0)
            try:
                volume = pack_image(one.image, read_volume(one.image), packed)
            except UserError as error:
                notes.append(f"{name} is left out: {error}")
                continue
            if same := next((case for case in served.cohort.state.cases if case.key == volume.digest[:SHORT]), None):
                notes.append(f"{name} is left out: {same.name} is the same image.")
                continue
            labels = _labels(served, one.labelled, name, notes) if one.labelled else None
            try:
                digest = served.upload(packed, tell)
                told = served.do("receive", window, done + 1, labels, case=volume.digest, image=digest,
                                 patient=one.patient or named.get(str(one.image), ""))  # fmt: skip
            except UserError as error:
                if isinstance(error, Unreached) or getattr(error, "kind", "") == NOTHING_ADDED:
                    raise
                notes.append(f"{name} is left out: {error}")
                continue
            notes += [*(f"{name}: {note}" for note in one.notes), *told["notes"]]
            served.follow()
            added.append((name, served.cohort.state.case(volume.digest[:SHORT]).name))
    return added, notes


def _labels(served: ServedCohort, labelled: Case, name: str, notes: list[str]) -> np.ndarray | None:
    """Labels as the cohort numbers them; None, with a note, if they cannot be used."""
    try:
        annotated = labelled.read()
        notes += about_labels(name, annotated)
        return renumbered(annotated.labels, annotated.meaning, served.cohort.state.labels)[0]
    except UserError as error:
        notes.append(f"The labels of {name} are not used: {within_sentence(str(error))}")
        return None
