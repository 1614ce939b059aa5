"""Masks into segments: any sequence of masks, of strokes, and of undo and redo."""

from __future__ import annotations

import itertools
import json

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mrml.scenes import oriented_image_of
from mrml.segment_bench import (
    MASKS,
    OVERWRITES,
    SHAPE,
    Bench,
    box,
    drawn_bench,
    random_mask,
    same,
)

from SAMFineTuneLib.images.slice_plane import oblique_plane
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter

# ---- any sequence of masks

KEYS = [("axial", 2), ("axial", 3), ("coronal", 5), ("sagittal", 4), ("oblique", 0)]


def plane_of(bench: Bench, kind: str, index: int):
    if kind == "oblique":
        return oblique_plane(bench.volume, bench.volume.ijk_to_ras((5, 6, 3)), (1, 0.3, 0.2), (0.1, -1, 0.5))
    return bench.plane(kind, index)


steps = st.lists(
    st.tuples(
        st.sampled_from(("first", "second", "apart")), st.sampled_from(KEYS), st.one_of(st.none(), st.integers(0, 9))
    ),
    min_size=1,
    max_size=12,
)
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(steps)
def test_protected_any_sequence_keeps_what_was_drawn_and_leaves_no_trace(lasting_scene, sequence):
    bench = drawn_bench(lasting_scene)
    before = bench.all()
    shown = {}
    for segment, key, seed in sequence:
        plane = plane_of(bench, *key)
        mask = None if seed is None else random_mask(plane.shape, seed)
        bench.writer.write(segment, plane, mask)
        shown[segment, plane.key] = (plane, mask)
        now = bench.all()
        for name, drawn in before.items():
            assert now[name][drawn].all()  # nobody loses what the user drew
            allowed = drawn.copy()
            for (owner, _), (of_plane, of_mask) in shown.items():
                if owner == name and of_mask is not None:
                    allowed |= bench.covered(of_plane, of_mask)
            assert not (now[name] & ~allowed).any()  # nobody grows beyond its masks
        grown = {name: now[name] & ~before[name] for name in now}
        assert all(not (one & other).any() for one, other in itertools.combinations(grown.values(), 2))
    for segment, key in shown:
        bench.writer.write(segment, shown[segment, key][0], None)
    assert same(bench.all(), before) and bench.writer.masks() == ()
    lasting_scene.scene.Clear(True)


modes = st.tuples(st.sampled_from(MASKS), st.sampled_from(OVERWRITES))


@relaxed
@given(st.lists(st.tuples(steps, modes), min_size=1, max_size=3), st.integers(0, 99))
def test_whatever_is_allowed_taking_all_back_leaves_no_trace(lasting_scene, chapters, order):
    """Also when the settings change in between, and masks are taken back in any order: neighbours get theirs."""
    import slicer

    bench = drawn_bench(lasting_scene)
    before = bench.all()
    _, editor = lasting_scene.add_editor(bench.node, bench.volume_node)
    editor.SetMaskSegmentID("second")
    bench.writer.editor_node = lambda: editor
    shown = {}
    for sequence, (mask_mode, overwrite) in chapters:
        editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, mask_mode))
        editor.SetOverwriteMode(getattr(editor, overwrite))
        for segment, key, seed in sequence:
            plane = plane_of(bench, *key)
            bench.writer.write(segment, plane, None if seed is None else random_mask(plane.shape, seed))
            shown[segment, plane.key] = plane
    for index in np.random.default_rng(order).permutation(len(shown)):
        segment, key = list(shown)[index]
        bench.writer.write(segment, shown[segment, key], None)
    after = bench.all()
    for name in before:
        assert np.array_equal(after[name], before[name]), name
    assert bench.writer.masks() == ()
    lasting_scene.scene.Clear(True)


@relaxed
@given(steps, st.integers(0, 99))
def test_masks_everywhere_with_overwriting_are_replayed_by_the_logic(lasting_scene, sequence, seed):
    """Only showing, each mask once: then the segments are what Slicer's logic makes of the same masks in turn."""
    ours, theirs = drawn_bench(lasting_scene), drawn_bench(lasting_scene)
    mode = ("OverwriteAllSegments", "OverwriteNone")[seed % 2]
    logic, editor = lasting_scene.add_editor(theirs.node, theirs.volume_node)
    editor.SetOverwriteMode(getattr(editor, mode))
    own_editor = lasting_scene.add_editor(ours.node, ours.volume_node)[1]
    own_editor.SetOverwriteMode(getattr(editor, mode))
    ours.writer.editor_node = lambda: own_editor
    done = set()
    for segment, key, number in sequence:
        if number is None or (segment, key) in done:
            continue
        done.add((segment, key))
        plane = plane_of(ours, *key)
        mask = random_mask(plane.shape, number)
        ours.writer.write(segment, plane, mask)
        editor.SetSelectedSegmentID(segment)
        modifier = oriented_image_of(ours.covered(plane, mask).astype(np.uint8), theirs.volume.affine)
        logic.ModifySegmentByLabelmap(theirs.node, segment, modifier, logic.ModificationModeAdd, True, False)
        assert same(ours.all(), theirs.all())
    lasting_scene.scene.Clear(True)


