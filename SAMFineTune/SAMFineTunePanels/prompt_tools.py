"""The tools that place prompts in the slice views, and the switch In 3-D."""

import itertools

import qt
import slicer
from slicer.i18n import tr as _

from .qt_helpers import set_elided
from .rubber_band import RubberBand, SingleClicks
from .shortcuts import KEYS, KeyShortcuts
from .shown_views import drawing_views

FIRST_TOOL = "positive"  # chosen when Slicer starts, so that the first click makes a mask
_LINE = 2  # pixels of the frame of what is chosen
_NO_TOOL = _("Choose a tool to point at a structure.")
_NO_VOLUME = _("Choose a volume first.")


class PromptTools:
    """Buttons for the tools of all kinds of prompts; one tool is active at a time.

    Points are placed in Slicer's own place mode; everything else is drawn (`rubber_band`).
    """

    def __init__(self, host, ui, resource_path, act):
        """Args: act: called for keys that do not choose a tool: `act("undo")`, `act("redo")`."""
        from SAMFineTuneLib.prompts.prompt_kind import tools

        self.host, self.ui = host, ui
        self._act = act
        self.tools = tools()
        self.chosen = FIRST_TOOL  # by the user: stays so until put away
        self.tool = None  # the active one: at rest without a volume, and while the module is not shown
        self.placed = 0  # by tools, since the panel was made
        self._band = None
        self.buttons = {tool.name: self._tool_button(tool, resource_path) for tool in self.tools.values()}
        for number, button in enumerate(self.buttons.values()):
            ui.toolsPlace.layout().addWidget(self._framed(button), number % 2, number // 2)
        self.wholeButton = self._button(_("In 3-D"), resource_path("Icons/InVolume.svg"), _(
            "A click or box segments the whole object: the other slices follow by themselves, nearest first, and again "
            "after each correction. Cancel keeps what has come; undo takes a prompt back with its slices."
        ))  # fmt: skip
        ui.toolsPlace.layout().addWidget(self._framed(self.wholeButton), 0, len(self.buttons) // 2, 2, 1)
        host.connect((self.wholeButton, "clicked(bool)", self._set_volumetric))
        self._order()
        self.shortcuts = KeyShortcuts([*((tool.key, tool.name) for tool in self.tools.values()), *KEYS], self.act)
        host.drawing = lambda: self._band is not None and self._band.drawing
        host.listen("Turn", self._refresh)
        host.listen("SessionEnded", lambda event: self._forget())

    def _tool_button(self, tool, resource_path):
        icon = resource_path("Icons/" + tool.icon + ".svg")
        button = self._button(_(tool.label), icon, f"{_(tool.hint)} ({tool.key})")
        self.host.connect((button, "clicked(bool)", lambda checked: self.choose(tool.name if checked else None)))
        return button

    def _button(self, text, icon, hint):
        button = qt.QToolButton()
        button.text, button.toolTip = text, hint
        button.setIcon(qt.QIcon(icon))
        button.iconSize = qt.QSize(18, 18)
        button.setToolButtonStyle(qt.Qt.ToolButtonTextUnderIcon)
        button.checkable = button.autoRaise = True
        button.setFocusPolicy(qt.Qt.TabFocus)  # a click leaves the focus where it is
        button.setSizePolicy(qt.QSizePolicy.Expanding, qt.QSizePolicy.Fixed)
        button.setMinimumWidth(40)
        return button

    def _framed(self, button):
        """Put a button into a frame that is shown while it is checked, in the colour of the text, which stands out in
        every style. A style sheet would not follow when Slicer's style changes."""
        frame = qt.QFrame(self.ui.toolsPlace)
        frame.setFrameShadow(qt.QFrame.Plain)
        frame.setLineWidth(_LINE)
        around = qt.QVBoxLayout(frame)
        around.addWidget(button)

        def mark(checked):
            frame.setFrameShape(qt.QFrame.Box if checked else qt.QFrame.NoFrame)
            around.setContentsMargins(*[0 if checked else _LINE] * 4)
            font = button.font
            font.setBold(checked)
            button.font = font

        mark(False)
        self.host.connect((button, "toggled(bool)", mark))
        return frame

    def _order(self):
        """Let the Tab key come to the tools between contrast and segments, as they lie."""
        ui = self.ui
        row = [ui.highSpinBox, *self.buttons.values(), self.wholeButton, ui.addButton]
        for before, after in itertools.pairwise(row):
            qt.QWidget.setTabOrder(before, after)

    def _set_volumetric(self, on):
        self.host.act(setattr, self.host.start(), "volumetric", on)

    # ---- shown and not

    def enter(self):
        self.shortcuts.install()

    def leave(self):
        """Put the tool away and remove the keys."""
        self.rest()
        self.shortcuts.remove()

    def views_changed(self):
        """Draw in the views of the new layout."""
        if self._band is not None:
            self._start_band()

    # ---- choosing

    def choose(self, name):
        """Use this tool from now on, on every volume; None puts the tool away."""
        self.chosen = name
        if name is not None and self.host.start().volume_node is None:
            self.host.warn(_NO_VOLUME)
            name = None
        self._activate(name)

    def rest(self):
        """Deactivate the tool; `resume` activates the chosen one again."""
        self._activate(None)

    def resume(self):
        """Activate the chosen tool; called when there is a volume."""
        if self.tool != self.chosen or self._clicks:  # Slicer's place mode ended with the former volume
            self._activate(self.chosen)

    @property
    def _clicks(self):
        """Whether the active tool goes through Slicer's place mode."""
        return self.tool is not None and self.tools[self.tool].gesture == "click"

    def _activate(self, name):
        session, clicked = self.host.session, self._clicks
        self._stop_band()
        self.tool = name
        if clicked and not self._clicks and session is not None:
            self.host.act(session.stop_placing)
        if self._clicks:
            self.host.act(session.start_placing, name)
        if name is not None:
            self._start_band()
        for other, button in self.buttons.items():
            button.setChecked(other == name)
        self._show_hint()
        self.host.wake()

    def _show_hint(self):
        if self.tool is not None:
            hint = _(self.tools[self.tool].hint)
        else:
            hint = _NO_TOOL if self.host.has_volume else _NO_VOLUME
        set_elided(self.ui.hintLabel, hint)

    def _refresh(self):
        """Put the tool away when a right click has ended Slicer's place mode, and deactivate it when volume or
        segmentation were deleted."""
        session = self.host.session
        if self.tool is not None and session is not None:
            if session.volume_node is None:
                self.rest()
            elif self._clicks and session.placing.kind != self.tool:
                if session.segmentation_node is None:
                    self.rest()
                else:
                    self.choose(None)
        on = session is not None and session.volumetric
        if self.wholeButton.checked != on:  # as the scene says; this does not emit `clicked`
            self.wholeButton.setChecked(on)
        self._show_hint()

    def _forget(self):
        self.tool = None
        self._stop_band()
        self._show_hint()

    # ---- drawing

    def _start_band(self):
        self._stop_band()
        gesture = self.tools[self.tool].gesture
        self._band = (
            SingleClicks(drawing_views())
            if self._clicks
            else RubberBand(drawing_views(), gesture, self._drawn, self._may_start)
        )

    def _stop_band(self):
        band, self._band = self._band, None
        if band is not None:
            band.close()

    def _drawn(self, slice_node, ras_points):
        session = self.host.session
        if session is not None and self.tool is not None:
            if self.host.act(session.place, self.tool, slice_node, ras_points) is not None:
                self.placed += 1

    def _may_start(self, view):
        """Whether a press draws: on a handle of a box it moves the box instead."""
        from SAMFineTuneLib.mrml.prompts.prompt_look import grabs

        position = view.interactor.GetEventPosition()[:2]
        screen = view.interactor.GetRenderWindow().GetScreenSize()
        boxes = slicer.util.getNodesByClass("vtkMRMLMarkupsROINode")
        return not any(grabs(box, view.node, position, screen) for box in boxes)

    # ---- keys

    def act(self, action):
        """Do what a key means. A second press of a tool's key puts the tool away."""
        if action in self.tools:
            self.choose(None if self.tool == action else action)
        elif action != "stop":
            self._act(action)
        elif self._band is not None and self._band.drawing:
            self._band.cancel()
        else:
            self.choose(None)
