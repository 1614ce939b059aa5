"""Our own prompts file: read back as written, voxel coordinates turned into RAS, mistakes named."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import aligned_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts import (
    Box3DPrompt,
    BoxPrompt,
    MaskPrompt,
    ObliqueView,
    PointPrompt,
    PromptSet,
    ScribblePrompt,
    SegmentPrompts,
    merge_prompts,
    planes_of,
    prompts_from_dict,
    prompts_to_dict,
    read_prompts,
    write_prompts,
)

TILTED = Volume(
    np.zeros((12, 25, 30), np.int16),
    np.array([[-0.7, 0, 0, 40], [0, -0.69, -0.5, 20], [0, -0.118, 2.95, -10], [0, 0, 0, 1]]),
)
numbers = st.floats(-500, 500)
ras = st.tuples(numbers, numbers, numbers)
lengths = st.floats(0.1, 100)
prompts = st.one_of(
    st.builds(PointPrompt, ras, st.booleans()),
    st.builds(BoxPrompt, ras, ras),
    st.builds(Box3DPrompt, ras, st.tuples(lengths, lengths, lengths)),
    st.builds(ScribblePrompt, st.lists(ras, min_size=1, max_size=5).map(tuple), st.booleans()),
)
letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
# in the order of their kinds, as the file keeps them
segments = st.builds(
    SegmentPrompts,
    st.text(letters, min_size=1, max_size=12).filter(str.strip),
    st.integers(1, 65535),
    st.tuples(*[st.floats(0, 1)] * 3),
    st.lists(prompts, max_size=8).map(
        lambda found: tuple(sorted(found, key=lambda p: list(_KINDS).index(type(p))))
    ),
)
_KINDS = (PointPrompt, BoxPrompt, Box3DPrompt, ScribblePrompt)
sets = st.builds(
    PromptSet,
    st.lists(segments, max_size=4, unique_by=(lambda s: s.name, lambda s: s.value)).map(tuple),
    st.sampled_from(("axial", "coronal", "sagittal")),
    st.none() | st.builds(ObliqueView, ras, ras, ras),
)


@settings(max_examples=60, deadline=None)
@given(sets)
def test_what_is_written_is_read_back(tmp_path_factory, given_set):
    path = tmp_path_factory.mktemp("prompts") / "prompts.json"
    write_prompts(path, given_set)
    assert read_prompts(path) == given_set


def test_masks_survive_too(tmp_path):
    plane = aligned_plane(TILTED, "coronal", 4)
    mask = np.random.default_rng(0).random(plane.shape) < 0.3
    write_prompts(tmp_path / "p.json", PromptSet((SegmentPrompts("a", prompts=(MaskPrompt(mask, plane),)),)))
    (again,) = read_prompts(tmp_path / "p.json").segments[0].prompts
    assert np.array_equal(again.mask, mask) and again.plane.key == plane.key
    found = planes_of(TILTED, again, "coronal")
    assert [key.key for key in found] == [plane.key]


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.floats(0, 29), st.floats(0, 24), st.floats(0, 11)))
def test_voxel_coordinates_become_ras_and_back(ijk):
    values = {"version": 1, "space": "ijk", "segments": [{"name": "a", "points": [{"position": list(ijk)}]}]}
    (point,) = prompts_from_dict(values, TILTED).segments[0].prompts
    assert np.allclose(TILTED.ras_to_ijk(point.ras), ijk, atol=1e-9)
    assert prompts_from_dict(prompts_to_dict(prompts_from_dict(values, TILTED))).segments[0].prompts == (
        point,
    )


def test_every_kind_in_voxel_coordinates_is_in_its_place():
    values = {
        "version": 1,
        "space": "ijk",
        "orientation": "axial",
        "plane": {"origin": [10, 10, 5], "right": [1, 0, 0], "down": [0, 0, 1]},
        "segments": [
            {
                "name": "a",
                "boxes": [{"corners": [[5, 6, 3], [20, 15, 3]]}],
                "scribbles": [{"points": [[5, 6, 4], [20, 6, 4]], "positive": False}],
                "boxes_3d": [{"corners": [[5, 6, 7], [20, 15, 9]]}],
            },
            {"name": "b", "boxes_3d": [{"center": [12, 11, 7], "size": [15, 9, 2]}]},
        ],
    }
    found = prompts_from_dict(values, TILTED)
    a, b = (
        {plane: on_it for prompt in segment.prompts for plane, on_it in planes_of(TILTED, prompt, "axial").items()}
        for segment in found.segments
    )
    assert sorted(plane.index for plane in a) == [3, 4, 7, 8, 9] and [plane.index for plane in b] == [6, 7, 8]
    for one in (*(v for p, v in a.items() if p.index != 4), *b.values()):
        assert np.allclose(one.box[2:] - one.box[:2], (15, 9), atol=0.2)
    assert not next(v for p, v in a.items() if p.index == 4).labels.any()
    assert np.allclose(TILTED.ras_to_ijk(found.view.origin), (10, 10, 5))
    assert np.allclose(found.view.down, TILTED.affine[:3, 2])


@pytest.mark.parametrize(
    "key, prompt",
    [
        ("points", {"position": [5, 25, 3]}),
        ("boxes", {"corners": [[-9, 6, 3], [-2, 15, 3]]}),
        ("scribbles", {"points": [[5, 6, 14], [20, 6, 14]]}),
        ("boxes_3d", {"center": [12, 11, 17], "size": [15, 9, 2]}),
    ],
)
def test_voxels_outside_the_volume_are_refused_in_voxels(key, prompt):
    values = {"version": 1, "space": "ijk", "segments": [{"name": "a", key: [prompt]}]}
    with pytest.raises(UserError, match=rf"{key}\[0\].* lies outside .* voxels are i 0 to 29, j 0 to 24, k 0 to 11"):
        prompts_from_dict(values, TILTED)


def test_voxel_coordinates_without_a_volume_are_refused():
    with pytest.raises(UserError, match="give their volume"):
        prompts_from_dict({"version": 1, "space": "ijk", "segments": []})


def test_value_and_color_may_be_left_out_and_never_clash():
    entries = [{"name": "a"}, {"name": "b", "value": 1}, {"name": "c"}]
    found = prompts_from_dict({"version": 1, "segments": entries})
    assert [segment.value for segment in found.segments] == [2, 1, 3]
    assert len({segment.color for segment in found.segments}) == 3


P = {"position": [1, 2, 3]}


@pytest.mark.parametrize(
    "values, says",
    [
        ({"segments": []}, 'lacks its "version"'),
        ({"version": 2, "segments": []}, "has version 2; this program reads version 1"),
        ({"version": 1}, 'lacks its "segments"'),
        ({"version": 1, "segments": {}}, "segments must be a list"),
        ({"version": 1, "space": "lps", "segments": []}, 'space must be "ras" or "ijk", not "lps"'),
        ({"version": 1, "orientation": "up", "segments": []}, '"up" is not an orientation'),
        ({"version": 1, "segment": []}, 'unknown key "segment": allowed are version, space'),
        ({"version": 1, "segments": [{"points": []}]}, r'segments\[0\] lacks its "name"'),
        ({"version": 1, "segments": [{"name": 3}]}, r"segments\[0\].name must be a text"),
        ({"version": 1, "segments": [{"name": "a", "value": "1"}]}, r"segments\[0\].value must be a whole"),
        ({"version": 1, "segments": [{"name": "a", "value": 70000}]}, "label value of segment a"),
        (
            {"version": 1, "segments": [{"name": "a", "color": [1, 2]}]},
            r"segments\[0\].color must be a list of 3",
        ),
        (
            {"version": 1, "segments": [{"name": "a", "points": [P, {"position": [1, 2]}]}]},
            r"points\[1\].position",
        ),
        (
            {"version": 1, "segments": [{"name": "a", "points": [{"position": [1, 2, "3"]}]}]},
            r"points\[0\].position",
        ),
        (
            {"version": 1, "segments": [{"name": "a", "points": [{"position": [1, 2, True]}]}]},
            r"points\[0\].posit",
        ),
        (
            {"version": 1, "segments": [{"name": "a", "points": [[1, 2, 3]]}]},
            r"points\[0\] must be a JSON object",
        ),
        ({"version": 1, "segments": [{"name": "a", "points": [{**P, "positve": False}]}]}, '"positve"'),
        (
            {"version": 1, "segments": [{"name": "a", "points": [{**P, "positive": 1}]}]},
            "must be true or false",
        ),
        (
            {"version": 1, "segments": [{"name": "a", "boxes": [{"corners": [[1, 2, 3]]}]}]},
            r"boxes\[0\].corners",
        ),
        (
            {"version": 1, "segments": [{"name": "a", "boxes_3d": [{"center": [1, 2, 3]}]}]},
            'lacks its "size"',
        ),
        ({"version": 1, "segments": [{"name": "a", "boxes_3d": [{"corners": [], "size": 1}]}]}, "not both"),
        ({"version": 1, "segments": [{"name": "a", "scribbles": [{"points": []}]}]}, "at least one point"),
        (
            {"version": 1, "segments": [{"name": "a", "masks": [{"plane": {}, "pixels": ""}]}]},
            "plane is damaged",
        ),
        ({"version": 1, "plane": {"origin": [0, 0, 0]}, "segments": []}, 'plane lacks its "right"'),
        ({"version": 1, "segments": [{"name": "a"}, {"name": "a"}]}, "Two segments have the same name"),
    ],
)
def test_mistakes_are_named_by_their_key(values, says):
    with pytest.raises(UserError, match=says):
        prompts_from_dict(values)


@pytest.mark.parametrize("pixels", ["", "!!", "AAAA", "eJwDAAAAAAE="])
def test_damaged_masks_are_refused(pixels):
    plane = aligned_plane(TILTED, "axial", 0).to_dict()
    with pytest.raises(UserError, match=r"masks\[0\].pixels is damaged"):
        prompts_from_dict(
            {"version": 1, "segments": [{"name": "a", "masks": [{"plane": plane, "pixels": pixels}]}]}
        )


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "not valid JSON at line 1"),
        (b'{"version": 1,\n "segments": [}', "not valid JSON at line 2, column 15"),
        (b"[1, 2]", "must be a JSON object"),
        (b'"text"', "must be a JSON object"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"[" * 100000, "nested too deeply"),
        (b'{"version": 1, "segments": [{"name": "a\\ud800", "points": []}]}', "lone surrogate"),
        (b'{"version": 1, "segments": [{"name": "a\\u0000", "points": []}]}', "NUL"),
        (b'{"version": 1, "segments": [{"name": "a\\udc80", "points": []}]}', "that no file can hold"),
        (b'{"version": 1, "segments": [], "segments": []}', 'has the key "segments" twice'),
        (b'{"version": 1, "segments": [{"name": "a", "points": [], "boxes": [], "points": []}]}', 'key "points" twice'),
        (b'{"version": 1, "segments": [{"name": "a", "points": [{"position": [1, 2, NaN]}]}]}', "finite"),
        (b'{"version": 1, "segments": [{"name": "a", "points": [{"position": [1, 2, 1e999]}]}]}', "finite"),
        (
            b'{"version": 1, "segments": [{"name": "a", "points": [{"position": [1, 2, %s]}]}]}'
            % (b"9" * 400),
            "fin",
        ),
    ],
)
def test_files_that_are_not_prompts_are_refused_in_one_sentence(tmp_path, content, says):
    path = tmp_path / "prompts.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        read_prompts(path)
    assert "\n" not in str(refused.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_prompts(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_prompts(tmp_path)


def test_a_byte_order_mark_is_no_hindrance(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"version": 1, "segments": [{"name": "é"}]}).encode())
    assert read_prompts(path).segments[0].name == "é"


def test_writing_never_leaves_half_a_file(tmp_path):
    path = tmp_path / "prompts.json"
    write_prompts(path, PromptSet((SegmentPrompts("a"),)))
    before = path.read_bytes()
    broken = PromptSet((SegmentPrompts("a"),))
    object.__setattr__(broken, "orientation", object())  # cannot be JSON
    with pytest.raises(TypeError):
        write_prompts(path, broken)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_several_files_become_one_set():
    point, box = PointPrompt((1, 2, 3)), BoxPrompt((1, 2, 3), (4, 5, 3))
    first = PromptSet((SegmentPrompts("liver", 1, prompts=(point,)),), "coronal")
    second = PromptSet(
        (SegmentPrompts("spleen", 1, (0, 0, 1), (point,)), SegmentPrompts("liver", 2, prompts=(box,))),
        view=ObliqueView((0, 0, 0), (1, 0, 0), (0, 1, 0)),
    )
    merged = merge_prompts([first, second])
    liver, spleen = merged.segments
    assert (liver.name, liver.value, liver.prompts) == ("liver", 1, (point, box))
    assert (spleen.name, spleen.value, spleen.color) == ("spleen", 2, (0, 0, 1))
    assert merged.orientation == "coronal" and merged.view == second.view
