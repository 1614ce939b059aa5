"""DICOM folders and files as volumes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.dicom_geometry import same_stack, stack_frames
from SAMFineTuneLib.images.dicom_headers import DamagedFile, Frame, Header, read_header
from SAMFineTuneLib.images.dicom_pixels import read_pixels
from SAMFineTuneLib.images.volume import SeriesInfo, Volume, VolumeSource
from SAMFineTuneLib.images.window import IntensityWindow

_SHORTEST_PART = 4  # characters of a UID: fewer would choose a series by chance, or for a number not in the list


@dataclass(frozen=True, eq=False)
class _Series:
    """Frames that can form one volume."""

    uid: str  # the SeriesInstanceUID, with #2, #3… when one series had to be split
    series_uid: str
    description: str
    modality: str
    frames: tuple[Frame, ...]


@dataclass(frozen=True, eq=False)
class _Folder:
    series: tuple[_Series, ...]
    damaged: tuple[Path, ...]
    left_out: frozenset[str]  # kinds of DICOM that are not to be segmented

def list_series(folder: str | Path) -> list[SeriesInfo]:
    """The DICOM series below `folder`, in order of their series numbers. UserError when there is none."""
    return [_info(number, series) for number, series in enumerate(_scan(Path(folder)).series, start=1)]


def read_dicom_folder(folder: Path, wanted: str | None = None) -> Volume:
    """The one DICOM series below `folder`, or the `wanted` one of several.

    `wanted` is a number of `list_series`, a UID, or a beginning or end of one that fits only one series.
    """
    found = _scan(folder)
    series = _choose(found.series, wanted, folder)
    notes = []
    if found.damaged:
        names = ", ".join(f"“{path.name}”" for path in found.damaged[:3]) + (
            "…" if len(found.damaged) > 3 else ""
        )
        one = len(found.damaged) == 1
        notes.append(
            f"{len(found.damaged)} DICOM file{' is' if one else 's are'} damaged and "
            f"{'was' if one else 'were'} left out ({names})."
        )
    return _volume(series, notes)


def read_dicom_file(path: Path) -> Volume:
    """One DICOM file: all frames of a multi-frame file, else one slice (said in a warning)."""
    try:
        header = read_header(path)
    except DamagedFile as error:
        raise UserError(f"“{path.name}” is a damaged or cut off DICOM file; copy it again.") from error
    if isinstance(header, str):
        raise UserError(f"“{path.name}” is a DICOM {header}, not an image; give the image it belongs to.")
    if header is None:
        raise UserError(
            f"“{path.name}” is a DICOM file without an image; give the folder of an image series."
        )
    groups = _groups(header.frames)
    if len(groups) > 1:
        raise UserError(
            f"“{path.name}” holds {len(groups)} stacks of different orientation; give its folder and choose "
            "one with --series."
        )
    notes = []
    if len(header.frames) == 1:
        notes.append("This is a single DICOM file with one slice; give its folder to read the whole series.")
    series = _Series(
        header.series_uid, header.series_uid, header.description, header.modality, tuple(groups[0])
    )
    return _volume(series, notes)


def series_of_files(files: Sequence[Path]) -> Volume:
    """Geometry and source of the series that some files are, without reading pixels: every voxel is 0."""
    frames: list[Frame] = []
    first = None
    for path in files:
        try:
            header = read_header(path)
        except DamagedFile as error:
            raise UserError(f"“{path.name}” is damaged or cut off; copy the series again.") from error
        except OSError as error:
            raise UserError("The DICOM files that the volume was read from are gone; put them back.") from error
        if isinstance(header, Header):
            first = first or header
            frames.extend(header.frames)
    if first is None:
        raise UserError("The files are no DICOM images; give those that the volume was read from.")
    (group, *_) = _groups(frames)
    stack = stack_frames(group)
    return Volume(
        np.broadcast_to(np.uint8(0), (len(stack.frames), group[0].rows, group[0].columns)),
        stack.affine,
        modality=first.modality,
        source=_source(stack.frames, first.series_uid, first.description),
    )


def _scan(folder: Path) -> _Folder:
    by_uid: dict[str, list[Header]] = {}
    damaged: list[Path] = []
    left_out: set[str] = set()
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for path in (Path(parent, name) for name in sorted(names) if name.upper() != "DICOMDIR"):
            try:
                header = read_header(path)
            except (DamagedFile, PermissionError):
                damaged.append(path)
                continue
            if isinstance(header, str):
                left_out.add(header)
            elif header is not None and not (header.instance_uid and header.instance_uid in seen):
                seen.add(header.instance_uid)  # the same instance twice is a copy, not a second slice
                by_uid.setdefault(header.series_uid, []).append(header)
    if not by_uid:
        if damaged:
            raise UserError(f"The DICOM files in “{folder}” are damaged or cut off; copy them again.")
        only = f" (only {' and '.join(sorted(left_out))})" if left_out else ""
        raise UserError(
            f"There are no DICOM images in “{folder}”{only}; give a DICOM folder or one image file."
        )
    series = []
    for _, headers in sorted(
        by_uid.items(), key=lambda item: (min(h.series_number for h in item[1]), item[0])
    ):
        first = headers[0]
        groups = _groups([frame for header in headers for frame in header.frames])
        for n, frames in enumerate(groups, start=1):
            uid = first.series_uid + (f"#{n}" if n > 1 else "")
            series.append(_Series(uid, first.series_uid, first.description, first.modality, tuple(frames)))
    return _Folder(tuple(series), tuple(damaged), frozenset(left_out))


def _groups(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames that fit on top of each other, the largest group first."""
    groups: list[list[Frame]] = []
    for frame in frames:
        fitting = next((group for group in groups if same_stack(group[0], frame)), None)
        if fitting is None:
            groups.append([frame])
        else:
            fitting.append(frame)
    return sorted(groups, key=len, reverse=True)


