"""Where things are in the panel."""

from __future__ import annotations

import pytest
import qt
from test_clicks import LIVER, Work

ROOM = 800  # pixels that Slicer leaves a panel on a screen of 1600 × 1000
WIDTH = 480


def test_what_every_click_needs_is_seen_without_scrolling(desktop):
    work = Work(desktop)
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()
    parent = desktop.widget.parent
    parent.resize(WIDTH, ROOM)
    desktop.pass_time(0.1)
    for section, name in (
        ("input", "volumeSelector"),
        ("prompts", "positiveButton"),
        ("prompts", "eraseScribbleButton"),
        ("prompts", "undoButton"),
        ("segments", "addButton"),
        ("segments", "othersSelector"),
    ):
        widget = getattr(getattr(work.panel, section).ui, name)
        bottom = widget.mapTo(parent, widget.rect.bottomLeft()).y()
        assert bottom < ROOM, f"{name} ends {bottom} pixels below the top of the panel"
        assert section != "prompts" or name == "undoButton" or bottom < ROOM / 2, f"{name} is not near the top"


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
    for section in panel.sections:
        for name, widget in vars(section.ui).items():
            if isinstance(widget, qt.QWidget) and widget.isVisible() and section is not panel.status:
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
    panel.train.ui.trainSection.collapsed = False
    panel.ui.sectionsArea.ensureWidgetVisible(panel.train.ui.startButton)
    desktop.pass_time(0.1)
    before, height = places(panel), status.widget.height
    assert "startButton" in before
    for text in ("One line.", "A sentence that needs a whole line and more of the panel's width. " * 6):
        panel.status.warn(text)
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


def test_long_names_do_not_make_the_panel_wider(desktop, module_panel):
    module_panel(520, ROOM)
    node, _, _ = desktop.load_phantom()
    panel = desktop.panel
    for section in panel.sections[1:]:
        for name, widget in vars(section.ui).items():
            if name.endswith("Section"):
                widget.collapsed = False
    desktop.wait(lambda: panel.host.status is not None and panel.host.status.state == "ready")
    desktop.pass_time(0.3)
    width, least = panel.ui.sections.width, panel.ui.sectionsArea.minimumWidth
    wanted = desktop.widget.parent.sizeHint().width()
    assert wanted < WIDTH, "Slicer makes its panel at least so wide"
    node.SetName("A name of a volume that is far longer than what any panel is wide " * 4)
    panel.model.ui.adapterSelector.addItem("liver-and-both-kidneys-of-all-the-cases-of-last-year-" * 4)
    panel.train.ui.runSelector.addItem("liver-and-both-kidneys-of-all-the-cases-of-last-year-" * 4)
    panel.status.warn("/a/path/without/any/place/to/break/it" * 10)
    desktop.pass_time(0.3)
    assert desktop.widget.parent.sizeHint().width() == wanted
    assert panel.ui.sections.width == width and panel.ui.sectionsArea.minimumWidth == least
    assert panel.ui.sections.layout().minimumSize().width() <= width


def test_what_is_folded_away_has_its_height_after_a_reload(desktop, module_panel):
    module_panel(WIDTH, ROOM)
    heights = []
    for _ in range(2):
        ui = desktop.panel.train.ui
        ui.trainSection.collapsed = False
        ui.advancedButton.click()
        desktop.pass_time(0.2)
        heights.append(ui.advancedBox.height)
        assert heights[-1] >= ui.advancedBox.layout().minimumSize().height()
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
    desktop.wait(lambda: session.state.settled, 5)
    panel.host.act(refuse)
    panel.host.warn("The disk is full.")
    assert panel.status.messages == ["Only excluding points.", "That cannot be.", "The disk is full."]
    panel.host.act(session.undo)
    desktop.wait(lambda: panel.status.messages == ["The disk is full."], 10)


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
