"""How long one mask takes to get into a segment: this library against Slicer's own ways.

    python Testing/benchmarks/segment_writing.py
    python Testing/benchmarks/segment_writing.py --size 512 512 300 --repeats 15

A segmentation of two neighbours in one shared labelmap, each drawn on most slices, first without and then with a
closed surface. Each way writes the same round mask on slices of the volume one after the other; the table shows
milliseconds as medians, with the slowest in brackets, and how many times the library's median that is.

On a machine that is busy with other things, `--processor` counts what the calling thread computed instead of the
time that passed; work in VTK's own threads is then left out, which flatters Slicer's ways a little.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

clock = time.perf_counter
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing")]

from mrml.scenes import SlicerScene, oriented_image_of, protect_others  # noqa: E402

from SAMFineTuneLib.images.slice_plane import aligned_plane, oblique_plane  # noqa: E402
from SAMFineTuneLib.images.volume import Volume  # noqa: E402
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter  # noqa: E402
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(512, 512, 300), metavar=("I", "J", "K"))
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON too")
    parser.add_argument("--processor", action="store_true", help="count processor time of the calling thread")
    arguments = parser.parse_args()
    if arguments.processor:
        globals()["clock"] = time.thread_time
    figures = {}
    for surface in (False, True):
        bench = Bench(tuple(arguments.size), surface)
        repeats = arguments.repeats
        figures["with a closed surface" if surface else "without a surface"] = {
            "first mask, memory made": bench.first_mask(),
            "mask on an axial slice": bench.ours("axial", repeats),
            "mask on a coronal slice": bench.ours("coronal", repeats),
            "mask on a sagittal slice": bench.ours("sagittal", repeats),
            "mask on an oblique plane": bench.ours("oblique", repeats),
            "mask taken back": bench.taken_back(repeats),
            "ModifySegmentByLabelmap, Add": bench.logic_add(min(repeats, 5)),
            "ModifySegmentByLabelmap, Remove + Add": bench.logic_remove_add(min(repeats, 5)),
            "SetBinaryLabelmapToSegment, whole array": bench.whole_array(3),
        }
        if surface:
            figures["with a closed surface"]["surface refreshed afterwards"] = bench.refresh(3)
        bench.close()
    print_table(figures, tuple(arguments.size))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1))


def print_table(figures: dict, size) -> None:
    print("×".join(map(str, size)), "voxels, two segments in one labelmap")
    print("ms, median (slowest), and how many times an axial mask")
    for state, ways in figures.items():
        print(f"\n{state}")
        reference = np.median(ways["mask on an axial slice"])
        for way, times in ways.items():
            median = np.median(times)
            print(f"  {way:42}{median:9.1f} ({max(times):.0f}){median / reference:9.1f} ×")


class Bench:
    """The segmentation, and every way of writing into it."""

    def __init__(self, size: tuple[int, int, int], surface: bool):
        self.slicer_scene = SlicerScene()
        affine = np.diag([-0.7, -0.7, 1.0, 1.0])
        self.shape = size[::-1]
        array = np.broadcast_to((np.arange(size[0]) % 400).astype(np.int16), self.shape)
        self.volume_node = self.slicer_scene.add_volume(Volume(array, affine))
        self.volume = volume_from_node(self.volume_node)
        self.node = self.slicer_scene.add_segmentation(self.volume_node)
        self.logic, self.editor = self.slicer_scene.add_editor(self.node, self.volume_node)
        for segment, centre in (("first", 0.3), ("second", 0.7)):
            self._draw(segment, centre)
        if surface:
            self.node.CreateClosedSurfaceRepresentation()
        protect_others(self.editor)
        self.writer = SegmentWriter(self.node, self.volume_node, self.volume)
        self.writer.editor_node = lambda: self.editor
        self.editor.SetSelectedSegmentID("first")

    def close(self) -> None:
        self.writer.close()
        self.slicer_scene.close()

    def _draw(self, segment: str, centre: float) -> None:
        k, j, i = (np.linspace(0, 1, n, dtype=np.float32) for n in self.shape)
        ball = (i - centre) ** 2 + ((j - 0.5) ** 2)[:, None] + ((k - 0.5) ** 2 * 0.2)[:, None, None] < 0.03
        image = oriented_image_of(ball.astype(np.uint8), self.volume.affine)
        self.logic.ModifySegmentByLabelmap(self.node, segment, image, self.logic.ModificationModeAdd, True, False)

    def _planes(self, kind: str, count: int) -> list:
        if kind == "oblique":
            middle = (np.array(self.shape[::-1]) - 1) / 2
            origins = [self.volume.ijk_to_ras(middle + (0, 0, 5 * step)) for step in range(count)]
            return [oblique_plane(self.volume, origin, (-1, 0.2, 0.3), (0.1, -1, 0.4)) for origin in origins]
        length = {"axial": self.shape[0], "coronal": self.shape[1], "sagittal": self.shape[2]}[kind]
        return [aligned_plane(self.volume, kind, int(length * 0.4) + 3 * step) for step in range(count)]

    @staticmethod
    def _disc(plane) -> np.ndarray:
        """A round mask of a fifth of the picture, over both neighbours."""
        rows, columns = np.indices(plane.shape)
        middle = np.array(plane.shape) / 2
        return np.hypot(rows - middle[0], columns - middle[1]) < 0.25 * min(plane.shape)

    def first_mask(self) -> list[float]:
        plane = self._planes("axial", 1)[0]
        mask = self._disc(plane)
        times = timed([lambda: self.writer.write("first", plane, mask)])
        self.writer.write("first", plane, None)
        return times

    def ours(self, kind: str, repeats: int) -> list[float]:
        """Each plane gets one mask and then another, as when a second point is placed: the second is timed."""
        planes = self._planes(kind, repeats)
        masks = [self._disc(plane) for plane in planes]
        for plane, mask in zip(planes, masks, strict=True):
            self.writer.write("first", plane, mask)
        moved = [np.roll(mask, 9, axis=1) for mask in masks]
        return timed(
            [lambda p=p, m=m: self.writer.write("first", p, m) for p, m in zip(planes, moved, strict=True)]
        )

    def taken_back(self, repeats: int) -> list[float]:
        planes = self._planes("axial", repeats)
        return timed([lambda p=plane: self.writer.write("first", p, None) for plane in planes])

    def _modifier(self, index: int):
        plane = self._planes("axial", 1)[0]
        mask = self._disc(plane).astype(np.uint8)[None]
        return oriented_image_of(mask, self.volume.affine, (0, 0, index))

    def logic_add(self, repeats: int) -> list[float]:
        images = [self._modifier(self.shape[0] // 2 + 3 * step) for step in range(repeats)]
        mode = self.logic.ModificationModeAdd
        return timed(
            [
                lambda m=image: self.logic.ModifySegmentByLabelmap(self.node, "first", m, mode, True, False)
                for image in images
            ]
        )

    def logic_remove_add(self, repeats: int) -> list[float]:
        images = [self._modifier(self.shape[0] // 2 + 3 * step) for step in range(repeats)]

        def both(image):
            for mode in (self.logic.ModificationModeRemove, self.logic.ModificationModeAdd):
                self.logic.ModifySegmentByLabelmap(self.node, "first", image, mode, True, False)

        return timed([lambda m=image: both(m) for image in images])

    def whole_array(self, repeats: int) -> list[float]:
        """The core of `slicer.util.updateSegmentBinaryLabelmapFromArray`, which also copies and needs more."""
        import slicer

        logic = slicer.vtkSlicerSegmentationsModuleLogic
        array = np.zeros(self.shape, np.uint8)
        plane = self._planes("axial", 1)[0]
        array[self.shape[0] // 2] = self._disc(plane)

        def write():
            image = oriented_image_of(array, self.volume.affine)
            logic.SetBinaryLabelmapToSegment(image, self.node, "first", logic.MODE_REPLACE)

        return timed([write] * repeats)

    def refresh(self, repeats: int) -> list[float]:
        times = []
        for step in range(repeats):
            plane = self._planes("axial", repeats)[step]
            self.writer.write("first", plane, self._disc(plane))
            self.writer.write("first", plane, None)
            times += timed([self.writer.refresh_surface])
        return times


def timed(calls) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for call in calls:
        begin = clock()
        call()
        times.append((clock() - begin) * 1000)
    return times


if __name__ == "__main__":
    main()
