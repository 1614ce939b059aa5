"""Undo and redo in the scene: whatever was asked for in between, every voxel comes back; and nothing gets lost on the
way from an intent to the voxels without being noticed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from mrml.scene_host import held_voxels, ras, slice_node, tube, turn_to
from mrml.scenes import oriented_image_of

slicer = pytest.importorskip("slicer")

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.images.slice_plane import aligned_plane  # noqa: E402
from SAMFineTuneLib.mrml import storage  # noqa: E402
from SAMFineTuneLib.service.connection import Broken  # noqa: E402
from SAMFineTuneLib.session.events import Failed, Finished  # noqa: E402

NAMES = ("first", "second", "third", "fourth")


class Unreliable:
    """A link that loses requests and answers, answers late, and delivers what was sent once more, as HTTP may."""

    is_local = encrypted = True
    waiting = "The worker starts."

    def __init__(self, inner, seed: int):
        self._inner, self._random = inner, random.Random(seed)
        self._sent: list[tuple[str, list[bytes]]] = []
        self._late = 0
        self._lost = False

    def ready(self) -> bool:
        return self._inner.ready()

    def send(self, path, body) -> None:
        whole = [b"".join(bytes(part) for part in body)]
        self._lost = self._random.random() < 0.1
        if not self._lost:
            if self._sent and self._random.random() < 0.1:  # an older request arrives once more
                self._inner.send(*self._random.choice(self._sent[-3:]))
            self._inner.send(path, whole)
            if path.endswith("/sync"):
                self._sent.append((path, whole))
            if self._random.random() < 0.1:
                self._inner.send(path, whole)  # its answer is the one that is heard
        self._late = self._random.choice((0, 0, 0, 1, 5))

    def receive(self, wait):
        if self._lost or self._random.random() < 0.05:
            self._inner.drop()
            raise Broken("The line broke.")
        if self._late:
            self._late -= 1
            return None
        return self._inner.receive(wait)

    def drop(self, unresponsive=False) -> None:
        self._inner.drop(unresponsive)

    def retry(self) -> None:
        self._inner.retry()

    def close(self) -> None:
        self._inner.close()


class User:
    """A simulated user in a scene, who remembers its content after each step."""

    def __init__(self, host, volume, slicer_scene, seed: int):
        self.host, self.session, self.volume, self.slicer_scene = host, host.session, volume, slicer_scene
        self.random = random.Random(seed)
        self.views = {name: slice_node(slicer_scene, volume, name, 9, name) for name in ("axial", "sagittal")}
        self.steps = [self.seen()]
        self.at = 0
        self.drawn = np.zeros(volume.shape, bool)
        self.brushed = {name: np.zeros(volume.shape, bool) for name in NAMES}

    def seen(self) -> dict[str, np.ndarray]:
        return {name: held_voxels(self.session, name) for name in NAMES}

    def step(self) -> None:
        """One that the session can take back."""
        before, prompts = self.seen(), list(self.session.prompts)
        what = self.random.choice(("place", "place", "place", "box", "propagate", "delete", "clear"))
        self.session.current_segment_id = self.random.choice(NAMES)
        if what == "delete" and prompts:
            gone = self.random.choice(prompts)
            asked = {gone.segment_id}
            self.session.delete(gone.number)
        elif what == "clear" and prompts:
            chosen = self.random.choice((None, self.random.choice(prompts).segment_id))
            asked = set(NAMES) if chosen is None else {chosen}
            self.session.clear(chosen)
        elif what == "propagate" and prompts:
            chosen = self.random.choice(prompts).segment_id
            asked = {chosen}
            if not self.propagate(chosen):
                return
        else:
            asked = {self.session.current_segment_id}
            self.place(what == "box")
        self.host.settle()
        now = self.seen()
        if self.session.editor_node is None:
            changed = {name for name in NAMES if not np.array_equal(now[name], before[name])}
            assert changed <= asked, "others changed by themselves"
        del self.steps[self.at + 1 :]
        self.steps.append(now)
        self.at += 1

    def place(self, as_box: bool) -> None:
        k = self.random.randrange(7, 13)
        spot = self.random.choice((tube(k), (44, 36, k), (12, 44, k)))
        name = "axial" if as_box else self.random.choice(("axial", "axial", "sagittal"))
        turn_to(self.views[name], aligned_plane(self.volume, name, spot[2] if name == "axial" else spot[0]))
        if as_box:
            reach = self.random.randrange(4, 12)
            ends = ((spot[0] - reach, spot[1] - reach), (spot[0] + 5, spot[1] + 5))
            corners = [ras(self.volume, i, j, k) for i, j in ends]
            self.session.place("box", self.views[name], corners)
        else:
            kind = self.random.choice(("positive", "positive", "positive", "negative"))
            self.session.place(kind, self.views[name], [ras(self.volume, *spot)])

    def propagate(self, segment: str) -> bool:
        """Whether it came to a step."""
        told = len(self.host.told)
        try:
            job = self.session.propagate(segment, {"first": 6, "last": 13, "min_overlap": 0.2}, "axial")
        except UserError:
            return False
        if self.random.random() < 0.3:
            for _ in range(self.random.randrange(10)):
                self.host.pump()
            self.session.client._conversation.lose_session()
        ended = (Finished, Failed)
        self.host.until(lambda: any(isinstance(one, ended) and one.job == job for one in self.host.told[told:]))
        self.host.settle()
        failed = any(isinstance(one, Failed) and one.job == job for one in self.host.told[told:])
        return not failed and self.session.state.undo_name == "propagate"

    def go(self, steps: int) -> None:
        """Undo or redo, at once or one after the other."""
        steps = min(max(self.at + steps, 0), len(self.steps) - 1) - self.at
        for _ in range(abs(steps)):
            (self.session.undo if steps < 0 else self.session.redo)()
            if self.random.random() < 0.3:
                self.host.settle()
            elif self.random.random() < 0.3:
                self.host.pump()
        self.at += steps
        if self.random.random() < 0.15:
            self.session.client._conversation.lose_session()
        self.host.settle()
        self.compare()

    def compare(self) -> None:
        now = self.seen()
        for name in NAMES:
            assert np.array_equal(now[name] & ~self.drawn, self.steps[self.at][name] & ~self.drawn), (name, self.at)
            if self.session.editor_node is None:
                assert now[name][self.brushed[name]].all(), "a stroke was lost"

    def draw(self) -> None:
        """With Slicer's own logic, over whatever is there."""
        name, node = self.random.choice(NAMES), self.session.segmentation_node
        low = [self.random.randrange(n - 8) for n in (9, 48, 56)]
        stroke = np.zeros(self.volume.shape, np.uint8)
        stroke[7 + low[0] % 6, low[1] : low[1] + 8, low[2] : low[2] + 8] = 1
        before = self.seen()
        logic, editor = self.slicer_scene.add_editor(node, self.session.volume_node)
        editor.SetSelectedSegmentID(name)
        image = oriented_image_of(stroke, self.volume.affine)
        logic.ModifySegmentByLabelmap(node, name, image, logic.ModificationModeAdd, True, False)
        self.slicer_scene.scene.RemoveNode(editor)
        self.host.pump()
        self.host.settle()
        now = self.seen()
        for each in NAMES:
            self.drawn |= now[each] != before[each]
            self.brushed[each] &= now[each]
        self.brushed[name] |= now[name] & ~before[name]
        self.steps[self.at] = now


