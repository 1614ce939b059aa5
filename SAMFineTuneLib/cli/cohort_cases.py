"""`samfinetune cohort create`, `status`, `add` and `locate`: the cases of a cohort and their images."""

from __future__ import annotations

import argparse
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.cli.arguments import add_match_labels
from SAMFineTuneLib.cli.cohort_on_server import open_here, open_served
from SAMFineTuneLib.cli.cohort_status import case_facts, print_status
from SAMFineTuneLib.cli.describe import print_table
from SAMFineTuneLib.cli.long_work import counting, on_interrupt
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import counted

if TYPE_CHECKING:
    from SAMFineTuneLib.cohort.cohort_folder import Cohort
    from SAMFineTuneLib.cohort.cohort_state import CohortCase
    from SAMFineTuneLib.cohort.find_images import FoundImage


def add_actions(action: Callable) -> None:
    """Add the actions that list, add and find cases."""
    images = "folder of images or DICOM series, nnU-Net's layout, or a .csv of image,label,patient, in "\
             "which labels and patients may be missing"
    added = action("create", _create, "make a cohort of images, some of which may have labels")
    added.add_argument("images", metavar="IMAGES", help=images)
    added.add_argument("--labels", metavar="liver,spleen", default="", help="names of the structures, for label "
                                                                            "values from 1 (default: those of "
                                                                            "existing labels)")  # fmt: skip
    add_match_labels(added)
    added.add_argument("--model", metavar="ID", default="compact", help="the model that learns (default: compact)")
    action("status", _status, "list the cases, the adapter in use, and what to do next", served=True)
    added = action("add", _add, "add images to a cohort, here or on a server", served=True)
    added.add_argument("images", metavar="IMAGES", help=images)
    add_match_labels(added)
    added = action("locate", _locate, "find images that were moved")
    added.add_argument("images", metavar="IMAGES", help="where they are now")


def _create(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.create_cohort import create_cohort
    from SAMFineTuneLib.cohort.find_images import find_images
    from SAMFineTuneLib.models.store import Store

    Store().find(args.model)  # rather than after the first cases
    images = find_images(args.images, args.match_labels)
    with counting("reading image") as show:
        made = create_cohort(args.cohort, images, args.labels.split(","), args.model, show)
    for note in made.notes:
        console.note(note)
    print(f"written     {made.cohort.folder}")
    print_status(made.cohort)


def _status(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.image_check import TROUBLES

    cohort = _checked(args)
    state = cohort.state
    print_status(cohort)
    rows = [("CASE", "STATE", "CONFIDENCE", "DOUBTFUL", "PROPOSAL'S DICE", "")]
    often = Counter(case.name for case in state.cases)
    for case in state.cases:
        name = case.name if often[case.name] == 1 else f"{case.name} ({case.key})"
        open_ = case.proposal is not None and case.state in ("proposed", "corrected")
        dice = case.review.dice if case.review and case.state == "accepted" else {}
        slices = counted(case.proposal.doubtful, "slice") if open_ else ""
        remark = TROUBLES.get(case.trouble) or ("somebody works on it" if case.taken() else "")
        remark = remark or (case.problem if case.state == "untouched" else "")
        rows.append((name, case.state, f"{case.proposal.lowest:.2f}" if open_ else "", slices,
                     f"{min(dice.values()):.2f}" if dice else "", remark))  # fmt: skip
    print()
    print_table(rows)
    console.document(images=cohort.images, cases=[case_facts(cohort, case) for case in state.cases],
                     adapters=[asdict(one) for one in state.adapters])  # fmt: skip


def _checked(args: argparse.Namespace) -> Cohort:
    """The cohort after checking its images, here or on its server."""
    from SAMFineTuneLib.cohort.image_check import check_images
    from SAMFineTuneLib.service.cohort_client import Unreached

    if not args.server:
        cohort = open_here(args)
        with counting("reading image") as show:
            check_images(cohort, show)
        return cohort
    served = open_served(args)
    with suppress(Unreached):  # a server of an older version checks none
        served.do("check", secrets.token_hex(8), 1)
    served.follow()
    return served.cohort


def _add(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.create_cohort import add_images
    from SAMFineTuneLib.cohort.find_images import find_images

    if args.server:
        cohort, added, notes = _send(args, find_images(args.images, args.match_labels))
    else:
        cohort = open_here(args)
        before, images = len(cohort.state.cases), find_images(args.images, args.match_labels)
        with counting("reading image") as show:
            notes = add_images(cohort, images, show)
        added = len(cohort.state.cases) - before
    for note in notes:
        console.note(note)
    print(f"added       {counted(added, 'case')}")
    console.document(added=added)
    print_status(cohort)


def _send(args: argparse.Namespace, images: Sequence[FoundImage]) -> tuple[Cohort, int, Sequence[str]]:
    """Send images to a server. Returns its cohort, how many were added, and notes about them."""
    from SAMFineTuneLib.service.send_images import send_images

    served = open_served(args)
    later = "stopped; the same command continues with the other scans."
    with on_interrupt(later), counting("sending image") as show:
        added, notes = send_images(served, images, lambda done, total, name, part: show(
            done, total, f"{name} ({part:.0%})"))  # fmt: skip
    renamed = [f"{name} is called {there} there." for name, there in added if not name.startswith(there)]
    return served.cohort, len(added), renamed + notes


def _locate(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.create_cohort import locate_images
    from SAMFineTuneLib.cohort.find_images import find_images

    cohort = open_here(args)
    images = find_images(args.images)
    with counting("reading image") as show:
        found = locate_images(cohort, images, show)
    if not found:
        raise UserError(f"None of the cohort's images is in “{args.images}”; give the folder that they are in now.")
    missing = sum(not _is_there(cohort, case) for case in cohort.state.cases)
    print(f"found       {found} of {counted(len(cohort.state.cases), 'case')}")
    if missing:
        console.note(f"Still missing: {counted(missing, 'image')}; give their folder, too.")
    console.document(found=found, missing=missing)


def _is_there(cohort: Cohort, case: CohortCase) -> bool:
    try:
        return bool(cohort.image(case))
    except UserError:
        return False
