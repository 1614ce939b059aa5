from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.inference.settings import EverythingSettings, PropagationSettings
from SAMFineTuneLib.prompts import Box3DPrompt, BoxPrompt, MaskPrompt, PointPrompt, ScribblePrompt
from SAMFineTuneLib.service.protocol import Sent, Sync, Told
from SAMFineTuneLib.service.wire import WireError, decode, encode
from SAMFineTuneLib.session import events, intents

PLANE = SlicePlane((1.5, -2.0, 3.0), (1, 0, 0), (0, 0.6, 0.8), 0.7, (5, 6))
ALIGNED = SlicePlane((0, 0, 3), (1, 0, 0), (0, 1, 0), 1.0, (5, 6), "axial", 3, 2.5)
MASK = np.eye(5, 6, dtype=bool)
PACKED = PackedMask.of(MASK)
PROMPTS = [
    PointPrompt((1.0, 2.0, 3.5), False), BoxPrompt((0, 0, 0), (4, 5, 0)), Box3DPrompt((0, 0, 0), (1, 2, 3)),
    ScribblePrompt(((0, 0, 0), (1, 1, 1))),
]  # fmt: skip

INTENTS = [
    intents.SetWindow(None), intents.SetWindow(IntensityWindow(-160, 240, "CT abdomen")), intents.SetVolumetric(True),
    intents.SetModel("compact", "liver", "cuda:1"),
    intents.AddSegment("Leber — 1", 7, (1.0, 0.5, 0.0)), intents.AddSegment("x"), intents.ChangeSegment(7, "other"),
    intents.RemoveSegment(65535), *(intents.AddPrompt(1, prompt, "coronal", 4) for prompt in PROMPTS),
    intents.MovePrompt(4, PROMPTS[0]), intents.DeletePrompt(4),
    intents.Clear(), intents.Clear(1), intents.Undo(), intents.Redo(),
    intents.Propagate(1, PropagationSettings(first=0, direction="up", min_overlap=1), "sagittal", 3),
    intents.Everything("axial", EverythingSettings(points_per_side=8), 0, 4, 1), intents.FindLabels("compact", "a"),
    intents.Adopt(1, (3, 4), (1, 2), ("a", "b")), intents.Adopt(1, ()), intents.Cancel(2, False),
    intents.Embed("axial", 9), intents.StopEmbedding(), intents.TellAgain(), intents.TakeSnapshot(5),
    intents.AskForMasks(1, (2,), 6), intents.Replay(True), intents.Checkpoint(), intents.Ask("models", request=1),
    intents.Download("sam_vit_b", 2, 3), intents.Install(1, "a.pth", None, "medsam", 4),
]  # fmt: skip
EVENTS = [
    events.Busy(None, "embed", 0.25, 3.5, "Preparing slices: 1 of 4", 1, 4), events.Finished(3, "propagate", True),
    events.Objects(1, (events.ObjectInfo(1, 400, 0.9, "axial", (3, 9)),)), events.Notice("A notice."),
    events.Failed("It failed.", 1, "details", 2, 3), events.ModelChanged("compact", "CPU (fp32)"),
    events.StatusChanged(events.Status("ready", "Ready.")),
]  # fmt: skip


def joined(message) -> bytes:
    return b"".join(encode(message))


def raw(value, arrays=()) -> bytes:
    """A message as it is laid out, whatever it says."""
    header = value if isinstance(value, bytes) else json.dumps(value).encode()
    return len(header).to_bytes(8, "little") + header + b"".join(arrays)


def test_every_kind_of_intent_is_tried():
    assert {type(one) for one in INTENTS} | {intents.Restore} == set(intents.Intent.__args__)


@pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: type(intent).__name__)
def test_intents_come_out_as_they_went_in(intent):
    assert decode(joined(intent), intents.Intent) == intent
    (later,) = decode(joined(Sync((Sent(3, 4, intent),), 5)), Sync).intents
    assert later.read() == Sent(3, 4, intent)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_come_out_as_they_went_in(event):
    assert decode(joined(Told(1, 2, 3, event)), Told) == Told(1, 2, 3, event)


