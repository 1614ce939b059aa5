"""A simulated user who does everything in random order: prompts, undo, propagation, other volumes, saved scenes, dead
workers.

    python Testing/mrml/random_use.py --minutes 60 --seed 1
    python Testing/mrml/random_use.py --steps 200 --seed 7 --verbose

It works on a real scene with a real worker process and the bundled model, and ends by checking that nothing was logged
as an error, that segments hold what replaying the prompts gives, that no observer, node or process is left and that
memory has not grown. Exit code 0 when all of that holds. A failure names its seed, and the last things that were done.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import logging
import os
import sys
import tempfile
import time
import weakref
from pathlib import Path

import numpy as np

if __name__ == "__main__":
    here = Path(__file__).resolve()
    sys.path[:0] = [str(here.parents[1]), str(here.parents[1] / "samples"), str(here.parents[2])]

from mrml.scene_files import read_mrb
from mrml.scene_host import SceneHost
from mrml.scenes import SlicerScene, matrix_of, segment_voxels

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import Volume, aligned_plane, number_of_slices, oblique_plane
from SAMFineTuneLib.images.phantom import body_phantom
from SAMFineTuneLib.images.slice_extraction import covered_voxels
from SAMFineTuneLib.mrml.prompts.node_content import is_roi, world_points
from SAMFineTuneLib.mrml.prompts.prompt_nodes import prompt_nodes
from SAMFineTuneLib.mrml.scene_session import SceneSession
from SAMFineTuneLib.mrml.slice_views import plane_of_view
from SAMFineTuneLib.mrml.storage import read_record, record_nodes
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.service.worker import LocalWorker
from SAMFineTuneLib.session.events import Failed, MaskChanged, Objects

ORIENTATIONS = ("axial", "coronal", "sagittal")
MOST_PROMPTS = 25  # then some are cleared: every reload makes all masks anew
_KILL_PAUSE = 25.0  # seconds
_PATIENCE = 600.0  # seconds without any news while something is outstanding: a starved worker needs minutes to start
_GROWTH = 0.15  # of the memory after the first third
_GROWTH_BYTES = 80 << 20


class LoggedErrors(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


class RandomUse:
    """A scene with two volumes, a session on it, and a simulated user of both."""

    def __init__(self, seed: int, folder: Path, verbose: bool = False):
        self.random = np.random.default_rng(seed)
        self.folder = folder
        self.verbose = verbose
        self.done: collections.deque[str] = collections.deque(maxlen=40)
        self.counts: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.errors = LoggedErrors()
        logging.getLogger().addHandler(self.errors)
        self.slicer_scene = SlicerScene()
        self.scene = self.slicer_scene.scene
        self._add_slice_node()
        self.volumes = [
            self.slicer_scene.add_volume(body_phantom(seed=n, shape=shape, spacing=(2.5, 2.2, 5.0))[0], f"phantom {n}")
            for n, shape in ((1, (20, 96, 80)), (2, (16, 80, 90)))
        ]
        segmentations = [self.slicer_scene.add_segmentation(node, name=f"of {node.GetName()}") for node in self.volumes]
        self.own = {node.GetID(): other.GetID() for node, other in zip(self.volumes, segmentations, strict=True)}
        self.before = self._observers()
        self.worker = LocalWorker()
        self.client = SessionClient(self.worker, segments_are_steps=False)
        self.session = SceneSession(self.scene, self.client)
        self.host = SceneHost(self.session)
        self._open(self.volumes[0])
        self.memory: list[int] = []
        self.jobs: list[int] = []
        self.killed = 0.0
        self.heard: dict[tuple[int, str], bytes | None] = {}
        self.ever: dict[str, dict[int, np.ndarray]] = {}  # volume -> label value -> where it ever had a mask
        self.listened = 0

    def _add_slice_node(self) -> None:
        import slicer

        node = slicer.vtkMRMLSliceNode()
        node.SetName("Red")
        node.SetLayoutName("Red")
        node.SetSingletonTag("Red")
        self.slice_node = self.scene.AddNode(node)

    # ---- using it

    def step(self) -> None:
        """One thing, then a few rounds of the timer."""
        names, weights = zip(*_ACTIONS.items(), strict=True)
        weights = np.array(weights, float)
        name = str(self.random.choice(names, p=weights / weights.sum()))
        if len(self.session.prompts) > MOST_PROMPTS:
            name = "clear"
        self.done.append(name)
        self.counts[name] += 1
        if self.verbose:
            print(f"{sum(self.counts.values()):6} {name}", flush=True)
        try:
            getattr(self, name)()
        except UserError as error:  # said to the user: what was asked cannot be
            self.done.append(f"  {error}")
        for _ in range(int(self.random.integers(0, 25))):
            self.host.pump()
            time.sleep(0.002)
        if self.random.random() < 0.3:
            self.settle()
        self._listen()
        del self.host.told[:-200]
        self.listened = len(self.host.told)

    def _listen(self) -> None:
        """Remember the masks that the worker sent, to distinguish its mistakes from the scene's."""
        volume = self.session.volume
        ever = self.ever.setdefault(self.session.volume_node.GetName(), {})
        for event in self.host.told[self.listened :]:
            if isinstance(event, MaskChanged):
                packed = None if event.mask is None else np.packbits(event.mask).tobytes()
                self.heard[(event.segment, event.plane.key)] = packed
                if event.mask is not None:
                    places = tuple(covered_voxels(event.mask, event.plane, volume, event.points))
                    ever.setdefault(event.segment, np.zeros(volume.shape, bool))[places] = True
        self.listened = len(self.host.told)

    def settle(self) -> None:
        """Until everything has come to rest."""
        self.until(lambda: self.session.at_rest)

    def until(self, wanted) -> None:
        """Until it is so. On a busy machine a propagation takes minutes, but tells of each slice."""
        heard = time.monotonic()
        while not wanted():
            if self.host.pump():
                heard = time.monotonic()
            assert time.monotonic() - heard < _PATIENCE, f"in vain: {self.host.told[-3:]}, {self.session.client.status}"
            time.sleep(0.001)

    def place(self) -> None:
        plane = self._look()
        kind = str(self.random.choice(("positive", "positive", "negative", "box", "box3d", "scribble+", "scribble-",
                                       "lasso+", "lasso-")))  # fmt: skip
        points = [self._point(plane)]
        if kind.startswith("box"):
            points.append(self._point(plane))
        elif kind.startswith(("scribble", "lasso")):
            points += [np.array(points[0]) + self.random.normal(0, 4, 2) @ np.stack([plane.right, plane.down])
                       for _ in range(6)]  # fmt: skip
        self._choose_segment()
        self.session.place(kind, self.slice_node, points)

    def place_with_slicer(self) -> None:
        import vtk

        plane = self._look()
        segment = self._choose_segment()
        node = self.session._nodes.point_list(segment, str(self.random.choice(("positive", "negative"))))
        node.AddControlPointWorld(vtk.vtkVector3d(*self._point(plane)))

    def drag(self) -> None:
        import vtk

        node = self._prompt_node()
        if node is None:
            return
        node.InvokeEvent(node.PointStartInteractionEvent)
        if is_roi(node):
            size = np.array(node.GetSize()) * self.random.uniform(0.7, 1.4, 3)
            node.SetSize(*size)
        else:
            points = world_points(node)
            if points:
                point_id, ras = points[int(self.random.integers(len(points)))]
                for _ in range(3):
                    ras = np.array(ras) + self.random.normal(0, 3, 3)
                    index = node.GetNthControlPointIndexByID(point_id)
                    node.SetNthControlPointPositionWorld(index, vtk.vtkVector3d(*ras))
                    self.host.pump()
        if node.GetScene() is not None:
            node.InvokeEvent(node.PointEndInteractionEvent)

    def delete(self) -> None:
        prompts = self.session.prompts
        if prompts:
            self.session.delete(prompts[int(self.random.integers(len(prompts)))].number)

    def delete_with_slicer(self) -> None:
        node = self._prompt_node()
        if node is None:
            return
        points = node.GetNumberOfControlPoints()
        if is_roi(node) or points < 2 or self.random.random() < 0.2:
            self.scene.RemoveNode(node)
        else:
            node.RemoveNthControlPoint(int(self.random.integers(points)))

    def undo(self) -> None:
        for _ in range(int(self.random.integers(1, 4))):
            self.session.undo()

    def redo(self) -> None:
        for _ in range(int(self.random.integers(1, 4))):
            self.session.redo()

    def clear(self) -> None:
        self.session.clear(self._choose_segment() if self.random.random() < 0.7 else None)

    def propagate(self) -> None:
        segment = self._choose_segment()
        middle = int(self.random.integers(4, 12))
        orientation = str(self.random.choice(ORIENTATIONS))
        self.jobs.append(self.session.propagate(segment, {"first": middle - 3, "last": middle + 3}, orientation))

    def toggle_3d(self) -> None:
        self.session.volumetric = not self.session.volumetric

    def cancel(self) -> None:
        jobs = [*self.jobs[-1:], *(job for job in sorted(self.session.client.jobs) if job < 0)]
        if jobs:
            self.session.client.cancel(jobs[int(self.random.integers(len(jobs)))], bool(self.random.random() < 0.5))

    def find_objects(self) -> None:
        at = int(self.random.integers(6, 12))
        job = self.session.everything("axial", {"points_per_side": 6}, at, at)
        self.until(lambda: any(isinstance(event, Objects) and event.job == job for event in self.host.told))
        objects = next(event for event in reversed(self.host.told) if isinstance(event, Objects)).objects
        if objects and len(self._segments()) < 8:
            self.session.adopt(job, [item.number for item in objects[:2]])

    def edit_segments(self) -> None:
        segmentation = self.session.segmentation_node.GetSegmentation()
        choice = self.random.random()
        segments = self._segments()
        if choice < 0.3 and len(segments) < 6:
            segmentation.AddEmptySegment("")
        elif choice < 0.5 and len(segments) > 1:
            segmentation.RemoveSegment(segments[-1])
        elif segments:
            segment = segmentation.GetSegment(segments[int(self.random.integers(len(segments)))])
            segment.SetName(str(self.random.choice(("liver", "spleen", "tumour", "ü"))))
            segment.SetColor(*self.random.random(3))

    def show_3d(self) -> None:
        node = self.session.segmentation_node
        if self.random.random() < 0.5:
            node.CreateClosedSurfaceRepresentation()
        else:
            node.RemoveClosedSurfaceRepresentation()
        if self.session.refresh_due:
            self.session.refresh_surface()

    def embed(self) -> None:
        self._look()
        self.session.client.look_at(plane_of_view(self.slice_node, self.session.volume))
        if self.random.random() < 0.5:
            self.session.embed_around(self.slice_node)

    def switch_volume(self) -> None:
        others = [node for node in self.volumes if node is not self.session.volume_node]
        self._open(others[int(self.random.integers(len(others)))])

    def save_and_load(self) -> None:
        """Through a file, into this scene: all nodes are others afterwards."""
        if self.random.random() < 0.7:
            self.settle()
        self.scene.InvokeEvent(self.scene.StartSaveEvent)
        path = self.folder / "scene.mrb"
        assert self.scene.WriteToMRB(str(path), None)
        name = self.session.volume_node.GetName()
        self.scene.Clear(False)
        read_mrb(path, self.slicer_scene)
        self._add_slice_node()
        self.volumes = [
            self.scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode")
            for n in range(self.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode"))
        ]
        assert len(self.volumes) == 2 and self.session.volume_node.GetName() == name
        self.own = {
            node.GetID(): self.scene.GetFirstNodeByName(f"of {node.GetName()}").GetID() for node in self.volumes
        }
        self.jobs.clear()

    def kill_worker(self) -> None:
        """Not so often that the client gives up on it, nor before it has come up once."""
        process = self.worker._starter.process
        if self.worker._link is None:
            return
        if process is not None and process.poll() is None and time.monotonic() - self.killed > _KILL_PAUSE:
            self.killed = time.monotonic()
            process.kill()

    # ---- how

    def _open(self, node) -> None:
        """As the panel does: a volume with its own segmentation."""
        self.session.set_volume_node(None)
        self.session.set_segmentation_node(self.scene.GetNodeByID(self.own[node.GetID()]))
        self.session.set_volume_node(node)
        if not self._segments():
            self.session.segmentation_node.GetSegmentation().AddEmptySegment("")

    def _segments(self) -> list[str]:
        return list(self.session.segmentation_node.GetSegmentation().GetSegmentIDs())

    def _choose_segment(self) -> str:
        if not self._segments():
            self.session.segmentation_node.GetSegmentation().AddEmptySegment("")
        segments = self._segments()
        self.session.current_segment_id = segments[int(self.random.integers(len(segments)))]
        return self.session.current_segment_id

    def _prompt_node(self):
        nodes = self.session._nodes.nodes()
        return nodes[int(self.random.integers(len(nodes)))] if nodes else None

    def _look(self):
        """Turn the view to one of the volume's own slices, or obliquely through it; returns its plane."""
        volume = self.session.volume
        orientation = str(self.random.choice(ORIENTATIONS))
        count = number_of_slices(volume, orientation)
        plane = aligned_plane(volume, orientation, int(self.random.integers(count // 4, 3 * count // 4)))
        if self.random.random() < 0.2:
            angle = self.random.uniform(0.1, 0.5)
            down = np.cos(angle) * plane.down + np.sin(angle) * plane.normal
            middle = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2)
            plane = oblique_plane(volume, middle, plane.right, down)
        matrix = np.eye(4)
        matrix[:3, 0], matrix[:3, 1] = plane.right, -plane.down
        matrix[:3, 2] = np.cross(matrix[:3, 0], matrix[:3, 1])
        matrix[:3, 3] = plane.pixel_to_ras((np.array(plane.shape[::-1]) - 1) / 2)
        self.slice_node.GetSliceToRAS().DeepCopy(matrix_of(matrix))
        self.slice_node.UpdateMatrices()
        return plane

    def _point(self, plane) -> tuple[float, float, float]:
        size = np.array(plane.shape[::-1])
        return tuple(plane.pixel_to_ras(size * self.random.uniform(0.2, 0.8, 2)))

    # ---- checking

    def check(self) -> None:
        """What must hold at any time of rest."""
        self.settle()
        self._listen()
        self._expect(not self.errors.texts, f"errors were logged: {self.errors.texts[:3]}")
        wrong = [text for text in self.host.texts(Failed) if text.startswith("Something went wrong")]
        self._expect(not wrong, f"the session failed: {wrong[:3]}")
        self._check_nodes()
        self._check_segments()

    def _check_nodes(self) -> None:
        session = self.session
        told = {info.number: info for info in session.state.prompts}
        self._expect(set(told) == {prompt.number for prompt in session.prompts}, "not the session's prompts are shown")
        read = {marked.number for marked in session._nodes.read(session.volume)}
        count = self.scene.GetNumberOfNodesByClass("vtkMRMLMarkupsDisplayNode")
        displays = [self.scene.GetNthNodeByClass(n, "vtkMRMLMarkupsDisplayNode") for n in range(count)]
        left = [node.GetID() for node in displays if node.GetDisplayableNode() is None]
        self._expect(not left, f"display nodes are left: {left}")
        self._expect(read == set(told), f"the nodes hold {sorted(map(str, read))} and the session {sorted(told)}")

    def _check_segments(self) -> None:
        """Every segment holds what its masks hold when computed again, except voxels that another segment has or had.
        """
        session = self.session
        volume = session.volume
        record = read_record(self.scene, session.volume_node, session.segmentation_node)
        replayed = replay(record.document, Volume(np.array(volume.array), volume.affine))
        held = {name: segment_voxels(session.segmentation_node, name, volume) for name in self._segments()}
        anything = np.zeros(volume.shape, int)
        for voxels in held.values():
            anything += voxels
        self._expect(anything.max(initial=0) <= 1, "a voxel is in two segments")
        by_value = {value: name for name, value in record.values.items()}
        wanted = {name: np.zeros(volume.shape, bool) for name in held}
        others_told = []
        for info in replayed.segments:
            for place, task in replayed.state.tasks.items():
                if place[0] == info.value and info.value in by_value:
                    points = [part.points[part.labels == 1] for part in task.prompts]
                    merged = np.concatenate(points) if points else None
                    mask = replayed.mask(info.value, task.plane)
                    if self.heard.get(place, b"") not in (b"", np.packbits(mask).tobytes()):
                        others_told.append(place)
                    places = tuple(covered_voxels(mask, task.plane, volume, merged))
                    wanted[by_value[info.value]][places] = True
        for name, voxels in held.items():
            others = np.any([held[other] for other in held if other != name] or [np.zeros(volume.shape, bool)], axis=0)
            for value, had in self.ever.get(session.volume_node.GetName(), {}).items():
                others = others | had if by_value.get(value) != name else others
            extra, missing = voxels & ~wanted[name], wanted[name] & ~voxels & ~others
            counts = f"{extra.sum()} voxels too many and {missing.sum()} too few of {wanted[name].sum()}"
            text = f"segment {name} has {counts}"
            if others_told:
                text += f"; the worker told other masks than a replay gives: {others_told}"
            self._expect(not extra.any() and not missing.any(), text)

    def finish(self) -> None:
        """Close everything; nothing may be left."""
        self.check()
        process = self.worker._starter.process
        nodes = [weakref.ref(node) for node in prompt_nodes(self.scene)]
        session = weakref.ref(self.session)
        self.session.close()
        self._expect(len(self.session._observers) == 0, "observers are remembered")
        self._expect(self._observers() == self.before, f"observers are left: {self.before}, {self._observers()}")
        self.client.close()
        end = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        self._expect(process.poll() is not None, "the worker is left")
        self._expect(len(record_nodes(self.scene)) <= 2, "records are left")
        self.slicer_scene.close()
        self.session = self.host = self.volumes = self.slice_node = None
        gc.collect()
        self._expect(session() is None, "the session is still referenced")
        del nodes
        logging.getLogger().removeHandler(self.errors)

    def remember_memory(self) -> None:
        gc.collect()
        self.memory.append(memory_in_use())

    def check_memory(self) -> None:
        """The last third against the first, once the caches are warm."""
        if len(self.memory) < 6:
            return
        third = len(self.memory) // 3
        before, after = float(np.median(self.memory[third : 2 * third])), float(np.median(self.memory[2 * third :]))
        grown = after - before
        self._expect(grown <= max(_GROWTH * before, _GROWTH_BYTES), f"memory grew by {grown / 2**20:.0f} MiB")

    def _expect(self, holds, text: str) -> None:
        if not holds:
            self.failures.append(text)

    def _observers(self) -> list[int]:
        """What VTK itself says of the nodes that outlive a session; display nodes come and go with views."""
        names = ("vtkMRMLSelectionNode", "vtkMRMLInteractionNode")
        things = (self.scene, *(self.scene.GetSingletonNode("Singleton", name) for name in names))
        return [str(thing).count("vtkObserver (") for thing in things]


_ACTIONS = {
    "place": 24,
    "place_with_slicer": 12,
    "drag": 14,
    "delete": 5,
    "delete_with_slicer": 5,
    "undo": 10,
    "redo": 6,
    "clear": 2,
    "propagate": 6,
    "toggle_3d": 3,
    "cancel": 4,
    "find_objects": 1,
    "edit_segments": 4,
    "show_3d": 2,
    "embed": 2,
    "switch_volume": 4,
    "save_and_load": 3,
    "kill_worker": 1.5,
}


def replay(document: dict, volume: Volume):
    """A session of its own, in this process, from the stored prompts."""
    from stored_sessions import restored

    document = json.loads(json.dumps(document))
    document["volume"] = {"digest": volume.digest, "shape": list(volume.shape)}
    return restored(document, volume, bundled_predictor())


def bundled_predictor():
    global _predictor
    if _predictor is None:
        from SAMFineTuneLib.service.open_models import Engines

        _predictor = Engines().predictor("compact", "", "auto")
        _predictor.cache.memory_bytes = 8 << 20  # this process is watched for growth
    return _predictor


_predictor = None


def memory_in_use() -> int:
    """Bytes of this process that are its own."""
    with open("/proc/self/statm") as file:
        _, resident, shared, *_ = map(int, file.read().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def use(seed: int, steps: int | None = None, minutes: float | None = None, verbose: bool = False) -> RandomUse:
    """Use a scene for so many steps or minutes, then check; `failures` of the result says what did not hold."""
    with tempfile.TemporaryDirectory() as folder:
        someone = RandomUse(seed, Path(folder), verbose)
        bundled_predictor()
        begun, count = time.monotonic(), 0
        try:
            while (steps is None or count < steps) and (minutes is None or time.monotonic() - begun < 60 * minutes):
                someone.step()
                count += 1
                if count % 10 == 0:
                    someone.remember_memory()
                if count % 25 == 0:
                    someone.check()
                if count % 500 == 0:
                    print(f"{(time.monotonic() - begun) / 60:.1f} minutes, {count} steps, "
                          f"{someone.memory[-1] / 2**20:.0f} MiB", flush=True)  # fmt: skip
                if someone.failures:
                    break
            someone.check_memory()
            longest = someone.host.longest
            someone.finish()
        except Exception:
            print(f"seed {seed}, step {count}, last done: {list(someone.done)}", file=sys.stderr)
            raise
        if someone.failures:
            print(f"seed {seed}, step {count}, last done: {list(someone.done)}", file=sys.stderr)
        memory = [in_use >> 20 for in_use in someone.memory[:: max(1, len(someone.memory) // 8)]]
        print(f"{count} steps in {(time.monotonic() - begun) / 60:.1f} minutes: {dict(someone.counts)}")
        outcome = someone.failures or "all well"
        print(f"longest round {1000 * longest:.0f} ms; memory {memory} MiB; {outcome}", flush=True)
        return someone


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    steps = arguments.steps or (None if arguments.minutes else 200)
    return 1 if use(arguments.seed, steps, arguments.minutes, arguments.verbose).failures else 0


if __name__ == "__main__":
    sys.exit(main())
