"""How long the panel keeps Slicer's window from doing anything else: the longest pieces of its own work.

    python Testing/benchmarks/window_stalls.py [--shape 200,512,512] [-o figures.json]

The panel in the stand-in for Slicer's desktop with three rendered views, the bundled model in its worker process, and a
phantom. Every call into the session, its timer's rounds included, is timed by the clock and by the processor time of
its thread, which a busy computer does not lengthen; Qt's own timer, which wants to fire every 5 ms, says how long the
event loop stood still, rendering included. Not measured: Slicer's window itself.
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

LIVER, KIDNEY = 1, 4
CALLS = ("pump", "place", "undo", "redo", "clear", "propagate", "adopt", "refresh_surface")
TICK = 5  # ms


class Stalls:
    """The longest pieces since `begin`."""

    def __init__(self, session):
        import qt

        self.longest: dict[str, tuple[float, float]] = {}
        self.gap = 0.0
        self._last = time.perf_counter()
        for name in CALLS:
            if hasattr(session, name):
                setattr(session, name, self._timed(name, getattr(session, name)))
        self.timer = qt.QTimer()
        self.timer.setInterval(TICK)
        self.timer.connect("timeout()", self._tick)
        self.timer.start()

    def begin(self) -> None:
        self.longest, self.gap, self._last = {}, 0.0, time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.gap, self._last = max(self.gap, now - self._last), now

    def _timed(self, name, method):
        def timed(*arguments, **options):
            wall, busy = time.perf_counter(), time.thread_time()
            try:
                return method(*arguments, **options)
            finally:
                wall, busy = time.perf_counter() - wall, time.thread_time() - busy
                before = self.longest.get(name, (0.0, 0.0))
                self.longest[name] = max(wall, before[0]), max(busy, before[1])

        return timed

    def row(self) -> dict[str, float]:
        """Milliseconds: the longest piece by the clock and by processor time, which call it was, the longest gap."""
        name = max(self.longest, key=lambda one: self.longest[one][1])
        return {"clock": 1000 * max(wall for wall, _ in self.longest.values()),
                "processor": 1000 * self.longest[name][1], "call": name, "gap": 1000 * self.gap}  # fmt: skip


class Sitting:
    """What a user does, one thing after the other."""

    def __init__(self, desktop, shape):
        spacing = (360 / shape[2], 360 / shape[1], 120 / shape[0])
        self.desktop = desktop
        _, self.volume, self.labels = desktop.load_phantom(seed=0, shape=shape, spacing=spacing)
        self.panel = desktop.open()
        desktop.wait(lambda: getattr(self.panel.host.status, "state", "") == "ready")
        self.panel.input.align_views()
        desktop.pass_time(2.0)
        self.session = self.panel.host.session
        self.stalls = Stalls(self.session)
        self.rows: dict[str, dict] = {}

    def run(self) -> dict[str, dict]:
        box = self._box(KIDNEY, 0)
        self._measure("first box", lambda: self.session.place("box", self._red(KIDNEY), box))
        self.panel.segments.add()
        deep = self._box(LIVER, 10)
        self._measure("3-D box over 20 slices", lambda: self.session.place("box3d", self._red(LIVER), deep))
        first = self.session.segmentation_node.GetSegmentation().GetNthSegmentID(0)
        reach = {"first": max(0, self._middle(KIDNEY)[2] - 15), "last": self._middle(KIDNEY)[2] + 15}
        self._measure("propagation over 30 slices", lambda: self.session.propagate(first, reach, "axial"))
        self._measure("clear all", self.session.clear)
        self._measure("undo of that", self.session.undo)
        found: list = []
        self.panel.host.listen("Objects", found.append)
        at = self._middle(KIDNEY)[2]
        self.session.everything("axial", {"points_per_side": 12, "min_slices": 1}, at, at)
        self.desktop.wait(lambda: bool(found))
        numbers = [info.number for info in found[0].objects[:60]]
        self._measure(f"{len(numbers)} objects become segments", lambda: self.session.adopt(found[0].job, numbers))
        return self.rows

    def _measure(self, what: str, action) -> None:
        self.desktop.pass_time(1.0)
        self.stalls.begin()
        action()
        self.desktop.pass_time(0.3)
        self.desktop.wait(lambda: self.session.at_rest and not self.panel.host.jobs, 300)
        self.rows[what] = self.stalls.row()

    def _middle(self, label: int):
        places = np.argwhere(self.labels == label)
        return [int(round(mean)) for mean in places.mean(axis=0)[::-1]]

    def _red(self, label: int):
        view = self.desktop.views["Red"]
        view.go_to(self.volume.ijk_to_ras(self._middle(label)))
        return view.node

    def _box(self, label: int, slices: int):
        """Two RAS corners around an organ on its middle slice, and as many slices up and down."""
        k = self._middle(label)[2]
        rows, columns = np.nonzero(self.labels[k] == label)
        ends = ((columns.min() - 1, rows.min() - 1, k - slices), (columns.max() + 1, rows.max() + 1, k + slices))
        return [tuple(self.volume.ijk_to_ras(end)) for end in ends]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="200,512,512", help="slices, rows, columns of the phantom")
    parser.add_argument("-o", "--output", help="all rows as JSON")
    arguments = parser.parse_args()
    os.environ["SAMFINETUNE_HOME"] = tempfile.mkdtemp(prefix="window-stalls-")

    import standin

    standin.install()
    from desktop import Desktop
    from mrml.scenes import SlicerScene, quiet_vtk

    with quiet_vtk():
        slicer_scene = SlicerScene()
        desktop = Desktop(slicer_scene, size=(500, 500))
        try:
            rows = Sitting(desktop, tuple(map(int, arguments.shape.split(",")))).run()
        finally:
            desktop.close()
            slicer_scene.close()
    print("| what | longest piece of own work, processor time (ms) | in | by the clock (ms) | longest gap (ms) |")
    print("|---|---:|---|---:|---:|")
    for what, row in rows.items():
        print(f"| {what} | {row['processor']:.0f} | {row['call']} | {row['clock']:.0f} | {row['gap']:.0f} |")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
