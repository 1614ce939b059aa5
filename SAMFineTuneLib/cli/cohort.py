"""`samfinetune cohort`: many cases of one project, from the first annotated ones to the last."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.cli.arguments import add_command_with_actions, add_match_labels, add_server, server_access
from SAMFineTuneLib.cli.describe import print_facts, print_table
from SAMFineTuneLib.cli.long_work import ProgressLine, stoppable
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from SAMFineTuneLib.cohort.choosing import Choice
    from SAMFineTuneLib.cohort.cohort_folder import Cohort, CohortCase, CohortState
    from SAMFineTuneLib.cohort.dicomweb_store import DicomwebStore
    from SAMFineTuneLib.evaluation.executors import Engine
    from SAMFineTuneLib.service.cohort_client import ServedCohort

_EPILOG = """A cohort is a folder of its own beside the images, which are never altered. CASE is a name or key that
`status` lists.

examples:
  samfinetune cohort create liver-cohort scans --labels liver,spleen
  samfinetune cohort status liver-cohort              how far it is, and what to do next
  samfinetune segment scans/p07 -o p07.seg.nrrd --label liver --point -62,18,-40 --propagate both
  samfinetune cohort accept liver-cohort p07 --labels p07.seg.nrrd      the first cases, annotated by prompts
  samfinetune cohort train liver-cohort               learn from what is accepted; patients held out decide
  samfinetune cohort propose liver-cohort             segment the others
  samfinetune cohort next liver-cohort                which case teaches most, and where to look in it
  samfinetune cohort accept liver-cohort p12 --labels corrected.nii.gz --seconds 95 --prompts 4
  samfinetune cohort report liver-cohort              the learning curve, as a page that opens offline
  samfinetune cohort export liver-cohort -o Dataset001_Liver --form nnunet
  samfinetune cohort fetch https://pacs.hospital/dicom-web -o scans --modality CT --study 1.2.840.1
  samfinetune cohort store https://pacs.hospital/dicom-web liver-cohort          as DICOM SEG
  samfinetune cohort next liver-cohort --server https://gpu:8577 --token-file token.txt -o work      on a server

