"""The tools that place prompts, one row each, and the keys that work while the module is shown.

Slicer's slice views use B, F, G, R, T, V, M, the brackets, braces, arrows and Shift; the main window uses Ctrl with
F, H, O, S, W, Q and digits; the Segment Editor (not embedded here, so never active at the same time) uses digits, Q,
Space, Escape, Ctrl+Z and Ctrl+Y. The keys below are free in all of them.
"""

from typing import NamedTuple

import qt
import slicer
from slicer.i18n import tr as _


class Tool(NamedTuple):
    """A button of the Segment tab. The tools stand in columns of two, in the order of `TOOLS`."""

    name: str  # as `SceneSession.place` takes it
    label: str
    icon: str  # file in Resources/Icons
    key: str
    gesture: str  # "click" goes through Slicer's place mode; "box" and "stroke" are drawn by `rubber_band`
    hint: str


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("positive", _("Include"), "PointPositive", "P", "click", _("Click inside the structure in any view.")),
        Tool("negative", _("Exclude"), "PointNegative", "N", "click", _("Click on what does not belong to it.")),
        Tool("box", _("Box"), "Box", "O", "box", _("Drag a box close round the structure.")),
        Tool("box3d", _("3-D box"), "Box3D", "Shift+O", "box", _("Drag a box, then pull its handles in other views.")),
        Tool("scribble+", _("Scribble"), "ScribblePositive", "S", "stroke", _("Draw a line through the structure.")),
        Tool("scribble-", _("Scribble −"), "ScribbleNegative", "Shift+S", "stroke",
             _("Draw a line over what does not belong to it.")),
    )
}  # fmt: skip
FIRST_TOOL = "positive"  # chosen when Slicer starts, so that the first click gives a mask
OTHER_KEYS = (("Escape", "stop"), ("Ctrl+Z", "undo"), ("Ctrl+Y", "redo"), ("Ctrl+Shift+Z", "redo"))


class Shortcuts:
    """Keys of the main window between `install` and `remove`. They work over slice views and do not disturb typing."""

    def __init__(self, act):
        """Args: act: `act(name)` with the name of a tool, or "stop", "undo" or "redo"."""
        self._act = act
        self._shortcuts = []

    def install(self):
        window = slicer.util.mainWindow()
        if self._shortcuts or window is None:
            return
        for key, action in (*((tool.key, tool.name) for tool in TOOLS.values()), *OTHER_KEYS):
            shortcut = qt.QShortcut(window)
            shortcut.setKey(qt.QKeySequence(key))
            handler = self._handler(action)
            shortcut.connect("activated()", handler)
            # When another shortcut has the same key, Qt activates neither, and emits this signal of each in turn.
            shortcut.connect("activatedAmbiguously()", handler)
            self._shortcuts.append((shortcut, handler))

    def _handler(self, action):
        return lambda: self._act(action)

    def remove(self):
        shortcuts, self._shortcuts = self._shortcuts, []
        for shortcut, handler in shortcuts:
            shortcut.disconnect("activated()", handler)
            shortcut.disconnect("activatedAmbiguously()", handler)
            shortcut.setEnabled(False)
            shortcut.setParent(None)
            shortcut.deleteLater()