@pytest.fixture
def somebody(open_session, slicer_scene, made, monkeypatch):
    """Makes a `User`, who does not wait for the scene to be stored."""
    for name in ("_SNAPSHOT_DELAY", "_RECORD_DELAY"):
        monkeypatch.setattr(storage, name, 0.0)

    def make(seed: int, reliable: bool = True, overwrite: bool = False) -> User:
        from region_engine import WINDOW

        volume_node = slicer_scene.add_volume(made[0], "phantom")
        host = open_session(slicer_scene, link=None if reliable else lambda inner: Unreliable(inner, seed))
        host.session.set_window(WINDOW)
        host.session.set_volume_node(volume_node)
        host.session.set_segmentation_node(slicer_scene.add_segmentation(volume_node, NAMES))
        if overwrite:
            _, editor = slicer_scene.add_editor(host.session.segmentation_node, volume_node)
            editor.SetOverwriteMode(editor.OverwriteAllSegments)
            host.session.editor_node = editor
        return User(host, made[0], slicer_scene, seed)

    return make


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_was_done_comes_back_voxel_for_voxel(somebody, seed, overwrite):
    """Boxes and points on slices that cross, propagation, strokes, a worker that dies, a bad line, and 3-D."""
    user = somebody(seed, reliable=seed % 2 == 0, overwrite=overwrite)
    user.session.volumetric = seed > 3
    for _ in range(14):
        user.step()
        if user.random.random() < 0.3:
            user.go(user.random.randrange(-3, 3))
        if user.random.random() < 0.15:
            user.draw()
    for _ in range(len(user.steps)):
        user.go(-1)
    user.go(len(user.steps))
    assert not [text for text in user.host.texts(Failed) if "went wrong" in text or "not those" in text]


def test_a_loaded_scene_goes_on_with_the_same_voxels(somebody, slicer_scene, load_mrb, open_session, tmp_path):
    user = somebody(11)
    for _ in range(8):
        user.step()
    before = user.seen()
    path = str(tmp_path / "scene.mrb")
    assert slicer_scene.scene.WriteToMRB(path, None)
    again = open_session(load_mrb(path))
    again.session.attach()
    again.settle()
    for name in NAMES:
        assert np.array_equal(held_voxels(again.session, name), before[name]), name
    view = slice_node(slicer_scene, again.session.volume, "axial", 16, "later")
    again.session.current_segment_id = "fourth"
    again.session.place("positive", view, [ras(again.session.volume, *tube(16))])
    again.settle()
    again.session.clear()
    again.settle()
    assert not any(held_voxels(again.session, name).any() for name in NAMES)
    for _ in range(2):
        again.session.undo()
    again.settle()
    for name in NAMES:
        assert np.array_equal(held_voxels(again.session, name), before[name]), name


