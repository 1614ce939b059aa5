"""How long a planned fine-tuning will take on this computer, from a few steps and tests that are tried."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, with_objects
from SAMFineTuneLib.models.adapters.tuning import attach
from SAMFineTuneLib.models.load import load_network
from SAMFineTuneLib.training.evidence import WAYS, NetworkEngine, measure_case
from SAMFineTuneLib.training.plan import Plan, looking
from SAMFineTuneLib.training.rehearsal import rehearsal_of
from SAMFineTuneLib.training.training_items import Items
from SAMFineTuneLib.training.training_loop import Stopped, Training, interruptible, train

_STEPS = 5  # tried at most, and
_SECONDS = 6.0  # about so long after the first
_TOO_LONG = 60.0  # s of the first, after which that alone must do
_DRAWN = 1 / 32  # of the first step's surplus, for each picture of a step: synthetic pictures are drawn sixteen at once
_SLICES = 3  # on which each way of prompting is tried


@dataclass(frozen=True)
class Pace:
    """`seconds` of the whole fine-tuning, testing and reading included, by so many `steps` that were tried."""

    seconds: float
    steps: int


def measure_pace(plan: Plan, look: Callable[[], None] = lambda: None) -> Pace:
    """Try a few steps and answers, on one case."""
    case, settings = plan.trainings[0].train[0], plan.settings
    started = time.monotonic()
    own = list(looking(plan.slices(case), look))
    reading = time.monotonic() - started
    shown = with_objects(own, case.id)
    device = torch.device(plan.device)
    network = attach(load_network(plan.base.file("weights"))[1], plan.base.spec, settings.method, settings.seed)
    interruptible(network.to(device), look)
    batch = settings.batch if settings.small_base else 1  # of a large base a batch may take minutes
    items = Items(shown, [one for one in own if not one.labelled], plan.base.spec, settings)
    times = [time.monotonic()]

    def enough() -> bool:
        if len(times) < 3:
            return times[-1] - times[0] > _TOO_LONG
        return times[-1] - times[1] > _SECONDS

    rehearsal = rehearsal_of(plan.base.spec, settings)
    training = Training(
        network, plan.base.spec, replace(settings, steps=_STEPS, batch=batch), items, device,
        rehearsal=rehearsal, report=lambda _: times.append(time.monotonic()), cancelled=enough,
    )  # fmt: skip
    try:
        train(training)
    except Stopped:
        look()  # somebody else may have stopped it
    step = first = times[1] - times[0]
    if len(times) > 2:
        step = (times[-1] - times[1]) / (len(times) - 2)
        step += max(0.0, first - step) * (_DRAWN * batch if rehearsal else 0.0)
    step *= settings.batch / batch
    total = step * sum(plan.steps) + _testing(plan, network.eval(), device, own, shown)
    read = sum(len(part.test) * 2 for part in plan.folds.parts) + sum(len(fold.train) for fold in plan.trainings)
    return Pace(total + read * reading, len(times) - 1)


def _testing(
    plan: Plan, network: torch.nn.Module, device: torch.device, own: list[LabelledSlice], shown: list[LabelledSlice]
) -> float:
    """Seconds of all tests: before and after with prompts, after without."""
    if not plan.folds.parts:
        return 0.0
    engine, each, heads = NetworkEngine(network, plan.base.spec, device), {}, plan.settings.method.heads
    for way in WAYS:
        kind = "automatic" if way == "automatic" else "promptable"
        if kind in heads:
            tried = evenly(own if way == "automatic" else shown, _SLICES)
            started = time.monotonic()
            measure_case(engine, tried, len(plan.found.names), (way,))
            each[kind] = each.get(kind, 0.0) + (time.monotonic() - started) / max(1, len(tried))
    tests = [plan.counts[case.id] for part in plan.folds.parts for case in part.test]
    prompted = 2 * sum(min(plan.settings.test_slices, labelled) for labelled, _ in tests)
    return each.get("promptable", 0.0) * prompted + each.get("automatic", 0.0) * sum(total for _, total in tests)