def _choose(series: Sequence[_Series], wanted: str | None, folder: Path) -> _Series:
    listing = "; ".join(str(_info(n, one)) for n, one in enumerate(series, start=1))
    if wanted is None or not wanted.strip():
        if len(series) == 1:
            return series[0]
        raise UserError(
            f"“{folder}” holds {len(series)} series; choose one with --series (number or UID): {listing}"
        )
    wanted = wanted.strip()
    if wanted.isdecimal() and 1 <= int(wanted) <= len(series):
        return series[int(wanted) - 1]
    exact = [one for one in series if one.uid == wanted]
    fitting = exact
    if not exact and (len(wanted) >= _SHORTEST_PART or wanted.startswith("#")):
        fitting = [one for one in series if one.uid.startswith(wanted) or one.uid.endswith(wanted)]
    if len(fitting) == 1:
        return fitting[0]
    problem = "fits several series" if fitting else "is not among the series"
    raise UserError(f"--series {wanted} {problem} in “{folder}”; choose by number or UID: {listing}")


def _info(number: int, series: _Series) -> SeriesInfo:
    first = series.frames[0]
    try:
        stack = stack_frames(series.frames)
        slices, spacing = len(stack.frames), np.linalg.norm(stack.affine[:3, :3], axis=0)
    except UserError:  # reading it will say what is wrong; the list still shows it
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


def _volume(series: _Series, notes: list[str]) -> Volume:
    stack = stack_frames(series.frames)
    array, mirrors = read_pixels(stack.frames)
    notes = [*notes, *stack.warnings]
    if any(mirror is not None for mirror in mirrors):
        notes.append("The image is stored with dark as bright (MONOCHROME1); its values are inverted.")
    return Volume(
        array,
        stack.affine,
        modality=series.modality,
        window=_window(stack.frames, mirrors),
        source=_source(stack.frames, series.series_uid, series.description),
        warnings=tuple(notes),
    )


def _source(frames: Sequence[Frame | None], series_uid: str, description: str) -> VolumeSource:
    files = tuple(dict.fromkeys(frame.file for frame in frames if frame is not None))
    index = {path: n for n, path in enumerate(files)}
    slices = tuple(None if frame is None else (index[frame.file], frame.number) for frame in frames)
    return VolumeSource(files, "DICOM", series_uid, description, slices)


def _window(frames: Sequence[Frame | None], mirrors: Sequence[float | None]) -> IntensityWindow | None:
    """The window of the slice nearest to the middle that has one: end slices of MR often have odd ones."""
    middle = (len(frames) - 1) / 2
    having = [k for k, frame in enumerate(frames) if frame is not None and frame.window is not None]
    if not having:
        return None
    k = min(having, key=lambda k: abs(k - middle))
    window, mirror = frames[k].window, mirrors[k]
    if mirror is None:
        return window
    return IntensityWindow(mirror - window.high, mirror - window.low, window.name)
