"""`samfinetune cohort propose`, `train`, `report` and `export`: the actions that take long, here or on a server."""

from __future__ import annotations

import argparse
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.cli.arguments import add_engine, chosen_engine
from SAMFineTuneLib.cli.cohort_on_server import case_names, open_cohort, open_here, open_served
from SAMFineTuneLib.cli.cohort_status import print_status
from SAMFineTuneLib.cli.long_work import ProgressLine, counting, on_interrupt, stoppable, time_left
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import counted

_LOOK_EVERY = 0.5  # s between two checks of a server's work


def add_actions(action: Callable) -> None:
    """Add the actions that take long."""
    added = action("propose", _propose, "segment untouched cases with the adapter in use",
                   served=True)  # fmt: skip
    added.add_argument("cases", metavar="CASE", nargs="*", help="only these").completer = case_names
    added.add_argument("--again", action="store_true", help="those that an earlier adapter proposed as well")
    added.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    add_engine(added, "this one")
    added = action("train", _train, "learn from the accepted cases; held-out patients decide whether it is used",
                   served=True)  # fmt: skip
    added.add_argument("--preset", choices=("quick", "balanced", "thorough"), default="quick", help="default: quick")
    added.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 or mps")
    added.add_argument("--restart", action="store_true", help="start again instead of continuing a stopped training")
    added = action("report", _report, "write the learning curve and pictures as a page that opens offline",
                   served=True)  # fmt: skip
    added.add_argument("-o", "--output", metavar="FOLDER", help="default: report in the cohort's folder; with --server "
                       "the cohort's name with -report, here")  # fmt: skip
    added = action("export", _export, "write the accepted cases for other programs", served=True)
    added.add_argument("-o", "--output", metavar="FOLDER", required=True, help="a new or an empty folder")
    added.add_argument("--form", choices=("nifti", "nnunet", "dicom-seg"), default="nifti", help="default: nifti")


def _propose(args: argparse.Namespace) -> int:
    from SAMFineTuneLib.cohort.proposing import propose

    if args.server:
        return _by_server(args, "propose", args.cases, args.again, args.jobs, args.scheduler)
    several = args.jobs is not None or args.scheduler or args.engine == "dask"
    cohort, engine = open_cohort(args), chosen_engine(args) if several else None
    later = "stopped; the same command continues with the other cases."
    with on_interrupt(later), counting("segmenting case") as show:
        done = propose(cohort, args.cases or None, args.device, args.again, show, engine=engine)
    state = cohort.state
    print(f"proposed    {counted(len(done.done), 'case')}")
    for key in done.failed:
        console.note(f"{state.case(key).name} failed: {state.case(key).problem}")
    console.document(proposed=list(done.done), failed=list(done.failed))
    print_status(cohort)
    return 2 if done.failed else 0


def _train(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.retraining import retrain

    if args.server:
        return _by_server(args, "train", args.preset != "quick", args.restart)
    cohort = open_cohort(args)
    with stoppable(lambda: "stopped; the same command continues.") as stop, ProgressLine() as line:

        def show(progress: Any) -> None:
            stop.learning = progress.stage == "training"
            line(progress.sentence + time_left(progress.seconds_left), progress.step == progress.steps)

        adapter = retrain(cohort, args.preset, args.device, show, lambda: stop.asked, not args.restart)
    print(f"adapter     {adapter.number}, {'now in use' if adapter.in_use else 'not used'}, from {adapter.start}")
    print(f"evidence    {adapter.reason}")
    console.document(adapter=asdict(adapter))
    print_status(cohort)


def _report(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.cohort_report import PAGE, REPORT, write_report

    with counting("comparing case") as show:
        if args.server:
            folder, _ = _fetched(args, "report", args.output or f"{args.cohort}-report", show)
            page = folder / PAGE
        else:
            cohort = open_here(args)
            page = write_report(cohort, args.output or cohort.folder / REPORT, show)
    print(f"report      {page}")
    console.document(report=page)


def _export(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cli.outputs import require_new_folder
    from SAMFineTuneLib.cohort.cohort_export import export

    with counting("writing case") as show:
        if args.server:
            folder, told = _fetched(args, "export", require_new_folder(args.output), show, form=args.form)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            for sentence in told["notes"]:
                console.note(sentence)
        else:
            files = export(open_here(args), args.output, args.form, show, console.note)
    print(f"written     {args.output}, {len(files)} files")
    console.document(folder=args.output, form=args.form, files=[str(path) for path in files])


def _fetched(
    args: argparse.Namespace, what: str, folder: str | Path, show: Callable[..., None], **values: Any
) -> tuple[Path, Mapping[str, Any]]:
    """Have the server make results, and download them. Returns their folder, and the server's event about them."""
    served, window, folder = open_served(args), secrets.token_hex(8), Path(folder).expanduser()
    told = served.do(what, window, 1, progress=lambda done, total, name: total and show(done, total, name), **values)
    served.fetch_results(window, 1, folder)
    return folder, told


def _by_server(args: argparse.Namespace, what: str, *own: object) -> int:
    """Have the server train or propose, and show its progress; `own` are options that apply to this computer only."""
    if any(own) or args.device != "auto":
        raise UserError("The server chooses how it trains and proposes: leave out the other options.")
    from SAMFineTuneLib.service.cohort_client import how_far

    served = open_served(args)
    served.do(what, secrets.token_hex(8), 1)
    with on_interrupt("the server continues; “cohort status” shows when it is done."), ProgressLine() as line:
        while (news := served.follow()).busy or news.events:
            for event in news.events:
                if event["event"] == "progress":
                    line(how_far(event) + time_left(event.get("seconds_left")))
                elif event["event"] == "failed":
                    raise UserError(event["text"])
                elif event["event"] == "done":
                    line.note(event.get("reason") or f"{counted(event.get('proposed', 0), 'case')} proposed")
            time.sleep(_LOOK_EVERY)
    served.follow()
    print_status(served.cohort)
    return 0
