"""Draws the Cohort tab in the stand-in, for docs/cohort.md: `python Testing/slicer_module/draw_cohort.py DEMO FOLDER`.

DEMO is what `samfinetune demo --cohort` leaves, after `samfinetune cohort train` and `propose`; a copy of it is used.
The dialog of a PACS needs an Orthanc, see `orthanc_server`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parent / "samples"), str(_HERE.parents[1] / "SAMFineTune")]

import standin  # noqa: E402

standin.install()

import numpy as np  # noqa: E402
import qt  # noqa: E402
from desktop import Desktop  # noqa: E402
from dicom_samples import write_series  # noqa: E402
from mrml.scenes import SlicerScene  # noqa: E402
from orthanc_server import running_orthanc  # noqa: E402
from PIL import Image  # noqa: E402
from SAMFineTunePanels.qt_helpers import quiet  # noqa: E402
from service.department import TOKEN, Department  # noqa: E402

from SAMFineTuneLib.cohort.cohort_folder import Cohort  # noqa: E402
from SAMFineTuneLib.cohort.dicomweb_store import DicomwebStore  # noqa: E402
from SAMFineTuneLib.images.phantom import body_phantom  # noqa: E402

SIZE = (460, 640)
CLOSED = (460, 360)  # before a cohort is open
_COLOURS = 96  # of a picture of the panel, which keeps the repository small


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
        take(window, folder / f"cohort-{name}.png")

    window.resize(*CLOSED)
    tab.ui.folderEdit.currentPath = str(demo / "images")
    tab.ui.labelsEdit.setText("liver, spleen, right kidney")
    with quiet(tab.ui.folderEdit):  # no picture shows where the files of its author lie
        tab.ui.folderEdit.currentPath = "demo-cohort/images"
    tab.ui.whereLabel.text = tab.ui.whereLabel.text.replace(f"{demo.parent}{os.sep}", "")
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
    save_small(Image.fromarray(np.concatenate([band, pixels])), folder / "cohort-4.png")
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
    desktop.widget.parent.resize(*CLOSED)
    panel.open_tab("settings")
    ui = panel.server.ui
    ui.remoteButton.click()
    ui.addressEdit.text, ui.tokenEdit.text = department.address, TOKEN
    ui.applyButton.click()
    panel.open_tab("cohort")
    desktop.wait(lambda: not panel.cohort.ui.servedFrame.isHidden(), 120)
    desktop.pass_time(1.5)
    take(desktop.widget.parent, folder / "cohort-6.png")
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
    save_small(both, path)


def draw_pacs(demo: Path, folder: Path) -> None:
    """The dialog that fetches scans from a PACS."""
    scene = SlicerScene()
    desktop = Desktop(scene)
    dialog = desktop.open().cohort.dicomweb
    with running_orthanc(demo) as port:
        address, user = f"http://127.0.0.1:{port}/dicom-web", ("me", "secret")
        for number, name in enumerate(("Abdomen, portal venous", "Abdomen, native", "Scout")):
            voxels = body_phantom(seed=number, shape=(2 if name == "Scout" else 24, 64, 64), spacing=(5, 5, 5))[0].array
            write_series(demo / "sent" / name, (voxels + 1024).astype(np.uint16), SeriesDescription=name)
            DicomwebStore(address, user=user).store(sorted((demo / "sent" / name).iterdir()))
        dialog.fetch(lambda fetched: None)
        ui = dialog.ui
        ui.addressEdit.text, (ui.userEdit.text, ui.passwordEdit.text) = address, user
        ui.listButton.click()
        desktop.wait(lambda: ui.seriesTable.rowCount == 3)
        ui.addressEdit.text, ui.folderEdit.currentPath = "https://pacs.hospital/dicom-web", "scans"
        scout = next(row for row in range(3) if ui.seriesTable.item(row, 0).text() == "Scout")
        for column in range(3):
            ui.seriesTable.item(scout, column).setSelected(False)
        ui.goButton.setFocus()
        desktop.pass_time(0.5)
        take(dialog.dialog, folder / "cohort-7.png")
    desktop.close()
    scene.close()


def take(widget, path: Path) -> None:
    """Save a picture of a widget."""
    widget.grab().save(str(path))
    save_small(Image.open(path).convert("RGB"), path)


def save_small(picture: Image.Image, path: Path) -> None:
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


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
            draw_pacs(copy, arguments.folder)
            draw_served(copy, arguments.folder)
            draw(copy, arguments.folder)
        finally:
            shutil.rmtree(copy)


if __name__ == "__main__":
    main()
