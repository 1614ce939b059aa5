"""Slicer's markups files, in and out, also through Slicer's own classes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import aligned_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts import (
    Box3DPrompt,
    BoxPrompt,
    LassoPrompt,
    MaskPrompt,
    ObliqueView,
    PointPrompt,
    PromptSet,
    ScribblePrompt,
    SegmentPrompts,
    merge_prompts,
    planes_of,
    read_markups,
    read_prompts,
    write_markups,
)
from SAMFineTuneLib.prompts.markups_file import segment_name

_C, _S = np.cos(0.19), np.sin(0.19)
TILTED = Volume(
    np.zeros((12, 25, 30), np.int16),
    np.array([[-0.7, 0, 0, 40], [0, -0.7 * _C, -3 * _S, 20], [0, -0.7 * _S, 3 * _C, -10], [0, 0, 0, 1]]),
)


def point_list(*points, **markup) -> dict:
    return {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": [{"position": [1, 2, 3], "positionStatus": "defined"} | point for point in points],
    } | markup


def saved(tmp_path, *markups, name="liver.mrk.json"):
    path = tmp_path / name
    path.write_text(json.dumps({"markups": list(markups)}))
    return path


# ---- what a markup means


def test_lps_and_ras_become_ras(tmp_path):
    for system, ras in (("LPS", (-1, -2, 3)), ("RAS", (1, 2, 3))):
        (segment,) = read_markups(saved(tmp_path, point_list({}, coordinateSystem=system))).segments
        assert segment.name == "liver" and segment.prompts == (PointPrompt(ras),)
    assert read_prompts(saved(tmp_path, point_list({}))) == read_markups(saved(tmp_path, point_list({})))


@pytest.mark.parametrize(
    "point, list_name, positive",
    [
        ({}, "liver", True),
        ({"label": "liver-1"}, "liver", True),  # the hyphen is Slicer's
        ({"label": "-1"}, "liver", True),
        ({"label": "neg"}, "liver", False),
        ({"label": "neg-3"}, "liver", False),
        ({"label": "negative_3"}, "liver", False),
        ({"label": "-"}, "liver", False),
        ({"description": "Background"}, "liver", False),
        ({"description": "pos", "label": "neg"}, "liver", True),
        ({"label": "renegade"}, "liver", True),
        ({}, "liver_negative", False),
        ({"label": "liver_negative-1", "description": ""}, "liver_negative", False),
        ({"label": "+"}, "liver_negative", True),
        ({}, "liver_positive", True),
    ],
)
def test_which_points_are_negative(tmp_path, point, list_name, positive):
    (segment,) = read_markups(saved(tmp_path, point_list(point), name=f"{list_name}.mrk.json")).segments
    assert segment.name == "liver" and segment.prompts[0].positive is positive


@pytest.mark.parametrize(
    "list_name, name",
    [
        ("liver", "liver"),
        ("left kidney", "left kidney"),
        ("rib_4", "rib_4"),
        ("liver_negative", "liver"),
        ("liver negative 2", "liver"),
        ("liver_box-1", "liver"),
        ("liver_negative_scribble-2", "liver"),
        ("Liver-NEG", "Liver"),
        ("fibroid", "fibroid"),
        ("negative", "segment"),
        ("ROI", "segment"),
    ],
)
def test_segment_names_leave_out_words_that_say_what_a_list_is(list_name, name):
    assert segment_name(list_name) == name


def test_only_defined_points_count(tmp_path):
    path = saved(
        tmp_path,
        point_list(
            {"position": "", "positionStatus": "undefined"},
            {"positionStatus": "preview", "position": [9, 9, 9]},
            {"positionStatus": "missing", "position": [9, 9, 9]},
            {},
        ),
    )
    assert read_markups(path).segments[0].prompts == (PointPrompt((-1, -2, 3)),)


def test_several_markups_in_a_file_are_one_segment_and_colors_are_kept(tmp_path):
    roi = {
        "type": "ROI",
        "center": [1, 2, 3],
        "size": [4, 5, 6],
        "orientation": [-1, 0, 0, 0, -1, 0, 0, 0, 1],
    }
    display = {"selectedColor": [0.2, 0.4, 0.6]}
    line = point_list({}, {"position": [5, 2, 3]}, type="Curve", display=display)
    (segment,) = read_markups(saved(tmp_path, point_list({}), roi, line)).segments
    point, box, stroke = segment.prompts
    assert box == Box3DPrompt((-1, -2, 3), (4, 5, 6)) and stroke.ras == ((-1, -2, 3), (-5, -2, 3))
    assert segment.color == (0.2, 0.4, 0.6) and isinstance(point, PointPrompt)
    pink = point_list({}, display={"selectedColor": [1, 0.5, 0.5]})
    assert read_markups(saved(tmp_path, pink)).segments[0].color == SegmentPrompts("x").color


def test_a_closed_curve_is_a_lasso(tmp_path):
    corners = [{"position": at} for at in ([5, 2, 3], [5, 9, 3], [9, 9, 3])]
    curve = point_list(*corners, {"positionStatus": "preview"}, type="ClosedCurve")
    (segment,) = read_markups(saved(tmp_path, curve, name="liver_lasso_negative-2.mrk.json")).segments
    assert segment.name == "liver"
    assert segment.prompts == (LassoPrompt(((-5, -2, 3), (-5, -9, 3), (-9, -9, 3)), False),)
    with pytest.raises(UserError, match="three points"):
        read_markups(saved(tmp_path, point_list(*corners[:2], type="ClosedCurve")))


@pytest.mark.parametrize(
    "markup, says",
    [
        (point_list({}, coordinateUnits="um"), r"markups\[0\].coordinateUnits"),
        (point_list({}, coordinateSystem="IJK"), r"markups\[0\].coordinateSystem"),
        (point_list({"position": [1, 2]}), r"markups\[0\].controlPoints\[0\].position"),
        (point_list({"position": [1, 2, None]}), "controlPoints"),
        (point_list(), "no placed points"),
        (point_list({"positionStatus": "undefined"}), "no placed points"),
        ({"type": "Angle"}, "type Angle, which is not a prompt"),
        ({"controlPoints": []}, 'lacks its "type"'),
        ({"type": "ROI", "size": [1, 2, 3]}, 'lacks its "center"'),
        ({"type": "ROI", "center": [1, 2, 3], "size": [1, 0, 0]}, r"markups\[0\]: A 3-D box is empty"),
        (
            {"type": "ROI", "center": [1, 2, 3], "size": [1, 1, 1], "orientation": [1, 0, 0] * 3},
            r"markups\[0\]: A 3-D box needs three axes",
        ),
        ({"type": "ROI", "center": [0, 0, 0], "size": [0, 0, 0], "controlPoints": []}, "no placed points"),
    ],
)
def test_what_is_no_prompt_is_refused_by_name(tmp_path, markup, says):
    with pytest.raises(UserError, match=says):
        read_markups(saved(tmp_path, markup))


# ---- out and in


def all_kinds() -> PromptSet:
    plane = aligned_plane(TILTED, "axial", 5)
    a, b = plane.pixel_to_ras([[5, 6], [20, 15]])
    c, s = np.cos(0.4), np.sin(0.4)
    block = Box3DPrompt((30, 12, 5), (8, 6, 7), ((c, s, 0), (-s, c, 0), (0, 0, 1)))
    stroke = ScribblePrompt(tuple(map(tuple, plane.pixel_to_ras([[7, 8], [15, 12]]))), positive=False)
    liver = SegmentPrompts(
        "liver",
        1,
        (0.25, 0.5, 0.75),
        (
            PointPrompt((30, 12, 5)),
            PointPrompt((31, 13, 5), positive=False),
            BoxPrompt(tuple(a), tuple(b)),
            stroke,
        ),
    )
    return PromptSet((liver, SegmentPrompts("left kidney", 2, (1, 0, 0), (block,))))


def test_written_prompts_are_read_back_in_their_places(tmp_path):
    prompts = all_kinds()
    paths = write_markups(tmp_path, prompts, TILTED)
    assert [path.name for path in paths] == [
        "liver_positive.mrk.json",
        "liver_negative.mrk.json",
        "liver_box-1.mrk.json",
        "liver_negative_scribble-1.mrk.json",
        "left kidney_box-1.mrk.json",
    ]
    read = {}
    for path in paths:
        (segment,) = read_markups(path).segments
        read.setdefault(segment.name, []).extend(segment.prompts)
        assert segment.color in ((0.25, 0.5, 0.75), (1, 0, 0))
    liver, kidney = prompts.segments
    point, negative, box, stroke = read["liver"]
    assert point == liver.prompts[0] and negative == liver.prompts[1] and stroke == liver.prompts[3]
    assert np.allclose(read["left kidney"][0].axes, kidney.prompts[0].axes)
    before = planes_of(TILTED, liver.prompts[2], "axial")
    after = planes_of(TILTED, box, "axial")
    assert [plane.index for plane in after] == [plane.index for plane in before] == [5]
    assert np.allclose(*(next(iter(found.values())).box for found in (before, after)), atol=1e-3)


def test_an_oblique_view_is_written_as_a_plane_and_its_boxes_lie_on_it(tmp_path):
    view = ObliqueView((30, 12, 5), (0.8, 0.6, 0), (0, 0.1, -1))
    box = BoxPrompt((27, 9.75, 5), (33, 14.25, 5))
    prompts = PromptSet((SegmentPrompts("a", prompts=(box, PointPrompt((30, 12, 5)))),), view=view)
    read = [read_markups(path) for path in write_markups(tmp_path, prompts, TILTED)]
    (again,) = [one.view for one in read if one.view is not None]
    assert np.allclose(again.origin, view.origin) and np.allclose(again.right, view.right)
    assert np.allclose(np.cross(again.right, again.down) @ view.down, 0)
    with pytest.raises(UserError, match="two planes"):
        plane = json.loads((tmp_path / "view_plane.mrk.json").read_text())["markups"]
        read_markups(saved(tmp_path, *plane, *plane))


def test_names_that_are_no_file_names_and_names_that_clash_still_get_files_of_their_own(tmp_path):
    point = (PointPrompt((30, 12, 5)),)
    names = ["a/b", "a:b", "..", "été"]
    segments = [SegmentPrompts(name, value, prompts=point) for value, name in enumerate(names, 1)]
    paths = write_markups(tmp_path, PromptSet(tuple(segments)), TILTED)
    assert len(set(paths)) == 4 and all(path.parent == tmp_path and path.exists() for path in paths)
    assert {segment_name(path.name.removesuffix(".mrk.json")) for path in paths} >= {"a_b", "été"}


@pytest.mark.parametrize("names", [("Liver", "liver"), ("liver", "liver_positive"), ("a point 2", "a", "a box")])
def test_segments_stay_apart_whatever_their_names_say(tmp_path, names):
    """Also on disks that do not tell A from a."""
    segments = [
        SegmentPrompts(name, value, prompts=(PointPrompt((30, 12, value)), PointPrompt((20, 12, value), False)))
        for value, name in enumerate(names, 1)
    ]
    paths = write_markups(tmp_path, PromptSet(tuple(segments)), TILTED)
    assert len({path.name.casefold() for path in paths}) == len(paths)
    again = merge_prompts([read_prompts(path, TILTED) for path in paths])
    assert [set(one.prompts) for one in again.segments] == [set(one.prompts) for one in segments]


def test_what_markups_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    plane = aligned_plane(TILTED, "axial", 5)
    mask = MaskPrompt(np.ones(plane.shape, bool), plane)
    skewed = Box3DPrompt((30, 12, 5), (8, 6, 7), ((1, 0, 0), (0.3, 1, 0), (0, 0, 1)))
    for prompt, says in ((mask, "mask prompt"), (skewed, "skewed axes")):
        with pytest.raises(UserError, match=says):
            segment = SegmentPrompts("a", prompts=(PointPrompt((30, 12, 5)), prompt))
            write_markups(tmp_path, PromptSet((segment,)), TILTED)
    assert not list(tmp_path.iterdir())


# ---- through Slicer itself


@pytest.fixture(scope="module")
def slicer():
    return pytest.importorskip("slicer")


def slicer_reads(slicer, path, node_class, storage_class="vtkMRMLMarkupsJsonStorageNode"):
    scene = slicer.vtkMRMLScene()
    node = scene.AddNode(getattr(slicer, node_class)())
    storage = scene.AddNode(getattr(slicer, storage_class)())
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    node.scene = scene  # lives as long as the node
    return node


def slicer_writes(slicer, node, path, storage_class="vtkMRMLMarkupsJsonStorageNode"):
    scene = slicer.vtkMRMLScene()
    scene.AddNode(node)
    storage = scene.AddNode(getattr(slicer, storage_class)())
    storage.SetFileName(str(path))
    assert storage.WriteData(node) == 1
    return path


def test_slicer_reads_our_points(slicer, tmp_path):
    paths = {path.name: path for path in write_markups(tmp_path, all_kinds(), TILTED)}
    node = slicer_reads(slicer, paths["liver_positive.mrk.json"], "vtkMRMLMarkupsFiducialNode")
    assert node.GetNumberOfDefinedControlPoints() == 1
    assert np.allclose(node.GetNthControlPointPositionWorld(0), (30, 12, 5))
    curve = slicer_reads(slicer, paths["liver_negative_scribble-1.mrk.json"], "vtkMRMLMarkupsCurveNode")
    stroke = all_kinds().segments[0].prompts[3]
    assert np.allclose([curve.GetNthControlPointPositionWorld(n) for n in range(2)], stroke.ras)


def test_slicer_reads_our_boxes(slicer, tmp_path):
    prompts = all_kinds()
    paths = {path.name: path for path in write_markups(tmp_path, prompts, TILTED)}
    block = prompts.segments[1].prompts[0]
    node = slicer_reads(
        slicer,
        paths["left kidney_box-1.mrk.json"],
        "vtkMRMLMarkupsROINode",
        "vtkMRMLMarkupsROIJsonStorageNode",
    )
    matrix = np.array([[node.GetObjectToWorldMatrix().GetElement(r, c) for c in range(4)] for r in range(4)])
    assert np.allclose(node.GetCenterWorld(), block.center) and np.allclose(node.GetSize(), block.size)
    assert np.allclose(matrix[:3, :3].T, block.axes) and np.allclose(matrix[:3, 3], block.center)


def test_slicer_reads_our_plane(slicer, tmp_path):
    view = ObliqueView((30, 12, 5), (0.8, 0.6, 0), (0, 0, -1))
    (path,) = write_markups(tmp_path, PromptSet((), view=view), TILTED)
    node = slicer_reads(slicer, path, "vtkMRMLMarkupsPlaneNode", "vtkMRMLMarkupsPlaneJsonStorageNode")
    assert np.allclose(node.GetCenterWorld(), view.origin)
    assert np.allclose(np.abs(node.GetNormalWorld() @ np.cross(view.right, view.down)), 1)
    matrix = type(node.GetBaseToNodeMatrix())()
    node.GetObjectToWorldMatrix(matrix)
    columns = [[matrix.GetElement(row, column) for row in range(3)] for column in range(2)]
    assert np.allclose(columns, [view.right, -np.array(view.down)])


def test_we_read_slicers_points(slicer, tmp_path):
    node = slicer.vtkMRMLMarkupsFiducialNode()
    node.SetName("liver")
    for position, label in (((1, 2, 3), ""), ((4, 5, 6), "neg"), ((7, 8, 9), "lost")):
        node.AddControlPoint(position, label) if label else node.AddControlPoint(position)
    node.UnsetNthControlPointPosition(2)
    (segment,) = read_markups(slicer_writes(slicer, node, tmp_path / "liver.mrk.json")).segments
    assert segment.prompts == (PointPrompt((1, 2, 3)), PointPrompt((4, 5, 6), positive=False))


def test_we_read_slicers_rois_turned_by_any_angle(slicer, tmp_path):
    node = slicer.vtkMRMLMarkupsROINode()
    node.SetCenter([10, 20, 30])
    node.SetSize(5, 6, 7)
    matrix = node.GetObjectToNodeMatrix()
    c, s = np.cos(0.3), np.sin(0.3)
    turned = np.array([[c, -s, 0, 10], [s, c, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]])
    copy = type(matrix)()
    copy.DeepCopy(turned.reshape(-1).tolist())
    node.SetAndObserveObjectToNodeMatrix(copy)
    path = slicer_writes(slicer, node, tmp_path / "R.mrk.json", "vtkMRMLMarkupsROIJsonStorageNode")
    (box,) = read_markups(path).segments[0].prompts
    assert np.allclose(box.center, (10, 20, 30)) and np.allclose(box.size, (5, 6, 7))
    assert np.allclose(np.array(box.axes).T, turned[:3, :3])
    corner = turned @ (2.5, 3, 3.5, 1)  # in RAS, by Slicer's matrix
    assert np.allclose(np.array(box.axes) @ (corner[:3] - box.center), np.array(box.size) / 2)


def test_slicers_rois_inside_out_are_refused(slicer, tmp_path):
    node = slicer.vtkMRMLMarkupsROINode()
    node.SetCenter([10, 20, 30])
    node.SetSize(5, 6, 7)
    path = slicer_writes(slicer, node, tmp_path / "R.mrk.json", "vtkMRMLMarkupsROIJsonStorageNode")
    assert read_markups(path).segments[0].prompts
    node.InsideOutOn()
    path = slicer_writes(slicer, node, tmp_path / "R.mrk.json", "vtkMRMLMarkupsROIJsonStorageNode")
    with pytest.raises(UserError, match="inside out"):
        read_markups(path)


def test_an_roi_that_was_never_placed_is_no_prompt(slicer, tmp_path):
    node = slicer.vtkMRMLMarkupsROINode()
    path = slicer_writes(slicer, node, tmp_path / "R.mrk.json", "vtkMRMLMarkupsROIJsonStorageNode")
    with pytest.raises(UserError, match="no placed points or boxes"):
        read_markups(path)


def test_we_read_slicers_planes_and_curves(slicer, tmp_path):
    node = slicer.vtkMRMLMarkupsPlaneNode()
    node.SetOrigin(1, 2, 3)
    node.SetNormal(0, 0.6, 0.8)
    node.SetSize(10, 20)
    path = slicer_writes(slicer, node, tmp_path / "P.mrk.json", "vtkMRMLMarkupsPlaneJsonStorageNode")
    found = read_markups(path)
    assert not found.segments and np.allclose(found.view.origin, (1, 2, 3))
    assert np.allclose(np.abs(np.cross(found.view.right, found.view.down)), (0, 0.6, 0.8))
    curve = slicer.vtkMRMLMarkupsCurveNode()
    curve.AddControlPoint([1, 2, 3])
    curve.AddControlPoint([4, 5, 6])
    (stroke,) = read_markups(slicer_writes(slicer, curve, tmp_path / "c.mrk.json")).segments[0].prompts
    assert stroke.ras == ((1, 2, 3), (4, 5, 6)) and stroke.positive
