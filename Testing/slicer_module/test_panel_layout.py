"""Where things are in the panel."""

from __future__ import annotations

import numpy as np
import pytest
import qt
from mrml.scenes import oriented_image_of
from PIL import Image
from test_clicks import LIVER, Work

ROOM = 800  # pixels that Slicer leaves a panel on a screen of 1600 × 1000
WIDTH = 480


def bottom_of(widget, parent):
    return widget.mapTo(parent, widget.rect.bottomLeft()).y()


@pytest.mark.parametrize("width", [350, WIDTH, 500])
def test_all_of_the_segment_tab_is_seen_without_scrolling(desktop, width):
    work = Work(desktop)
    parent = desktop.widget.parent
    parent.resize(width, ROOM)
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()
    for _ in range(6):
        work.panel.segments.add()
    for column in range(7):
        work.click("Red", work.middle_of(LIVER) + (4 * column, 0, 0))
    desktop.wait(lambda: work.ui.promptsTable.rowCount == 8)
    desktop.pass_time(0.2)
    assert not work.panel.tabs.currentWidget().verticalScrollBar().isVisible()
    strip = work.panel.status.widget
    top = strip.mapTo(parent, qt.QPoint(0, 0)).y()
    for widget in (work.ui.volumeSelector, work.ui.segmentsTable, work.ui.promptsTable, work.ui.rangeBox):
        assert widget.isVisible() and bottom_of(widget, parent) < top
    assert bottom_of(strip, parent) < ROOM


def test_on_a_small_screen_the_tools_and_the_segments_are_seen_at_once(desktop):
    """Slicer leaves a panel about this much of 1280 × 720."""
    work = Work(desktop)
    parent = desktop.widget.parent
    parent.resize(400, 520)
    desktop.pass_time(0.2)
    top = work.panel.status.widget.mapTo(parent, qt.QPoint(0, 0)).y()
    for widget in (*work.panel.prompts.buttons.values(), work.ui.addButton, work.ui.segmentsTable):
        assert bottom_of(widget, parent) < top
    work.panel.tabs.currentWidget().ensureWidgetVisible(work.ui.propagateButton)
    desktop.pass_time(0.1)
    assert bottom_of(work.ui.propagateButton, parent) < top


@pytest.fixture
def become_dark(desktop):
    """Changes Slicer's style, as in its settings, while the panel is there."""
    from PySide6.QtGui import QColor, QPalette
    from PySide6.QtWidgets import QApplication

    before, dark = QApplication.palette(), QPalette()
    for role, grey in (("Window", 50), ("Button", 50), ("Base", 25), ("WindowText", 255), ("Text", 255)):
        dark.setColor(getattr(QPalette, role), QColor(grey, grey, grey))

    def change():
        QApplication.setPalette(dark)
        desktop.pass_time(0.2)

    yield change
    QApplication.setPalette(before)


def seen(widget, tmp_path):
    """Grey values [y, x] of a widget."""
    widget.grab().save(str(tmp_path / "seen.png"))
    return np.asarray(Image.open(tmp_path / "seen.png").convert("L"), float)


def test_messages_can_be_read_when_the_style_becomes_dark(desktop, tmp_path, become_dark):
    panel = desktop.open()
    panel.host.say("Something has happened.", "test")
    desktop.pass_time(0.2)
    become_dark()
    picture = seen(panel.status.ui.messageText, tmp_path)
    assert np.median(picture) == 50 and picture.max() > 200


@pytest.mark.parametrize("dark", [False, True])
def test_the_chosen_tool_has_a_plain_frame_in_every_style(desktop, tmp_path, become_dark, dark):
    work = Work(desktop)
    if dark:
        become_dark()
    place, buttons = work.ui.toolsPlace, work.panel.prompts.buttons
    for chosen in ("box", "positive"):
        work.panel.prompts.choose(chosen)
        desktop.pass_time(0.1)
        picture = seen(place, tmp_path)
        for name, button in buttons.items():
            corner = button.mapTo(place, qt.QPoint(0, 0))
            beside = picture[corner.y() - 1, corner.x():corner.x() + button.width]
            assert (abs(beside - np.median(picture)) > 100).all() == (name == chosen)
    work.panel.prompts.wholeButton.click()
    assert work.session.volumetric and work.panel.prompts.wholeButton.parentWidget().frameShape == qt.QFrame.Box


def test_the_tab_key_reaches_everything_in_the_segment_tab_in_its_order(desktop):
    work = Work(desktop)
    desktop.pass_time(0.1)
    row, widget = [], work.ui.windowSelector
    while widget not in row:
        row.append(widget)
        widget = widget.nextInFocusChain()
    tab, tools = work.panel.segment_tab, work.panel.prompts
    buttons = [one for kind in (qt.QPushButton, qt.QToolButton) for one in tab.findChildren(kind)
               if one.objectName.endswith("Button") or one in tools.buttons.values()]  # fmt: skip
    assert len(buttons) > 15
    for button in buttons:
        assert button in row and button.focusPolicy & qt.Qt.TabFocus, button.text
    ui = work.ui
    wanted = [ui.highSpinBox, *tools.buttons.values(), tools.wholeButton, ui.addButton, ui.undoButton, ui.deleteButton,
              ui.promptsTable, ui.directionSelector, ui.propagateButton]  # fmt: skip
    assert sorted(wanted, key=row.index) == wanted