@pytest.mark.parametrize("plane", [PLANE, ALIGNED])
def test_masks_planes_and_documents_come_out_as_they_went_in(plane):
    points = np.float32([[1, 2], [3.5, 4]])
    mask = decode(joined(events.MaskChanged(1, plane, PACKED, 0.75, points, 9)), events.Event)
    assert (mask.segment, mask.score, mask.since, mask.packed) == (1, 0.75, 9, PACKED)
    assert mask.plane.to_dict() == plane.to_dict() and np.array_equal(mask.points, points)
    assert np.array_equal(mask.mask, MASK) and mask.digest == PACKED.digest
    gone = decode(joined(events.MaskChanged(1, plane)), events.Event)
    assert gone.mask is None and gone.digest == "" and len(gone.points) == 0
    info = events.PromptInfo(1, 1, MaskPrompt(MASK, plane), plane)
    state = events.StateChanged((SegmentInfo("a", 1, (1.0, 0.0, 0.5)),), (info,), "undo", outdated=((1, plane.key),))
    back = decode(joined(state), events.Event)
    assert back.segments == state.segments and back.outdated == state.outdated and back.undo_name == "undo"
    assert np.array_equal(back.prompts[0].prompt.mask, MASK) and back.prompts[0].view.to_dict() == plane.to_dict()
    found = decode(joined(events.ObjectMasks(1, ((4, plane, PACKED),), False)), events.Event)
    assert found.masks[0][::2] == (4, PACKED) and not found.last
    restore = decode(joined(intents.Restore(b"{}", "propagate")), intents.Intent)
    assert (restore.document, restore.step) == (b"{}", "propagate")
    assert decode(joined(intents.Clear(None, plane)), intents.Intent).plane.to_dict() == plane.to_dict()


def test_numbers_that_json_does_not_know_become_nothing():
    assert decode(joined(events.MaskChanged(1, PLANE, PACKED, float("nan"))), events.Event).score is None


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    arrays: tuple[np.ndarray, ...]
    values: Any = None


KINDS = [bool, "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]
some_arrays = st.lists(
    st.sampled_from(KINDS).flatmap(
        lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    ),
    max_size=4,
)
some_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@given(some_arrays, some_values)
@settings(max_examples=60, deadline=None)
def test_arrays_and_plain_values_come_out_as_they_went_in(arrays, values):
    back = decode(joined(Arrays(tuple(arrays), values)), Arrays)
    assert back.values == values and len(back.arrays) == len(arrays)
    for ours, theirs in zip(arrays, back.arrays, strict=True):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def test_arrays_are_neither_copied_nor_writable():
    voxels = np.arange(1000, dtype=np.int16)
    pieces = encode(Arrays((voxels,)))
    assert np.shares_memory(np.frombuffer(pieces[1], np.int16), voxels)
    body = b"".join(pieces)
    (back,) = decode(body, Arrays).arrays
    assert np.shares_memory(back, np.frombuffer(body, np.uint8))
    with pytest.raises(ValueError):
        back[0] = 1


def test_big_endian_and_strided_arrays_arrive_as_what_they_mean():
    given = np.arange(12, dtype=">i2").reshape(3, 4)[:, ::2]
    assert np.array_equal(decode(joined(Arrays((given,))), Arrays).arrays[0], given)


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(WireError, match="complex128"):
        encode(Arrays((np.zeros(2, complex),)))
    with pytest.raises(WireError, match="set cannot be sent"):
        encode(Arrays((), {1, 2}))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"is": "AddSegment"}, "message has no name"),
        ({"is": "AddSegment", "name": 5}, "message.name is not a text"),
        ({"is": "AddSegment", "name": "x" * 200_000}, "message.name is not a text of at most"),
        ({"is": "AddSegment", "name": "a", "value": True}, "message.value is not a whole number"),
        ({"is": "AddSegment", "name": "a", "value": 1 << 60}, "message.value is not a whole number"),
        ({"is": "AddSegment", "name": "a", "color": [1, 0]}, "message.color is not a list of 3"),
        ({"is": "AddSegment", "name": "a", "color": [1, 0, "red"]}, r"message.color\[2\] is not a number"),
        ({"is": "Cancel", "job": 1, "keep_results": 1}, "message.keep_results is not true or false"),
        ({"is": "SetWindow", "window": {"is": "Window"}}, "message.window is of an unknown kind"),
        ({"is": "Restore", "document": "{}"}, "message.document is not an array"),
        ({"is": "Clear", "plane": 5}, "message.plane is not a plane"),
        ({"is": "Adopt", "job": 1, "objects": [1, None]}, r"message.objects\[1\] is not a whole number"),
        ({"is": "Propagate", "segment": 1, "settings": {"is": "PropagationSettings", "direction": 4}},
         "message.settings.direction is not a text"),
        ({"is": "AddPrompt", "segment": 1, "prompt": {"name": "a"}}, "message.prompt is not a prompt"),
        ({"is": "FormatDisk"}, "message is of an unknown kind"),
        ({"is": "SetVolume"}, "message is of an unknown kind"),
        (None, "message is of an unknown kind"),
    ],
)  # fmt: skip
def test_an_error_names_the_field(values, says):
    with pytest.raises(WireError, match=says):
        decode(raw({"message": values, "arrays": []}), intents.Intent)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"is": "Propagate", "segment": 1, "settings": {"is": "PropagationSettings", "direction": "sideways"}},
         "sideways"),
        ({"is": "AddPrompt", "segment": 1, "prompt": {"points": {"position": [0, 0]}}}, "3 numbers"),
        ({"is": "Clear", "plane": PLANE.to_dict() | {"shape": [100_000, 100_000]}}, "too large"),
        ({"is": "Clear", "plane": PLANE.to_dict() | {"right": [0, 0, 0]}}, "damaged"),
    ],
)  # fmt: skip
def test_what_a_value_itself_refuses_is_its_own_sentence(values, says):
    with pytest.raises(UserError, match=says):
        decode(raw({"message": values, "arrays": []}), intents.Intent)


