"""Finds the images below a folder: image files, and each DICOM series."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_dicom import NoDicomImages, closed_folder, look_into, sentences_about
from SAMFineTuneLib.images.read_image import ENDINGS, is_dicom

_LOCALIZER = 4  # slices: a series of so few is rarely the one to segment


def images_below(
    folder: Path, passed_over: Callable[[Sequence[str]], bool] = lambda names: False
) -> dict[Path, tuple[str, ...]]:
    """Find images. Slicer segmentations (`.seg.nrrd`) do not count, and localizers only where there is no other series.

    Args:
        folder: where to look.
        passed_over: whether to pass over a folder and what is below it, by the names of its files.

    Returns:
        Each image as `read_volume` takes it: a file, a DICOM folder, or such a folder with a # and the UID of one of
        its series; and sentences about files and folders that were left out.

    Raises:
        UserError: when there are none but folders that cannot be opened.
    """
    files, closed = [], []
    for parent, folders, names in os.walk(folder, onerror=closed.append):
        if passed_over(names):
            folders[:], names = [], []
        folders[:] = [one for one in folders if not one.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    names = {path: path.name.lower() for path in files}
    images = {path: () for path in files if names[path].endswith(ENDINGS) and not names[path].endswith(".seg.nrrd")}
    dicom = {path.parent for path in files if _may_be_dicom(path)}
    for place in sorted(one for one in dicom if not dicom.intersection(one.parents)):
        try:
            series, lost, _ = look_into(place)
        except NoDicomImages:
            continue
        except UserError:  # reading it will raise the error
            series, lost = (), ()
        if len(series) < 2:
            images[place] = ()
            continue
        own = [one for one in series if one.size[2] > _LOCALIZER] or series
        chosen = [place.with_name(f"{place.name}#{one.uid or one.number}") for one in own]
        images |= dict.fromkeys(chosen, ()) | {chosen[0]: tuple(lost)}
    # What lies below a folder of DICOM files is said when they are read.
    apart = [closed_folder(error, folder) for error in closed if not dicom.intersection(Path(error.filename).parents)]
    if apart and not images:
        raise UserError(f"No image in “{folder}” can be read: {sentences_about(apart)[0]} Get permission to read it.")
    for first in sorted(images)[:1]:
        images[first] += tuple(sentences_about(apart))
    return images



def _may_be_dicom(path: Path) -> bool:
    """Whether a file is marked as DICOM, or has a name that DICOM files have."""
    if not path.suffix or path.suffix.lower() in (".dcm", ".ima", ".dicom") or path.suffix[1:].isdigit():
        return True
    try:
        return is_dicom(path)
    except OSError:
        return False
