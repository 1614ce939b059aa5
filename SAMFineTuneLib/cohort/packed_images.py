"""An image packed into one file, to be sent to a cohort on another computer.

DICOM, NIfTI, PNG and JPEG files travel as they are; all others become NIfTI, because the headers of NRRD and
MetaImage may name other files, which a server must not open. DICOM files lose their names, which often are a patient's.
Packing an image twice gives the same bytes, so that sending it can go on later.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cases.cases import SHORT, Case
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.create_cohort import add_images
from SAMFineTuneLib.cohort.find_images import FoundImage, find_images
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import remove_folder, staged_folder
from SAMFineTuneLib.images import Volume, read_volume, write_labelmap
from SAMFineTuneLib.images.read_image import split_choice
from SAMFineTuneLib.images.sitk_images import write_image

_AS_THEY_ARE = (".nii", ".nii.gz", ".png", ".jpg", ".jpeg")
_NAME = re.compile(r"[\w()+-][\w .()+-]*(\.dcm|\.nii|\.nii\.gz|\.png|\.jpe?g)", re.IGNORECASE)
_LONGEST_NAME = 100
_DATE = (1980, 1, 1, 0, 0, 0)  # the first date that an archive can hold


def pack_image(image: Path, volume: Volume, target: Path) -> Volume:
    """Pack an image.

    Args:
        image: its file or DICOM folder, perhaps with the choice of a series.
        volume: what was read from it.
        target: the archive to write.

    Returns:
        The volume that the archive holds, which the cohort will know by its digest.

    Raises:
        UserError: for an image that cannot become NIfTI.
        DiskError: when the disk refuses.
    """
    with tempfile.TemporaryDirectory() as place:
        files = {f"{number:06d}.dcm": file for number, file in enumerate(volume.source.files)}
        if volume.source.format != "DICOM":
            name = split_choice(image)[0].name
            ending = next((end for end in _AS_THEY_ARE if name.lower().endswith(end)), "")
            stem = re.sub(r"[^\w .()+-]", "_", name[: -len(ending)] if ending else Path(name).stem).lstrip(" .")
            files = {f"{stem[:_LONGEST_NAME] or 'image'}{ending or '.nii.gz'}": image}
            if not ending:
                converted = Path(place, *files)
                write_image(converted, volume)
                files, volume = {converted.name: converted}, read_volume(converted)
        with zipfile.ZipFile(target, "w") as archive:
            for name, file in files.items():
                entry = zipfile.ZipInfo(name, _DATE)
                entry.compress_type = zipfile.ZIP_DEFLATED if name.endswith((".dcm", ".nii")) else zipfile.ZIP_STORED
                with open(file, "rb") as source, archive.open(entry, "w", force_zip64=True) as packed:
                    while part := source.read(1 << 20):
                        packed.write(part)
    return volume



def add_packed(
    cohort: Cohort, packed: Path, digest: str, largest: int, patient: str = "", labels: np.ndarray | None = None
) -> tuple[str, ...]:
    """Add a packed image to a cohort, into a folder of its own in the cohort's.

    Args:
        cohort: the cohort.
        packed: the archive.
        digest: of the volume that `pack_image` gave.
        largest: bytes that files and voxels may have.
        patient: salted digest of the patient, if the files do not name one; see `patients.patient_digest`.
        labels: values of the cohort [k, j, i], which are accepted.

    Returns:
        Sentences about what is unusual.

    Raises:
        UserError: for an archive that is damaged, too large, or contains anything but this image.
    """
    key = digest[:SHORT]
    if any(case.key == key for case in cohort.state.cases):
        return ()
    folder = cohort.added(key)
    try:
        with staged_folder(folder) as building:
            _unpack(packed, building, largest)
        found = next((one.image for one in find_images(folder) if read_volume(one.image).digest == digest), None)
        if found is None:
            raise UserError("The image is not the one that was announced; send it again.")
        volume = read_volume(found)
        _require_size(volume.array.nbytes, largest)
        with tempfile.TemporaryDirectory() as place:
            labelled = None
            if labels is not None:
                write_labelmap(Path(place, "labels.nii.gz"), labels, volume)
                labelled = Case(found.name, found, Path(place, "labels.nii.gz"))
            return add_images(cohort, [FoundImage(found, labelled, digested=patient)])
    finally:
        if folder.exists() and not any(case.key == key for case in cohort.state.cases):
            remove_folder(folder)


def _unpack(packed: Path, folder: Path, largest: int) -> None:
    try:
        with zipfile.ZipFile(packed) as archive:
            entries = archive.infolist()
            if not all(_NAME.fullmatch(entry.filename) for entry in entries):
                raise UserError("The image's files have names that this server does not take; update both programs.")
            _require_size(sum(entry.file_size for entry in entries), largest)
            archive.extractall(folder)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError("The image arrived damaged; send it again.") from error


def _require_size(size: int, largest: int) -> None:
    if size > largest:
        raise UserError(f"The image has {size / 1e9:.1f} GB, and this server takes at most {largest / 1e9:.1f} GB; "
                        "crop or resample it.")  # fmt: skip
