"""The published checkpoints that this library knows, from `Resources/models/manifest.json`.

The manifest holds what a file does not contain: its name, terms and source, and how its authors prepared pixels
(MedSAM's tensors have SAM's shapes, but not SAM's pixel values).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from typing import Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import resources


@dataclass(frozen=True)
class PublishedModel:
    """One published checkpoint. `bytes` is None and `digests` is empty where the authors state none."""

    id: str
    name: str
    architecture: str  # as in ModelSpec
    input_size: int  # pixels, side of the encoder's square input
    preparation: Mapping[str, Any]  # how the authors prepare a picture: fields of ModelSpec
    description: str
    needs: str  # what computer it needs, a sentence
    licence: str
    licence_note: str
    ask_terms: bool  # the weights' terms are not stated clearly: the user confirms them, even on import
    source: str  # the authors' page
    file: str  # its published name; empty when the entry is a kind of file
    urls: tuple[str, ...] = ()  # empty when it can only be imported
    bytes: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)  # "sha256", "md5" or "xxh128" -> hex
    how_to_get: str = ""  # without an address: a sentence on how to get the file

    @property
    def downloadable(self) -> bool:
        """Whether `fetch` can download it; else the user imports a file."""
        return bool(self.urls)


@cache
def known_models() -> Mapping[str, PublishedModel]:
    """Entries of the manifest that ships with the library by id, in the file's order."""
    rows = json.loads((resources() / "models" / "manifest.json").read_text(encoding="utf-8"))["models"]
    return {row["id"]: PublishedModel(**row | {"urls": tuple(row["urls"])}) for row in rows}


def find_entry(model_id: str) -> PublishedModel:
    """The manifest's entry of that id. UserError with the nearest ids when there is none."""
    entries = known_models()
    if model_id not in entries:
        near = get_close_matches(model_id, entries, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `samfinetune models list`."
        raise UserError(f"No published model is known as {model_id!r}; {hint}")
    return entries[model_id]
