"""Keys that work while the module is shown: those of the tools that place prompts, and a few more.

Slicer's slice views use B, F, G, R, T, V, M, the brackets, braces, arrows and Shift; the main window uses Ctrl with
F, H, O, S, W, Q and digits; the Segment Editor (not embedded here, so never active at the same time) uses digits, Q,
Space, Escape, Ctrl+Z and Ctrl+Y. A tool's key has to be free in all of them.
"""

import qt
import slicer

KEYS = (("Escape", "stop"), ("Ctrl+Z", "undo"), ("Ctrl+Y", "redo"), ("Ctrl+Shift+Z", "redo"))


class KeyShortcuts:
    """Keys of the main window, while they are active. They work over slice views."""

    def __init__(self, keys, act):
        """Args: keys: (key, action) each; act: `act(action)`."""
        self._keys, self._act = keys, act
        self._shortcuts = []

    def set_active(self, active):
        self.install() if active else self.remove()

    def install(self):
        window = None if self._shortcuts else slicer.util.mainWindow()  # which looks at all windows
        if window is None:
            return
        for key, action in self._keys:
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
