"""Draws the Cohort tab in the stand-in, for docs/cohort.md: `python Testing/slicer_module/draw_cohort.py DEMO FOLDER`.

DEMO is what `samfinetune demo --cohort` leaves, after `samfinetune cohort train` and `propose`; a copy of it is used.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parents[1] / "SAMFineTune")]

import standin  # noqa: E402

standin.install()

import numpy as np  # noqa: E402
import qt  # noqa: E402
from desktop import Desktop  # noqa: E402
from mrml.scenes import SlicerScene  # noqa: E402
from PIL import Image  # noqa: E402
from service.department import TOKEN, Department  # noqa: E402

from SAMFineTuneLib.cohort.cohort_folder import Cohort  # noqa: E402

SIZE = (460, 640)
SMALL = (400, 520)  # what Slicer leaves the panel on a screen of 1280 × 720


def draw(demo: Path, folder: Path) -> None:
    """Go through the tutorial, and take a picture of each step."""
    scene = SlicerScene()
    desktop = Desktop(scene, size=(460, 340))
    panel = desktop.open()
    tab, window = panel.cohort, desktop.widget.parent
    window.resize(*SIZE)
    panel.open_tab("cohort")

    def save(name):
        desktop.pass_time(1.5)
        window.grab().save(str(folder / f"cohort-{name}.png"))

    window.resize(SIZE[0], 320)
    tab.ui.folderEdit.currentPath = str(demo / "images")
    tab.ui.labelsEdit.setText("liver, spleen, right kidney")
    save("1")
    window.resize(*SIZE)
    tab.ui.folderEdit.currentPath = str(demo)
    tab.ui.openButton.click()
    desktop.wait(lambda: tab.review is not None and len(tab.list.keys) == len(tab.review.cohort.state.cases))
    tab.review.next()
    desktop.wait(lambda: tab.review.open is not None)
    desktop.wait(lambda: panel.host.session.at_rest)
    desktop.pass_time(12.0)  # the small pictures come one by one
    save("2")
    window.resize(*SMALL)
    save("small")
    window.resize(*SIZE)
    draw_menu(desktop, tab, folder / "cohort-5.png")
    panel.input.align_views()
    tab.review.jump(12)
    desktop.pass_time(1.5)
    view = desktop.views["Red"]
    pixels = view.pixels()[::-1, :, :3]
    strip = tab.review.strip
    strip.widget.resize(pixels.shape[1], strip.widget.height)
    from SAMFineTunePanels.shown_views import shown_slice

    band = strip.picture(pixels.shape[1], shown_slice(panel.host.session.volume, "axial"))
    Image.fromarray(np.concatenate([band, pixels])).save(folder / "cohort-4.png")
    tab.ui.trainButton.click()
    desktop.wait(lambda: "step" in tab.ui.workLabel.text, 1200)
    save("3")
    for _ in range(2):
        tab.ui.stopButton.click()
    desktop.close()
    scene.close()


def draw_served(demo: Path, folder: Path) -> None:
    """The row of a server's cohorts."""
    scene = SlicerScene()
    department = Department(Cohort(demo / "cohort"), demo / "server")
    desktop = Desktop(scene, size=(460, 340))
    panel = desktop.open()
    desktop.widget.parent.resize(SIZE[0], 320)
    panel.open_tab("settings")
    ui = panel.server.ui
    ui.remoteButton.click()
    ui.addressEdit.text, ui.tokenEdit.text = department.address, TOKEN
    ui.applyButton.click()
    panel.open_tab("cohort")
    desktop.wait(lambda: not panel.cohort.ui.servedFrame.isHidden(), 120)
    desktop.pass_time(1.5)
    desktop.widget.parent.grab().save(str(folder / "cohort-6.png"))
    desktop.close()
    scene.close()
    department.kill()


def draw_menu(desktop: Desktop, tab, path: Path) -> None:
    """The menu behind ⋯, and beside it the dialog for the export."""
    menu, export = tab.ui.moreButton.menu(), tab.menu.export
    export.open(tab.menu.folder)
    export.ui.folderEdit.currentPath = "Dataset001_Abdomen"
    menu.popup(qt.QPoint(0, 0))
    desktop.pass_time(0.5)
    parts = []
    for number, widget in enumerate((menu, export.dialog)):
        part = path.with_suffix(f".{number}.png")
        widget.grab().save(str(part))
        parts.append(Image.open(part).convert("RGB"))
        part.unlink()
        widget.hide()
    size = sum(part.width for part in parts) + 20, max(part.height for part in parts)
    both = Image.new("RGB", size, "white")
    both.paste(parts[0], (0, 0))
    both.paste(parts[1], (parts[0].width + 20, 0))
    both.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        os.environ["SAMFINETUNE_HOME"] = home
        copy = Path(tempfile.gettempdir()) / "demo-cohort"  # is seen in the first picture
        shutil.copytree(arguments.demo, copy)
        try:
            draw_served(copy, arguments.folder)
            draw(copy, arguments.folder)
        finally:
            shutil.rmtree(copy)


if __name__ == "__main__":
    main()
