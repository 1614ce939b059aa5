"""`samfinetune segment --auto`: volumes in, label maps out, no prompts."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.images import Volume
    from SAMFineTuneLib.inference.predictor import Predictor

_PROMPTS = ("point", "negative_point", "box", "prompts", "label", "picture")
_FIRST_CHANNEL = "_0000"  # nnU-Net's name for it
_OTHERS = "choose another -o, add --skip-existing to leave it as it is and do the others"


def run(args: argparse.Namespace) -> int:
    """Segment one volume, or all of a folder; one that fails does not stop the others, and makes the exit code 2."""
    from SAMFineTuneLib.cli import arguments, outputs
    from SAMFineTuneLib.images import check_output_path

    if args.skip_existing and args.overwrite:
        raise UserError("--skip-existing and --overwrite contradict each other; leave one of them out.")
    given = [f"--{name.replace('_', '-')}" for name in _PROMPTS if getattr(args, name)]
    if given or args.propagate != "none":
        raise UserError(f"--auto needs no {given[0] if given else '--propagate'}; leave one of them out.")
    found = find_jobs(Path(args.volume).expanduser(), Path(args.output).expanduser(), args.format)
    for _, target in found:
        check_output_path(target)
    jobs = [job for job in found if not (args.skip_existing and os.path.lexists(job[1]))]
    outputs.require_new([target for _, target in jobs], args, _OTHERS)
    if not jobs:
        print(f"skipped     all {_volumes_of(len(found))}, whose results are there already")
        return 0
    adapter = arguments.find_adapter(args)
    predictor = arguments.open_predictor(args, adapter)
    recipe = adapter.card.recipe if adapter else {}
    failed, skipped = 0, len(found) - len(jobs)
    for source, target in jobs:
        if args.skip_existing and os.path.lexists(target):  # by another run that works on the same folder
            skipped += 1
            continue
        try:
            outputs.require_new([target], args, _OTHERS)
            _segment(args, source, target, predictor, recipe)
        except DiskError:  # the others would fail as well
            raise
        except UserError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            print(f"samfinetune: {source.name}: {error}", file=sys.stderr)
    if skipped:
        print(f"skipped     {_volumes_of(skipped)}, whose results are there already")
    if failed:
        print(f"failed      {failed} of {len(jobs)} volumes")
    return 2 if failed else 0


def _volumes_of(count: int) -> str:
    return "1 volume" if count == 1 else f"{count} volumes"


def find_jobs(source: Path, output: Path, ending: str = ".seg.nrrd") -> list[tuple[Path, Path]]:
    """Which volumes are read, and which label map is written for each.

    A folder is a DICOM series when it holds files of no other kind; else its images, and its folders, are volumes. A
    volume alone goes into the file `output`, unless that is a folder or ends like none.
    """
    from SAMFineTuneLib.images import OUTPUT_ENDINGS

    volumes = _volumes(source)
    if volumes == [source] and output.name.lower().endswith(OUTPUT_ENDINGS):
        _protect(source, output)
        return [(source, output)]
    if output.name.lower().endswith(OUTPUT_ENDINGS) or output.is_file():
        raise UserError(f"{source} holds {len(volumes)} volumes, so -o needs a folder, not the file {output}.")
    if source.is_dir() and source.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f"The folder {output} lies among what is read, which is never changed; choose another -o.")
    jobs: dict[Path, Path] = {}
    for volume in volumes:
        target = output / f"{_name(volume)}{ending}"
        if target in jobs:
            raise UserError(f"{volume.name} and {jobs[target].name} would both become {target.name}; rename one.")
        _protect(volume, target)
        jobs[target] = volume
    return [(volume, target) for target, volume in jobs.items()]


def _volumes(source: Path) -> list[Path]:
    from SAMFineTuneLib.images.read_image import ENDINGS

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
    first = [path for path in images if _stem(path).endswith(_FIRST_CHANNEL)]
    if first and all(re.search(r"_\d{4}$", _stem(path)) for path in images):
        images = first
    return [*images, *folders]


def _stem(path: Path) -> str:
    from SAMFineTuneLib.images.read_image import ENDINGS

    lower = path.name.lower()
    endings = [ending for ending in (*ENDINGS, ".dcm") if lower.endswith(ending)] if not path.is_dir() else []
    return path.name[: -len(max(endings, key=len))] if endings else path.name


def _name(path: Path) -> str:
    return _stem(path.resolve()).removesuffix(_FIRST_CHANNEL)


def _protect(source: Path, target: Path) -> None:
    """Refuse to write over, or among, what is read."""
    inside = source.is_dir() and target.resolve().parent == source.resolve()
    if inside or (target.exists() and source.is_file() and target.samefile(source)):
        raise UserError(f"The file {target} lies among what is read, which is never changed; choose another -o.")


def _segment(
    args: argparse.Namespace, source: Path, target: Path, predictor: Predictor, recipe: Mapping[str, Any]
) -> None:
    from tqdm import tqdm

    from SAMFineTuneLib.cli import describe, outputs
    from SAMFineTuneLib.images import choose_window, read_volume, write_labelmap
    from SAMFineTuneLib.inference.automatic_head import class_segments, segment_classes
    from SAMFineTuneLib.service.learned import learned_orientation
    from SAMFineTuneLib.session.doubts import doubts_about_adapter

    volume = read_volume(source, args.series)
    if target.name.lower().endswith(".dcm"):
        from SAMFineTuneLib.images.dicom_seg import check_dicom_seg

        check_dicom_seg(volume)
    window = choose_window(volume, args.window or recipe.get("window"))
    orientation = args.orientation or learned_orientation(volume, recipe)
    describe.print_inputs(volume, window, predictor, args.adapter)
    for doubt in doubts_about_adapter(volume, recipe):
        print(f"note        {doubt}")
    with tqdm(desc=source.name, unit="slice", disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(progress) -> None:
            bar.total = progress.total
            bar.update(progress.done - bar.n)

        labels = segment_classes(predictor, volume, window, orientation, show)
    segments = class_segments(predictor)
    for info in segments:
        voxels = int((labels == info.value).sum())
        size = voxels * float(abs(_voxel(volume))) / 1000
        print(f"segment     {info.value} {info.name}: {size:.2f} mL" + ("" if voxels else ", nothing was found"))
    outputs.require_new([target], args, _OTHERS)  # somebody may have written there meanwhile
    for note in write_labelmap(target, labels, volume, segments):
        print(f"note        {note}")
    print(f"written     {target}", flush=True)


def _voxel(volume: Volume) -> float:
    import numpy as np

    return float(np.linalg.det(volume.affine[:3, :3]))
