"""Reads DICOM folders and files as volumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.dicom_geometry import DicomStack, evenly_spaced, same_stack, stack_frames
from SAMFineTuneLib.images.dicom_headers import Frame, Header, UnreadableFile, may_be_cut_off, read_header
from SAMFineTuneLib.images.dicom_pixels import assemble, read_frames
from SAMFineTuneLib.images.dicom_volumes import left_out, volumes_of
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import SeriesInfo, Volume, VolumeSource

_SHORTEST_PART = 4  # characters of a UID: fewer would choose a series by chance, or for a number not in the list
_OF_SCANS = ("patient", "study")  # attributes of which one scan has one value
_RESOURCE_FORK = "._"  # prefix of macOS's own files on foreign disks


class NoDicomImages(UserError):
    """A folder holds no DICOM images, not even damaged ones."""


@dataclass(frozen=True, eq=False)
class _Series:
    """Frames that can form one volume."""

    uid: str  # the SeriesInstanceUID, with #2, #3… when one series had to be split
    series_uid: str
    description: str
    modality: str
    frames: tuple[Frame, ...]
    notes: tuple[str, ...] = ()


def list_series(folder: str | Path) -> list[SeriesInfo]:
    """List the DICOM series below `folder` by series number, and the volumes of each: echoes, b-values, phases.

    Raises:
        UserError: when there is none.
    """
    return look_into(folder).series


class SeriesFound(NamedTuple):
    """The series of a folder, and sentences: `lost` about unreadable files of none of these series, `notes` about all
    unreadable files, and assumptions."""

    series: list[SeriesInfo]
    lost: list[str]
    notes: list[str]


def look_into(folder: str | Path) -> SeriesFound:
    """`list_series`, and notes about it."""
    series, unreadable = _scan(Path(folder))
    listed = [_info(number, one) for number, one in enumerate(series, start=1)]
    lost = [error for error in unreadable if not any(_may_be_of(error, one) for one in series)]
    notes = dict.fromkeys(note for one in series for note in one.notes)
    return SeriesFound(listed, sentences_about(lost), [*sentences_about(unreadable), *notes])


def read_dicom_folder(folder: Path, wanted: str | None = None) -> Volume:
    """Read the one DICOM series below `folder`, or the `wanted` one of several.

    `wanted` is a number of `list_series`, a UID, or the beginning or end of a UID that fits only one series.
    """
    series, unreadable = _scan(folder)
    chosen = _choose(series, wanted, folder)
    if len(series) > 1:  # without a choice, the user may have meant a series that cannot be read
        unreadable = [error for error in unreadable if _may_be_of(error, chosen)]
    return _volume(chosen, unreadable)


def read_dicom_file(path: Path, wanted: str | None = None) -> Volume:
    """Read one DICOM file: all frames of a multi-frame file (of several volumes the `wanted` one), else a single slice
    with a warning."""
    try:
        header = read_header(path)
    except UnreadableFile as error:
        help_ = "ask for it, or copy the file" if error.forbidden else "copy it again"
        raise UserError(f"{error}; {help_}.") from error
    if isinstance(header, str):
        raise UserError(f"“{path.name}” is a DICOM {header}, not an image; give the image it belongs to.")
    if header is None:
        raise UserError(f"“{path.name}” is a DICOM file without an image; give the folder of an image series.")
    series = _series_of([header])
    chosen = _choose(series, wanted, path) if len(series) > 1 else series[0]
    notes = ()
    if len(header.frames) == 1:
        notes = ("This is a single DICOM file with one slice; give its folder to read the whole series.",)
    return _volume(replace(chosen, notes=(*notes, *chosen.notes)))


def series_of_files(files: Sequence[Path]) -> Volume:
    """Geometry and source of the series that the given files form, without reading pixels: every voxel is 0.

    Raises:
        UserError: when they are not the images of one volume.
    """
    headers: list[Header] = []
    for path in files:
        try:
            header = read_header(path)
        except UnreadableFile as error:
            if not path.exists():
                raise UserError("The DICOM files that the volume was read from are gone; put them back.") from error
            raise UserError(f"{error}; copy the series again.") from error
        if isinstance(header, Header):
            headers.append(header)
    if not headers:
        raise UserError("The files are not DICOM images; give those that the volume was read from.")
    series, *others = _series_of(headers)
    if any(len(other.frames) == len(series.frames) for other in others):
        raise UserError(
            f"The DICOM files are {1 + len(others)} volumes of one series ({series.description}; "
            f"{others[0].description}…), and it is not known which of them was segmented; write .seg.nrrd."
        )
    stack = stack_frames(series.frames)
    first = series.frames[0]
    return Volume(
        np.broadcast_to(np.uint8(0), (len(stack.slices), first.rows, first.columns)),
        stack.affine,
        modality=series.modality,
        source=_source(stack, series),
    )


def _scan(folder: Path) -> tuple[list[_Series], list[UnreadableFile]]:
    """The series below a folder in the order of their numbers, and the files that cannot be read."""
    by_uid: dict[str, list[Header]] = {}
    unreadable: list[UnreadableFile] = []
    short: list[Path] = []
    others: set[str] = set()  # kinds of DICOM objects that are not images to segment
    for path in _files_below(folder, unreadable):
        try:
            header = read_header(path)
            if header is None and may_be_cut_off(path):
                short.append(path)
        except UnreadableFile as error:
            unreadable.append(error)
            continue
        if isinstance(header, str):
            others.add(header)
        elif header is not None:
            by_uid.setdefault(header.series_uid, []).append(header)
    images = {_kind_of_name(header.file) for headers in by_uid.values() for header in headers}
    unreadable += [UnreadableFile(path, "is empty or cut off") for path in short if _kind_of_name(path) in images]
    if not by_uid:
        if unreadable:
            raise UserError(
                f"No DICOM image in “{folder}” can be read: {sentences_about(unreadable)[0]} Copy the files again, or "
                "get the permission to read them."
            )
        only = f" (only {' and '.join(sorted(others))})" if others else ""
        raise NoDicomImages(f"There are no DICOM images in “{folder}”{only}; give a DICOM folder or one image file.")
    ordered = sorted(by_uid.items(), key=lambda item: (min(h.series_number for h in item[1]), item[0]))
    return [one for _, headers in ordered for one in _series_of(headers)], unreadable


def _files_below(folder: Path, unreadable: list[UnreadableFile]) -> list[Path]:
    """All files below a folder; folders that cannot be opened are added to `unreadable`."""

    def refused(error: OSError) -> None:
        unreadable.append(closed_folder(error, folder))

    found = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=refused) for name in names)
    return sorted(one for one in found if one.name.upper() != "DICOMDIR" and not one.name.startswith(_RESOURCE_FORK))


def closed_folder(error: OSError, folder: Path) -> UnreadableFile:
    """What to say of a folder that `os.walk` could not open below another one."""
    problem = f"cannot be read ({error.strerror})"
    if isinstance(error, PermissionError):
        problem = "may not be looked into (you lack the permission)"
    return UnreadableFile(Path(error.filename or folder), problem)


def _kind_of_name(path: Path) -> tuple[Path, str]:
    """What the files of one series have in common: their folder and their ending."""
    return path.parent, path.suffix.lower()


def _series_of(headers: Sequence[Header]) -> list[_Series]:
    """The volumes of the files of one series."""
    first = headers[0]
    parts, anew = _told_apart(headers)
    notes = dict.fromkeys((*anew, *(note for header in headers for note in header.notes)))
    volumes = [
        (words, own[0], volume)
        for words, own in parts
        for group in _groups([frame for header in own for frame in header.frames])
        for volume in volumes_of(group)
    ]
    return [
        _Series(
            uid=first.series_uid + (f"#{n}" if n > 1 else ""),
            series_uid=first.series_uid,
            description=", ".join(filter(None, (header.description, words, volume.label))),
            modality=header.modality,
            frames=volume.frames,
            notes=(*notes, *volume.notes),
        )
        for n, (words, header, volume) in enumerate(volumes, start=1)
    ]


def _told_apart(headers: Sequence[Header]) -> tuple[list[tuple[str, Sequence[Header]]], list[str]]:
    """Files of several patients, studies or series that share one SeriesInstanceUID, or have none, as some anonymisers
    leave them: each with words that distinguish it from the others; and sentences about differences that were ignored.
    """
    parts: list[tuple[str, Sequence[Header]]] = [("", headers)]
    notes = []
    for name in headers[0].belongs:
        before, parts = parts, []
        for words, own in before:
            values = list(dict.fromkeys(header.belongs[name] for header in own))
            anew = len(values) == len(own) and _written_anew(name, own)
            if anew and name in _OF_SCANS:
                notes.append(
                    f"Each of the {len(own)} files names another {name}, as some anonymisers leave them; they are "
                    "taken for one scan, because their slices follow each other evenly: check that they are."
                )
            if len(values) == 1 or "" in values or anew:
                parts.append((words, own))
                continue
            for n, value in enumerate(values, start=1):
                told = ", ".join(filter(None, (words, f"{name} {n} of {len(values)}")))
                parts.append((told, [header for header in own if header.belongs[name] == value]))
    return parts, notes


def _written_anew(name: str, headers: Sequence[Header]) -> bool:
    """Whether an attribute that differs in every file was made up for each, and does not distinguish scans. This cannot
    be known of two files; and patients and studies are kept apart unless the files share a UID and look like one scan.
    """
    if len(headers) < 3 or any(len(header.frames) > 1 for header in headers):
        return False
    one_scan = bool(headers[0].series_uid) and evenly_spaced([header.frames[0] for header in headers])
    return one_scan or name not in _OF_SCANS


def sentences_about(unreadable: Sequence[UnreadableFile]) -> list[str]:
    """A sentence for each problem of files that were left out, with their names."""
    by_problem: dict[str, list[UnreadableFile]] = {}
    for error in unreadable:
        by_problem.setdefault(error.problem, []).append(error)
    sentences = []
    for problem, errors in by_problem.items():
        names = ", ".join(f"“{error.path.name}”{error.place}" for error in errors[:3])
        if len(errors) == 1:
            sentences.append(f"{names} was left out: it {problem}.")
        else:
            more = f" and {len(errors) - 3} more" if len(errors) > 3 else ""
            sentences.append(f"{names}{more} were left out: each {problem}.")
    return sentences


def _groups(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Group frames that fit on top of each other, the largest group first."""
    groups: list[list[Frame]] = []
    for frame in frames:
        fitting = next((group for group in groups if same_stack(group[0], frame)), None)
        if fitting is None:
            groups.append(fitting := [])
        fitting.append(frame)
    return sorted(groups, key=len, reverse=True)