def test_a_wrong_part_does_not_spoil_its_message():
    body = raw({"message": {"is": "Sync", "intents": [{"is": "Sent", "number": 1}]}, "arrays": []})
    (later,) = decode(body, Sync).intents
    assert later.plain["number"] == 1
    with pytest.raises(WireError, match=r"message.intents\[0\] has no moment"):
        later.read()


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_with_a_sentence(noise):
    with pytest.raises(WireError):
        decode(noise, Sync)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_message_is_refused_or_another_message(data):
    body = bytearray(joined(Arrays((np.arange(6, dtype=np.int16), np.ones((2, 3))), [1, 2])))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    try:
        back = decode(body, Arrays)
    except WireError:
        return
    assert sum(array.nbytes for array in back.arrays) <= len(body)


ONE = b"x" + bytes(7)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        (1 << 63).to_bytes(8, "little") + b"{}",
        raw([]),
        raw({}),
        raw({"message": {}}),
        raw(b'{"arrays": [], "message": NaN}'),
        raw(b"[" * 100_000),
        raw(b"\xff\xfe"),
        raw(b'{"arrays": [], "message": 1, "message": 2}'),
        raw({"message": {}, "arrays": [["|u1", [2]]]}, [b"x"]),
        raw({"message": {}, "arrays": [["|u1", [1]]]}, [ONE, b"x"]),
        raw({"message": {}, "arrays": [["|u1", [-1]]]}, [ONE]),
        raw({"message": {}, "arrays": [["|u1", [True]]]}, [ONE]),
        raw({"message": {}, "arrays": [["|u1", [1.0]]]}, [ONE]),
        raw({"message": {}, "arrays": [["|O", [1]]]}, [ONE]),
        raw({"message": {}, "arrays": [[">i2", [1]]]}, [ONE]),
        raw({"message": {}, "arrays": [["i2,i2", [1]]]}, [ONE]),
        raw({"message": {}, "arrays": [[["|u1"], [1]]]}, [ONE]),
        raw({"message": {}, "arrays": [["|u1", [1] * 65]]}, [ONE]),
        raw({"message": {}, "arrays": [["|u1", [1 << 62, 1 << 62]]]}, [ONE]),
        raw({"message": {}, "arrays": [3]}, [ONE]),
        raw({"message": {}, "arrays": ["|u1"]}, [ONE]),
        raw({"message": {}, "arrays": [{"|u1": 1}]}, [ONE]),
    ],
)  # fmt: skip
def test_every_kind_of_lie_is_found(body):
    with pytest.raises(WireError):
        decode(body, Sync)
