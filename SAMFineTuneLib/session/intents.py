"""The intents that `Session.do` and `SessionClient.do` carry out. NumPy only.

Callers may choose the numbers of prompts, jobs and requests; the receiver chooses those that are None.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.inference.settings import EverythingSettings, PropagationSettings
from SAMFineTuneLib.prompts import Prompt

Color = tuple[float, float, float]
"""Red, green, blue, each 0 to 1."""
View = str | SlicePlane
"""An orientation ("axial", "coronal", "sagittal") or an oblique plane."""

# ---- volume, window, model


@dataclass(frozen=True, eq=False)
class SetVolume:
    """Start over with another volume; without a window, with the default of its modality."""

    volume: Volume
    window: IntensityWindow | None = None


@dataclass(frozen=True)
class SetWindow:
    """Change the intensity window; None is the default of the volume's modality."""

    window: IntensityWindow | None


@dataclass(frozen=True)
class SetModel:
    """Use another model, an adapter on it, and a device as `open_engine` takes it."""

    model: str
    adapter: str = ""
    device: str = "auto"


@dataclass(frozen=True)
class SetVolumetric:
    """Set whether a changed prompt segments the whole object: the session itself then propagates the segment whenever
    its prompts have changed. The answer belongs to the prompt's step of the history.
    """

    on: bool


# ---- segments and prompts


@dataclass(frozen=True)
class AddSegment:
    """Add a segment. A label value of None is the lowest free one, a colour of None follows from the value."""

    name: str
    value: int | None = None
    color: Color | None = None


@dataclass(frozen=True)
class ChangeSegment:
    """Rename or recolour a segment; None keeps what it has."""

    value: int
    name: str | None = None
    color: Color | None = None


@dataclass(frozen=True)
class RemoveSegment:
    """Remove a segment with its prompts and masks."""

    value: int


@dataclass(frozen=True)
class AddPrompt:
    """Place a prompt on the slices of an orientation, or on an oblique plane."""

    segment: int
    prompt: Prompt
    view: View = "axial"
    number: int | None = None


@dataclass(frozen=True)
class MovePrompt:
    """Replace a prompt, which keeps its place in the order; a view of None keeps the view."""

    number: int
    prompt: Prompt
    view: View | None = None


@dataclass(frozen=True)
class DeletePrompt:
    """Remove a prompt. A plane that has no other prompt and no propagated mask then has no mask."""

    number: int


@dataclass(frozen=True)
class Clear:
    """Remove prompts and propagated masks of a segment, on a plane, or both; without either, all of them."""

    segment: int | None = None
    plane: SlicePlane | None = None


@dataclass(frozen=True)
class Undo:
    """Undo the last step: a prompt, a segment, a whole propagation."""


@dataclass(frozen=True)
class Redo:
    """Redo the last undone step."""


# ---- jobs


@dataclass(frozen=True)
class Propagate:
    """Propagate the masks of a segment's prompted slices through the volume.

    `orientation` chooses the slices if the segment has prompts in several orientations.
    """

    segment: int
    settings: PropagationSettings | None = None
    orientation: str | None = None
    job: int | None = None


@dataclass(frozen=True)
class Everything:
    """Find all objects on the slices `first` to `last` of an orientation; None is the volume's first or last."""

    orientation: str = "axial"
    settings: EverythingSettings | None = None
    first: int | None = None
    last: int | None = None
    job: int | None = None


@dataclass(frozen=True)
class FindLabels:
    """Find the labels of an adapter with an automatic head, without prompts.

    The model need not be the one that answers prompts. An empty orientation is the one that the adapter learned from.
    """

    model: str
    adapter: str
    device: str = "auto"
    orientation: str = ""
    first: int | None = None
    last: int | None = None
    job: int | None = None


@dataclass(frozen=True)
class Adopt:
    """Make objects that a job found segments, in one step.

    Label values of None are the lowest free ones. Without names, the segments are called "Object 1" and so on.
    """

    job: int
    objects: tuple[int, ...]
    values: tuple[int, ...] | None = None
    names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Cancel:
    """Stop a job, or a download, before its next slice. Its results stay only with `keep_results`."""

    job: int
    keep_results: bool = True


@dataclass(frozen=True)
class Embed:
    """Embed slices in the background: this one, then its neighbours outwards. A later one moves the focus."""

    orientation: str
    index: int