def _choose(series: Sequence[_Series], wanted: str | None, source: Path) -> _Series:
    listing = "; ".join(str(_info(n, one)) for n, one in enumerate(series, start=1))
    if wanted is None or not wanted.strip():
        if len(series) == 1:
            return series[0]
        raise UserError(
            f"“{source}” holds {len(series)} series or volumes; choose one with --series (number or UID), in a list of "
            f"cases as {source.name}#1: {listing}"
        )
    wanted = wanted.strip()
    if wanted.isdecimal() and 1 <= int(wanted) <= len(series):
        return series[int(wanted) - 1]
    fitting = [one for one in series if one.uid == wanted]
    if not fitting and (len(wanted) >= _SHORTEST_PART or wanted.startswith("#")):
        fitting = [one for one in series if one.uid.startswith(wanted) or one.uid.endswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    problem = "fits several series" if fitting else "is not among the series"
    raise UserError(f"“{wanted}” {problem} in “{source}”; choose by number or UID: {listing}")


def _info(number: int, series: _Series) -> SeriesInfo:
    first = series.frames[0]
    try:
        stack = stack_frames(series.frames)
        slices, spacing = len(stack.slices), np.linalg.norm(stack.affine[:3, :3], axis=0)
    except UserError:  # reading it will raise the error; the list shows it nevertheless
        slices, spacing = len(series.frames), np.zeros(3)
    return SeriesInfo(
        number=number,
        uid=series.uid,
        description=series.description,
        modality=series.modality,
        size=(first.columns, first.rows, slices),
        spacing=tuple(float(mm) for mm in spacing),
        files=len({frame.file for frame in series.frames}),
    )


def _volume(series: _Series, unreadable: Sequence[UnreadableFile] = ()) -> Volume:
    """Read pixels and geometry, without the files whose pixels are damaged; notes name `unreadable` files."""
    stack = stack_frames(series.frames)
    pieces, failures = read_frames(stack.sources)
    notes = [*series.notes]
    if failures:
        whole = [frame for frame in series.frames if frame.file not in failures]
        if not whole:
            raise next(iter(failures.values()))
        stack = stack_frames(whole, step=float(np.linalg.norm(stack.affine[:3, 2])))
        first = {frame.file: frame for frame in reversed(series.frames)}
        notes += [left_out(first[path], error) for path, error in failures.items()]
    _require_no_forbidden_slice([error for error in unreadable if _may_be_of(error, series)], stack)
    notes = [*sentences_about(unreadable), *notes, *stack.warnings]
    array, mirrors = assemble(stack, pieces)
    lacking = sum(not frame.has_rescale for frame in stack.sources)
    if 0 < lacking < len(stack.sources):
        notes.append(
            f"{lacking} of {len(stack.sources)} images lack the rescale (RescaleSlope, RescaleIntercept) that the "
            "others have, so that their grey values may be wrong; check them."
        )
    tables = sum(frame.has_table for frame in stack.sources)
    unusable = tables - sum(pieces[id(frame)].looked_up for frame in stack.sources)
    if unusable:
        notes.append(
            f"{unusable} of {len(stack.sources)} images have a table of their values (ModalityLUTSequence) that cannot "
            "be used and is not applied; check grey values."
        )
    elif 0 < tables < len(stack.sources):
        notes.append(
            f"{tables} of {len(stack.sources)} images have a table of their values (ModalityLUTSequence) and the "
            "others none, so that grey values may differ from slice to slice; check them."
        )
    elif any(frame.has_table and frame.has_rescale for frame in stack.sources):
        notes.append(
            "The images have a table of their values (ModalityLUTSequence) and a rescale; the table is used, and other "
            "programs may use the rescale, so check grey values."
        )
    inverted = sum(pieces[id(frame)].mirror is not None for frame in stack.sources)
    if inverted == len(stack.sources):
        notes.append("The image is stored with dark as bright (MONOCHROME1); its values are inverted.")
    elif inverted:
        notes.append(
            f"{inverted} of {len(stack.sources)} images are stored with dark as bright (MONOCHROME1), and only their "
            "values are inverted, so that grey values may differ from slice to slice; check them."
        )
    signed = sum(pieces[id(frame)].signed for frame in stack.sources)
    if 0 < signed < len(stack.sources):
        notes.append(
            f"{signed} of {len(stack.sources)} images hold numbers with a sign and the others without "
            "(PixelRepresentation), so that grey values may differ from slice to slice; check them."
        )
    if longer := sum(pieces[id(frame)].longer for frame in stack.sources):
        notes.append(
            f"{longer} of {len(stack.sources)} images hold more pixels than their headers state (Rows, Columns); the "
            "rest is left out, so check that the picture is whole."
        )
    return Volume(
        array,
        stack.affine,
        modality=series.modality,
        window=_window(stack.frames, mirrors),
        source=_source(stack, series),
        warnings=tuple(notes),
    )


def _may_be_of(error: UnreadableFile, series: _Series) -> bool:
    return series.series_uid.startswith(error.series_uid)  # which is "", or cut off itself


def _require_no_forbidden_slice(unreadable: Sequence[UnreadableFile], stack: DicomStack) -> None:
    """Raise UserError when a slice of the series is, or may be, in a file that the user may not read."""
    images = {_kind_of_name(frame.file) for frame in stack.sources}
    for error in unreadable:
        if error.forbidden and (None in stack.frames or _kind_of_name(error.path) in images):
            raise UserError(
                f"{error}, and a slice of this series may be missing because of it; get the permission to read it, or "
                "move it out of the folder."
            )


def _source(stack: DicomStack, series: _Series) -> VolumeSource:
    files = tuple(dict.fromkeys(frame.file for frame in stack.sources))
    index = {path: n for n, path in enumerate(files)}
    slices = tuple(None if frame is None else (index[frame.file], frame.number) for frame in stack.frames)
    return VolumeSource(files, "DICOM", series.series_uid, series.description, slices, stack.resampled)


def _window(frames: Sequence[Frame | None], mirrors: Sequence[float | None]) -> IntensityWindow | None:
    """The window of the slice nearest to the middle that has one: end slices of MR often have unusual ones."""
    middle = (len(frames) - 1) / 2
    having = [k for k, frame in enumerate(frames) if frame is not None and frame.window is not None]
    if not having:
        return None
    k = min(having, key=lambda k: abs(k - middle))
    window, mirror = frames[k].window, mirrors[k]
    return window if mirror is None else IntensityWindow(mirror - window.high, mirror - window.low, window.name)
