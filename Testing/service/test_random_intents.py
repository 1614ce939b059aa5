"""Random use with a worker that crashes at any time gives what one session gives that never ends."""

from __future__ import annotations

import random

import numpy as np
import pytest
from pumped_clients import Crashing, Host
from region_engine import WINDOW, phantom, region_predictor

from SAMFineTuneLib.images import aligned_plane
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.prompts import BoxPrompt, PointPrompt
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.session.events import Answered, Failed, Finished, MaskChanged, StateChanged
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.session_file import session_to_dict

STEPS = 60


class Both:
    """The same intents to a client and to a session of its own; the worker of the client crashes now and then."""

    def __init__(self, host: Host, seed: int, segments_are_steps: bool) -> None:
        self.host, self.client = host, host.client
        self.random = random.Random(seed)
        self.volume, _ = phantom()
        self.session = Session(self.volume, region_predictor(), WINDOW)
        self.session.segments_are_steps = segments_are_steps
        self.client.set_volume(self.volume, WINDOW)
        self.numbers: list[int] = []

    def both(self, name: str, *arguments):
        getattr(self.client, name)(*arguments)
        try:
            getattr(self.session, name)(*arguments)
        except ValueError:  # a sentence: the client is told it as an event
            pass

    def voxel(self) -> tuple[float, ...]:
        k = self.random.randrange(24)
        place = self.random.choice([(round(14 + 0.3 * k), 16), (44, 36), (12, 44), (30, 28)])
        return tuple(self.volume.ijk_to_ras((*place, k)))

    def prompt(self):
        if self.random.random() < 0.2:
            k = self.random.randrange(24)
            low, high = (5, 5), (self.random.randrange(20, 60), self.random.randrange(20, 50))
            return BoxPrompt(tuple(self.volume.ijk_to_ras((*low, k))), tuple(self.volume.ijk_to_ras((*high, k))))
        return PointPrompt(self.voxel(), self.random.random() < 0.8)

    def step(self) -> None:
        what = self.random.choices(
            ["add", "move", "delete", "undo", "redo", "segment", "clear", "propagate", "crash", "pump", "rename"],
            [12, 4, 3, 5, 3, 2, 1, 2, 2, 8, 1],
        )[0]
        segments = [info.value for info in self.session.segments]
        if what == "segment" or not segments:
            value = max([0, *segments]) + 1 + self.random.randrange(2)
            self.both("add_segment", f"segment {value}", value)
        elif what == "add":
            prompt, view = self.prompt(), self.random.choice(["axial", "axial", "coronal", "sagittal"])
            if isinstance(prompt, BoxPrompt):
                view = "axial"
            segment = self.random.choice(segments)
            number = self.client.add_prompt(segment, prompt, view)
            self.session.add_prompt(segment, prompt, view, number)
            self.numbers.append(number)
        elif what == "move" and self.numbers:
            self.both("move_prompt", self.random.choice(self.numbers), PointPrompt(self.voxel()))
        elif what == "delete" and self.numbers:
            self.both("delete_prompt", self.random.choice(self.numbers))
        elif what in ("undo", "redo"):
            self.both(what)
        elif what == "rename":
            self.both("change_segment", self.random.choice(segments), f"renamed {self.random.random()}")
        elif what == "clear":
            plane = aligned_plane(self.volume, "axial", self.random.randrange(24))
            self.both("clear", self.random.choice([None, *segments]), plane)
        elif what == "propagate":
            self.propagate(self.random.choice(segments))
        elif what == "crash":
            self.client._connection.crash()
        elif what == "pump":
            for _ in range(self.random.randrange(6)):
                self.host.told += self.client.pump(0.005)

    def propagate(self, segment: int) -> None:
        """Wait for the end of it, whatever happens in between, so that both take its results at the same point."""
        settings = PropagationSettings(direction=self.random.choice(["both", "up", "fill"]))
        job = self.client.propagate(segment, settings)
        if self.random.random() < 0.4:
            for _ in range(self.random.randrange(30)):
                self.host.told += self.client.pump(0.002)
            self.client._connection.crash()
        self.host.until(lambda _: job not in self.client._jobs)
        try:
            self.session.finish(self.session.propagate(segment, settings))
        except ValueError:
            pass

    def compare(self) -> None:
        client = self.client
        self.host.until(lambda _: client._settled and client._journal.all_confirmed and not client._conversation.inbox)
        while self.session.work():
            pass
        state = [event for event in self.host.told if isinstance(event, StateChanged)][-1]
        assert [info.number for info in state.prompts] == [placed.id for placed in self.session.prompts]
        assert [info.prompt for info in state.prompts] == [placed.prompt for placed in self.session.prompts]
        assert state.segments == self.session.segments
        assert (state.undo_name, state.redo_name) == (self.session.undo_name, self.session.redo_name)
        shown = {}
        for event in self.host.told:
            if isinstance(event, MaskChanged):
                shown[event.segment, event.plane.key] = event.mask
        shown = {place: mask for place, mask in shown.items() if mask is not None}
        wanted = {place: self.session.mask(*place) for place in self.session.state.tasks}
        assert shown.keys() == wanted.keys()
        assert all(np.array_equal(shown[place], wanted[place]) for place in wanted)
        request = client.take_snapshot()
        document = self.host.until_told(Answered, request=request).value
        assert sorted(map(str, document["propagated"])) == sorted(map(str, session_to_dict(self.session)["propagated"]))


@pytest.mark.parametrize("segments_are_steps", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_crashes_change_nothing(seed, segments_are_steps):
    crashing = Host(SessionClient(Crashing(), segments_are_steps))
    both = Both(crashing, seed, segments_are_steps)
    for _ in range(STEPS):
        both.step()
    both.compare()
    both.client.undo()
    both.session.undo()
    both.compare()
    texts = [event.text for event in crashing.told if isinstance(event, Failed)]
    assert not any("worker failed" in text or "not understand" in text for text in texts)
    assert not any(isinstance(event, Finished) and event.job is None for event in crashing.told)
    crashing.client.close()