A .seg.nrrd names its structures, so that their numbers do not matter. The panel in Slicer does the same with a mouse.
Commands and windows may work on one cohort at the same time. samfinetune demo --cohort makes one to try. A DICOMweb
server's token is read from SAMFINETUNE_DICOMWEB_TOKEN; a user's name from --user or SAMFINETUNE_DICOMWEB_USER, the
password from SAMFINETUNE_DICOMWEB_PASSWORD or the keyboard. They are written nowhere.
"""
_MOST_PLACES = 5  # doubtful slices that `next` lists
_LOOK_EVERY = 0.5  # s between two looks at what a server does
_PATIENCE = 120.0  # s for which a server that answered before is asked again


def add_parser(subparsers) -> None:
    """Add `cohort` and its actions."""
    actions = add_command_with_actions(subparsers, "cohort", "segment many cases, and learn from each one", _EPILOG)

    def action(
        name: str, function: Callable, text: str, case: bool = False, served: bool = False
    ) -> argparse.ArgumentParser:
        parser = actions(name, function, text)
        where = "the cohort's folder, or with --server its name there" if served else "the cohort's folder"
        parser.add_argument("cohort", metavar="COHORT", help=where)
        if served:
            add_server(parser, "a department's server", "the server that has the cohort (samfinetune serve --cohort), "
                       "as in https://gpu.hospital:8577")  # fmt: skip
        if case:
            add_case = parser.add_argument("case", metavar="CASE", help="name or key")
            add_case.completer = _case_names
            parser.add_argument("--by", metavar="WORD", default="", help="the word with which it was taken, see `next`")
        console.add_json(parser)
        return parser

    images = "folder of images or DICOM series, nnU-Net's layout, or a .csv of image,label,patient, in "\
             "which labels and patients may be missing"
    added = action("create", _create, "make a cohort of images, some of which may have labels")
    added.add_argument("images", metavar="IMAGES", help=images)
    added.add_argument("--labels", metavar="liver,spleen", default="", help="names of the structures, for label values "
                       "from 1 (default: those of the labels that are there)")  # fmt: skip
    add_match_labels(added)
    added.add_argument("--model", metavar="ID", default="compact", help="the model that learns (default: compact)")
    action("status", _status, "list the cases, the adapter in use, and what to do next", served=True)
    added = action("add", _add, "add images to a cohort")
    added.add_argument("images", metavar="IMAGES", help=images)
    add_match_labels(added)
    added = action("locate", _locate, "find images that were moved")
    added.add_argument("images", metavar="IMAGES", help="where they are now")
    added = action("propose", _propose, "segment the cases that nobody has worked on with the adapter in use",
                   served=True)  # fmt: skip
    added.add_argument("cases", metavar="CASE", nargs="*", help="only these").completer = _case_names
    added.add_argument("--again", action="store_true", help="those that an earlier adapter proposed as well")
    added.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    added.add_argument("--jobs", type=int, metavar="N", help="processes at once (default: this one)")
    added.add_argument("--engine", choices=("local", "dask"), default="local", help="processes here (default), or a "
                       "Dask cluster, whose computers see the cohort and its images at the same paths")  # fmt: skip
    added.add_argument("--scheduler", metavar="ADDRESS", help="of the Dask cluster; without one a cluster is started "
                       "here")  # fmt: skip
    added = action("next", _next, "say which case to review next, why, and where to look in it", served=True)
    added.add_argument("--way", choices=("random", "teaching", "easiest", "order"), default="random",
                       help="any case (default), the one that teaches most, the one nearest to done, or in order")
    added.add_argument("--take", metavar="WORD", default="", help="keep it from others for ten minutes; any word that "
                       "is nobody's name, to be given to `accept --by`")  # fmt: skip
    added.add_argument("-o", "--output", metavar="FOLDER", help="with --server, where the case's image and labels are "
                       "downloaded to; that takes the case, too")  # fmt: skip
    added = action("accept", _accept, "accept the labels of a case", case=True, served=True)
    added.add_argument("--labels", metavar="FILE", help="label map of any kind (default: the correction that the panel "
                       "keeps, or else the proposal)")  # fmt: skip
    add_match_labels(added)
    added.add_argument("--seconds", type=float, metavar="S", help="working time, for the report")
    added.add_argument("--prompts", type=int, metavar="N", help="prompts that were placed, for the report")
    action("refuse", _refuse, "leave a case out", case=True, served=True)
    action("reopen", _reopen, "take back that a case was accepted or refused", case=True, served=True)
    added = action("train", _train, "learn from the accepted cases; patients held out decide whether it is used",
                   served=True)  # fmt: skip
    added.add_argument("--preset", choices=("quick", "balanced", "thorough"), default="quick", help="default: quick")
    added.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    added.add_argument("--restart", action="store_true", help="begin anew instead of going on with a stopped training")
    added = action("report", _report, "write the learning curve and pictures as a page that opens offline", served=True)
    added.add_argument("-o", "--output", metavar="FOLDER", help="default: report in the cohort's folder; with --server "
                       "the cohort's name with -report, here")  # fmt: skip
    added = action("export", _export, "write the accepted cases for other programs", served=True)
    added.add_argument("-o", "--output", metavar="FOLDER", required=True, help="a new or an empty folder")
    added.add_argument("--form", choices=("nifti", "nnunet", "dicom-seg"), default="nifti", help="default: nifti")
    added = _server_action(actions, "fetch", _fetch, "fetch image series from a DICOMweb server, or list them")
    added.add_argument("-o", "--output", metavar="FOLDER", help="where the series go, each into a folder of its own; "
                       "the same command goes on with what was interrupted")  # fmt: skip
    added.add_argument("--list", action="store_true", help="only list them")
    for name, text in (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID"), ("patient", "PatientID"),
                       ("modality", "such as CT or MR")):  # fmt: skip
        added.add_argument(f"--{name}", metavar=name.upper(), help=text)
    added = _server_action(actions, "store", _store, "store accepted cases on a DICOMweb server as DICOM SEG")
    added.add_argument("cohort", metavar="COHORT", help="the cohort's folder")
    added.add_argument("cases", metavar="CASE", nargs="*", help="only these").completer = _case_names


def _server_action(actions: Callable, name: str, function: Callable, text: str) -> argparse.ArgumentParser:
    parser = actions(name, function, text)
    parser.add_argument("server", metavar="URL", help="address of the DICOMweb service")
    parser.add_argument("--user", metavar="NAME", help="who signs in")
    parser.add_argument("--tls-ca", metavar="FILE", help="certificate (.pem) to trust, where this computer does not "
                        "know the one that signed the server's")  # fmt: skip
    console.add_json(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Carry out the action."""
    return args.act(args) or 0