def test_a_sentence_reads_from_left_to_right_whatever_name_it_begins_with(desktop):
    panel = desktop.open()
    text = panel.status.ui.messageText
    for name in ("liver", "\u0643\u0628\u062f"):
        panel.host.warn(f"\u201c{name}\u201d is hidden.", "test")
        first = text.document.begin()
        assert first.text().startswith("\u201c") and first.textDirection() == qt.Qt.LeftToRight


def shown_in_full(button):
    """Whether the text of a button has room in it."""
    return button.width >= button.fontMetrics().horizontalAdvance(button.text) + 4


@pytest.mark.parametrize("width", [350, WIDTH])
def test_no_button_is_cut_and_nothing_is_wider_than_the_panel(desktop, width):
    panel = desktop.open()
    parent = desktop.widget.parent
    parent.resize(width, 1600)
    for tab in ("segment", "automatic", "train", "cohort", "settings"):
        panel.open_tab(tab)
        page = panel.tabs.currentWidget().widget()
        for widget in page.findChildren(qt.QWidget):  # whatever can appear
            if widget.name and not widget.name.startswith("qt_"):
                widget.setVisible(True)
            if widget.inherits("ctkCollapsibleButton"):
                widget.collapsed = False
        desktop.pass_time(0.1)
        assert page.width <= panel.tabs.width
        assert page.layout().minimumSize().width() <= page.width, tab
        for kind in (qt.QPushButton, qt.QToolButton, qt.QCheckBox):
            for button in page.findChildren(kind):
                if button.isVisible() and button.text:
                    assert shown_in_full(button), f"{tab}: {button.text} has {button.width} pixels"


@pytest.fixture
def work(desktop):
    return Work(desktop)


@pytest.fixture
def module_panel(desktop):
    """A function that opens the module in a scroll area as Slicer does, of a size, and returns that area."""
    made = []

    def open_in(width, height):
        desktop.open()
        area, contents = qt.QScrollArea(), qt.QWidget()
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
        column = qt.QVBoxLayout(contents)
        column.addWidget(qt.QPushButton("Help"))
        column.addWidget(desktop.widget.parent, 1)
        desktop.widget.parent.setSizePolicy(qt.QSizePolicy.Minimum, qt.QSizePolicy.Preferred)
        area.setWidget(contents)
        area.resize(width, height)
        area.show()
        desktop.pass_time(0.1)
        made.append(area)
        return area

    yield open_in
    for area in made:
        area.takeWidget().hide()
        area.deleteLater()


def places(panel):
    """Where everything is that can be seen: (x, y, width, height) in the panel by name."""
    found = {}
    for part in (panel.input, panel.automatic, panel.train, panel.model):
        for name, widget in vars(part.ui).items():
            if isinstance(widget, qt.QWidget) and widget.isVisible():
                corner = widget.mapTo(panel.widget, qt.QPoint(0, 0))
                found[name] = (corner.x(), corner.y(), widget.width, widget.height)
    return found


@pytest.mark.parametrize("size", [(WIDTH, ROOM), (420, 400)])
def test_the_strip_stays_and_nothing_moves_whatever_it_says(desktop, module_panel, size):
    area = module_panel(*size)
    panel, status = desktop.panel, desktop.panel.status
    assert status.ui.dismissButton.isHidden() and status.ui.messageIcon.isHidden()
    assert status.ui.busyBar.isHidden() and status.ui.cancelButton.isHidden()
    assert not area.verticalScrollBar().isVisible()
    panel.open_tab("train")
    panel.tabs.currentWidget().ensureWidgetVisible(panel.train.ui.startButton)
    desktop.pass_time(0.1)
    before, height = places(panel), status.widget.height
    assert "startButton" in before
    for text in ("One line.", "A sentence that needs a whole line and more of the panel's width. " * 6):
        panel.host.warn(text)
        panel.host.jobs[1] = Working()
        desktop.pass_time(0.2)
        assert places(panel) == before and status.widget.height == height
        for widget in (status.ui.messageText, status.ui.busyBar, status.ui.cancelButton, status.ui.statusLabel):
            corner = widget.mapTo(area, qt.QPoint(0, 0))
            assert widget.isVisible() and 0 <= corner.y() and corner.y() + widget.height <= size[1]
    panel.host.jobs.clear()
    status.ui.dismissButton.click()
    desktop.pass_time(0.2)
    assert places(panel) == before and status.widget.height == height
    assert status.ui.dismissButton.isHidden() and status.ui.messageText.plainText == ""


class Working:
    """A job of the worker, as the panel knows it."""

    what, text, fraction, seconds_left = "propagate", "Propagating: 3 of 160 slices", 0.02, 40.0


