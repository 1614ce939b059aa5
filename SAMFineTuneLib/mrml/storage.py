"""What is saved with a scene: the parameter node, and the session's document for every volume and segmentation.

The document is kept in a text node that references both. It is hidden from lists and, like the session file, holds
neither paths nor anything about the patient.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume, same_grid
from SAMFineTuneLib.mrml.scene_nodes import SEGMENTATION_ROLE, VOLUME_ROLE, belongs, new_node, nodes_of
from SAMFineTuneLib.prompts.plane_prompts import planes_of
from SAMFineTuneLib.session.events import Answered, Event, Failed, PromptInfo
from SAMFineTuneLib.typed_json import loaded

MODULE = "SAMFineTune"
FORMAT = "samfinetune-scene"
VERSION = 1
_RECORD = "SAMFineTune.session"
_ROLES = {"volume": "Volume", "segmentation": "Segmentation", "editor": "SegmentEditor"}
_CLASSES = {"volume": "vtkMRMLVolumeNode", "segmentation": "vtkMRMLSegmentationNode",
            "editor": "vtkMRMLSegmentEditorNode"}  # fmt: skip
_VOXELS = "voxels"  # key of the checksum
_CHECKED = 1 << 27  # bytes of a volume of which there is a checksum
_SAMPLES = 1 << 16  # voxels by which a volume of an earlier version's scene is recognised
_SAME_AFFINE = 1e-3  # mm: what files lose of a volume's place
_SNAPSHOT_DELAY = 0.15  # seconds without a change before the session is asked for its document
_AFTER_FAILURE = 3.0  # seconds more after a failure
_RECORD_DELAY = 0.3  # seconds without a change before the record is stored in the scene


class ParameterNode:
    """Input, model, window and 3-D of the module, in the node in which Slicer's scripted modules keep their parameters.

    Values are texts; `window` is None while the displayed one is followed. Slicer's `parameterNodeWrapper` is not used,
    because it exists in the application alone, and it would write values anew that scenes of earlier versions hold.
    """

    def __init__(self, scene):
        self.scene = scene

    @property
    def node(self):
        """The vtkMRMLScriptedModuleNode, which is made when there is none."""
        return self.find() or self._make()

    def find(self):
        """The node, None when there is none."""
        return self.scene.GetSingletonNode(MODULE, "vtkMRMLScriptedModuleNode")

    def get(self, name: str, default: str = "") -> str:
        """A parameter as text; `default` where it is missing or empty."""
        node = self.find()
        return (node.GetParameter(name) if node is not None else "") or default

    def set(self, name: str, value: str) -> None:
        """Store a parameter; one that has the value already does not count as changed."""
        if self.get(name) != value:
            self.node.SetParameter(name, value)

    def referenced(self, what: str):
        """The referenced "volume", "segmentation" or "editor" node, None without one of that class."""
        node = self.find()
        other = None if node is None else node.GetNodeReference(_ROLES[what])
        return other if other is not None and other.IsA(_CLASSES[what]) else None

    def refer(self, what: str, other) -> None:
        """Reference a node, or none, as "volume", "segmentation" or "editor"."""
        if self.referenced(what) is not other:
            self.node.SetNodeReferenceID(_ROLES[what], None if other is None else other.GetID())

    @property
    def window(self) -> IntensityWindow | None:
        """The grey values that the user chose for the model; None when the program chooses them."""
        try:
            values = loaded(self.get("Window", "null"))
            return None if values is None else IntensityWindow(**values)
        except (ValueError, TypeError):
            return None

    @window.setter
    def window(self, window: IntensityWindow | None) -> None:
        self.set("Window", json.dumps(None if window is None else vars(window)))

    @property
    def volumetric(self) -> bool:
        """Whether a changed prompt answers for the whole object."""
        return self.get("Volumetric") == "on"

    @volumetric.setter
    def volumetric(self, on: bool) -> None:
        self.set("Volumetric", "on" if on else "off")

    def _make(self):
        import slicer

        node = slicer.vtkMRMLScriptedModuleNode()
        node.SetSingletonTag(MODULE)
        node.SetModuleName(MODULE)
        node.SetAttribute("ModuleName", MODULE)
        node.SetName(MODULE)
        node.SetHideFromEditors(True)
        return self.scene.AddNode(node)


@dataclass
class Record:
    """The record of one volume and segmentation that is stored in the scene.

    `document` is the session as `session_to_dict` gives it, None before there was one. `values` has the label value
    of every segment ID. `owners` says which mask owns which voxels, as `SegmentWriter.to_dict` gives it.
    """

    document: dict[str, Any] | None = None
    values: dict[str, int] = field(default_factory=dict)
    owners: Any = None
    model: str = ""
    adapter: str = ""
    volume: dict[str, Any] = field(default_factory=dict)  # identifies the volume


def read_record(scene, volume_node, segmentation_node) -> Record:
    """The record of a volume and segmentation; an empty one when there is none, or it is damaged."""
    node = find_record(scene, volume_node, segmentation_node)
    try:
        values = loaded(node.GetText()) if node is not None else {}
        if values.pop("format", None) != FORMAT or values.pop("version", None) != VERSION:
            return Record()
        record = Record(owners=values.pop("claims", None), **values)
        record.values = {str(key): int(value) for key, value in record.values.items()}
        if not isinstance(record.document, (dict, type(None))) or not isinstance(record.volume, dict):
            return Record()
        return record
    except (ValueError, TypeError, AttributeError):
        return Record()


def write_record(scene, volume_node, segmentation_node, record: Record) -> None:
    """Store a record. One that is stored already is not written again: the scene would count as changed."""
    values = {"format": FORMAT, "version": VERSION} | vars(record)
    values["claims"] = values.pop("owners")  # the name in scenes
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    node = find_record(scene, volume_node, segmentation_node)
    if node is None:
        node = new_node(scene, "vtkMRMLTextNode")
        node.SetName(scene.GenerateUniqueName("SAMFineTune session"))
        node.SetAttribute(_RECORD, "1")
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(True)
        node = scene.AddNode(node)
        node.SetNodeReferenceID(VOLUME_ROLE, volume_node.GetID())
        node.SetNodeReferenceID(SEGMENTATION_ROLE, segmentation_node.GetID())
    if node.GetText() != text:
        node.SetText(text)


class RecordKeeper:
    """Keeps the record of one volume and segmentation current.

    Saving a scene cannot wait for the worker, and may come without warning. The keeper therefore requests the document
    whenever the session has come to rest, and has it stored in the scene at once.
    """

    def __init__(self, record: Record, client, own_requests: set[int], clock: Callable[[], float]):
        """`own_requests` collects the numbers of requests whose answers are for the keeper alone."""
        self.record = record
        self.outdated = False
        """Whether the record has changed since it was stored in the scene."""
        self._client, self._own_requests, self._clock = client, own_requests, clock
        self._stale = False
        self._request: int | None = None
        self._last_change = clock()

    def changed(self) -> None:
        """Note that the session has changed, or will change once it gets the intents that were sent."""
        self._stale = True
        self._last_change = self._clock()

    @property
    def current(self) -> bool:
        """Whether the record holds the session's current state."""
        return not self._stale and self._request is None

    @property
    def rested(self) -> bool:
        """Whether it is time to store the record in the scene."""
        return self._clock() - self._last_change >= _RECORD_DELAY

    def ask(self, settled: bool, hurry: bool = False) -> None:
        """Ask for the document if the session has settled and some time has passed, which `hurry` skips."""
        due = hurry or self._clock() - self._last_change >= _SNAPSHOT_DELAY
        if self._stale and self._request is None and settled and due:
            self._stale = False
            self._request = self._client.take_snapshot()
            self._own_requests.add(self._request)

    def hear(self, event: Event) -> None:
        """Take the answer to the request."""
        if not isinstance(event, (Answered, Failed)) or event.request != self._request:
            return
        self._request = None
        if isinstance(event, Answered):
            self.record.document = event.value
            self.outdated = True
        else:
            self._stale = True
            self._last_change = self._clock() + _AFTER_FAILURE


