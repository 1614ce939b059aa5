"""The jobs of `samfinetune segment`: finds the volumes, names a file for each, and does one job after another."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli import console, outputs
from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import only_new
from SAMFineTuneLib.wording import counted, some_names

if TYPE_CHECKING:
    from SAMFineTuneLib.metrics.segment_statistics import SegmentStatistics

_FIRST_CHANNEL = "_0000"  # nnU-Net's name for it
_OTHERS = "choose another -o, add --skip-existing to leave it as it is and do the others"
_PROMPT_ENDINGS = (".mrk.json", ".json", ".fcsv")


@dataclass(frozen=True)
class SegmentJob:
    """One volume to read, one label map to write, and the files with prompts for it."""

    source: Path
    target: Path
    prompts: tuple[Path, ...] = ()


@dataclass(frozen=True)
class SegmentedVolume:
    """The result of a job: what the model saw, rows of --statistics, and more about each of them for --json."""

    inputs: dict[str, Any]
    statistics: Sequence[SegmentStatistics]
    details: Sequence[dict[str, Any]] = ()


def run_jobs(
    args: argparse.Namespace, found: Sequence[SegmentJob], begin: Callable[[], Callable[[SegmentJob], SegmentedVolume]]
) -> int:
    """Do one job after another. A failed one does not stop the others, but makes the exit code 2.

    Args:
        args: the command's options: `overwrite`, `skip_existing`, `statistics`.
        found: the jobs, from `find_jobs`.
        begin: opens the model and returns the function that does a job; not called without jobs.

    Returns:
        The exit code.
    """
    from SAMFineTuneLib.images import check_output_path
    from SAMFineTuneLib.metrics.segment_statistics import write_statistics

    if args.skip_existing and args.overwrite:
        raise UserError("--skip-existing and --overwrite contradict each other; leave one of them out.")
    for job in found if len(found) == 1 else ():  # of several, each is printed with its own volume
        check_output_path(job.target)
    jobs = [job for job in found if not (args.skip_existing and os.path.lexists(job.target))]
    several = len(found) > 1 or args.skip_existing
    advice = _OTHERS if several else "choose another name"
    statistics = [Path(args.statistics).expanduser()] if args.statistics else []
    outputs.require_new(statistics, args)
    outputs.require_new([job.target for job in jobs], args, advice)
    rows, facts, failed, skipped = [], [], 0, len(found) - len(jobs)
    written: set[tuple[int, int] | None] = set()
    segment = begin() if jobs else None
    try:
        for job in jobs:
            twice = _file(job.target) in written
            if args.skip_existing and os.path.lexists(job.target) and not twice:  # by another run on the same folder
                skipped += 1
                continue
            try:
                check_output_path(job.target)
                if twice:  # by a link, or on a disk that ignores case
                    raise UserError(f"“{job.target}” is the file that holds the result of another volume; rename one.")
                outputs.require_new([job.target], args, advice)
                done = segment(job)
            except DiskError:  # the others would fail as well
                raise
            except UserError as error:
                if len(jobs) == 1:
                    raise
                failed += 1
                facts.append({"volume": str(job.source), "error": str(error)})
                print(f"samfinetune: {job.source.name}: {error}", file=sys.stderr)
                continue
            written.add(_file(job.target))
            rows += [(str(job.source), row) for row in done.statistics]
            rows_with_details = zip_longest(done.statistics, done.details, fillvalue={})
            segments = [{**asdict(row), **more} for row, more in rows_with_details]
            facts.append({"volume": str(job.source), "output": str(job.target), **done.inputs, "segments": segments})
    finally:  # also after Ctrl-C or on a full disk, because --skip-existing measures nothing again
        if statistics and rows:
            with only_new(not args.overwrite):
                write_statistics(statistics[0], rows)
            print(f"written     {statistics[0]}")
    if skipped:
        print(f"skipped     {'all ' if not jobs else ''}{counted(skipped, 'volume')}, whose results exist already")
    if failed:
        print(f"failed      {failed} of {len(jobs)} volumes")
    if several:
        console.document(volumes=facts, skipped=skipped, failed=failed)
    else:
        console.document(**facts[0])
    return 2 if failed else 0


def _file(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, the same under all its names; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def find_jobs(source: Path, output: Path, ending: str = ".seg.nrrd") -> list[SegmentJob]:
    """Find the volumes to read, and the label map to write for each.

    Args:
        source: a volume, or a folder. A folder that holds nothing but DICOM files is a series; otherwise its images and
            folders are volumes.
        output: a folder; or, for a volume alone, a file when the name ends like one.
        ending: of the files in a folder.

    Raises:
        UserError: when two volumes would get the same file, or an input file would be overwritten.
    """
    from SAMFineTuneLib.images import OUTPUT_ENDINGS

    volumes = _volumes(source)
    if volumes == [source] and output.name.lower().endswith(OUTPUT_ENDINGS):
        _protect(source, output)
        return [SegmentJob(source, output)]
    if output.name.lower().endswith(OUTPUT_ENDINGS) or output.is_file():
        raise UserError(f"{source} holds {len(volumes)} volumes, so -o needs a folder, not the file {output}.")
    if source.is_dir() and source.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f"The folder {output} lies among the input, which is never changed; choose another -o.")
    ending = f".{ending.lstrip('.')}"
    if ending.lower() not in OUTPUT_ENDINGS:
        raise UserError(f"--format {ending} cannot be written; use one of {', '.join(OUTPUT_ENDINGS)}.")
    jobs: dict[Path, Path] = {}
    for volume in volumes:
        target = output / f"{_name(volume)}{ending}"
        if target in jobs:
            raise UserError(f"{volume.name} and {jobs[target].name} would both become {target.name}; rename one.")
        _protect(volume, target)
        jobs[target] = volume
    return [SegmentJob(volume, target) for target, volume in jobs.items()]


def _volumes(source: Path) -> list[Path]:
    from SAMFineTuneLib.images.read_image import ENDINGS, is_dicom

    if not source.is_dir():
        return [source]
    visible = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    images = [path for path in visible if path.is_file() and path.name.lower().endswith(ENDINGS)]
    folders = [path for path in visible if path.is_dir()]
    loose = [path for path in visible if path.is_file() and path not in images]
    if loose and not images and not folders:
        return [source]
    if not images and not folders:
        raise UserError(f"The folder {source} is empty; give one with images, or with a folder for each DICOM series.")
    if dicom := [path.name for path in loose if os.access(path, os.R_OK) and is_dicom(path)]:
        console.note(
            f"left out, as they lie beside the volumes of {source}: {counted(len(dicom), 'DICOM file')}, "
            f"such as {dicom[0]}; give each series a folder of its own"
        )
    first = [path for path in images if _stem(path).endswith(_FIRST_CHANNEL)]
    if first and all(re.search(r"_\d{4}$", _stem(path)) for path in images):
        if others := len(images) - len(first):
            console.note(
                f"left out: {counted(others, 'file')} named as further channels (_0001 …), as in nnU-Net; rename a "
                "file that is a volume of its own"
            )
        images = first
    return [*images, *folders]


def _stem(path: Path) -> str:
    from SAMFineTuneLib.images.read_image import ENDINGS

    lower = path.name.lower()
    endings = [ending for ending in (*ENDINGS, ".dcm") if lower.endswith(ending)] if not path.is_dir() else []
    return path.name[: -len(max(endings, key=len))] if endings else path.name


def _name(path: Path) -> str:
    own = Path(os.path.abspath(path))  # a link's own name, not that of its target
    return _stem(own).removesuffix(_FIRST_CHANNEL)


def _protect(source: Path, target: Path) -> None:
    """Refuse to write over, or among, the input."""
    inside = source.is_dir() and target.resolve().parent == source.resolve()
    if inside or (target.exists() and source.is_file() and target.samefile(source)):
        raise UserError(f"The file {target} lies among the input, which is never changed; choose another -o.")


def with_prompts(jobs: Sequence[SegmentJob], folder: Path) -> list[SegmentJob]:
    """The jobs that have files with prompts in a folder: those named like the volume, or like it with more behind an
    underscore (`case1.json`, `case1_negative.mrk.json`)."""
    files = sorted(path for path in folder.iterdir() if path.name.lower().endswith(_PROMPT_ENDINGS))
    found: dict[str, list[Path]] = {_name(job.source): [] for job in jobs}
    for file in files:
        stem = re.sub(r"(?i)(\.mrk)?\.(json|fcsv)$", "", file.name)
        fitting = [name for name in found if stem == name or stem.startswith(f"{name}_")]
        if fitting:
            found[max(fitting, key=len)].append(file)
        else:
            console.note(f"{file} is left out, because it is not named after any of the volumes")
    prompted = [replace(job, prompts=tuple(found[_name(job.source)])) for job in jobs if found[_name(job.source)]]
    if not prompted:
        raise UserError(
            f"No file in {folder} is named after a volume: the prompts of {jobs[0].source.name} belong in "
            f"{_name(jobs[0].source)}.json or {_name(jobs[0].source)}.mrk.json."
        )
    if lacking := [job.source.name for job in jobs if not found[_name(job.source)]]:
        console.note(f"left out, as {folder} holds no prompts for them: {some_names(lacking)}")
    return prompted
