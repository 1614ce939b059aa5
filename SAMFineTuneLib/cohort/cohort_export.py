"""Writes the accepted cases of a cohort for other programs.

| form | what is written |
|---|---|
| `nifti` | a label map of each case, and `labels.json` with the names of its values |
| `nnunet` | `imagesTr/`, `labelsTr/` and `dataset.json`, as nnU-Net 2 reads them |
| `dicom-seg` | a DICOM SEG of each case whose image is a DICOM series |

All forms come with `provenance.json`: model, adapter and its digest, software. The files do not say who accepted a
case.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SAMFineTuneLib import __version__
from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase
from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import only_new, staged_folder, write_text
from SAMFineTuneLib.images import SegmentInfo, Volume, read_volume, write_labelmap
from SAMFineTuneLib.images.sitk_images import write_image
from SAMFineTuneLib.models.optional_packages import require
from SAMFineTuneLib.report_page import paint
from SAMFineTuneLib.wording import same_name, some_sentences

FORMS = ("nifti", "nnunet", "dicom-seg")
PROVENANCE = "provenance.json"
_CHANNEL = "_0000"


def export(
    cohort: Cohort,
    folder: str | Path,
    form: str = "nifti",
    progress: Callable[[int, int, str], None] = lambda done, total, name: None,
    tell: Callable[[str], None] = lambda note: None,
    names: Sequence[str] = (),
) -> tuple[Path, ...]:
    """Write the accepted cases.

    Args:
        cohort: the cohort.
        folder: a new or an empty folder; it appears complete or not at all.
        form: one of FORMS.
        progress: called with the number of finished cases, of all cases, and the name of the next one.
        tell: called with sentences about cases that are left out, and about what the others lack.
        names: keys or names of the cases; default: all accepted ones.

    Returns:
        The files.

    Raises:
        UserError: when nothing is accepted or can be written in this form, or the folder is not empty.
    """
    folder, state = Path(folder).expanduser(), cohort.state
    if form not in FORMS:
        raise UserError(f"“{form}” is not a form of export; choose {', '.join(FORMS)}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"“{folder}” exists already; export into a new or an empty folder.")
    if form == "dicom-seg":
        require("Writing DICOM SEG", "highdicom", extra="dicom-seg")
    if not state.accepted:
        raise UserError("No case is accepted yet, so there is nothing to export; accept one first.")
    wanted = {state.case(name).key for name in names}
    cases = tuple(case for case in state.accepted if not names or case.key in wanted)
    if len(cases) < len(wanted):
        raise UserError("Only accepted cases can be exported; accept the others first, or leave them out.")
    called, sources = file_names(state.accepted), _sources(cohort)
    written: dict[str, CohortCase] = {}
    modalities: set[str] = set()
    left_out: list[str] = []
    notes: list[str] = []
    with only_new(), staged_folder(folder) as building:
        write = {"nifti": _write_nifti, "nnunet": _write_nnunet, "dicom-seg": _write_dicom_seg}[form]
        for done, case in enumerate(cases):
            progress(done, len(cases), case.name)
            try:
                made = write(cohort, case, building, called[case.key], sources[case.key])
                written[made.file] = case
                modalities.add(made.modality)
                notes += [f"{case.name}: {note}" for note in made.notes]
            except _LeftOut as reason:
                left_out.append(f"{case.name} is left out: {reason}")
        progress(len(cases), len(cases), "")
        if not written:
            raise UserError(f"None of the accepted cases can be exported as {form}: {some_sentences(left_out)}")
        if form == "nifti":
            named = {str(value): name for value, name in state.labels.items()}
            write_text(building / "labels.json", json.dumps(named, indent=1, ensure_ascii=False))
        if form == "nnunet":
            write_text(building / "dataset.json", json.dumps(_dataset(cohort, len(written), modalities), indent=1))
            if len(modalities) > 1:
                named = ", ".join(sorted(one or "not known" for one in modalities))
                notes.append(f"The images are of several modalities ({named}), which nnU-Net normalises alike; export "
                             "a cohort of one modality if they should differ.")  # fmt: skip
        about = {file: {"case": case.key, **sources[case.key]} for file, case in written.items()}
        content = {"software": f"SAMFineTune {__version__}", "labels": list(state.labels.values()), "cases": about}
        write_text(building / PROVENANCE, json.dumps(content, indent=1, ensure_ascii=False))
        for sentence in (*left_out, *notes):
            tell(sentence)
        files = [path.relative_to(building) for path in sorted(building.rglob("*")) if path.is_file()]
    return tuple(folder / path for path in files)


def file_names(cases: tuple[CohortCase, ...]) -> dict[str, str]:
    """A name for the files of each case, by its key: the image's name, followed by the beginning of the key where two
    share it.
    """
    words = {case.key: re.sub(r"[^\w.-]+", "_", case.name.removesuffix(_CHANNEL)).lstrip(".-") for case in cases}
    plain = {key: word or key for key, word in words.items()}  # other programs would take a leading dash for an option
    often = Counter(same_name(name) for name in plain.values())
    return {key: name if often[same_name(name)] == 1 else f"{name}_{key[:6]}" for key, name in plain.items()}


class _LeftOut(Exception):
    """Why a case cannot be written in a form."""


@dataclass(frozen=True)
class _Written:
    """The file with the labels of a case, sentences about it, and the modality of its image where that matters."""

    file: str
    notes: tuple[str, ...] = ()
    modality: str = ""


def _sources(cohort: Cohort) -> dict[str, dict[str, str]]:
    """The adapter and model that proposed the labels of each accepted case, by its key."""
    from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder

    digests: dict[int, str] = {}
    found = {}
    for case in cohort.state.accepted:
        found[case.key] = {"model": cohort.state.model}
        if case.proposal is None:
            continue
        number = case.proposal.adapter
        if number not in digests:
            try:
                digests[number] = read_adapter_folder(cohort.adapter(number)).digest
            except UserError:  # the labels are worth exporting without it
                digests[number] = "not known"
        found[case.key] |= {"adapter": str(number), "adapter SHA-256": digests[number]}
    return found


def _read(cohort: Cohort, case: CohortCase) -> tuple[Volume, np.ndarray]:
    try:
        volume = read_volume(cohort.image(case))
    except DiskError:
        raise
    except UserError as error:
        raise _LeftOut(str(error)) from error
    return volume, read_labels(cohort.accepted_labels(case)).array


def _write_nifti(cohort: Cohort, case: CohortCase, folder: Path, name: str, source: Mapping[str, str]) -> _Written:
    labels = read_labels(cohort.accepted_labels(case))
    write_labelmap(folder / f"{name}.nii.gz", labels.array, Volume(labels.array, labels.affine))
    return _Written(f"{name}.nii.gz")


def _write_nnunet(cohort: Cohort, case: CohortCase, folder: Path, name: str, source: Mapping[str, str]) -> _Written:
    volume, labels = _read(cohort, case)
    image = folder / "imagesTr" / f"{name}{_CHANNEL}.nii.gz"
    image.parent.mkdir(exist_ok=True)
    write_image(image, volume)
    numbers = np.zeros(max(*cohort.state.labels, int(labels.max())) + 1, np.uint16)
    numbers[list(cohort.state.labels)] = range(1, len(cohort.state.labels) + 1)
    write_labelmap(folder / "labelsTr" / f"{name}.nii.gz", numbers[labels], volume)
    return _Written(f"labelsTr/{name}.nii.gz", modality=volume.modality or "")


def _dataset(cohort: Cohort, count: int, modalities: Set[str]) -> dict:
    """nnU-Net's `dataset.json`; its labels are numbered without gaps. It treats the grey values of a channel named CT
    as Hounsfield units.
    """
    return {
        "channel_names": {"0": "".join(modalities if len(modalities) == 1 else ()) or "image"},
        "labels": {"background": 0} | {name: n for n, name in enumerate(cohort.state.labels.values(), start=1)},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }


def _write_dicom_seg(cohort: Cohort, case: CohortCase, folder: Path, name: str, source: Mapping[str, str]) -> _Written:
    from SAMFineTuneLib.images.dicom_seg import write_dicom_seg

    volume, labels = _read(cohort, case)
    if volume.source is None or volume.source.format != "DICOM":
        raise _LeftOut("its image is not a DICOM series.")
    if not labels.any():
        raise _LeftOut("nothing is labelled in it.")
    held = set(np.unique(labels))
    segments = [SegmentInfo(name, value, paint(n)) for n, (value, name) in enumerate(cohort.state.labels.items())
                if value in held]  # fmt: skip
    try:
        notes = write_dicom_seg(folder / f"{name}.dcm", labels, volume, segments, source)
    except DiskError:
        raise
    except UserError as error:
        raise _LeftOut(str(error)) from error
    return _Written(f"{name}.dcm", notes)