def test_the_width_never_changes_by_itself(desktop, module_panel):
    module_panel(520, ROOM)
    node, _, _ = desktop.load_phantom()
    panel, parent = desktop.panel, desktop.widget.parent
    desktop.wait(lambda: panel.host.status is not None and panel.host.status.state == "ready")
    desktop.pass_time(0.3)
    wanted, least = parent.sizeHint().width(), parent.minimumSizeHint().width()
    assert wanted <= 350, "Slicer makes its panel at least so wide"
    node.SetName("A name of a volume that is far longer than what any panel is wide " * 4)
    long_name = "liver-and-both-kidneys-of-all-the-cases-of-last-year-" * 4
    panel.model.ui.adapterSelector.addItem(long_name)
    panel.train.ui.runSelector.addItem(long_name)
    panel.segments.add()
    segmentation = panel.host.session.segmentation_node.GetSegmentation()
    segmentation.GetNthSegment(0).SetName(long_name)
    panel.host.warn("/a/path/without/any/place/to/break/it" * 10)
    panel.input.ui.contrastSection.collapsed = False
    panel.train.ui.advancedSection.collapsed = False
    panel.server.ui.remoteButton.checked = True
    for tab in ("automatic", "train", "cohort", "settings", "segment"):
        panel.open_tab(tab)
        desktop.pass_time(0.2)
        assert (parent.sizeHint().width(), parent.minimumSizeHint().width()) == (wanted, least), tab


def test_lists_are_as_high_as_what_is_in_them(desktop):
    work = Work(desktop)
    table = work.ui.segmentsTable
    empty = table.height
    for _ in range(4):
        work.panel.segments.add()
    desktop.pass_time(0.1)
    grown = table.height
    assert grown > empty
    for _ in range(20):
        work.panel.segments.add()
    desktop.pass_time(0.1)
    assert grown <= table.height < 2 * grown, "what is more is scrolled to"


def test_what_is_folded_away_has_its_height_after_a_reload(desktop, module_panel):
    module_panel(WIDTH, ROOM)
    heights = []
    for _ in range(2):
        ui = desktop.panel.train.ui
        desktop.panel.open_tab("train")
        ui.advancedSection.collapsed = False
        desktop.pass_time(0.2)
        heights.append(ui.advancedContents.height)
        assert heights[-1] >= ui.advancedContents.layout().minimumSize().height()
        desktop.reload()
        desktop.pass_time(0.1)
    assert heights[0] == heights[1] > 200


def test_a_message_goes_when_what_it_is_about_is_undone(work):
    panel, desktop = work.panel, work.desktop
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()
    work.rest()
    session = panel.host.session
    panel.host.tell("Notice", Told("Only excluding points."))
    desktop.wait(lambda: session.state.settled)
    panel.host.act(refuse)
    panel.host.warn("The disk is full.")
    assert panel.status.messages == ["Only excluding points.", "That cannot be.", "The disk is full."]
    panel.host.act(session.undo)
    desktop.wait(lambda: panel.status.messages == ["The disk is full."])


class Told:
    def __init__(self, text):
        self.text = text


def refuse():
    from SAMFineTuneLib.errors import UserError

    raise UserError("That cannot be.")


def test_prompts_are_told_apart_in_the_list_however_narrow_it_is(desktop):
    work = Work(desktop)
    desktop.widget.parent.resize(360, 900)
    ras = work.middle_of(LIVER)
    work.click("Red", ras)
    desktop.wait(lambda: len(work.session.prompts) == 1)
    work.panel.prompts.choose("negative")
    work.click("Red", ras + (20, 0, 0))
    desktop.wait(lambda: len(work.session.prompts) == 2)
    work.wait_for_list(0, "Include", "Exclude")
    table = work.ui.promptsTable
    for row in range(2):
        item = table.item(row, 0)
        needed = table.fontMetrics().horizontalAdvance(item.text())
        assert table.columnWidth(0) > needed and item.toolTip() == item.text()


def test_long_names_hide_no_label_and_choices_are_not_cut(desktop):
    """On a small screen: a bar to scroll sideways would lie over the last label."""
    node, volume, labels = desktop.load_phantom()
    names = [f"{side} lower lobe of the lung, with its vessels and airways" for side in ("left", "right")]
    segmentation = desktop.slicer_scene.add_segmentation(node, ())
    for value, name in enumerate(names, 1):
        image = oriented_image_of((labels == value).astype(np.uint8), volume.affine)
        segmentation.AddSegmentFromBinaryLabelmapRepresentation(image, name)
    panel = desktop.open()
    desktop.widget.parent.resize(400, 520)
    panel.open_tab("train")
    view = panel.train.ui.labelsList
    desktop.wait(lambda: view.count == 2)
    desktop.pass_time(0.1)
    assert not view.horizontalScrollBar().isVisible()
    assert view.visualItemRect(view.item(1)).bottom() <= view.viewport().height
    assert view.item(1).toolTip() == names[1]
    panel.open_tab("automatic")
    desktop.pass_time(0.1)
    menu = panel.automatic.ui.whereSelector
    longest = max(menu.fontMetrics().horizontalAdvance(menu.itemText(row)) for row in range(menu.count))
    assert longest <= menu.width - 28  # what arrow and frame take
