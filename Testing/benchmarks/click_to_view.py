"""From a click in a slice view to the refreshed views: how long it takes, and where the time goes.

    python Testing/benchmarks/click_to_view.py [--shape 200,512,512] [--clicks 40] [--surface] [-o figures.json]

The panel in the stand-in for Slicer's desktop, with all that is behind it: Slicer's place mode and markups, the
panel's own timer in Qt's event loop, the session, the bundled model in its worker process, the segment, and three slice
views of 500 × 500 pixels, rendered off-screen by Slicer's displayable managers. Not measured: Slicer's window itself.

Clicks are warm: worker, model and volume are there, and the views are aligned with the volume. They go into organs of
the phantom, on another slice each time (encoder and decoder) or again on the same one (decoder); after a pause, when
the panel's timer has slowed down, or one soon after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing"), str(ROOT / "Testing" / "slicer_module"), str(ROOT / "SAMFineTune")]

STAGES = {
    "place": "Slicer places the markup",
    "notice": "the panel's timer comes round, the markup becomes an intent",
    "send": "the intent is sent",
    "answer": "the worker answers, and the timer fetches it",
    "write": "the mask is written into the segment",
    "session": "bookkeeping in the scene",
    "render": "the views are rendered",
}
ORGANS = ("liver", "spleen", "right kidney", "left kidney")
PAUSES = {"after a pause": 1.6, "one after the other": 0.25}  # s before a click
SMALLEST = 0.002  # of a slice: less of an organ is not clicked
CORRECTIONS = 5  # clicks on a slice after its first one


class Stopwatch:
    """Times of the last calls of the functions that it wraps."""

    def __init__(self):
        self.at: dict[str, float] = {}
        self.writing = 0.0

    def reset(self) -> None:
        self.at, self.writing = {}, 0.0

    def mark(self, name: str) -> None:
        self.at.setdefault(name, time.perf_counter())

    def around(self, owner, name: str, after=None, before=None) -> None:
        """Call `before()` ahead of a method of an object, `after(result, seconds)` behind it."""
        method = getattr(owner, name)

        def timed(*arguments, **options):
            if before is not None:
                before()
            start = time.perf_counter()
            result = method(*arguments, **options)
            if after is not None:
                after(result, time.perf_counter() - start)
            return result

        setattr(owner, name, timed)

    def follow(self, session) -> None:
        """Everything on the way of a click."""
        client = session.client
        self.around(client, "add_prompt", before=lambda: self.mark("noticed"))
        self.around(client._connection, "send", before=lambda: "noticed" in self.at and self.mark("sent"))
        self.around(client, "pump", after=self._heard)
        self.around(session._work.writer, "write", after=self._wrote)
        self.around(session, "pump", after=lambda *_: "wrote" in self.at and self.mark("shown"))

    def _heard(self, events, _) -> None:
        if any(type(event).__name__ == "MaskChanged" for event in events):
            self.mark("heard")

    def _wrote(self, _, seconds: float) -> None:
        self.writing += seconds
        self.at["wrote"] = time.perf_counter()

    def stages(self, start: float, placed: float, end: float) -> dict[str, float]:
        """Milliseconds by stage."""
        at = self.at
        ends = [start, placed, at["noticed"], at["sent"], at["heard"], at["shown"], end]
        place, notice, send, answer, shown, render = np.diff(ends)
        values = (place, notice, send, answer, self.writing, shown - self.writing, render)
        return {name: 1000 * value for name, value in zip(STAGES, values, strict=True)} | {"all": 1000 * (end - start)}


class Clicker:
    """Clicks into organs of the phantom."""

    def __init__(self, desktop, shape, seed: int = 0):
        spacing = (360 / shape[2], 360 / shape[1], 120 / shape[0])
        self.desktop, self.random = desktop, np.random.default_rng(seed)
        self.node, self.volume, self.labels = desktop.load_phantom(seed=0, shape=shape, spacing=spacing)
        self.node.GetDisplayNode().SetAutoWindowLevel(False)
        self.node.GetDisplayNode().SetWindowLevel(400, 40)
        self.panel = desktop.open()
        desktop.wait(lambda: getattr(self.panel.host.status, "state", "") == "ready")
        self.panel.input.align_views()  # the phantom is tilted
        self.view = desktop.views["Red"]
        self.stopwatch = Stopwatch()
        self._followed = False

    def new_segment(self) -> None:
        """The clicks that follow are for a segment of their own, and may go anywhere again."""
        self.panel.segments.add()
        self._slices = list(self.random.permutation(len(self.labels)))

    def on_another_slice(self) -> tuple[int, int, np.ndarray]:
        """(slice, label, RAS of a voxel well inside that organ), on a slice that has not been clicked."""
        while True:
            index, value = self._slices.pop(), int(self.random.integers(1, len(ORGANS) + 1))
            if np.count_nonzero(self.labels[index] == value) > SMALLEST * self.labels[index].size:
                return index, value, self.inside(index, value)

    def inside(self, index: int, value: int) -> np.ndarray:
        """RAS of a voxel well inside an organ on a slice."""
        rows, columns = (self.labels[index] == value).nonzero()
        distance = np.hypot(rows - rows.mean(), columns - columns.mean())
        at = self.random.choice(np.argsort(distance)[: max(1, len(rows) // 4)])
        return self.volume.ijk_to_ras(np.array([columns[at], rows[at], index], float))

    def show(self, ras) -> None:
        """Scroll there, as the user does before clicking."""
        for view in self.desktop.views.values():
            view.go_to(ras)
            view.render()

    def click(self, ras, pause: float) -> dict[str, float]:
        """One click, milliseconds by stage; `pause` seconds after whatever was before."""
        self.show(ras)
        self.desktop.pass_time(pause + self.random.uniform(0, 0.1))
        xy = np.array(self.view.xy_of(ras))
        for distance in (90, 60, 40, 20, 8, 2, 0):  # a mouse that arrives
            self.view.move(xy + distance)
            self.desktop.pass_time(0.03)
        watch = self.stopwatch
        watch.reset()
        start = time.perf_counter()
        self.view.press(xy)
        self.view.release(xy)
        placed = time.perf_counter()
        if not self._followed:  # the first click, which is not counted, makes what there is to follow
            self.desktop.wait(lambda: self.panel.host.session._work is not None)
            self.desktop.pass_time(1.0)
            watch.follow(self.panel.host.session)
            self._followed = True
            return {}
        self.desktop.wait(lambda: "shown" in watch.at)
        for view in self.desktop.views.values():
            view.render()
        return watch.stages(start, placed, time.perf_counter())


def measure(clicker: Clicker, clicks: int) -> dict[str, list[dict[str, float]]]:
    """Rows of milliseconds for every situation."""
    rows = {}
    for when, pause in PAUSES.items():
        clicker.new_segment()
        rows[f"another slice, {when}"] = [clicker.click(clicker.on_another_slice()[2], pause) for _ in range(clicks)]
        again = []
        while len(again) < clicks:
            clicker.new_segment()
            index, value, first = clicker.on_another_slice()
            clicker.click(first, pause)
            again += [clicker.click(clicker.inside(index, value), pause) for _ in range(CORRECTIONS)]
        rows[f"same slice, {when}"] = again
    return rows


def report(rows: dict[str, list[dict[str, float]]]) -> None:
    """A table for docs/performance.md: medians, and the slowest tenth."""
    print("| click | median (ms) | 90 % within | " + " | ".join(STAGES) + " |")
    print("|---" + "|---:" * (2 + len(STAGES)) + "|")
    for name, values in rows.items():
        every = [row["all"] for row in values]
        parts = [f"{statistics.median(row[stage] for row in values):.0f}" for stage in STAGES]
        print(f"| {name} | {statistics.median(every):.0f} | {np.percentile(every, 90):.0f} | {' | '.join(parts)} |")
    print()
    for stage, what in STAGES.items():
        print(f"{stage}: {what}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="200,512,512", help="slices, rows, columns of the phantom")
    parser.add_argument("--clicks", type=int, default=40, help="clicks in every situation")
    parser.add_argument("--surface", action="store_true", help="with the closed surface shown")
    parser.add_argument("--limit", type=float, help="fail when a median is above so many milliseconds")
    parser.add_argument("-o", "--output", help="all rows as JSON")
    arguments = parser.parse_args()
    os.environ["SAMFINETUNE_HOME"] = tempfile.mkdtemp(prefix="click-to-view-")

    import standin

    standin.install()
    from desktop import Desktop
    from mrml.scenes import SlicerScene, quiet_vtk

    with quiet_vtk():
        slicer_scene = SlicerScene()
        desktop = Desktop(slicer_scene, size=(500, 500))
        try:
            clicker = Clicker(desktop, tuple(map(int, arguments.shape.split(","))))
            clicker.new_segment()
            for _ in range(2):
                clicker.click(clicker.on_another_slice()[2], 0.3)
            if arguments.surface:
                clicker.panel.host.session.segmentation_node.CreateClosedSurfaceRepresentation()
            rows = measure(clicker, arguments.clicks)
        finally:
            desktop.close()
            slicer_scene.close()
    report(rows)
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    slowest = max(statistics.median(row["all"] for row in values) for values in rows.values())
    return int(arguments.limit is not None and slowest > arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
