"""Keys that work while the module is shown, wherever the mouse is, and do not disturb typing.

Slicer's slice views use B, F, G, R, T, V, M, the brackets, braces, arrows and Shift; the main window uses Ctrl with
F, H, O, S, W, Q and digits; the Segment Editor (not embedded here, so never active at the same time) uses digits, Q,
Space, Escape, Ctrl+Z and Ctrl+Y. What is taken here is free in all the rest.
"""

import qt
import slicer

KEYS = (
    ("P", "positive"),
    ("N", "negative"),
    ("O", "box"),
    ("Shift+O", "box3d"),
    ("S", "scribble+"),
    ("Shift+S", "scribble-"),
    ("Escape", "stop"),
    ("Ctrl+Z", "undo"),
    ("Ctrl+Y", "redo"),
    ("Ctrl+Shift+Z", "redo"),
)


class Shortcuts:
    """Installed on the main window between `install` and `remove`."""

    def __init__(self, act):
        self._act = act  # act(name of what a key does)
        self._shortcuts = []

    def __len__(self):
        return len(self._shortcuts)

    def install(self):
        window = slicer.util.mainWindow()
        if self._shortcuts or window is None:
            return
        for key, action in KEYS:
            shortcut = qt.QShortcut(window)
            shortcut.setKey(qt.QKeySequence(key))
            handler = self._handler(action)
            shortcut.connect("activated()", handler)
            # When somebody else has taken the same key, Qt activates neither, but tells them so in turn.
            shortcut.connect("activatedAmbiguously()", handler)
            self._shortcuts.append((shortcut, handler))

    def _handler(self, action):
        def pressed():
            self._act(action)

        return pressed

    def remove(self):
        shortcuts, self._shortcuts = self._shortcuts, []
        for shortcut, handler in shortcuts:
            shortcut.disconnect("activated()", handler)
            shortcut.disconnect("activatedAmbiguously()", handler)
            shortcut.setEnabled(False)
            shortcut.setParent(None)
            shortcut.deleteLater()