@dataclass(frozen=True)
class StopEmbedding:
    """Stop embedding in the background."""


# ---- between a client and its worker


@dataclass(frozen=True)
class TellAgain:
    """Send every mask again, because some were lost."""


@dataclass(frozen=True)
class TakeSnapshot:
    """Answer with the session as `session_to_dict` gives it."""

    request: int | None = None


@dataclass(frozen=True)
class AskForMasks:
    """Answer with the masks of objects that a job found: a list of (object number, SlicePlane, mask)."""

    job: int
    objects: tuple[int, ...]
    request: int | None = None


@dataclass(frozen=True, eq=False)
class Restore:
    """Continue from a document: as a step of that name, or without a name from the beginning, with nothing to undo."""

    document: bytes
    step: str | None = None


@dataclass(frozen=True)
class Replay:
    """The first and the last intent of a replay, with which a client restores its session on a new worker."""

    begins: bool


@dataclass(frozen=True)
class Checkpoint:
    """Does nothing; replaces an intent in the client's journal that is stored or no longer needed."""


# ---- about the worker's models, adapters and cache


@dataclass(frozen=True)
class Ask:
    """Answer a question, see `models_api.Library.answer`."""

    question: str
    model: str = ""
    request: int | None = None


@dataclass(frozen=True)
class Download:
    """Fetch a published model, whose terms the user has agreed to."""

    model: str
    job: int | None = None
    request: int | None = None


@dataclass(frozen=True)
class Install:
    """Install a checkpoint file that was uploaded; `like` is the model whose architecture it has."""

    upload: int
    name: str
    model: str | None = None
    like: str | None = None
    request: int | None = None


Intent = (
    SetWindow | SetModel | SetVolumetric | AddSegment | ChangeSegment | RemoveSegment | AddPrompt | MovePrompt
    | DeletePrompt | Clear | Undo | Redo | Propagate | Everything | FindLabels | Adopt | Cancel | Embed | StopEmbedding
    | TellAgain | TakeSnapshot | AskForMasks | Restore | Replay | Checkpoint | Ask | Download | Install
)  # fmt: skip
"""The intents that a client may send; a volume travels in parts and becomes a `SetVolume` on the worker."""


P = ParamSpec("P")


def asks(kind: Callable[P, Any]) -> Callable[Concatenate[IntentMethods, P], Any]:
    """A method that takes the fields of an intent and does it."""

    def method(self: IntentMethods, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self.do(kind(*args, **kwargs))

    method.__doc__ = kind.__doc__
    return method


class IntentMethods(ABC):
    """Intents as methods, the same for a session in this process and for a client of one elsewhere.

    Each takes the fields of its intent, and returns what `do` returns for it.
    """

    @abstractmethod
    def do(self, intent: Any) -> Any:
        """Carry out an intent."""

    set_volume = asks(SetVolume)
    set_window = asks(SetWindow)
    set_volumetric = asks(SetVolumetric)
    add_segment = asks(AddSegment)
    change_segment = asks(ChangeSegment)
    remove_segment = asks(RemoveSegment)
    add_prompt = asks(AddPrompt)
    move_prompt = asks(MovePrompt)
    delete_prompt = asks(DeletePrompt)
    clear = asks(Clear)
    undo = asks(Undo)
    redo = asks(Redo)
    propagate = asks(Propagate)
    everything = asks(Everything)
    find_labels = asks(FindLabels)
    cancel = asks(Cancel)
    embed = asks(Embed)
    stop_embedding = asks(StopEmbedding)
    take_snapshot = asks(TakeSnapshot)
    ask = asks(Ask)

    def ask_for_masks(self, job: int, objects: Sequence[int]) -> Any:
        """Ask for the masks of some `objects` that a job has found; see `AskForMasks`."""
        return self.do(AskForMasks(job, tuple(objects)))

    def adopt(
        self, job: int, objects: Sequence[int], values: Sequence[int] | None = None, names: Sequence[str] | None = None
    ) -> Any:
        """Make `objects` that a job has found segments, with these label `values` and `names`; see `Adopt`."""
        values, names = (None if given is None else tuple(given) for given in (values, names))
        return self.do(Adopt(job, tuple(objects), values, names))
