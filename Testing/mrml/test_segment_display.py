"""Masks into segments: the closed surface, the views, and who is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
from mrml.scenes import segment_voxels
from mrml.segment_bench import (
    Bench,
    box,
    drawn_bench,
    random_mask,
    same,
)

from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter
from SAMFineTuneLib.mrml.slice_views import plane_of_view, ras_at, settle_view
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node


def points_of(surface) -> np.ndarray:
    from vtk.util.numpy_support import vtk_to_numpy

    if surface is None or surface.GetNumberOfPoints() == 0:
        return np.zeros((0, 3))
    return np.round(vtk_to_numpy(surface.GetPoints().GetData()).astype(float), 4)


def surface_of(bench, segment: str):
    return bench.segmentation.GetSegment(segment).GetRepresentation("Closed surface")


@pytest.mark.parametrize("joint", [False, True])
def test_the_surface_is_rebuilt_when_asked_and_equals_a_new_one(bench, joint):
    bench.segmentation.SetConversionParameter("Joint smoothing", str(int(joint)))
    bench.draw("first", box((2, 5), (3, 9), (2, 5)))
    bench.draw("second", box((2, 5), (3, 9), (5, 8)))
    bench.node.CreateClosedSurfaceRepresentation()
    before = points_of(surface_of(bench, "first"))
    assert not bench.writer.surface_stale
    for index in (5, 6):
        plane = bench.plane("axial", index)
        bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert bench.writer.surface_stale
    assert np.array_equal(points_of(surface_of(bench, "first")), before)  # kept, not dropped, not rebuilt
    bench.writer.refresh_surface()
    assert not bench.writer.surface_stale
    fresh = {name: points_of(surface_of(bench, name)) for name in ("first", "second")}
    assert len(fresh["first"]) > len(before)
    bench.node.RemoveClosedSurfaceRepresentation()
    bench.node.CreateClosedSurfaceRepresentation()
    for name, points in fresh.items():
        anew = points_of(surface_of(bench, name))
        assert len(points) == len(anew)
        assert np.allclose(points[np.lexsort(points.T)], anew[np.lexsort(anew.T)], atol=1e-3)


def test_an_emptied_segment_has_an_empty_surface(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    bench.node.CreateClosedSurfaceRepresentation()
    assert len(points_of(surface_of(bench, "first")))
    bench.writer.write("first", plane, None)
    bench.writer.refresh_surface()
    assert len(points_of(surface_of(bench, "first"))) == 0


def test_without_a_surface_none_is_made(bench):
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert not bench.writer.surface_stale
    bench.writer.refresh_surface()
    assert not bench.segmentation.ContainsRepresentation("Closed surface")


def test_storage_and_status_know_of_the_change(bench):
    import slicer

    heard = []
    bench.node.AddObserver(bench.segmentation.RepresentationModified, lambda *_: heard.append(1))
    plane = bench.plane()
    bench.writer.write("first", plane, np.ones(plane.shape, bool))
    assert heard
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.GetSegmentStatus(bench.segmentation.GetSegment("first")) == logic.InProgress
    assert logic.GetSegmentStatus(bench.segmentation.GetSegment("second")) == logic.NotStarted


@pytest.mark.parametrize("surface", [False, True])
def test_the_slice_view_is_redrawn_with_the_mask(slicer_scene, phantom, surface):
    bench = Bench(slicer_scene, volume=phantom)
    bench.volume_node.GetDisplayNode().SetAutoWindowLevel(False)
    bench.volume_node.GetDisplayNode().SetWindowLevelMinMax(-1000, 1000)
    bench.draw("second", box_in(phantom, (2, 4), (10, 30), (10, 30)))
    if surface:
        bench.node.CreateClosedSurfaceRepresentation()
    bench.segmentation.GetSegment("first").SetColor(1, 0, 0)
    plane = bench.plane("axial", 8)
    view = slicer_scene.add_view("Red", "Axial", (300, 300))
    view.show(bench.volume_node)
    view.node.RotateToVolumePlane(bench.volume_node)
    view.go_to(plane.pixel_to_ras((30, 30)))
    before = view.pixels()
    asked = view.renders_asked_for
    mask = np.zeros(plane.shape, bool)
    mask[20:60, 20:60] = True
    bench.writer.write("first", plane, mask)
    assert view.renders_asked_for > asked
    after = view.pixels()
    x, y = view.xy_of(plane.pixel_to_ras((40, 40)))
    assert int(after[y, x, 0]) > int(before[y, x, 0]) + 30 and after[y, x, 1] < before[y, x, 1]
    outside = view.xy_of(plane.pixel_to_ras((70, 70)))
    assert np.array_equal(after[outside[1], outside[0]], before[outside[1], outside[0]])
    bench.writer.write("first", plane, None)
    assert np.array_equal(view.pixels(), before)
    bench.writer.write("first", plane, mask)  # into memory that is there already
    assert np.array_equal(view.pixels(), after)


def box_in(volume: Volume, *ranges) -> np.ndarray:
    voxels = np.zeros(volume.shape, bool)
    voxels[tuple(slice(a, b) for a, b in ranges)] = True
    return voxels


def views_to_try(view, volume_node):
    """Turns the view in every way a user may have it; yields what it shows."""
    for orientation in ("Axial", "Coronal", "Sagittal"):
        view.node.SetOrientation(orientation)
        yield f"{orientation} of the patient"
        view.node.RotateToVolumePlane(volume_node)
        yield f"{orientation} of the volume"
    centre = view.ras_of((view.size[0] / 2, view.size[1] / 2))
    angle = np.radians(20)
    view.node.SetOrientation("Axial")
    view.turn((-np.cos(angle), 0, np.sin(angle)), (0, -1, 0), centre)
    yield "rotated by 20°"


def clicks_land_where_they_were_made(slicer_scene, volume_node) -> None:
    volume = volume_from_node(volume_node)
    node = slicer_scene.add_segmentation(volume_node, ("first",))
    node.GetSegmentation().GetSegment("first").SetColor(1, 0, 0)
    node.GetDisplayNode().SetVisibility2DOutline(False)
    display = volume_node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(float(volume.array.min()), 2 * float(volume.array.max()))  # darker than half
    writer = SegmentWriter(node, volume_node, volume)
    view = slicer_scene.add_view("Red", "Axial", (300, 300))
    view.show(volume_node)
    middle = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) * (0.5, 0.52, 0.48))
    seen = []
    for showing in views_to_try(view, volume_node):
        view.logic.FitSliceToAll()
        view.go_to(middle)
        settle_view(view.node, volume)
        seen.append(showing)
        before = view.pixels().astype(int)
        xy = view.xy_of(middle)
        ras = ras_at(view.node, xy)
        plane = plane_of_view(view.node, volume, ras)
        pixel = plane.ras_to_pixel(ras)
        rows, columns = np.indices(plane.shape)
        mask = np.hypot(columns - pixel[0], rows - pixel[1]) * plane.pixel_size < 12
        writer.write("first", plane, mask, points=[pixel])
        after = view.pixels().astype(int)
        i, j, k = np.floor(volume.ras_to_ijk(ras) + 0.5 + 1e-6).astype(int)
        assert segment_voxels(node, "first", volume)[k, j, i], showing
        redder = (after - before)[..., 0] - (after - before)[..., 1] > 20
        assert redder[xy[1], xy[0]], showing
        shown = np.argwhere(redder)[:, ::-1]
        distance = np.linalg.norm([ras_at(view.node, each) - ras for each in shown], axis=1)
        assert distance.max() < 12 + 2 * volume.spacing.max(), showing
        assert len(shown) * pixel_area(view) == pytest.approx(np.pi * 12**2, rel=0.25), showing
        writer.write("first", plane, None)
    assert len(seen) == 7


def pixel_area(view) -> float:
    """mm² of a pixel of the view."""
    corner, right, up = (view.ras_of(xy) for xy in ((0, 0), (1, 0), (0, 1)))
    return float(np.linalg.norm(right - corner) * np.linalg.norm(up - corner))


def test_a_mask_is_seen_where_the_view_was_clicked_in_every_view(slicer_scene, phantom):
    clicks_land_where_they_were_made(slicer_scene, slicer_scene.add_volume(phantom))


def test_a_mask_is_seen_where_the_view_was_clicked_on_a_transformed_volume(slicer_scene, phantom):
    matrix = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -9], [0, 0, 1, 12], [0, 0, 0, 1.0]])
    parent = slicer_scene.add_transform(matrix)
    clicks_land_where_they_were_made(slicer_scene, slicer_scene.add_volume(phantom, parent=parent))


def test_a_mask_is_seen_where_the_view_was_clicked_on_a_real_oblique_series(slicer_scene, real_images):
    import SimpleITK as sitk
    import vtk

    names = vtk.vtkStringArray()
    for file in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(real_images / "brain-mr-oblique-dicom" / "flair")):
        names.InsertNextValue(file)
    node = slicer_scene.logics["Volumes"].AddArchetypeVolume(names.GetValue(0), "flair", 0, names)
    clicks_land_where_they_were_made(slicer_scene, node)


def test_ownership_holds_after_the_segmentation_was_saved_and_read(slicer_scene, tmp_path):
    """Through a file, as with the scene: labelmaps come back cropped and rearranged."""
    bench = drawn_bench(slicer_scene)
    bench.segmentation.RemoveSegment("apart")  # overlapping segments take a fourth dimension in the file
    before = bench.all()
    plane, other = bench.plane("axial"), bench.plane("sagittal")
    bench.writer.write("first", plane, random_mask(plane.shape, 1))
    bench.writer.write("second", other, random_mask(other.shape, 2))
    shown, stored = bench.all(), json.loads(json.dumps(bench.writer.to_dict()))
    storage = slicer_scene.add("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "saved.seg.nrrd"))
    assert storage.WriteData(bench.node)
    again = slicer_scene.add("vtkMRMLSegmentationNode", "again")
    again.CreateDefaultDisplayNodes()
    assert storage.ReadData(again)
    assert same({name: segment_voxels(again, name, bench.volume) for name in shown}, shown)
    writer = SegmentWriter(again, bench.volume_node, bench.volume)
    assert writer.from_dict(stored)
    for mask in writer.masks():
        assert writer.remove(mask.segment_id, mask.plane_key)
    assert same({name: segment_voxels(again, name, bench.volume) for name in before}, before)
    assert not writer.remove("first", plane.key)
