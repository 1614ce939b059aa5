"""How long a fine-tuning takes: estimated from a few trial steps before it begins, and from its pace while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, with_objects
from SAMFineTuneLib.training.evidence import NetworkEngine, measure_case, ways_of
from SAMFineTuneLib.training.network_tuning import NetworkTuning, tune
from SAMFineTuneLib.training.rehearsal import rehearsal_of
from SAMFineTuneLib.training.stopping import Stopped, interruptible, stopping
from SAMFineTuneLib.training.training_items import Items
from SAMFineTuneLib.training.training_plan import Plan, attached, looking

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
    network = interruptible(attached(plan.base, settings).to(device), look)
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
    engine, total = NetworkEngine(network, plan.base.spec, device), 0.0
    tests = [plan.counts[case.id] for part in plan.folds.parts for case in part.test]
    for way in ways_of(plan.settings.heads):
        tried = evenly(own if way == "automatic" else shown, _SLICES)
        started = time.monotonic()
        measure_case(engine, tried, len(plan.found.names), (way,))
        each = (time.monotonic() - started) / max(1, len(tried))
        prompted, slices = sum(min(plan.settings.test_slices, one) for one, _ in tests), sum(one for _, one in tests)
        total += each * (slices if way == "automatic" else 2 * prompted)
    return total


class Clock:
    """Estimates the time left from the pace of steps and of tests so far.

    Args:
        worked: Seconds that earlier sessions of the run took.
    """

    def __init__(self, worked: float = 0.0) -> None:
        self._noted = self._last = time.monotonic()
        self._begun = self._last - worked
        self._to_come, self._done, self._seconds = Counter(), Counter(), Counter()

    @property
    def worked(self) -> float:
        """Seconds of this and of earlier sessions of the run."""
        return time.monotonic() - self._begun

    def is_due(self, every: float) -> bool:
        """Whether `every` seconds have passed since this was last true."""
        if time.monotonic() - self._noted < every:
            return False
        self._noted = time.monotonic()
        return True

    def restart(self) -> None:
        """Do not count the time until now as a step or a test."""
        self._last = time.monotonic()

    def expect(self, steps: int, tests: int) -> None:
        """Add steps and tested cases (each before and after) still to come; negative numbers subtract."""
        self._to_come["step"] += steps
        self._to_come["test"] += 2 * tests
        self.restart()

    def count(self, kind: str) -> None:
        """Count one "step" or "test" that has just been done."""
        self._seconds[kind] += time.monotonic() - self._last
        self._done[kind] += 1
        self._to_come[kind] -= 1
        self.restart()

    @property
    def left(self) -> float | None:
        """Seconds; None before the first step."""
        if not self._done["step"]:
            return None
        return sum(max(0, self._to_come[kind]) * self._seconds[kind] / done for kind, done in self._done.items())