# ---- what gets lost is noticed


def test_a_mask_that_got_lost_on_its_way_is_asked_for_again(host, made, red):
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    whole = held_voxels(host.session, "first")
    host.session.place("negative", red, [ras(made[0], *tube(9))])
    host.settle()
    assert not np.array_equal(held_voxels(host.session, "first"), whole)
    take, lost = host.session.client._take, []

    def lossy(told):
        if type(told.event).__name__ == "MaskChanged" and not lost:
            lost.append(told)
        else:
            take(told)

    host.session.client._take = lossy
    host.session.undo()
    host.settle()
    assert lost and np.array_equal(held_voxels(host.session, "first"), whole)


def test_a_mask_that_the_scene_dropped_is_shown_all_the_same(host, made, red):
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    whole = held_voxels(host.session, "first")
    host.session.place("negative", red, [ras(made[0], *tube(9))])
    host.settle()
    masks, dropped = host.session._work.masks, []
    write = masks.writer.write

    def forgetful(*arguments):
        if dropped:
            return write(*arguments)
        dropped.append(arguments)
        return False

    masks.writer.write = forgetful
    host.session.undo()
    host.settle()
    assert dropped and np.array_equal(held_voxels(host.session, "first"), whole)


def test_voxels_that_slicer_did_not_keep_are_written_again(host, made, red):
    from vtk.util.numpy_support import vtk_to_numpy

    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    whole = held_voxels(host.session, "first")
    host.session.place("negative", red, [ras(made[0], *tube(9))])
    host.settle()
    segmentation, wiped = host.session.segmentation_node.GetSegmentation(), []

    def wipe(*_):
        if not wiped:  # and nobody is told
            image = segmentation.GetSegment("first").GetRepresentation("Binary labelmap")
            vtk_to_numpy(image.GetPointData().GetScalars())[:] = 0
            wiped.append(1)

    tag = segmentation.AddObserver(segmentation.RepresentationModified, wipe)
    host.session.undo()
    host.settle()
    segmentation.RemoveObserver(tag)
    assert wiped and np.array_equal(held_voxels(host.session, "first"), whole)


def test_voxels_that_are_never_kept_are_said(host, made, red):
    from vtk.util.numpy_support import vtk_to_numpy

    segmentation = host.session.segmentation_node.GetSegmentation()

    def wipe(*_):
        image = segmentation.GetSegment("first").GetRepresentation("Binary labelmap")
        vtk_to_numpy(image.GetPointData().GetScalars())[:] = 0

    tag = segmentation.AddObserver(segmentation.RepresentationModified, wipe)
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.until_told(Failed)
    segmentation.RemoveObserver(tag)
    assert "does not keep" in host.texts(Failed)[-1]
    host.settle()


def test_an_undo_whose_answer_was_lost_is_done_once(open_session, slicer_scene, made, red):
    """The request arrives, its answer does not, and it is sent again."""
    links = []

    def once(inner):
        links.append(Unreliable(inner, 1))
        links[0]._random.random = lambda: 1.0  # nothing goes wrong by itself
        links[0]._random.choice = lambda options: options[0]
        return links[0]

    from region_engine import WINDOW

    host = open_session(slicer_scene, link=once)
    host.session.set_window(WINDOW)
    host.session.set_volume_node(slicer_scene.add_volume(made[0]))
    shown = []
    for k in (9, 10, 11):
        turn_to(red, aligned_plane(made[0], "axial", k))
        host.session.place("positive", red, [ras(made[0], *tube(k))])
        host.settle()
        shown.append(held_voxels(host.session, host.session.current_segment_id))
    receive, broken = links[0].receive, []

    def lose_one(wait):
        if not broken:
            links[0]._inner.receive(wait)
            broken.append(1)
            raise Broken("The line broke.")
        return receive(wait)

    host.session.undo()
    links[0].receive = lose_one
    host.settle()
    assert broken and len(host.session.prompts) == 2
    assert np.array_equal(held_voxels(host.session, host.session.current_segment_id), shown[1])


def test_undo_while_an_answer_is_outstanding(host, made, red, monkeypatch):
    """Several steps and as many undos before the worker has answered any of them."""
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    before = held_voxels(host.session, "first")
    for _ in range(3):
        host.session.place("negative", red, [ras(made[0], *tube(9))])
        host.session.place("box", red, [ras(made[0], 10, 10, 9), ras(made[0], 30, 30, 9)])
        for _ in range(2):
            host.session.undo()
    host.settle()
    assert np.array_equal(held_voxels(host.session, "first"), before) and len(host.session.prompts) == 1
