"""Draws the panel in the stand-in, for the guide: `python Testing/slicer_module/draw_panel.py docs/pictures`.

It writes the four tabs as panel-segment.png, panel-automatic.png, panel-train.png and panel-settings.png, the export
dialog as panel-export.png, and the first tab on a small screen as panel-small.png. `--size` is the room that Slicer
leaves the panel on a screen of 1600 × 1000. Slicer's own widgets
(selectors, segment table) look different there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parents[1] / "SAMFineTune")]

import standin  # noqa: E402

standin.install()

import numpy as np  # noqa: E402
import slicer  # noqa: E402
from desktop import Desktop  # noqa: E402
from mrml.scenes import SlicerScene, oriented_image_of  # noqa: E402

from SAMFineTuneLib.images.phantom import body_phantom  # noqa: E402

SMALL = (400, 520)  # width and height that Slicer leaves the panel on a screen of 1280 × 720
ORGANS = ((1, "liver"), (4, "left kidney"), (2, "spleen"))


def draw(folder: Path, size: tuple[int, int], steps: int) -> None:
    """Work in every tab, then a picture of each."""
    scene = SlicerScene()
    desktop = Desktop(scene)
    panel = desktop.open()
    window = desktop.widget.parent
    window.resize(*size)

    def save(name, widget=window):
        desktop.pass_time(0.5)
        widget.grab().save(str(folder / f"panel-{name}.png"))

    if steps:
        train(desktop, scene, steps)
        window.resize(size[0], 1050)
        save("train")
        window.resize(*size)
        slicer.mrmlScene.Clear(False)
        panel.open_tab("segment")
    segment_organs(desktop)
    save("segment")
    window.resize(*SMALL)
    save("small")
    window.resize(*size)
    panel.export.ui.formatSelector.setCurrentIndex(1)
    panel.export.ui.folderEdit.currentPath = "/data/study"
    panel.export.open()
    save("export", panel.export.dialog)
    panel.export.dialog.hide()
    panel.open_tab("automatic")
    panel.automatic.ui.findButton.click()
    desktop.wait(lambda: panel.automatic.ui.objectsTable.rowCount > 0 and not panel.host.jobs, 600)
    save("automatic")
    panel.open_tab("settings")
    desktop.wait(lambda: panel.model.ui.modelSelector.count > 3)
    save("settings")
    desktop.close()
    scene.close()


def segment_organs(desktop: Desktop) -> None:
    """A click into each of three organs of the phantom."""
    node, volume, labels = desktop.load_phantom(shape=(40, 256, 256), spacing=(1.4, 1.4, 3.0), seed=0)
    node.SetName("BodyPhantom")
    panel = desktop.panel
    desktop.wait(lambda: panel.host.session is not None and panel.host.session.volume_node is node)
    panel.input.align_views()
    for value, name in ORGANS:
        if value != ORGANS[0][0]:
            panel.segments.add()
        places = np.argwhere(labels == value)
        middle = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()][::-1]
        view = desktop.views["Red"]
        view.go_to(volume.ijk_to_ras(middle))
        panel.prompts.choose("positive")
        view.click(view.xy_of(volume.ijk_to_ras(middle)))
        desktop.wait(lambda: panel.host.session.state is not None and panel.host.session.state.settled)
        segmentation = panel.host.session.segmentation_node.GetSegmentation()
        segmentation.GetSegment(panel.host.session.current_segment_id).SetName(name)
        desktop.pass_time(0.5)


def train(desktop: Desktop, scene: SlicerScene, steps: int) -> None:
    """A short training on three annotated phantoms, in the Train tab."""
    for number in range(1, 4):
        volume, labels, _ = body_phantom(seed=number, shape=(3, 64, 64), spacing=(5.4, 5.4, 40.0))
        node = scene.add_volume(volume, f"CT {number}")
        segmentation = scene.add_segmentation(node, (), "drawn by hand")
        for value, name in ORGANS[:2]:
            image = oriented_image_of((labels == value).astype(np.uint8), volume.affine)
            segmentation.AddSegmentFromBinaryLabelmapRepresentation(image, name)
    from SAMFineTunePanels.qt_helpers import choose_in

    panel = desktop.panel
    panel.open_tab("train")
    ui = panel.train.ui
    desktop.wait(lambda: ui.casesTable.rowCount == 3)
    ui.stepsSpinBox.setValue(steps)
    ui.batchSpinBox.setValue(2)
    choose_in(ui.headsSelector, "promptable")
    choose_in(ui.evidenceSelector, "shots")
    ui.evidenceSpinBox.setValue(2)
    ui.startButton.click()
    desktop.wait(lambda: panel.train.runs.run is not None and panel.train.runs.run.state == "done", 3600)
    desktop.pass_time(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="460x800", help="width x height of the panel")
    parser.add_argument("--steps", type=int, default=10, help="of the training; 0 leaves the picture of it out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SAMFINETUNE_HOME"] = home
        width, height = map(int, arguments.size.split("x"))
        draw(arguments.folder, (width, height), arguments.steps)


if __name__ == "__main__":
    main()
