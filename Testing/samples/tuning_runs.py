"""Trainings small enough for tests: the bundled model, few pictures, few steps."""

from __future__ import annotations

import torch

from SAMFineTuneLib.cases.case_slices import slices_of, with_objects
from SAMFineTuneLib.cases.case_survey import survey
from SAMFineTuneLib.cases.cases import find_cases
from SAMFineTuneLib.cases.labelled_case import LabelChoice, read_labelled
from SAMFineTuneLib.models.adapters.tuning import attach, trainable
from SAMFineTuneLib.models.adapters.tuning_method import Method
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.training.network_tuning import NetworkTuning
from SAMFineTuneLib.training.process_group import ProcessGroup
from SAMFineTuneLib.training.rehearsal import rehearsal_of
from SAMFineTuneLib.training.training_items import Items
from SAMFineTuneLib.training.training_settings import TrainingSettings


def settings(**changes) -> TrainingSettings:
    """A training of few steps."""
    small = {"steps": 4, "batch": 2, "objects": 1, "rounds": 2, "test_slices": 1, "learning_rate": 1e-3}
    return TrainingSettings(**{**small, **changes})


def training(folder, group: ProcessGroup | None = None, part: int = 0, **changes) -> NetworkTuning:
    """A training of the bundled model on the cases of a folder."""
    cases = find_cases(folder)
    found = survey(cases, LabelChoice())
    settled = settings(**{"method": Method(), **changes}).for_labels(found.names, found.choice)
    slices = [one for case in cases for one in slices_of(read_labelled(case, found.choice, found.names))]
    base = Store().get()
    network = attach(load_network(base.file("weights"))[1], base.spec, settled.method, settled.seed)
    empty = [one for one in slices if not one.labelled]
    items = Items(with_objects(slices, "all"), empty, base.spec, settled, part)
    rehearsal = rehearsal_of(base.spec, settled, part)
    return NetworkTuning(network, base.spec, settled, items, torch.device("cpu"), group or ProcessGroup(), rehearsal)


def trained(network) -> dict[str, torch.Tensor]:
    """What was trained, copied."""
    return {name: value.detach().clone() for name, value in trainable(network).items()}


def same(first: dict, second: dict) -> bool:
    """Whether two such are equal to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
