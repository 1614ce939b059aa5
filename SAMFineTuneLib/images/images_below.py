"""Finds the images below a folder: image files, and each DICOM series."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_dicom import NoDicomImages, closed_folder, look_into, sentences_about
from SAMFineTuneLib.images.read_image import ENDINGS, is_dicom
from SAMFineTuneLib.wording import some_names

LABEL_FOLDERS = ("labels", "masks", "segmentations")
"""Names of the folder with the label maps of `images`."""
LABEL_SUFFIX = re.compile(r"[._-](seg|segmentation|label|labels|mask|masks|gt)$", re.IGNORECASE)
"""How the names of label maps end, after that of their image."""
_LABELS_OF = {"images": LABEL_FOLDERS, "imagesTr": ("labelsTr",), "imagesTs": ("labelsTs",)}
_OF_A_COHORT = {"cohort.json", "provenance.json"}  # in its own folder, and in what was exported from it
_LOCALIZER = 4  # slices: a series of so few is rarely the one to segment


def images_below(folder: Path) -> dict[Path, tuple[str, ...]]:
    """Find images. These do not count: Slicer segmentations (`.seg.nrrd`), label maps that are named so or lie in a
    folder named so, folders of cohorts, and localizers where there is another series.

    Returns:
        Each image as `read_volume` takes it: a file, a DICOM folder, or such a folder with a # and the UID of one of
        its series; and sentences about files and folders that were left out.

    Raises:
        UserError: when there are none but folders that cannot be opened.
    """
    files, closed, labels = [], [], []
    for parent, folders, names in os.walk(folder, onerror=closed.append):
        if not _OF_A_COHORT.isdisjoint(names):
            folders[:], names = [], []
        beside = {label for one in folders for label in _LABELS_OF.get(one, ())}.intersection(folders)
        of_labels = beside | _label_maps(names)
        labels += [Path(parent, name) for name in sorted(of_labels)]
        folders[:] = [one for one in folders if not one.startswith(".") and one not in of_labels]
        files += [Path(parent, name) for name in names if not name.startswith(".") and name not in of_labels]
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
    told = sentences_about(apart)
    if labels:
        which = some_names([str(path.relative_to(folder)) for path in labels])
        told = (*told, f"Left out as label maps, judged by their names: {which}.")
    for first in sorted(images)[:1]:
        images[first] += tuple(told)
    return images


def _label_maps(names: Iterable[str]) -> set[str]:
    """Which files of a folder are named as label maps of others in it, such as `a_seg.nii.gz` beside `a_t1.nii.gz`."""
    stems = {}
    for name in names:
        if ending := max((one for one in ENDINGS if name.lower().endswith(one)), key=len, default=""):
            stems[name] = name[: -len(ending)]
    labels = {name: LABEL_SUFFIX.sub("", stem) for name, stem in stems.items() if LABEL_SUFFIX.search(stem)}
    others = [stem for name, stem in stems.items() if name not in labels]
    return {name for name, start in labels.items() if any(other.startswith(start) for other in others)}


def _may_be_dicom(path: Path) -> bool:
    """Whether a file is marked as DICOM, or has a name that DICOM files have."""
    if not path.suffix or path.suffix.lower() in (".dcm", ".ima", ".dicom") or path.suffix[1:].isdigit():
        return True
    try:
        return is_dicom(path)
    except OSError:
        return False
