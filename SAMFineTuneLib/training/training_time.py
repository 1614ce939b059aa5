"""How long a fine-tuning takes: estimated from a few trial steps before it begins, and from its pace while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, with_objects
from SAMFineTuneLib.models.adapters.tuning import attach
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.training.evidence import WAYS, NetworkEngine, measure_case
from SAMFineTuneLib.training.network_tuning import NetworkTuning, tune
from SAMFineTuneLib.training.plan import Plan, looking
from SAMFineTuneLib.training.rehearsal import rehearsal_of
from SAMFineTuneLib.training.stopping import Stopped, interruptible, stopping
from SAMFineTuneLib.training.training_items import Items

_STEPS = 5  # trial steps at most
_SECONDS = 6.0  # s after the first step, when no more steps are tried
_TOO_LONG = 60.0  # s; a first step that takes longer remains the only one
_DRAWN = 1 / 32  # of the first step's surplus, for each picture of a step: synthetic pictures are drawn sixteen at once
_SLICES = 3  # slices on which each way of prompting is tried


@dataclass(frozen=True)
class Pace:
    """Estimated `seconds` of the whole fine-tuning, with testing and reading, from `steps` trial steps."""

    seconds: float
    steps: int


def measure_pace(plan: Plan, look: Callable[[], None] = lambda: None) -> Pace:
    """Try a few steps and answers on one case; `look` may raise Stopped."""
    case, settings = plan.trainings[0].train[0], plan.settings
    started = time.monotonic()
    own = list(looking(plan.slices(case), look))
    reading = time.monotonic() - started
    shown = with_objects(own, case.id)
    device = torch.device(plan.device)
    network = attach(load_network(plan.base.file("weights"))[1], plan.base.spec, settings.method, settings.seed)
    interruptible(network.to(device), look)
    batch = settings.batch if settings.small_base else 1  # a batch of a large base may take minutes
    items = Items(shown, [one for one in own if not one.labelled], plan.base.spec, settings)
    times = [time.monotonic()]

    def enough() -> bool:
        if len(times) < 3:
            return times[-1] - times[0] > _TOO_LONG
        return times[-1] - times[1] > _SECONDS

    rehearsal = rehearsal_of(plan.base.spec, settings)
    tuning = NetworkTuning(
        network, plan.base.spec, replace(settings, steps=_STEPS, batch=batch), items, device,
        rehearsal=rehearsal, report=lambda _: times.append(time.monotonic()), look=stopping(enough),
    )  # fmt: skip
    try:
        tune(tuning)
    except Stopped:
        look()  # the user may have stopped it
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
    """Seconds of all tests: with prompts before and after, without prompts after."""
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


class Clock:
    """Estimates the time left from the pace of steps and of tests so far."""

    def __init__(self) -> None:
        self._begun = self._noted = time.monotonic()
        self._steps = self._tests = 0
        self._spent = {"step": [0, 0.0], "test": [0, 0.0]}
        self._last = time.monotonic()

    @property
    def worked(self) -> float:
        """Seconds of this and of earlier sessions of the run."""
        return time.monotonic() - self._begun

    @worked.setter
    def worked(self, before: float) -> None:
        self._begun = time.monotonic() - before

    def is_due(self, every: float) -> bool:
        """Whether `every` seconds have passed since this was last true."""
        if time.monotonic() - self._noted < every:
            return False
        self._noted = time.monotonic()
        return True

    def expect(self, steps: int, tests: int) -> None:
        """Set how many steps and tested cases (each before and after) are to come."""
        self._steps, self._tests, self._last = steps, 2 * tests, time.monotonic()

    def skip(self, steps: int, tests: int) -> None:
        """Take off steps and tested cases that need not be done."""
        self._steps -= steps
        self._tests -= 2 * tests
        self._last = time.monotonic()

    def stepped(self) -> None:
        """Count one optimiser step."""
        now = time.monotonic()
        self._count("step", now - self._last)
        self._steps, self._last = self._steps - 1, now

    def test(self) -> Clock:
        """A context that counts one tested case."""
        return self

    def __enter__(self) -> None:
        self._last = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self._count("test", now - self._last)
        self._tests, self._last = self._tests - 1, now

    def _count(self, kind: str, seconds: float) -> None:
        self._spent[kind][0] += 1
        self._spent[kind][1] += seconds

    @property
    def left(self) -> float | None:
        """Seconds; None before the first step."""
        steps, seconds = self._spent["step"]
        if not steps:
            return None
        tests, spent = self._spent["test"]
        each = spent / tests if tests else 0.0
        return max(0, self._steps) * seconds / steps + max(0, self._tests) * each
