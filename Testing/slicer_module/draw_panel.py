"""Draws the panel in the stand-in, for the guide: `python Testing/slicer_module/draw_panel.py docs/pictures/panel.png`,
and with `--train` the section Train after a short training: `… draw_panel.py docs/pictures/train.png --train`.

Slicer's own widgets (selectors, segment table) look different there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parents[1] / "SAMFineTune")]

import standin  # noqa: E402

standin.install()

import numpy as np  # noqa: E402
from desktop import Desktop  # noqa: E402
from mrml.scenes import SlicerScene, oriented_image_of  # noqa: E402

from SAMFineTuneLib.images.phantom import body_phantom  # noqa: E402

ORGANS = ((1, "liver"), (4, "left kidney"), (2, "spleen"))


def draw(path: str, width: int = 460) -> None:
    """Three organs prompted on the phantom, then a picture of the panel."""
    scene = SlicerScene()
    desktop = Desktop(scene)
    node, volume, labels = desktop.load_phantom(shape=(40, 256, 256), spacing=(1.4, 1.4, 3.0), seed=0)
    node.SetName("BodyPhantom")
    panel = desktop.open()
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
    desktop.pass_time(1.0)
    window = desktop.widget.parent
    window.resize(width, 200)
    desktop.pass_time(0.2)
    window.resize(width, panel.status.widget.height + panel.ui.sections.height + 40)  # nothing to scroll
    desktop.pass_time(0.3)
    window.grab().save(path)
    desktop.close()
    scene.close()


def draw_train(path: str, width: int = 460, steps: int = 60, pictures: int = 2) -> None:
    """Three annotated phantoms, a short training, then a picture of the section."""
    scene = SlicerScene()
    desktop = Desktop(scene)
    for number in range(1, 4):
        volume, labels, _ = body_phantom(seed=number, shape=(8, 96, 96), spacing=(3.6, 3.6, 14.0))
        node = scene.add_volume(volume, f"CT {number}")
        segmentation = scene.add_segmentation(node, (), "drawn by hand")
        for value, name in ORGANS[:2]:
            image = oriented_image_of((labels == value).astype(np.uint8), volume.affine)
            segmentation.AddSegmentFromBinaryLabelmapRepresentation(image, name)
    train = desktop.open().train
    ui = train.ui
    ui.trainSection.collapsed = False
    desktop.wait(lambda: ui.casesTable.rowCount == 3)
    ui.stepsSpinBox.setValue(steps)
    ui.batchSpinBox.setValue(pictures)
    ui.startButton.click()
    desktop.wait(lambda: train.runs.run is not None and train.runs.run.state == "done", 3600)
    desktop.pass_time(1.0)
    window = train.widget
    window.setParent(None)
    window.resize(width, 200)
    window.show()
    desktop.pass_time(0.2)
    window.resize(width, window.sizeHint().height())
    desktop.pass_time(0.3)
    window.grab().save(path)
    window.setParent(desktop.widget.parent)
    desktop.close()
    scene.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        import os

        os.environ["SAMFINETUNE_HOME"] = home
        (draw_train if "--train" in sys.argv else draw)(sys.argv[1])