# ---- undo and redo


class Steps:
    """What a session does with a writer: masks that come at moments, and come back at the same ones."""

    def __init__(self, bench: Bench, seed: int):
        self.bench, self.random = bench, np.random.default_rng(seed)
        self.moment = self.at = 0
        self.history: list[tuple[dict, dict]] = [({}, bench.all())]
        self.drawn = np.zeros(SHAPE, bool)  # where somebody drew: voxels there are not what they were

    def show(self, segment: str, key, seed: int | None) -> set[str]:
        """A step; returns the segments that it changed."""
        self.moment += 1
        before = self.bench.all()
        shown = dict(self.history[self.at][0])
        shown.pop((segment, key), None)
        if seed is not None:
            shown[segment, key] = (seed, self.moment)
        self._put(segment, key, shown.get((segment, key)))
        now = self.bench.all()
        del self.history[self.at + 1 :]
        self.history.append((shown, now))
        self.at += 1
        return {name for name in now if not np.array_equal(now[name], before[name])}

    def go(self, steps: int) -> None:
        """Undo, or redo; masks come in any order."""
        self.at = min(max(self.at + steps, 0), len(self.history) - 1)
        shown, voxels = self.history[self.at]
        there = {(mask.segment_id, mask.plane_key): mask.since for mask in self.bench.writer.masks()}
        keys = {plane_of(self.bench, *key).key: key for key in KEYS}
        places = sorted({*shown, *((segment, keys[plane]) for segment, plane in there)})
        for index in self.random.permutation(len(places)):
            segment, key = places[index]
            wanted = shown.get((segment, key))
            if (wanted or (0, 0))[1] != there.get((segment, plane_of(self.bench, *key).key), 0):
                self._put(segment, key, wanted)
        now = self.bench.all()
        for name in voxels:
            assert np.array_equal(now[name] & ~self.drawn, voxels[name] & ~self.drawn), name

    def draw(self, segment: str, seed: int, remove: bool) -> np.ndarray:
        """Returns the voxels that were newly drawn there."""
        low = self.random.integers(0, np.array(SHAPE) - 3)
        stroke = box(*((n, n + 1 + (seed + axis) % 3) for axis, n in enumerate(low)))
        before = self.bench.all()
        self.bench.draw(segment, stroke, remove)
        self.bench.writer.notice_edits(lambda: False)
        now = self.bench.all()
        for name in now:
            self.drawn |= now[name] != before[name]
        self.history[self.at] = (self.history[self.at][0], now)
        return now[segment] & ~before[segment]

    def store(self) -> None:
        """As when a scene is saved and loaded: what was undone is gone."""
        stored = json.loads(json.dumps(self.bench.writer.to_dict()))
        editor = self.bench.writer.editor_node
        self.bench.writer.close()
        self.bench.writer = SegmentWriter(self.bench.node, self.bench.volume_node, self.bench.volume)
        self.bench.writer.editor_node = editor
        assert self.bench.writer.from_dict(stored)
        self.history, self.at = [self.history[self.at]], 0

    def _put(self, segment: str, key, wanted) -> None:
        plane = plane_of(self.bench, *key)
        if wanted is None:
            self.bench.writer.write(segment, plane, None)
        else:
            seed, moment = wanted
            mask = random_mask(plane.shape, seed)
            self.bench.writer.write(segment, plane, mask, since=moment, digest=str(seed))


names_of_segments = st.sampled_from(("first", "second", "hidden", "apart"))
shows = st.tuples(
    st.just("show"), names_of_segments, st.sampled_from(KEYS), st.one_of(st.none(), st.integers(0, 5))
)
goes = st.tuples(st.just("go"), st.integers(-4, 4))
stores = st.tuples(st.just("store"))
mode_changes = st.tuples(st.just("mode"), modes)
strokes = st.tuples(st.just("draw"), names_of_segments, st.integers(0, 8), st.booleans())


