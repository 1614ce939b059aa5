"""The declarations of a kind of prompt, and the list of all kinds.

A kind is a frozen dataclass that derives from `Prompt` and is registered with `@prompt_kind`. Projection onto slice
planes, prompts files, markups files, Slicer's scene, the panel's tools and the wire between panel and worker all ask
the kind; none of them tests which kind it is. To add one, write one file such as `lasso_prompt.py` and import it in
`prompts/__init__.py`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume

if TYPE_CHECKING:
    from SAMFineTuneLib.prompts.checked_json import Coordinates
    from SAMFineTuneLib.prompts.plane_prompts import PlanePrompts, PlanesOfView

Ras = tuple[float, float, float]
"""Right, anterior, superior in mm."""
_FARTHEST = 1e9  # mm


@dataclass(frozen=True)
class Markup:
    """The content of one of Slicer's markups, in a file or in a scene, in RAS mm.

    `type` is the markups type of Slicer's files: "Fiducial", "ROI", "Curve", "ClosedCurve", ... An ROI has its centre
    as its only point, and its size in mm along three axes.
    """

    type: str
    points: tuple[Ras, ...]
    positive: bool = True
    size: Ras | None = None
    axes: tuple[Ras, Ras, Ras] | None = None


@dataclass(frozen=True)
class Marker:
    """How prompts of one kind and sign appear in Slicer's scene and in markups files.

    Args:
        name: marks the node in saved scenes, so that it must never change.
        type: as in `Markup`.
        words: follow the segment's name in the names of nodes and files.
        positive: the sign of the prompts.
        point_list: every control point is a prompt; otherwise the whole markup is one.
        sizes: of the light and the dark part of the drawing, in percent of a fifth of the screen's diagonal; None
            for boxes, which Slicer draws as outlines with handles.
        diamond: points are drawn as diamonds instead of discs.
    """

    name: str
    type: str
    words: str
    positive: bool = True
    point_list: bool = False
    sizes: tuple[float, float] | None = None
    diamond: bool = False


@dataclass(frozen=True)
class Tool:
    """A tool of the panel that places prompts of one kind and sign in a slice view.

    Args:
        name: as `SceneSession.place` takes it.
        label: on the button and in the list of prompts.
        icon: file in the panel's Resources/Icons, without its ending.
        key: the shortcut.
        gesture: "click" (one point), "box" (two opposite corners), "stroke" (a line) or "loop" (a closed line).
        hint: what the user should do.
        positive: the sign of the prompts.
    """

    name: str
    label: str
    icon: str
    key: str
    gesture: str
    hint: str
    positive: bool = True


class Prompt(ABC):
    """Something that a user placed to show where a structure is, or is not. All coordinates are RAS in mm."""

    list_name: ClassVar[str]
    """Key of the list that holds prompts of this kind in prompts files."""
    noun: ClassVar[str]
    """Its name in messages."""
    markers: ClassVar[tuple[Marker, ...]] = ()
    """None for a kind that Slicer's markups cannot hold."""
    markup_types: ClassVar[tuple[str, ...]] = ()
    """Types of markups that are read as this kind."""
    tools: ClassVar[tuple[Tool, ...]] = ()
    on_one_slice: ClassVar[bool] = True
    """Whether a prompt of this kind is meant on a single slice."""

    @property
    @abstractmethod
    def anchor(self) -> Ras:
        """The position to which views jump to show the prompt."""

    @abstractmethod
    def project(self, planes: PlanesOfView, what: str) -> dict[SlicePlane, PlanePrompts]:
        """The parts of the prompt on planes; `what` names the prompt in messages of UserError."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Plain values, in RAS, that `from_json` reads."""

    @classmethod
    @abstractmethod
    def from_json(cls, values: Any, where: str, coordinates: Coordinates) -> Prompt:
        """Read an entry of a prompts file.

        Args:
            values: what the file holds.
            where: its name in messages.
            coordinates: those of the file.

        Raises:
            UserError: for an invalid entry.
        """

    def to_markup(self, plane: SlicePlane) -> Markup:
        """The prompt as a markup of the type of `marker`. `plane` is one of the slices on which the prompt lies."""
        raise NotImplementedError

    @classmethod
    def from_markup(cls, markup: Markup, plane: SlicePlane | None) -> Prompt:
        """Read a markup: of a point list, one of its points. `plane` is the slice that it was drawn on, if known."""
        raise NotImplementedError

    @classmethod
    def drawn(cls, plane: SlicePlane, points: Sequence[Ras], positive: bool) -> Prompt:
        """Make a prompt from a tool's drawing.

        Args:
            plane: of the slice view.
            points: world RAS in mm.
            positive: whether they mark what belongs to the object, or what does not.

        Raises:
            UserError: when there are too few points.
        """
        raise NotImplementedError

    @property
    def own_plane(self) -> SlicePlane | None:
        """The plane that a prompt brings with it; None if the view in which it was placed decides."""
        return None

    def remark(self, volume: Volume, orientation: str) -> str | None:
        """A note for the user about the slice on which the prompt lies; usually None."""
        return None

    @property
    def geometry(self) -> np.ndarray:
        """All numbers of the prompt, for comparing two of one kind."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "positive")
        return np.concatenate([np.ravel(np.asarray(value, dtype=np.float64)) for value in values])

    @property
    def sign(self) -> bool:
        """Whether the prompt marks what belongs to the structure (True) or what does not."""
        return getattr(self, "positive", True)

    @property
    def marker(self) -> Marker | None:
        """How the prompt is shown in Slicer; None for one that cannot be shown."""
        return next((marker for marker in self.markers if marker.positive == self.sign), None)

    @property
    def label(self) -> str:
        """Its name in the list of prompts."""
        return next((tool.label for tool in self.tools if tool.positive == self.sign), self.noun)


KINDS: dict[str, type[Prompt]] = {}
"""All kinds of prompts by their `list_name`."""


def prompt_kind(cls: type[Prompt]) -> type[Prompt]:
    """Class decorator that registers a kind of prompt."""
    if cls.list_name in KINDS:
        raise ValueError(f'There is a kind of prompt with the list name "{cls.list_name}" already.')
    KINDS[cls.list_name] = cls
    return cls


def require_kind(prompt: object) -> None:
    """Raise TypeError for anything that is not a prompt of a registered kind."""
    if type(prompt) not in KINDS.values():
        raise TypeError(f"{type(prompt).__name__} is not a registered kind of prompt.")


def markers() -> Mapping[str, tuple[type[Prompt], Marker]]:
    """Kind and marker of all markers by name."""
    return {marker.name: (kind, marker) for kind in KINDS.values() for marker in kind.markers}


def tools() -> Mapping[str, Tool]:
    """All tools that place prompts, by name, in the order in which a panel shows them."""
    return {tool.name: tool for kind in KINDS.values() for tool in kind.tools}


def kind_of_markup(markup_type: str) -> type[Prompt] | None:
    """The kind of prompt that markups of a type become."""
    return next((kind for kind in KINDS.values() if markup_type in kind.markup_types), None)


def drawn_prompt(tool_name: str, plane: SlicePlane, points: Sequence[Ras]) -> Prompt:
    """The prompt that a tool makes from the user's drawing.

    Args:
        tool_name: a key of `tools()`.
        plane: the plane of the slice view.
        points: (N, 3) on the plane.

    Raises:
        UserError: the points are too few.
        ValueError: there is no such tool.
    """
    for kind in KINDS.values():
        for tool in kind.tools:
            if tool.name == tool_name:
                return kind.drawn(plane, points, tool.positive)
    raise ValueError(f'There is no tool "{tool_name}".')


def checked_ras(values: Any, what: str) -> Ras:
    """Three finite numbers as RAS. Raises UserError, also for what is so far away that its sums are not exact."""
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise UserError(f"{what} needs three finite numbers: right, anterior, superior in mm.")
    if max(map(abs, numbers)) > _FARTHEST:
        raise UserError(f"{what} is more than a thousand kilometres away; check its numbers.")
    return numbers
