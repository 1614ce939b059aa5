"""Cohorts of small synthetic volumes, with an adapter of the bundled model that was changed rather than trained."""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from case_files import case_folder
from tuned_models import shake

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import TrainedAdapter
from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
from SAMFineTuneLib.models.adapters.merged_export import export_adapter
from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, save_adapter
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.models.store import Store

LABELS = ("blob", "other")


def untouched_cohort(folder: Path, count: int = 3) -> Cohort:
    """A cohort of `count` cases a, b, c … in `folder / "cohort"`, without labels or adapter."""
    images = case_folder(folder / "cases", count) / "images"
    return create_cohort(folder / "cohort", find_images(images), LABELS).cohort


def with_adapter(cohort: Cohort, number: int = 1, held_out: tuple[str, ...] = ()) -> Cohort:
    """The cohort with another adapter in use, which runs in ONNX Runtime."""
    shutil.copytree(_adapter(number), cohort.adapter(number))
    trained = TrainedAdapter(number, (), held_out, "base", {}, {}, None, True, "for a test", "2026-01-01")
    cohort.change(lambda state: replace(state, adapters=(*state.adapters, trained)))
    return cohort


_kept = tempfile.TemporaryDirectory()


@functools.cache
def _adapter(number: int) -> Path:
    base, folder = Store().get("compact"), Path(_kept.name) / str(number)
    method = Method(scope="decoder", heads=("promptable", "automatic"), classes=("background", "Blob", "other"))
    network = shake(attach(load_network(base.file("weights"))[1], base.spec, method), number, 0.02)
    save_adapter(folder, network, base, method, Card(labels=method.classes[1:]))
    export_adapter(read_adapter_folder(folder), base)
    return folder
