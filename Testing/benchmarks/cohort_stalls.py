"""How long the Cohort tab keeps Slicer's window from doing anything else, while cases are shown, accepted and closed.

    python Testing/benchmarks/cohort_stalls.py [--shape 300,512,512] [-o figures.json]

The panel in the stand-in for Slicer's desktop with three rendered views, and three phantoms whose labels are corrected.
Each turn of the panel's timer and each action is timed by the clock and by the processor time of the whole process,
which a busy computer does not lengthen; and how long it takes, all in all, until it is seen. Rendering between the
turns is not counted, nor is Slicer's window itself, nor the stand-in's selectors, which list all nodes whenever one
comes or goes. Of closing the scene the panel's part has a row of its own; the other row has MRML's, too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing"), str(ROOT / "Testing" / "slicer_module"), str(ROOT / "SAMFineTune")]

NAMES = {1: "liver", 4: "left kidney"}  # by the phantom's labels
PATIENCE = 600.0  # s


class Pieces:
    """(processor ms, clock ms) of the pieces in which the window can do nothing else."""

    def __init__(self):
        self.found: list[tuple[float, float]] = []
        self._left_out = 0.0, 0.0  # processor and clock, s

    def timed(self, function):
        def call(*arguments):
            busy, clock = self._now()
            try:
                return function(*arguments)
            finally:
                now = self._now()
                self.found.append((1000 * (now[0] - busy), 1000 * (now[1] - clock)))

        return call

    def left_out(self, function):
        def call(*arguments):
            begun = time.process_time(), time.perf_counter()
            try:
                return function(*arguments)
            finally:
                spent = time.process_time() - begun[0], time.perf_counter() - begun[1]
                self._left_out = self._left_out[0] + spent[0], self._left_out[1] + spent[1]

        return call

    def _now(self) -> tuple[float, float]:
        return time.process_time() - self._left_out[0], time.perf_counter() - self._left_out[1]


def make_cohort(folder: Path, shape: tuple[int, int, int]):
    """Three scans as files, and a cohort in which all have a correction."""
    import SimpleITK as sitk

    from SAMFineTuneLib.cohort.create_cohort import create_cohort
    from SAMFineTuneLib.cohort.find_images import find_images
    from SAMFineTuneLib.cohort.review import keep_correction
    from SAMFineTuneLib.images.phantom import body_phantom
    from SAMFineTuneLib.images.sitk_images import to_sitk

    spacing = (360 / shape[2], 360 / shape[1], 300 / shape[0])
    volume, labels, _ = body_phantom(seed=0, shape=shape, spacing=spacing)
    scans = folder / "scans"
    scans.mkdir()
    for number in range(3):
        array = volume.array.copy()
        array[0, 0, number] += 7  # another image each
        sitk.WriteImage(to_sitk(array, volume.affine), str(scans / f"scan{number}.mha"))
    cohort = create_cohort(folder / "cohort", find_images(scans), list(NAMES.values())).cohort
    own = np.zeros(labels.shape, np.uint8)
    for value, label in enumerate(NAMES, start=1):
        own[labels == label] = value
    for case in cohort.state.cases:
        keep_correction(cohort, case.key, own)
    return cohort


class Sitting:
    """What a reviewer does, one thing after the other."""

    def __init__(self, desktop, cohort, pieces: Pieces, closing: Pieces):
        self.desktop, self.pieces, self.closing = desktop, pieces, closing
        self.panel = desktop.open()
        self.panel.open_tab("cohort")
        self.tab = self.panel.cohort
        self.tab._open(cohort.folder)
        self.rows: dict[str, dict[str, float]] = {}

    def run(self) -> dict[str, dict[str, float]]:
        import slicer

        review = self.tab.review
        self._measure("first case shown", review.next, lambda: review.open is not None)
        before = self._edited()
        self._measure("accepted, next case shown", review.accept,
                      lambda: review.open not in (None, before) and not review.waits,
                      lambda: not review._writing)  # fmt: skip
        self._edited()
        self._measure("scene closed", lambda: slicer.mrmlScene.Clear(False), lambda: not review._writing)
        busy, clock = max(self.closing.found)
        self.rows["scene closed, the panel's part"] = {"processor": busy, "clock": clock}
        return self.rows

    def _edited(self):
        """The open case, with labels that are to be written; the next one is loaded."""
        review = self.tab.review
        self.desktop.wait(lambda: review.coming.key is not None and self.panel.host.session.at_rest, PATIENCE)
        image = review.open.segmentation_node.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
        image.GetPointData().GetScalars().Modified()
        self.desktop.pass_time(2.0)
        return review.open

    def _measure(self, what: str, action, seen, done=lambda: True) -> None:
        self.pieces.found.clear()
        begun = time.perf_counter()
        self.pieces.timed(action)()
        self.desktop.wait(seen, PATIENCE)
        seconds = time.perf_counter() - begun
        self.desktop.wait(done, PATIENCE)
        self.desktop.pass_time(0.5)
        busy, clock = max(self.pieces.found)
        self.rows[what] = {"processor": busy, "clock": clock, "seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="300,512,512", help="slices, rows, columns of the phantoms")
    parser.add_argument("-o", "--output", help="all rows as JSON")
    arguments = parser.parse_args()

    import standin

    standin.install()
    from desktop import Desktop
    from mrml.scenes import SlicerScene, quiet_vtk
    from SAMFineTunePanels.panel import Panel
    from SAMFineTunePanels.session_host import Host
    from standin.widgets import qMRMLNodeComboBox

    pieces, closing = Pieces(), Pieces()
    for name in ("_scene_starts_closing", "_scene_closed"):
        setattr(Panel, name, closing.timed(getattr(Panel, name)))
    Host.turn = pieces.timed(Host.turn)
    qMRMLNodeComboBox._nodes = pieces.left_out(closing.left_out(qMRMLNodeComboBox._nodes))
    with quiet_vtk(), tempfile.TemporaryDirectory(prefix="cohort-stalls-") as folder:
        os.environ["SAMFINETUNE_HOME"] = str(Path(folder) / "home")
        cohort = make_cohort(Path(folder), tuple(map(int, arguments.shape.split(","))))
        slicer_scene = SlicerScene()
        desktop = Desktop(slicer_scene, size=(500, 500))
        try:
            rows = Sitting(desktop, cohort, pieces, closing).run()
        finally:
            desktop.close()
            slicer_scene.close()
    print("| what | longest piece, processor time (ms) | the same by the clock (ms) | seen after (s) |")
    print("|---|---:|---:|---:|")
    for what, row in rows.items():
        seconds = f"{row['seconds']:.1f}" if "seconds" in row else ""
        print(f"| {what} | {row['processor']:.0f} | {row['clock']:.0f} | {seconds} |")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
