"""`samfinetune cohort next`, `accept`, `refuse` and `reopen`: review cases one after another."""

from __future__ import annotations

import argparse
import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.cli.arguments import add_match_labels
from SAMFineTuneLib.cli.cohort_on_server import open_cohort, open_served
from SAMFineTuneLib.cli.cohort_status import case_facts, case_word, cohort_word, next_step, print_case
from SAMFineTuneLib.cli.describe import print_facts
from SAMFineTuneLib.cohort.cohort_state import LEASE_ON_SERVER
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from SAMFineTuneLib.cohort.choosing import Choice
    from SAMFineTuneLib.cohort.cohort_folder import Cohort
    from SAMFineTuneLib.cohort.cohort_state import CohortCase
    from SAMFineTuneLib.service.cohort_client import ServedCohort

_MOST_PLACES = 5  # doubtful slices that `next` lists


def add_actions(action: Callable) -> None:
    """Add the actions of a review."""
    added = action("next", _next, "say which case to review next, why, and where to look in it", served=True)
    added.add_argument("--way", choices=("random", "teaching", "easiest", "order"), default="random",
                       help="any case (default), the one that teaches most, the one nearest to done, or in order")
    added.add_argument("--take", metavar="WORD", default="", help="reserve it for ten minutes under a word, not a "
                       "person's name, to be given to `accept --by`")  # fmt: skip
    added.add_argument("-o", "--output", metavar="FOLDER", help="with --server, where to download the case's image "
                       "and labels; this takes the case, too")  # fmt: skip
    added = action("accept", _accept, "accept the labels of a case", case=True, served=True)
    added.add_argument("--labels", metavar="FILE", help="label map of any kind (default: the correction that the panel "
                       "keeps, or else the proposal)")  # fmt: skip
    add_match_labels(added)
    added.add_argument("--seconds", type=float, metavar="S", help="working time, for the report")
    added.add_argument("--prompts", type=int, metavar="N", help="number of prompts placed, for the report")
    action("refuse", _refuse, "leave a case out", case=True, served=True)
    action("reopen", _reopen, "undo the acceptance or refusal of a case", case=True, served=True)