# ---------------------------------------------------------------- the cases


def _create(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.create_cohort import create_cohort, find_images
    from SAMFineTuneLib.models.store import Store

    Store().find(args.model)  # rather than after the first cases
    names = [name for name in args.labels.split(",") if name.strip()]
    images = find_images(args.images, args.match_labels)
    with _counting("reading image") as show:
        made = create_cohort(args.cohort, images, names, args.model, show)
    for note in made.notes:
        console.note(note)
    print(f"written     {made.cohort.folder}")
    _tell_how_far(made.cohort)


def _status(args: argparse.Namespace) -> None:
    cohort = _open(args)
    state = cohort.state
    _tell_how_far(cohort)
    rows = [("CASE", "STATE", "CONFIDENCE", "DOUBTFUL", "PROPOSAL'S DICE", "")]
    often = Counter(case.name for case in state.cases)
    for case in state.cases:
        name = case.name if often[case.name] == 1 else f"{case.name} ({case.key})"
        open_ = case.proposal is not None and case.state in ("proposed", "corrected")
        dice = case.review.dice if case.review and case.state == "accepted" else {}
        slices = f"{case.proposal.doubtful} slice{'s' * (case.proposal.doubtful != 1)}" if open_ else ""
        remark = "somebody works on it" if case.taken() else case.problem if case.state == "untouched" else ""
        rows.append((name, case.state, f"{case.proposal.lowest:.2f}" if open_ else "", slices,
                     f"{min(dice.values()):.2f}" if dice else "", remark))  # fmt: skip
    print()
    print_table(rows)
    console.document(images=cohort.images, cases=[_facts(cohort, case) for case in state.cases],
                     adapters=[_adapter_facts(one) for one in state.adapters])  # fmt: skip


def _add(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.create_cohort import add_images, find_images

    cohort = _here(args)
    before = len(cohort.state.cases)
    images = find_images(args.images, args.match_labels)
    with _counting("reading image") as show:
        notes = add_images(cohort, images, show)
    for note in notes:
        console.note(note)
    print(f"added       {_cases(len(cohort.state.cases) - before)}")
    console.document(added=len(cohort.state.cases) - before)
    _tell_how_far(cohort)


def _locate(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.create_cohort import find_images, locate_images

    cohort = _here(args)
    images = find_images(args.images)
    with _counting("reading image") as show:
        found = locate_images(cohort, images, show)
    if not found:
        raise UserError(f"None of the cohort's images is in “{args.images}”; give the folder that they are in now.")
    missing = sum(not _is_there(cohort, case) for case in cohort.state.cases)
    print(f"found       {found} of {_cases(len(cohort.state.cases))}")
    if missing:
        console.note(f"{missing} images are still missing; give their folder, too")
    console.document(found=found, missing=missing)


# ---------------------------------------------------------------- the loop


def _propose(args: argparse.Namespace) -> int:
    from SAMFineTuneLib.cohort.proposing import propose

    if args.server:
        return _by_server(args, "propose", args.cases, args.again, args.jobs, args.scheduler)
    cohort, engine = _open(args), _engine(args)
    try:
        with _counting("segmenting case") as show:
            done = propose(cohort, args.cases or None, args.device, args.again, show, engine=engine)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on with the other cases.") from None
    state = cohort.state
    print(f"proposed    {_cases(len(done.done))}")
    for key in done.failed:
        console.note(f"{state.case(key).name} failed: {state.case(key).problem}")
    console.document(proposed=list(done.done), failed=list(done.failed))
    _tell_how_far(cohort)
    return 2 if done.failed else 0


def _engine(args: argparse.Namespace) -> Engine | None:
    from SAMFineTuneLib.evaluation import executors

    if args.engine == "dask":
        return executors.dask(args.scheduler, args.jobs)
    if args.scheduler:
        raise UserError("--scheduler is an address of a Dask cluster; add --engine dask.")
    return None if args.jobs is None else executors.local(args.jobs)


def _next(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.choosing import next_case
    from SAMFineTuneLib.cohort.confidence import doubtful_places, read_confidence
    from SAMFineTuneLib.cohort.review import labels_of, take_next

    if args.server:
        cohort, choice, image, labels = _next_on_server(args)
    else:
        cohort = _open(args)
        choice = (take_next if args.take else next_case)(cohort, args.way, args.take)
    if choice is None:
        print(f"Nothing is left to review. {_advice(cohort)}")
        console.document(case=None, advice=_advice(cohort))
        return
    case = cohort.state.case(choice.case.key)
    if not args.server:
        image, labels = cohort.image(case), labels_of(cohort, case)
    confidence = read_confidence(cohort, case.key)
    places = doubtful_places(confidence)[:_MOST_PLACES] if confidence and case.state == "proposed" else []
    facts = [("case", f"{case.name}, {case.state}"), ("why", choice.reason)]
    facts += [(word, str(path)) for word, path in (("image", image), ("labels", labels)) if path]
    if places:
        listed = "; ".join(f"{label}, slice {place} ({value:.2f})" for label, place, value in places)
        facts.append(("look at", f"{confidence.orientation}: {listed}"))
    facts += [("accept", f"samfinetune cohort accept {_named(cohort)} {_called(cohort, case)}"
               f"{'' if labels else ' --labels FILE'}{f' --by {args.take}' if args.take else ''}")]  # fmt: skip
    print_facts(facts)
    console.document(
        case=_facts(cohort, case), reason=choice.reason, labels=labels and str(labels),
        orientation=confidence.orientation if confidence else None,
        doubtful=[{"label": label, "slice": place, "expected_dice": value} for label, place, value in places],
    )  # fmt: skip


def _accept(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.review import accept

    for name in ("seconds", "prompts"):
        if (given := getattr(args, name)) is not None and not 0 <= given < float("inf"):
            raise UserError(f"--{name} {given:g} cannot be; give a number from 0, or leave it out.")
    labels = {"labels": args.labels, "match": args.match_labels, "tell": console.note}
    if args.server:
        labels = {"labels": _fitted(args)} if args.labels else {}
    cohort, case = _reviewed(args, accept, **labels, seconds=args.seconds, prompts=args.prompts)
    print(f"accepted    {case.name}")
    for label, dice in case.review.dice.items():
        print(f"            {label}: the proposal had a Dice of {dice:.3f}")
    _tell_case(cohort, case)


def _refuse(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.review import refuse

    cohort, case = _reviewed(args, refuse)
    print(f"refused     {case.name}; “samfinetune cohort reopen” takes it back")
    _tell_case(cohort, case)


def _reopen(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.review import reopen

    cohort, case = _reviewed(args, reopen)
    print(f"reopened    {case.name}, now {case.state}")
    _tell_case(cohort, case)


def _train(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.retraining import retrain

    if args.server:
        return _by_server(args, "train", args.preset != "quick", args.restart)
    cohort = _open(args)
    with stoppable(lambda: "stopped; the same command goes on.") as stop, ProgressLine() as line:

        def show(progress: Any) -> None:
            stop.learning = progress.stage == "training"
            line(progress.sentence, progress.step == progress.steps)

        adapter = retrain(cohort, args.preset, args.device, show, lambda: stop.asked, not args.restart)
    print(f"adapter     {adapter.number}, {'now in use' if adapter.in_use else 'not used'}, from {adapter.start}")
    print(f"evidence    {adapter.reason}")
    console.document(adapter=_adapter_facts(adapter))
    _tell_how_far(cohort)


# ---------------------------------------------------------------- results


def _report(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.cohort_report import PAGE, REPORT, write_report

    with _counting("comparing case") as show:
        if args.server:
            folder, _ = _fetched(args, "report", args.output or f"{args.cohort}-report", show)
            page = folder / PAGE
        else:
            cohort = _here(args)
            page = write_report(cohort, args.output or cohort.folder / REPORT, show)
    print(f"report      {page}")
    console.document(report=page)


def _export(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cli.outputs import require_new_folder
    from SAMFineTuneLib.cohort.cohort_export import export

    with _counting("writing case") as show:
        if args.server:
            folder, told = _fetched(args, "export", require_new_folder(args.output), show, form=args.form)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            for sentence in told["notes"]:
                console.note(sentence)
        else:
            files = export(_here(args), args.output, args.form, show, console.note)
    print(f"written     {args.output}, {len(files)} files")
    console.document(folder=args.output, form=args.form, files=[str(path) for path in files])


# ---------------------------------------------------------------- a department's server


def _served(args: argparse.Namespace) -> ServedCohort:
    """The cohort on the server of --server, as it stands now."""
    from SAMFineTuneLib.service.cohort_client import Place, ServedCohort, mirror

    token, certificate = server_access(args)
    served = ServedCohort(mirror(Place(args.server, args.cohort, certificate or "")), token, _PATIENCE)
    served.follow()
    return served


def _reviewed(args: argparse.Namespace, act: Callable, **values: Any) -> tuple[Cohort, CohortCase]:
    """Have a function of `review` done, here or by the server that has the cohort."""
    if args.server:
        served = _served(args)
        served.do(act.__name__, secrets.token_hex(8), 1, case=args.case, by=args.by, **values)
        served.follow()
        return served.cohort, served.cohort.state.case(args.case)
    cohort = _open(args)
    return cohort, act(cohort, args.case, by=args.by, **values)


def _fitted(args: argparse.Namespace) -> np.ndarray:
    """The labels of a file in the grid of their image, which the server has. Whoever has the case keeps it."""
    import numpy as np

    from SAMFineTuneLib.cohort.review import in_grid
    from SAMFineTuneLib.images import Volume

    served = _served(args)
    told = served.do("grid", secrets.token_hex(8), 1, case=args.case)
    volume = Volume(np.broadcast_to(np.uint8(0), told["shape"]), np.array(told["affine"]))
    return in_grid(args.labels, volume, served.cohort.state.labels, args.case, args.match_labels, console.note)


def _next_on_server(args: argparse.Namespace) -> tuple[Cohort, Choice | None, Path | None, Path | None]:
    """What the server chooses, and the files of its image and labels where they are to be downloaded."""
    from SAMFineTuneLib.cohort.choosing import Choice

    served, window = _served(args), secrets.token_hex(8)
    args.take = args.take or (secrets.token_hex(4) if args.output else "")
    told = served.do("next", window, 1, way=args.way, by=args.take, take=bool(args.take))
    if not told["case"]:
        return served.cohort, None, None, None
    choice = Choice(served.cohort.state.case(told["case"]), told["reason"])
    try:
        image, labels = _downloaded(args, served, choice.case, window) if args.output else (None, None)
    except BaseException:  # Ctrl-C, too; nobody has been told the word under which it was taken
        with suppress(UserError):
            served.do("release", window, 3, case=choice.case.key, by=args.take)
        raise
    served.follow()
    return served.cohort, choice, image, labels


def _downloaded(
    args: argparse.Namespace, served: ServedCohort, case: CohortCase, window: str
) -> tuple[Path, Path | None]:
    """Write a case's image, and its labels where it has some, as NIfTI files. -> their paths"""
    import tempfile
    from pathlib import Path

    import numpy as np
    import SimpleITK as sitk

    from SAMFineTuneLib.files import atomic_write
    from SAMFineTuneLib.images import Volume, write_labelmap
    from SAMFineTuneLib.images.sitk_images import to_sitk

    told = served.do("open", window, 2, case=case.key, by=args.take)
    stem = str(Path(args.output).expanduser() / f"{case.name}-{case.key}")
    image, target = Path(f"{stem}.nii.gz"), Path(f"{stem}-labels.nii.gz")
    with tempfile.TemporaryDirectory() as folder:
        files = served.fetch_case(told, window, 2, Path(folder))
        volume = Volume(np.load(files["voxels"]), np.array(told["affine"]))
        with atomic_write(image) as temporary:
            sitk.WriteImage(to_sitk(volume.array, volume.affine), str(temporary), useCompression=True)
        if not files["labels"]:
            return image, None
        part, labels = np.load(files["labels"]), np.zeros(volume.shape, np.uint16)
        place = zip(told["start"][::-1], part.shape, strict=True)
        labels[tuple(slice(first, first + count) for first, count in place)] = part
        write_labelmap(target, labels, volume)
    return image, target


def _fetched(
    args: argparse.Namespace, what: str, folder: str | Path, show: Callable[..., None], **values: Any
) -> tuple[Path, Mapping[str, Any]]:
    """Have the server lay out results, and download them. -> their folder, and what the server told of them"""
    from pathlib import Path

    served, window, folder = _served(args), secrets.token_hex(8), Path(folder).expanduser()
    told = served.do(what, window, 1, progress=lambda done, total, name: total and show(done, total, name), **values)
    served.fetch_results(window, 1, folder)
    return folder, told


def _by_server(args: argparse.Namespace, what: str, *own: object) -> int:
    """Have the server train or propose, and show how far it is; `own` are options that only this computer has."""
    if any(own) or args.device != "auto":
        raise UserError("The server decides how it trains and proposes: leave out the other options.")
    served = _served(args)
    served.do(what, secrets.token_hex(8), 1)
    try:
        with ProgressLine() as line:
            while (news := served.follow()).busy or news.events:
                for event in news.events:
                    if event["event"] == "progress":
                        line(event["text"] or f"case {event['done']} of {event['total']}")
                    elif event["event"] == "failed":
                        raise UserError(event["text"])
                    elif event["event"] == "done":
                        line.note(event.get("reason") or f"{_cases(event.get('proposed', 0))} proposed")
                time.sleep(_LOOK_EVERY)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the server goes on; “cohort status” tells when it is done.") from None
    served.follow()
    _tell_how_far(served.cohort)
    return 0


# ---------------------------------------------------------------- servers of images


def _fetch(args: argparse.Namespace) -> None:
    from dataclasses import asdict

    if not args.list and not args.output:
        raise UserError("Say where the series go with -o FOLDER, or only list them with --list.")
    store = _server(args)
    asked = {"StudyInstanceUID": args.study, "SeriesInstanceUID": args.series, "PatientID": args.patient,
             "Modality": args.modality}  # fmt: skip
    found = store.list_series({name: value for name, value in asked.items() if value})
    if not found:
        raise UserError(f"“{args.server}” has no image series like that; leave out some of the options.")
    if not args.list:
        images = sum(one.images for one in found)
        before = 0
        try:
            with _counting("fetching image") as show:
                for one in found:
                    tell = lambda done, total, before=before: show(before + done, max(images, before + total))  # noqa: E731
                    store.fetch(one, args.output, tell)
                    before += one.images
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped; the same command goes on.") from None
        print(f"fetched     {len(found)} series into {args.output}")
    rows = [(one.series, one.modality, str(one.images or "?"), one.folder, one.description) for one in found]
    print_table([("SERIES", "MODALITY", "IMAGES", "FOLDER", "DESCRIPTION"), *rows])
    console.document(folder=args.output, series=[{**asdict(one), "folder": one.folder} for one in found])


def _store(args: argparse.Namespace) -> None:
    import tempfile
    from pathlib import Path

    from SAMFineTuneLib.cohort.cohort_export import export

    cohort, store = _here(args), _server(args)
    with tempfile.TemporaryDirectory() as folder:
        with _counting("writing case") as show:
            made = export(cohort, Path(folder) / "seg", "dicom-seg", show, console.note, args.cases)
        files = [path for path in made if path.suffix == ".dcm"]
        store.store(files)
    print(f"stored      {len(files)} DICOM SEG")
    console.document(server=args.server, stored=[path.name for path in files])


def _server(args: argparse.Namespace) -> DicomwebStore:
    """The server, signed in to as the options and variables say; what is secret is asked for, and kept nowhere."""
    import getpass
    import os
    import sys

    from SAMFineTuneLib.cohort.dicomweb_store import PASSWORD, TOKEN, USER, DicomwebStore

    name, password = args.user or os.environ.get(USER, ""), os.environ.get(PASSWORD, "")
    token = "" if args.user else os.environ.get(TOKEN, "").strip()
    if name and not token and not password:
        if not sys.stdin.isatty():
            raise UserError(f"The password of {name} is missing; set {PASSWORD}.")
        password = getpass.getpass(f"Password of {name}: ")
    store = DicomwebStore(args.server, token, (name, password) if name else None, args.tls_ca)
    if not store.encrypted:
        console.note("images and passwords travel without encryption; use https:// where the server has a certificate")
    return store


# ---------------------------------------------------------------- in words


def _tell_how_far(cohort: Cohort) -> None:
    """Counts by state, the adapter in use with its evidence, what to do next."""
    state = cohort.state
    counts = {name: len(state.those(name)) for name in ("accepted", "corrected", "proposed", "untouched", "refused")}
    words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    adapter, advice = state.adapter, _advice(cohort)
    facts = [("cases", f"{len(state.cases)}: {words}"), ("labels", ", ".join(state.labels.values()))]
    if adapter is not None:
        learned = f"adapter {adapter.number} of {adapter.date}, learned from {_cases(len(adapter.learned))}"
        facts.append(("adapter", f"{learned}; {adapter.reason}"))
    elif state.adapters:
        facts.append(("adapter", f"none in use; {state.adapters[-1].reason}"))
    print_facts([*facts, ("next", advice)])
    console.document(
        cohort=cohort.folder, model=state.model, labels={str(value): name for value, name in state.labels.items()},
        counts=counts, adapter=adapter.number if adapter else None, advice=advice,
    )  # fmt: skip


def _advice(cohort: Cohort) -> str:
    """What to do next, as a sentence."""
    from SAMFineTuneLib.cohort.retraining import FIRST, is_due

    state, command = cohort.state, f"samfinetune cohort {{}} {_named(cohort)}"
    adapter = state.adapter
    if is_due(state):
        return f"Enough is accepted for a training: {command.format('train')}"
    waiting, untouched = state.those("proposed", "corrected"), state.those("untouched")
    if adapter is not None and any(not case.problem for case in untouched):
        return f"{_cases(len(untouched))} can be proposed: {command.format('propose')}"
    if any(case.proposal and adapter and case.proposal.adapter != adapter.number for case in state.those("proposed")):
        return f"Earlier adapters made some of the proposals: {command.format('propose')} --again"
    if waiting:
        return f"{_cases(len(waiting))} to review: {command.format('next')}"
    if untouched:
        more = f", until {FIRST} are accepted and a training can begin" if not state.adapters else ""
        return (
            f"Segment a case with prompts, in Slicer or with “samfinetune segment”, and accept it{more}: "
            f"{command.format('accept')} {_called(cohort, untouched[0])} --labels FILE"
        )
    if state.accepted:
        return f"All cases are reviewed: {command.format('report')}, {command.format('export')} -o FOLDER"
    return f"All cases are refused; add others: {command.format('add')} IMAGES"


def _tell_case(cohort: Cohort, case: CohortCase) -> None:
    print(f"next        {_advice(cohort)}")
    console.document(case=_facts(cohort, case), advice=_advice(cohort))


def _facts(cohort: Cohort, case: CohortCase) -> dict[str, Any]:
    """A case for a program."""
    proposal, review = case.proposal, case.review
    return {
        "key": case.key, "name": case.name, "image": str(cohort.images / case.image), "state": case.state,
        "taken": case.taken(), "problem": case.problem,
        "proposal": proposal and {"adapter": proposal.adapter, "confidence": dict(proposal.confidence),
                                  "doubtful_slices": proposal.doubtful},
        "review": review and {"order": review.order, "seconds": review.seconds, "prompts": review.prompts,
                              "dice_of_proposal": dict(review.dice)},
    }  # fmt: skip


def _adapter_facts(adapter: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(adapter)


def _open(args: argparse.Namespace) -> Cohort:
    """The cohort of a command that may be about one on a server."""
    return _served(args).cohort if args.server else _here(args)


def _here(args: argparse.Namespace) -> Cohort:
    from SAMFineTuneLib.cohort.cohort_folder import Cohort

    return Cohort(args.cohort)


def _named(cohort: Cohort) -> str:
    """A cohort as commands take it."""
    from SAMFineTuneLib.service.cohort_client import place_of

    place = place_of(cohort.folder)
    return f"{_quoted(place.cohort)} --server {place.address}" if place else _quoted(cohort.folder)


def _is_there(cohort: Cohort, case: CohortCase) -> bool:
    try:
        return bool(cohort.image(case))
    except UserError:
        return False


def _called(cohort: Cohort, case: CohortCase) -> str:
    """A case as commands take it: by its name, or by its key where the name means something to a shell or is another
    case's, too."""
    plain = re.fullmatch(r"\w[\w.-]*", case.name)
    return case.name if plain and [one.name for one in cohort.state.cases].count(case.name) == 1 else case.key


def _quoted(word: object) -> str:
    """A word of a command as shells take it."""
    if re.fullmatch(r"[\w./\\:~-]+", str(word)):
        return str(word)
    return f'"{word}"' if os.name == "nt" else shlex.quote(str(word))


def _cases(count: int) -> str:
    return f"{count} case{'s' * (count != 1)}"


@contextmanager
def _counting(what: str) -> Iterator[Callable[..., None]]:
    """A line of progress with the time that is left, for functions that tell how many are done."""
    begun = time.monotonic()
    with ProgressLine() as line:

        def show(done: int, total: int, name: str = "") -> None:
            left = (time.monotonic() - begun) / done * (total - done) if 0 < done < total else None
            line(f"{what} {min(done + 1, total)} of {total}{name and f', {name}'}{_left(left)}")

        yield show


def _left(seconds: float | None) -> str:
    from SAMFineTuneLib.models.adapters.adapter_card import duration

    return "" if seconds is None else f", {duration(seconds)} left"


def _case_names(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """For the completion of CASE in a shell."""
    try:
        state: CohortState = (_open if hasattr(parsed_args, "token_file") else _here)(parsed_args).state
    except (UserError, AttributeError):
        return []
    return [case.name for case in state.cases]
