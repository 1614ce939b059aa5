"""`samfinetune cohort fetch` and `store`: images from a DICOMweb server, accepted labels back to it."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.cli.arguments import add_certificate
from SAMFineTuneLib.cli.cohort_on_server import case_names, open_here
from SAMFineTuneLib.cli.describe import print_table
from SAMFineTuneLib.cli.long_work import counting, on_interrupt
from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from SAMFineTuneLib.cohort.dicomweb_store import DicomwebStore


def add_actions(actions: Callable) -> None:
    """Add the actions that talk to a DICOMweb server."""
    added = _add_action(actions, "fetch", _fetch, "fetch image series from a DICOMweb server, or list them")
    added.add_argument("-o", "--output", metavar="FOLDER", help="where the series go, each into a folder of its own; "
                       "the same command continues an interrupted fetch")  # fmt: skip
    added.add_argument("--list", action="store_true", help="only list them")
    for name, text in (("study", "StudyInstanceUID"), ("series", "SeriesInstanceUID"), ("patient", "PatientID"),
                       ("modality", "such as CT or MR")):  # fmt: skip
        added.add_argument(f"--{name}", metavar=name.upper(), help=text)
    added = _add_action(actions, "store", _store, "store accepted cases on a DICOMweb server as DICOM SEG")
    added.add_argument("cohort", metavar="COHORT", help="the cohort's folder")
    added.add_argument("cases", metavar="CASE", nargs="*", help="only these").completer = case_names


def _add_action(actions: Callable, name: str, function: Callable, text: str) -> argparse.ArgumentParser:
    parser = actions(name, function, text)
    parser.add_argument("server", metavar="URL", help="address of the DICOMweb service")
    parser.add_argument("--user", metavar="NAME", help="user name; the password is asked for, or read from "
                       "SAMFINETUNE_DICOMWEB_PASSWORD, and a token from "
                       "SAMFINETUNE_DICOMWEB_TOKEN")  # fmt: skip
    add_certificate(parser)
    console.add_json(parser)
    return parser


def _fetch(args: argparse.Namespace) -> None:
    if not args.list and not args.output:
        raise UserError("Say where the series go with -o FOLDER, or only list them with --list.")
    store = _server(args)
    asked = {"StudyInstanceUID": args.study, "SeriesInstanceUID": args.series, "PatientID": args.patient,
             "Modality": args.modality}  # fmt: skip
    found = store.list_series({name: value for name, value in asked.items() if value})
    if not found:
        raise UserError(f"“{args.server}” has no image series like that; leave out some of the options.")
    if not args.list:
        with on_interrupt("stopped; the same command continues."), counting("fetching image") as show:
            store.fetch_all(found, args.output, show)
        print(f"fetched     {len(found)} series into {args.output}")
    rows = [(one.series, one.modality, str(one.images or "?"), one.folder, one.description) for one in found]
    print_table([("SERIES", "MODALITY", "IMAGES", "FOLDER", "DESCRIPTION"), *rows])
    console.document(folder=args.output, series=[{**asdict(one), "folder": one.folder} for one in found])


def _store(args: argparse.Namespace) -> None:
    from SAMFineTuneLib.cohort.cohort_export import export

    cohort, store = open_here(args), _server(args)
    with tempfile.TemporaryDirectory() as folder:
        with counting("writing case") as show:
            made = export(cohort, Path(folder) / "seg", "dicom-seg", show, console.note, args.cases)
        files = [path for path in made if path.suffix == ".dcm"]
        store.store(files)
    print(f"stored      {len(files)} DICOM SEG")
    console.document(server=args.server, stored=[path.name for path in files])


def _server(args: argparse.Namespace) -> DicomwebStore:
    """The server, with the login from options and variables; the password is asked for, and kept in memory only."""
    from SAMFineTuneLib.cohort.dicomweb_store import PASSWORD, TOKEN, USER, DicomwebStore, is_private

    name, password = args.user or os.environ.get(USER, ""), os.environ.get(PASSWORD, "")
    token = "" if args.user else os.environ.get(TOKEN, "").strip()
    if name and not token and not password:
        if not sys.stdin.isatty():
            raise UserError(f"The password of {name} is missing; set {PASSWORD}.")
        password = getpass.getpass(f"Password of {name}: ")
    store = DicomwebStore(args.server, token, (name, password) if name else None, args.tls_ca)
    if not is_private(args.server):
        console.note("images and passwords travel without encryption; use https:// where the server has a certificate")
    return store