def _next(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.choosing import next_case
    from SAMFineTuneLib.cohort.confidence import doubtful_places, read_confidence
    from SAMFineTuneLib.cohort.review import labels_of, release, take_next

    if args.server:
        cohort, choice, image, labels = _next_on_server(args)
    else:
        cohort = open_cohort(args)
        choice = (take_next if args.take else next_case)(cohort, args.way, args.take)
    if choice is None:
        print(f"Nothing is left to review. {next_step(cohort)}")
        console.document(case=None, advice=next_step(cohort))
        return
    case = cohort.state.case(choice.case.key)
    if not args.server:
        try:
            image, labels = cohort.image(case), labels_of(cohort, case)
        except UserError:
            release(cohort, case.key, args.take)
            raise
    confidence = read_confidence(cohort, case.key)
    places = doubtful_places(confidence)[:_MOST_PLACES] if confidence and case.state == "proposed" else []
    facts = [("case", f"{case.name}, {case.state}"), ("why", choice.reason)]
    facts += [(word, str(path)) for word, path in (("image", image), ("labels", labels)) if path]
    if places:
        listed = "; ".join(f"{label}, slice {place} ({value:.2f})" for label, place, value in places)
        facts.append(("look at", f"{confidence.orientation}: {listed}"))
    facts += [("accept", f"samfinetune cohort accept {cohort_word(cohort)} {case_word(cohort, case)}"
               f"{'' if labels else ' --labels FILE'}{f' --by {args.take}' if args.take else ''}")]  # fmt: skip
    print_facts(facts)
    console.document(
        case=case_facts(cohort, case), reason=choice.reason, labels=labels and str(labels),
        orientation=confidence.orientation if confidence else None,
        doubtful=[{"label": label, "slice": place, "expected_dice": value} for label, place, value in places],
    )  # fmt: skip


def _accept(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.review import accept

    for name in ("seconds", "prompts"):
        if (given := getattr(args, name)) is not None and not 0 <= given < float("inf"):
            raise UserError(f"--{name} {given:g} is not possible; give a number from 0, or leave it out.")
    if args.labels:
        state = (open_served(args).cohort if args.server else open_cohort(args)).state
        case = state.case(args.case)
        if case.state == "accepted" or (case.state == "refused" and case.review):
            before = "" if case.state == "accepted" else ", and was accepted before"
            raise UserError(f"Case {case.name} is {case.state}{before}, and its labels would be lost; to replace "
                            "them, undo that first with “samfinetune cohort reopen”.")  # fmt: skip
    labels = {"labels": args.labels, "match": args.match_labels, "tell": console.note}
    if args.server:
        labels = {"labels": _fitted(args)} if args.labels else {}
    cohort, case = _reviewed(args, accept, **labels, seconds=args.seconds, prompts=args.prompts)
    print(f"accepted    {case.name}")
    for label, dice in case.review.dice.items():
        print(f"            {label}: the proposal had a Dice of {dice:.3f}")
    print_case(cohort, case)


def _refuse(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.review import refuse

    cohort, case = _reviewed(args, refuse)
    print(f"refused     {case.name}; “samfinetune cohort reopen” undoes this")
    print_case(cohort, case)


def _reopen(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.review import reopen

    cohort, case = _reviewed(args, reopen)
    print(f"reopened    {case.name}, now {case.state}")
    print_case(cohort, case)


def _next_on_server(args: argparse.Namespace) -> tuple[Cohort, Choice | None, Path | None, Path | None]:
    """The case that the server chooses, and the files of its image and labels if they are downloaded."""
    from SAMFineTuneLib.cohort.choosing import Choice

    served, window = open_served(args), secrets.token_hex(8)
    args.take = args.take or (secrets.token_hex(4) if args.output else "")
    seconds = LEASE_ON_SERVER if args.output else None
    told = served.do("next", window, 1, way=args.way, by=args.take, take=bool(args.take), seconds=seconds)
    if not told["case"]:
        return served.cohort, None, None, None
    choice = Choice(served.cohort.state.case(told["case"]), told["reason"])
    try:
        image, labels = _downloaded(args, served, choice.case, window) if args.output else (None, None)
    except BaseException:  # Ctrl-C, too: the user has not seen the word under which it was taken
        with suppress(UserError):
            served.do("release", window, 3, case=choice.case.key, by=args.take)
        raise
    served.follow()
    return served.cohort, choice, image, labels


def _downloaded(
    args: argparse.Namespace, served: ServedCohort, case: CohortCase, window: str
) -> tuple[Path, Path | None]:
    """Write a case's image, and its labels if it has any, as NIfTI files. Returns their paths."""
    import numpy as np

    from SAMFineTuneLib.files import atomic_write
    from SAMFineTuneLib.images import Volume, write_labelmap
    from SAMFineTuneLib.images.sitk_images import write_image

    told = served.do("open", window, 2, case=case.key, by=args.take, seconds=LEASE_ON_SERVER)
    renewed = time.monotonic()

    def keep() -> None:
        nonlocal renewed
        if time.monotonic() - renewed > LEASE_ON_SERVER / 4:
            renewed = time.monotonic()
            served.do("take", window, 0, cases=(case.key,), by=args.take, seconds=LEASE_ON_SERVER)

    stem = str(Path(args.output).expanduser() / f"{case.name}-{case.key}")
    image, target = Path(f"{stem}.nii.gz"), Path(f"{stem}-labels.nii.gz")
    with tempfile.TemporaryDirectory() as folder:
        files = served.fetch_case(told, window, 2, Path(folder), keep)
        volume = Volume(np.load(files["voxels"]), np.array(told["affine"]))
        with atomic_write(image) as temporary:
            write_image(temporary, volume)
        served.do("take", window, 0, cases=(case.key,), by=args.take)
        if not files["labels"]:
            return image, None
        part, labels = np.load(files["labels"]), np.zeros(volume.shape, np.uint16)
        place = zip(told["start"][::-1], part.shape, strict=True)
        labels[tuple(slice(first, first + count) for first, count in place)] = part
        write_labelmap(target, labels, volume)
    return image, target


def _reviewed(args: argparse.Namespace, act: Callable, **values: Any) -> tuple[Cohort, CohortCase]:
    """Have a function of `review` done, here or by the server that has the cohort."""
    if args.server:
        served = open_served(args)
        told = served.do(act.__name__, secrets.token_hex(8), 1, case=args.case, by=args.by, **values)
        for note in told.get("notes", ()):
            console.note(note)
        served.follow()
        return served.cohort, served.cohort.state.case(args.case)
    cohort = open_cohort(args)
    return cohort, act(cohort, args.case, by=args.by, **values)


def _fitted(args: argparse.Namespace) -> np.ndarray:
    """The labels of a file in the grid of their image, which the server has. This does not take the case."""
    import numpy as np

    from SAMFineTuneLib.cohort.review import in_grid
    from SAMFineTuneLib.images import Volume

    served = open_served(args)
    told = served.do("grid", secrets.token_hex(8), 1, case=args.case)
    volume = Volume(np.broadcast_to(np.uint8(0), told["shape"]), np.array(told["affine"]))
    return in_grid(args.labels, volume, served.cohort.state.labels, args.case, args.match_labels, console.note)
