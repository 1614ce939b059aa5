"""Finds the images that a cohort is made of, some of which may have labels already.

| given | its images |
|---|---|
| a folder with `images/`, and perhaps `labels/` or `masks/` | all in `images/`; those with labels of their name are accepted |
| nnU-Net's `imagesTr/`, `labelsTr/`, `imagesTs/` | the first channel of all; those with labels are accepted |
| a `.csv` of `image,label,patient` | those listed; those with a label are accepted; labels and patients may be empty |
| any other folder | its image files, and every folder below it that holds DICOM files, each series by itself |

`images_below` says which files are not images. One series of several in a DICOM folder is
named by its UID behind a #, which stays when the folder gets more.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from SAMFineTuneLib.cases.case_lists import LISTS, read_list
from SAMFineTuneLib.cases.cases import Case, find_cases, images_by_name
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.images_below import LABEL_FOLDERS, images_below
from SAMFineTuneLib.images.read_image import split_choice


@dataclass(frozen=True)
class FoundImage:
    """An image that belongs to a cohort: its file or DICOM folder, its labels if it has any, its patient if known."""

    image: Path
    labelled: Case | None = None
    patient: str = ""
    digested: str = ""
    """The result of `patient_digest`."""
    notes: tuple[str, ...] = ()
    """Sentences about how it was found."""
    beside: tuple[str, ...] = ()
    """Sentences about files left out of its folder."""


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
    if source.is_dir() and not any(source.iterdir()):  # which also refuses a folder that may not be looked into
        raise UserError(
            f"“{source}” is empty, so it holds no images; give a folder of NIfTI, NRRD, MetaImage, PNG or DICOM files."
        )
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
        found = [FoundImage(path, beside=beside) for path, beside in images_below(source).items()]
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
    found = [FoundImage(path, labelled.get(path)) for path in images]
    return [replace(one, beside=tuple(orphans)) for one in found[:1]] + found[1:]