def find_record(scene, volume_node, segmentation_node):
    """The text node of a volume and segmentation, None without one."""
    return next((node for node in record_nodes(scene) if belongs(node, volume_node, segmentation_node)), None)


def record_nodes(scene) -> list:
    """All text nodes that hold records."""
    return [node for node in nodes_of(scene, "vtkMRMLTextNode") if node.GetAttribute(_RECORD)]


def contents_of(document: dict[str, Any]) -> tuple[list[SegmentInfo], list[PromptInfo], IntensityWindow | None]:
    """Segments, prompts and window of a stored session. Raises UserError when it is damaged."""
    try:
        segments = [SegmentInfo(one["name"], int(one["value"]), tuple(one["color"])) for one in document["segments"]]
        window = document.get("window")
        prompts = [PromptInfo.from_dict(entry) for entry in document["prompts"]]
        return segments, prompts, IntensityWindow(**window) if window else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError("The session stored in the scene is damaged: its masks are computed again.") from error


def places_of(document: dict[str, Any], volume: Volume) -> set[tuple[int, str]]:
    """Label value and plane key of all masks of a stored session."""
    places = {(int(one["segment"]), SlicePlane.from_dict(one["plane"]).key) for one in document["propagated"]}
    for entry in document["prompts"]:
        info = PromptInfo.from_dict(entry)
        keys = entry.get("planes") or [plane.key for plane in planes_of(volume, info.prompt, info.view)]
        places.update((info.segment, key) for key in keys)
    return places


def recognise(volume: Volume) -> dict[str, Any]:
    """Values that identify a volume, also after saving and loading its scene: size, place, a checksum of its voxels,
    and the digest of some voxels that scenes of earlier versions hold.

    The checksum takes up to a tenth of a second. In larger volumes it skips slices, evenly.
    """
    step, checksum = -(-volume.array.nbytes // _CHECKED), 0
    for piece in volume.array[::step]:
        checksum = zlib.crc32(np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")), checksum)
    flat = volume.array.reshape(-1)
    sample = np.ascontiguousarray(flat[:: max(1, flat.size // _SAMPLES)])
    return place_of(volume) | {
        _VOXELS if step == 1 else f"{_VOXELS}/{step}": f"{volume.array.dtype.str[1:]} {checksum:08x}",
        "sample": hashlib.sha256(sample.astype("<f8").tobytes()).hexdigest(),
    }


def place_of(volume: Volume) -> dict[str, Any]:
    """The part of `recognise` that says where a volume is."""
    return {"shape": list(volume.shape), "affine": volume.affine.tolist()}


def same_voxels(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two volumes, as `recognise` has them, have the same voxels, wherever they are."""
    keys = ("shape", next((key for key in now if key.startswith(_VOXELS) and key in before), "sample"))
    return all(before.get(key) is not None and before.get(key) == now[key] for key in keys)


def all_checked(recognised: dict[str, Any]) -> bool:
    """Whether no voxel of a volume can differ from what `recognise` saw."""
    return _VOXELS in recognised


def same_place(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two volumes of the same size, as `recognise` has them, lie in the same place."""
    return same_grid(before.get("affine", np.nan), now["affine"], now["shape"], _SAME_AFFINE)
