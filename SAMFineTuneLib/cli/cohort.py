"""`samfinetune cohort`: many cases of one project, from the first annotated ones to the last."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from SAMFineTuneLib.cli import cohort_cases, cohort_dicomweb, cohort_results, cohort_reviewing, console
from SAMFineTuneLib.cli.arguments import add_command_with_actions, add_server
from SAMFineTuneLib.cli.cohort_on_server import case_names

_EPILOG = """A cohort is a folder of its own beside the images, which are never altered. CASE is a name or key that
`status` lists.

examples:
  samfinetune cohort create liver-cohort scans --labels liver,spleen
  samfinetune cohort status liver-cohort              its state, and what to do next
  samfinetune segment scans/p07 -o p07.seg.nrrd --label liver --point -62,18,-40 --propagate both
  samfinetune cohort accept liver-cohort p07 --labels p07.seg.nrrd      the first cases, annotated by prompts
  samfinetune cohort train liver-cohort               learn from accepted cases; held-out patients decide
  samfinetune cohort propose liver-cohort             segment the others
  samfinetune cohort next liver-cohort                the next case, and where to look in it
  samfinetune cohort accept liver-cohort p12 --labels corrected.nii.gz --seconds 95 --prompts 4
  samfinetune cohort report liver-cohort              the learning curve, as a page that opens offline
  samfinetune cohort export liver-cohort -o Dataset001_Liver --form nnunet
  samfinetune cohort fetch https://pacs.hospital/dicom-web -o scans --modality CT --study 1.2.840.1
  samfinetune cohort store https://pacs.hospital/dicom-web liver-cohort          as DICOM SEG
  samfinetune cohort next liver-cohort --server https://gpu:8577 --token-file token.txt -o work      on a server

A .seg.nrrd names its structures, so that their numbers do not matter. The panel in Slicer does the same with a mouse.
Commands and windows may work on one cohort at the same time. samfinetune demo --cohort makes one to try. A DICOMweb
server's token is read from SAMFINETUNE_DICOMWEB_TOKEN; a user's name from --user or SAMFINETUNE_DICOMWEB_USER, the
password from SAMFINETUNE_DICOMWEB_PASSWORD or the keyboard. They are never written to a file.
"""


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
            add_case.completer = case_names
            parser.add_argument("--by", metavar="WORD", default="", help="the word with which it was taken, see `next`")
        console.add_json(parser)
        return parser

    for actions_of in (cohort_cases, cohort_results, cohort_reviewing):
        actions_of.add_actions(action)
    cohort_dicomweb.add_actions(actions)


def run(args: argparse.Namespace) -> int:
    """Carry out the action."""
    return args.act(args) or 0
