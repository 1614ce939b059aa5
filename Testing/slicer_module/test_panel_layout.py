"""Where things are in the panel."""

from __future__ import annotations

from test_clicks import LIVER, Work

ROOM = 800  # pixels that Slicer leaves a panel on a screen of 1600 × 1000
WIDTH = 480


def test_what_every_click_needs_is_seen_without_scrolling(desktop):
    work = Work(desktop)
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()
    parent = desktop.widget.parent
    parent.resize(WIDTH, parent.sizeHint().height())
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
