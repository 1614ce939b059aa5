from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from safetensors.numpy import load, save

from SAMFineTuneLib.service.codec import CodecError, decode, encode

TYPES = [bool, "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]

numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
messages = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
arrays = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(TYPES).flatmap(
        lambda kind: arrays_of.arrays(kind, arrays_of.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    ),
    max_size=4,
)


def joined(message, named=None) -> bytes:
    return b"".join(encode(message, named))


def same(a, b) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@given(messages, arrays)
@settings(max_examples=60, deadline=None)
def test_what_goes_in_comes_out(message, named):
    got, back = decode(joined(message, named))
    assert got == message
    assert back.keys() == named.keys() and all(same(back[name], named[name]) for name in named)


@given(arrays)
@settings(max_examples=30, deadline=None)
def test_the_safetensors_package_reads_ours_and_we_read_its(named):
    theirs = load(joined({"any": 1}, named))
    assert theirs.keys() == named.keys() and all(same(theirs[name], named[name]) for name in named)
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in named.items()}
    message, back = decode(save(contiguous, {"message": '{"from": "them"}'}))
    assert message == {"from": "them"}
    assert all(same(back[name], named[name]) for name in named)


def test_arrays_are_neither_copied_nor_writable():
    voxels = np.arange(1000, dtype=np.int16)
    pieces = encode(None, {"voxels": voxels})
    assert np.shares_memory(np.frombuffer(pieces[1], np.int16), voxels)
    body = b"".join(pieces)
    back = decode(body)[1]["voxels"]
    assert np.shares_memory(back, np.frombuffer(body, np.uint8))
    with pytest.raises(ValueError):
        back[0] = 1


def test_big_endian_and_strided_arrays_arrive_as_what_they_mean():
    given = np.arange(12, dtype=">i2").reshape(3, 4)[:, ::2]
    assert np.array_equal(decode(joined(None, {"a": given}))[1]["a"], given)


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(CodecError, match="complex128"):
        encode(None, {"a": np.zeros(2, complex)})
    with pytest.raises(ValueError):
        encode({"a": float("nan")})


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_refused_with_a_sentence(noise):
    with pytest.raises(CodecError):
        decode(noise)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_message_is_refused_or_another_message(data):
    body = bytearray(joined({"intents": [1, 2]}, {"a": np.arange(6, dtype=np.int16), "b": np.ones((2, 3))}))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    try:
        _, back = decode(body)
    except CodecError:
        return
    assert sum(array.nbytes for array in back.values()) <= len(body)


def body_of(header, data=b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


META = {"__metadata__": {"message": "{}"}}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        (1 << 63).to_bytes(8, "little") + b"{}",
        body_of([]),
        body_of({}),
        body_of({"__metadata__": {"message": "{"}}),
        body_of({"__metadata__": {"message": "NaN"}}),
        body_of({"__metadata__": {"message": "[" * 100_000}}),
        body_of(b"[" * 100_000),
        body_of(b"\xff\xfe"),
        body_of(b'{"__metadata__": {"message": "1", "message": "2"}}'),
        body_of(META | {"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"xx"),
        body_of(META | {"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"xx"),
        body_of(META | {"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": {"dtype": "U8", "shape": [1] * 65, "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": {"dtype": "U8", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                        "b": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
        body_of(META | {"a": 3}),
    ],
)  # fmt: skip
def test_every_kind_of_lie_is_found(body):
    with pytest.raises(CodecError):
        decode(body)
