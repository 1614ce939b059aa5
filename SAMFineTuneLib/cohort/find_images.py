"""Finds the images that a cohort is made of, some of which may have labels already.

| given | its images |
|---|---|
| a folder with `images/`, and perhaps `labels/` or `masks/` | all in `images/`; those with labels of their name are accepted |
| nnU-Net's `imagesTr/`, `labelsTr/`, `imagesTs/` | the first channel of all; those with labels are accepted |
| a `.csv` of `image,label,patient` | those listed; those with a label are accepted; labels and patients may be empty |
| any other folder | its image files, and every folder below it that holds DICOM files, each series by itself |

Slicer segmentations (`.seg.nrrd`) and folders of cohorts are not images. One series of several in a DICOM folder is
named by its UID behind a #, which stays when the folder gets more.
"""  # noqa: E501

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from SAMFineTuneLib.cases.case_lists import LISTS, read_list
from SAMFineTuneLib.cases.cases import LABEL_FOLDERS, Case, find_cases, images_by_name
from SAMFineTuneLib.cohort.cohort_folder import STATE_FILE
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.read_dicom import NoDicomImages, look_into
from SAMFineTuneLib.images.read_image import ENDINGS, is_dicom, split_choice

_LOCALIZER = 4  # slices: a series of so few is hardly the one to be segmented


@dataclass(frozen=True)
class FoundImage:
    """An image that belongs to a cohort: its file or DICOM folder, its labels if it has any, its patient if known."""

    image: Path
    labelled: Case | None = None
    patient: str = ""
    digested: str = ""
    """What `patient_digest` made of the patient."""
    notes: tuple[str, ...] = ()
    """Sentences about how it was found."""
    beside: tuple[str, ...] = ()
    """Sentences about what was left out beside it."""


def find_images(source: str | Path, match: str = "") -> list[FoundImage]:
    """The images of a source (see the table above), by name.

    Args:
        source: a folder or a list.
        match: how labels find their voxels, see `label_grid.MATCHES`.

    Raises:
        UserError: when there are none, or labels do not belong to their images.
    """
    source = Path(source).expanduser()
    if not source.exists():
        raise UserError(f"“{source}” does not exist; check the path.")
    images = source / "images"
    if source.is_file():
        if source.suffix.lower() not in LISTS:
            raise UserError(f"“{source.name}” is not a folder of images or a list of image,label,patient (.csv).")
        listed = read_list(source, unlabelled=True)
        found = [
            FoundImage(
                one.image,
                one.label and Case(one.image.name, one.image, one.label, match=match),
                one.patient,
                notes=one.notes,
            )
            for one in listed
        ]
    elif (source / "imagesTr").is_dir():
        folders = [source / name for name in ("imagesTr", "imagesTs") if (source / name).is_dir()]
        found = _with_labels(source, folders, source / "labelsTr", True, match)
    elif images.is_dir():
        labels = [source / name for name in LABEL_FOLDERS if (source / name).is_dir()]
        found = _with_labels(source, [images], next(iter(labels), None), False, match)
    else:
        found = _anywhere(source)
    if not found:
        raise UserError(f"“{source}” holds no images; it needs NIfTI, NRRD, MetaImage, PNG or DICOM files.")
    return sorted(found, key=lambda one: split_choice(one.image)[0])  # series of a folder stay in their order


def _with_labels(
    source: Path, folders: Sequence[Path], labels: Path | None, channels: bool, match: str
) -> list[FoundImage]:
    """The images of some folders, each with its labels where there are any."""
    labelled, orphans = {}, []
    if labels is not None and labels.is_dir() and any(not path.name.startswith(".") for path in labels.iterdir()):
        labelled = {case.image: case for case in find_cases(source, match, orphans.append)}
    images = [path for folder in folders for path in images_by_name(folder, channels).values()]
    return _told([FoundImage(path, labelled.get(path)) for path in images], orphans)


def _told(images: list[FoundImage], about: Sequence[str]) -> list[FoundImage]:
    """The images, the first of which has the sentences about what was left out beside them."""
    return [replace(one, beside=tuple(about)) for one in images[:1]] + images[1:]


def _anywhere(source: Path) -> list[FoundImage]:
    """Image files below a folder, and each DICOM series; one of few slices, a localizer, only if there is no other."""
    files = []
    for parent, folders, names in os.walk(source):
        if STATE_FILE in names:  # a cohort's own folder
            folders[:], names = [], []
        folders[:] = [one for one in folders if not one.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    images = [FoundImage(path) for path in files if path.name.lower().endswith(ENDINGS) and not _is_segmentation(path)]
    dicom = {path.parent for path in files if _may_be_dicom(path)}
    for folder in sorted(one for one in dicom if not dicom.intersection(one.parents)):
        try:
            series, lost, _ = look_into(folder)
        except NoDicomImages:
            continue
        except UserError:
            images.append(FoundImage(folder))  # reading it will raise the error, which is told
            continue
        own = [one for one in series if one.size[2] > _LOCALIZER] or series
        names = (one.uid or str(one.number) for one in own)
        if len(series) == 1:
            images.append(FoundImage(folder))
        else:
            images += _told([FoundImage(folder.with_name(f"{folder.name}#{name}")) for name in names], lost)
    return images


def _is_segmentation(path: Path) -> bool:
    """Whether a file is Slicer's kind of label map."""
    return path.name.lower().endswith(".seg.nrrd")


def _may_be_dicom(path: Path) -> bool:
    """Whether a file is marked as DICOM, or has a name that DICOM files have."""
    if not path.suffix or path.suffix.lower() in (".dcm", ".ima", ".dicom") or path.suffix[1:].isdigit():
        return True
    try:
        return is_dicom(path)
    except OSError:
        return False
