"""Pieces of work with a DICOMweb server: list and fetch its series, store accepted cases of a cohort there.

The login and the patient to search for come in the process's environment, because a queue lies on the disk. For the
same reason the queue identifies series by the digests that name their folders.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from SAMFineTuneLib.cohort.dicomweb_store import PASSWORD, PATIENT, TOKEN, USER, DicomwebStore, RemoteSeries
from SAMFineTuneLib.service.cohort_pieces import Piece

DICOMWEB = ("list_series", "fetch_series", "store")
"""The pieces."""
_MOST, _IN_ONE_EVENT = 500, 50  # series that are listed


def do_dicomweb(piece: Piece, export: Callable[[Piece], dict[str, Any]]) -> dict[str, Any]:
    """Do one of these pieces. Returns what its event reports.

    Args:
        piece: the piece.
        export: does a piece of the kind `export`, here or on the server that has the cohort.
    """
    asked, token, user = piece.asked, os.environ.get(TOKEN, ""), os.environ.get(USER, "")
    signed_in = (user, os.environ.get(PASSWORD, "")) if user else None
    server = DicomwebStore(asked["address"], token, signed_in, asked["certificate"])
    if asked["what"] == "store":
        return _store(piece, server, export)
    wanted = {"Modality": asked["modality"], "PatientID": os.environ.get(PATIENT, "")}
    found = server.list_series({name: value for name, value in wanted.items() if value})
    return _tell(piece, found) if asked["what"] == "list_series" else _fetch(piece, server, found)


def _tell(piece: Piece, found: list[RemoteSeries]) -> dict[str, Any]:
    shown = [(one.folder, one.description, one.modality, one.images) for one in found[:_MOST]]
    for first in range(0, len(shown), _IN_ONE_EVENT):
        piece.tell("series", rows=shown[first : first + _IN_ONE_EVENT])
    return {"more": len(found) - len(shown)}


def _fetch(piece: Piece, server: DicomwebStore, found: list[RemoteSeries]) -> dict[str, Any]:
    folder, wanted = piece.asked["folder"], [one for one in found if one.folder in piece.asked["series"]]
    server.fetch_all(wanted, folder, piece.all_or_nothing("Stopped; Fetch continues with the missing series."))
    return {"folder": folder, "count": len(wanted)}


def _store(piece: Piece, server: DicomwebStore, export: Callable[[Piece], dict[str, Any]]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=piece.folder) as place:
        folder = Path(place) / "seg"
        asked = {**piece.asked, "what": "export", "form": "dicom-seg", "folder": str(folder)}
        told = export(replace(piece, asked=asked))
        files = sorted(folder.glob("*.dcm"))
        server.store(files, piece.all_or_nothing("Stopped; Store continues with the missing cases."))
    return {"stored": len(files), "notes": told["notes"]}
