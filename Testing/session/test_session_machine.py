"""Any order of intents: the session against a model that only keeps lists of prompts, and replays them."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from immediate_session import ImmediateSession
from region_engine import WINDOW, phantom, region_predictor

from SAMFineTuneLib.images import aligned_plane
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.prompts import BoxPrompt, PointPrompt
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.session import Session

SLICES = 6
SPOTS = [(14, 16), (16, 18), (12, 44), (44, 36), (30, 5)]
spots = st.sampled_from(SPOTS)
slices = st.integers(0, SLICES - 1)
VOLUME, LABELS = phantom(slices=SLICES)


def make(spot, k, positive, as_box):
    x, y = spot
    if as_box:
        corners = VOLUME.ijk_to_ras([(x - 7, y - 4, k), (x + 7, y + 6, k)])
        return BoxPrompt(tuple(corners[0]), tuple(corners[1]))
    return PointPrompt(tuple(VOLUME.ijk_to_ras((x, y, k))), positive)


class SessionMachine(RuleBasedStateMachine):
    """`now` is what should be there: segment values, prompts as (number, segment, prompt), propagated masks."""

    @initialize()
    def start(self):
        self.session = ImmediateSession(VOLUME, region_predictor(), WINDOW)
        self.seen: dict[tuple[int, str], np.ndarray] = {}
        self.session.listen(self.draw)
        self.now = ((), (), {})
        self.past: list[tuple] = []
        self.future: list[tuple] = []
        self.add_segment()

    def draw(self, event):
        """What a panel would have on its screen."""
        if isinstance(event, events.MaskChanged):
            mask = self.session.mask(event.segment, event.plane)
            place = (event.segment, event.plane.key)
            if mask is None:
                self.seen.pop(place)
            else:
                assert place not in self.seen or not np.array_equal(self.seen[place], mask)
                self.seen[place] = mask

    def change(self, segments=None, prompts=None, propagated=None):
        self.past.append(self.now)
        self.future.clear()
        old = self.now
        self.now = (
            old[0] if segments is None else segments,
            old[1] if prompts is None else prompts,
            old[2] if propagated is None else propagated,
        )

    @precondition(lambda self: len(self.now[0]) < 3)
    @rule()
    def add_segment(self):
        info = self.session.add_segment(f"segment {len(self.past)}")
        assert info.value not in self.now[0]
        self.change(segments=(*self.now[0], info.value))

    @precondition(lambda self: self.now[0])
    @rule(data=st.data())
    def remove_segment(self, data):
        value = data.draw(st.sampled_from(self.now[0]))
        self.session.remove_segment(value)
        self.change(
            tuple(item for item in self.now[0] if item != value),
            tuple(item for item in self.now[1] if item[1] != value),
            {place: mask for place, mask in self.now[2].items() if place[0] != value},
        )

    @precondition(lambda self: self.now[0])
    @rule(data=st.data(), spot=spots, k=slices, positive=st.booleans(), as_box=st.booleans())
    def add_prompt(self, data, spot, k, positive, as_box):
        value = data.draw(st.sampled_from(self.now[0]))
        prompt = make(spot, k, positive, as_box)
        number = self.session.add_prompt(value, prompt)
        assert number not in {item[0] for item in self.now[1]}
        self.change(prompts=(*self.now[1], (number, value, prompt)))

    @precondition(lambda self: self.now[1])
    @rule(data=st.data(), spot=spots, k=slices, positive=st.booleans())
    def move_prompt(self, data, spot, k, positive):
        number, value, _ = data.draw(st.sampled_from(self.now[1]))
        prompt = make(spot, k, positive, False)
        self.session.move_prompt(number, prompt)
        self.change(
            prompts=tuple((number, value, prompt) if item[0] == number else item for item in self.now[1])
        )

    @precondition(lambda self: self.now[1])
    @rule(data=st.data())
    def delete_prompt(self, data):
        number = data.draw(st.sampled_from(self.now[1]))[0]
        self.session.delete_prompt(number)
        self.change(prompts=tuple(item for item in self.now[1] if item[0] != number))

    @precondition(lambda self: self.now[1] or self.now[2])
    @rule(k=slices)
    def clear_a_slice(self, k):
        plane = aligned_plane(VOLUME, "axial", k)
        self.session.clear(plane=plane)
        prompts = tuple(item for item in self.now[1] if self.slice_of(item[2]) != k)
        propagated = {place: mask for place, mask in self.now[2].items() if place[1] != plane.key}
        if len(prompts) != len(self.now[1]) or len(propagated) != len(self.now[2]):
            self.change(prompts=prompts, propagated=propagated)

    @precondition(lambda self: any(mask.any() for mask in self.seen.values()))
    @rule(data=st.data(), stop_after=st.integers(0, 5))
    def propagate(self, data, stop_after):
        prompted = {(value, f"axial:{self.slice_of(prompt)}") for _, value, prompt in self.now[1]}
        able = sorted({place[0] for place in prompted if self.seen[place].any()})
        if not able:
            return
        value = data.draw(st.sampled_from(able))
        job = self.session.propagate(value, PropagationSettings(min_overlap=0.2, max_area_change=9))
        for _ in range(stop_after):
            self.session.work(0.0)
        finished = job.done
        job.cancel()
        self.session.finish(job)
        meant = {
            (owner, f"axial:{self.slice_of(prompt)}")
            for _, owner, prompt in self.now[1]
            if isinstance(prompt, BoxPrompt) or prompt.positive
        }
        found = {place: item.mask.unpack() for place, item in job.masks.items() if place not in meant}
        kept = {
            place: mask
            for place, mask in self.now[2].items()
            if place[0] != value or place in prompted or (not finished and place not in found)
        }
        if found or len(kept) != len(self.now[2]):
            self.change(propagated=kept | found)

    @rule()
    def undo(self):
        name = self.session.undo()
        assert (name is None) == (not self.past)
        if self.past:
            self.future.append(self.now)
            self.now = self.past.pop()

    @rule()
    def redo(self):
        name = self.session.redo()
        assert (name is None) == (not self.future)
        if self.future:
            self.past.append(self.now)
            self.now = self.future.pop()

    @staticmethod
    def slice_of(prompt):
        ras = prompt.ras if isinstance(prompt, PointPrompt) else prompt.corner_a
        return round(float(VOLUME.ras_to_ijk(ras)[2]))

    @invariant()
    def it_holds_what_the_model_holds(self):
        if not hasattr(self, "session"):
            return
        segments, prompts, propagated = self.now
        assert tuple(info.value for info in self.session.segments) == segments
        assert tuple((item.id, item.segment, item.prompt) for item in self.session.prompts) == prompts
        places = {(value, f"axial:{self.slice_of(prompt)}") for _, value, prompt in prompts} | set(propagated)
        assert {(value, plane.key) for value in segments for plane in self.session.planes(value)} == places
        assert set(self.seen) == places  # the listener was told everything
        for place in places:
            mask = self.session.mask(*place)
            assert np.array_equal(mask, self.seen[place])
            if not any((value, f"axial:{self.slice_of(prompt)}") == place for _, value, prompt in prompts):
                assert np.array_equal(mask, propagated[place])

    def teardown(self):
        """A fresh session with the same prompts shows the same masks, where propagation left nothing."""
        if not hasattr(self, "session"):
            return
        fresh = Session(VOLUME, region_predictor(), WINDOW)
        for value in self.now[0]:
            fresh.add_segment(f"segment {value}", value)
        for _, value, prompt in self.now[1]:
            fresh.add_prompt(value, prompt)
        for place, mask in self.seen.items():
            if place not in self.now[2]:
                assert np.array_equal(fresh.mask(*place), mask)


TestSessionMachine = SessionMachine.TestCase
TestSessionMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