@relaxed
@given(
    st.lists(st.one_of(shows, shows, goes, stores, mode_changes, strokes), min_size=3, max_size=14), st.integers(0, 99)
)
def test_undo_and_redo_bring_back_every_voxel(lasting_scene, sequence, seed):
    """In every mode, on planes that cross, with strokes in between, and masks sent in any order."""
    import slicer

    bench = drawn_bench(lasting_scene)
    _, editor = lasting_scene.add_editor(bench.node, bench.volume_node)
    editor.SetMaskSegmentID("second")
    editor.SetOverwriteMode(editor.OverwriteNone)
    bench.writer.editor_node = lambda: editor
    steps = Steps(bench, seed)
    for what, *arguments in sequence:
        if what == "mode":
            mask_mode, overwrite = arguments[0]
            editor.SetMaskMode(getattr(slicer.vtkMRMLSegmentationNode, mask_mode))
            editor.SetOverwriteMode(getattr(editor, overwrite))
        else:
            getattr(steps, what)(*arguments)
    for _ in range(len(steps.history)):
        steps.go(-1)
    for _ in range(len(steps.history)):
        steps.go(1)
    lasting_scene.scene.Clear(True)


@relaxed
@given(st.lists(st.one_of(shows, shows, goes, stores, strokes), min_size=3, max_size=14), st.integers(0, 99))
def test_protected_a_step_changes_its_segment_alone_and_no_stroke(lasting_scene, sequence, seed):
    bench = drawn_bench(lasting_scene)
    steps = Steps(bench, seed)
    drawn = {name: np.zeros(SHAPE, bool) for name in bench.all()}
    for what, *arguments in sequence:
        found = getattr(steps, what)(*arguments)
        if what == "show":
            assert found <= {arguments[0]}
        if what == "draw":
            segment, _, remove = arguments
            now = bench.all()
            for name in drawn:
                drawn[name] &= now[name]
            drawn[segment] |= found
        now = bench.all()
        assert all(now[name][drawn[name]].all() for name in drawn)
    lasting_scene.scene.Clear(True)


def test_five_touching_segments_are_cleared_and_come_back(slicer_scene):
    """Each protected from the others; a sixth changes none, and what one leaves no other one takes by itself."""
    names = [f"s{number}" for number in range(6)]
    bench = Bench(slicer_scene, names)
    steps = Steps(bench, 1)
    for number, name in enumerate(names[:5]):
        for key in (KEYS[number % 4], KEYS[(number + 1) % 4]):
            assert steps.show(name, key, number) <= {name}
    before = bench.all()
    for name in names[:5]:
        for key in KEYS[:4]:
            steps.show(name, key, None)
    assert not any(voxels.any() for voxels in bench.all().values())
    steps.go(-20)
    assert same(bench.all(), before)
    assert steps.show("s5", KEYS[0], 9) == {"s5"}
    assert steps.show("s0", KEYS[0], None) == {"s0"}
    steps.go(-2)
    assert same(bench.all(), before)


def test_a_stroke_over_a_mask_and_back_is_a_stroke(bench):
    """Noticed while it differs from the mask, it stays when the mask goes."""
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    stroke = box((3, 4), (0, 6), (0, 10))
    bench.draw("second", stroke)
    assert bench.writer.edits_to_notice
    bench.writer.notice_edits(lambda: False)
    assert not bench.writer.edits_to_notice
    bench.draw("first", stroke)
    bench.writer.write("first", plane, None)
    assert np.array_equal(bench.voxels("first"), stroke) and not bench.voxels("second").any()


def test_somebody_who_exchanges_the_labelmap_at_every_change_is_noticed(bench):
    import slicer

    def empty(*_):
        bench.segmentation.GetSegment("first").AddRepresentation("Binary labelmap", slicer.vtkOrientedImageData())

    tag = bench.segmentation.AddObserver(bench.segmentation.RepresentationModified, empty)
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.segmentation.RemoveObserver(tag)
    (lost,) = bench.writer.verify(lambda: False)
    assert (lost.segment_id, lost.plane_key) == ("first", plane.key) and not bench.writer.to_verify
    bench.writer.forget("first", plane.key)
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert bench.voxels("first")[3].all() and not bench.writer.verify(lambda: False)


def test_what_is_shown_together_is_told_once(bench):
    heard = []
    bench.segmentation.AddObserver(bench.segmentation.SourceRepresentationModified, lambda *_: heard.append(1))
    with bench.writer.together():
        for index in range(4):
            bench.writer.write("first", bench.plane("axial", index), np.ones(bench.plane().shape, bool))
        assert not heard
    assert heard == [1] and bench.voxels("first")[:4].all()
    bench.writer.write("first", bench.plane("axial", 5), np.ones(bench.plane().shape, bool))
    assert heard == [1, 1] and not bench.writer.edits_to_notice
