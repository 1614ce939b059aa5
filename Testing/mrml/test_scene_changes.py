"""What Slicer does to a session from outside: nodes deleted while jobs run, segments hidden, objects that arrive."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from mrml.scene_host import held_voxels, ras, slice_node, tube, turn_to
from mrml.scenes import oriented_image_of

slicer = pytest.importorskip("slicer")

from vtk.util import numpy_support  # noqa: E402

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.images.intensity_window import IntensityWindow  # noqa: E402
from SAMFineTuneLib.images.slice_plane import aligned_plane  # noqa: E402
from SAMFineTuneLib.images.volume import Volume  # noqa: E402
from SAMFineTuneLib.mrml.prompts.prompt_nodes import prompt_nodes  # noqa: E402
from SAMFineTuneLib.session.events import Failed, Finished, Notice, Objects  # noqa: E402


@pytest.fixture
def slow_propagation(monkeypatch):
    """Propagation waits at each slice until this is set."""
    from SAMFineTuneLib.session import propagation_job

    gate, propagate = threading.Event(), propagation_job.propagate

    def slow(*arguments, **options):
        for item in propagate(*arguments, **options):
            yield item
            gate.wait(20)

    monkeypatch.setattr(propagation_job, "propagate", slow)
    yield gate
    gate.set()


def propagating(host, made, red):
    host.session.current_segment_id = "first"
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    job = host.session.propagate("first", {"first": 5, "last": 13})
    host.until(lambda: np.count_nonzero(held_voxels(host.session, "first").any(axis=(1, 2))) > 1)
    return job


@pytest.mark.parametrize("dead", [False, True])
def test_a_segmentation_deleted_during_propagation(host, made, red, slow_propagation, dead):
    """The job ends, its prompts are forgotten, and what comes next knows nothing of them."""
    job = propagating(host, made, red)
    session, scene = host.session, host.session.scene
    if dead:
        session.client._conversation.lose_session()
    told = len(host.told)
    scene.RemoveNode(session.segmentation_node)
    slow_propagation.set()
    host.until(lambda: any(isinstance(one, Finished) and one.job == job for one in host.told[told:]))
    (said,) = [text for text in host.texts(Notice) if "was deleted" in text]
    assert said.startswith("The segmentation “segmentation” was deleted") and "stopped" in said
    assert not list(prompt_nodes(scene)) and session.prompts == ()
    turn_to(red, aligned_plane(made[0], "axial", 11))
    session.place("positive", red, [ras(made[0], 44, 36, 11)])
    host.settle()
    (segment,) = session.segmentation_node.GetSegmentation().GetSegmentIDs()
    voxels = held_voxels(session, segment)
    assert voxels[11].any() and not np.delete(voxels, 11, axis=0).any()
    assert len(session.prompts) == 1 and len(list(prompt_nodes(scene))) == 1
    session.undo()
    session.undo()
    host.settle()
    assert session.prompts == () and not held_voxels(session, segment).any()
    assert not host.texts(Failed)


def test_a_volume_deleted_during_propagation(host, made, red, slow_propagation, slicer_scene):
    job = propagating(host, made, red)
    node = host.session.segmentation_node
    everything = host.session.everything("axial", first=9, last=9)
    told = len(host.told)
    host.session.scene.RemoveNode(host.session.volume_node)
    slow_propagation.set()
    for number in (job, everything):
        host.until(lambda number=number: any(
            isinstance(one, (Finished, Failed)) and one.job == number for one in host.told[told:]
        ))  # fmt: skip
    (said,) = [text for text in host.texts(Notice) if "was deleted" in text]
    assert said.startswith("The volume “phantom” was deleted: its prompts went with it")
    assert not list(prompt_nodes(host.session.scene)) and host.session.volume is None
    host.session.set_volume_node(slicer_scene.add_volume(made[0], "next"))
    host.session.set_segmentation_node(node)
    host.settle()
    assert host.session.prompts == () and not host.texts(Failed)


def test_a_segment_deleted_during_propagation(host, made, red, slow_propagation):
    job = propagating(host, made, red)
    told = len(host.told)
    host.session.segmentation_node.GetSegmentation().RemoveSegment("first")
    host.pump()
    slow_propagation.set()
    host.until(lambda: any(isinstance(one, Finished) and one.job == job for one in host.told[told:]))
    host.settle()
    assert host.session.prompts == () and not held_voxels(host.session, "second").any()
    assert not host.texts(Failed) and any("stopped" in text for text in host.texts(Notice))


def test_another_segmentation_chosen_during_propagation(host, made, red, slow_propagation, slicer_scene):
    propagating(host, made, red)
    other = slicer_scene.add_segmentation(host.session.volume_node, name="other")
    host.session.set_segmentation_node(other)
    slow_propagation.set()
    host.settle()
    assert host.session.prompts == () and not host.texts(Failed)
    assert any("propagation was stopped" in text for text in host.texts(Notice))
    assert not held_voxels(host.session, "first").any() and not host.session.client.jobs


def test_voxels_replaced_during_propagation(host, made, red, slow_propagation):
    from mrml.scenes import image_of

    job = propagating(host, made, red)
    told = len(host.told)
    host.session.volume_node.SetAndObserveImageData(image_of(made[0].array + np.int16(1)))
    slow_propagation.set()
    host.until(lambda: any(isinstance(one, Finished) and one.job == job for one in host.told[told:]))
    host.settle()
    assert len(host.session.prompts) == 1 and not host.texts(Failed)
    assert np.flatnonzero(held_voxels(host.session, "first").any(axis=(1, 2))).tolist() == [9]


@pytest.mark.parametrize("saved", [False, True])
def test_voxels_changed_anywhere_make_masks_anew(open_session, slicer_scene, load_mrb, tmp_path, saved):
    """A structure that loses a few columns, as by another module's tool, in rows of a round number of voxels."""
    from region_engine import WINDOW

    array = np.full((32, 256, 256), 10, np.int16)
    array[:, 100:160, 97:127] = 200
    volume = Volume(array, np.diag([1.0, 1, 2, 1]))
    scene, host = slicer_scene, open_session(slicer_scene)
    host.session.set_window(WINDOW)
    host.session.set_volume_node(scene.add_volume(volume))
    host.session.set_segmentation_node(scene.add_segmentation(host.session.volume_node))
    host.session.current_segment_id = "first"
    red = slice_node(scene, volume, "axial", 9)
    host.session.place("positive", red, [ras(volume, 103, 130, 9)])
    host.settle()
    assert held_voxels(host.session, "first")[9, :, 115:].any()
    if saved:
        path = str(tmp_path / "scene.mrb")
        assert scene.scene.WriteToMRB(path, None)
        scene = load_mrb(path)
        host = open_session(scene)
    node = scene.scene.GetFirstNodeByClass("vtkMRMLScalarVolumeNode")
    scalars = node.GetImageData().GetPointData().GetScalars()
    numpy_support.vtk_to_numpy(scalars).reshape(array.shape)[:, 100:160, 110:127] = 10
    scalars.Modified()
    node.Modified()
    if saved:
        host.session.attach()
    host.until(lambda: any("voxels have changed" in text or "another image" in text for text in host.texts(Notice)))
    host.settle()
    held = held_voxels(host.session, "first")
    assert held.any() and not held[:, :, 113:].any()


def test_a_list_whose_number_of_points_was_locked_takes_the_next_click(host, made):
    import vtk

    session = host.session
    session.current_segment_id = "first"
    session.start_placing("positive")
    session.placing.node.SetFixedNumberOfControlPoints(True)  # as with the padlock in the Markups module
    host.until(lambda: not session.placing.node.GetFixedNumberOfControlPoints())
    session.placing.node.AddControlPointWorld(vtk.vtkVector3d(*ras(made[0], *tube(9))))
    host.settle()
    assert len(session.prompts) == 1 and held_voxels(session, "first")[9].any()


def test_a_mask_in_one_of_hundreds_of_segments_does_not_announce_all_of_them(host, made, red):
    session, segments = host.session, host.session.segmentation_node.GetSegmentation()
    for number in range(300):
        segments.AddEmptySegment("", f"structure {number}")
    session.current_segment_id = segments.GetSegmentIDs()[-1]
    heard = []
    tag = session.segmentation_node.AddObserver(slicer.vtkSegmentation.SegmentModified, lambda *_: heard.append(1))
    session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    session.segmentation_node.RemoveObserver(tag)
    assert held_voxels(session, session.current_segment_id)[9].any() and len(heard) < 10


def test_a_volume_that_is_moved_away_from_a_prompt_and_back_keeps_it(host, made, red):
    session, node = host.session, host.session.volume_node
    session.current_segment_id = "first"
    session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    before, origin = held_voxels(session, "first"), node.GetOrigin()
    node.SetOrigin(*(np.array(origin) + 1000))
    host.until(lambda: host.texts(Failed))
    host.settle()
    (said,) = host.texts(Failed)
    assert "lies outside the volume" in said and said.endswith("kept, without a mask.")
    assert session.prompts == () and not held_voxels(session, "first").any()
    node.SetOrigin(*origin)
    host.until(lambda: session.prompts)
    host.settle()
    assert np.array_equal(held_voxels(session, "first"), before) and len(host.texts(Failed)) == 1
    node.SetOrigin(*(np.array(origin) + 1000))
    host.until(lambda: len(host.texts(Failed)) == 2)
    session.clear()
    host.settle()
    assert not [prompt for prompt in prompt_nodes(session.scene) if prompt.GetNumberOfControlPoints()]


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("who", ["segmentation", "everything"])
def test_hardened_transforms_leave_masks_to_their_prompts(
    open_session, host, made, red, slicer_scene, load_mrb, tmp_path, who, saved
):
    session, scene = host.session, slicer_scene
    turn = np.array([[0, -1, 0, 20], [1, 0, 0, 5], [0, 0, 1, 3], [0, 0, 0, 1.0]])
    transform = scene.add_transform(turn)
    session.current_segment_id = "first"
    session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    markups = list(prompt_nodes(session.scene))
    moved = [session.volume_node, session.segmentation_node, *markups]
    for node in moved:
        node.SetAndObserveTransformNodeID(transform.GetID())
    host.until(lambda: any("was moved" in text for text in host.texts(Notice)))
    host.settle()
    before = held_voxels(session, "first")
    assert before[9].any()
    for node in moved if who == "everything" else [session.segmentation_node]:
        node.HardenTransform()
    host.until(lambda: session.at_rest)
    if saved:
        host.until(lambda: not session._work.unwritten)
        path = str(tmp_path / "scene.mrb")
        assert scene.scene.WriteToMRB(path, None)
        scene = load_mrb(path)
        host = open_session(scene)
        session = host.session
        session.attach()
        host.settle()
    assert np.array_equal(held_voxels(session, "first"), before)
    assert not any("drawn by hand" in text for text in host.texts(Notice))
    session.delete(session.prompts[0].number)
    host.settle()
    assert not held_voxels(session, "first").any() and not host.texts(Failed)


@pytest.mark.parametrize("slice_index", [8, 9])
def test_one_changed_slice_of_a_large_volume_makes_masks_anew(host, made, red, monkeypatch, slice_index):
    from SAMFineTuneLib.mrml import storage

    monkeypatch.setattr(storage, "_CHECKED", made[0].array.nbytes // 3)
    session, node = host.session, host.session.volume_node
    session.set_volume_node(None)
    session.set_volume_node(node)
    turn_to(red, aligned_plane(made[0], "axial", slice_index))
    session.current_segment_id = "first"
    session.place("positive", red, [ras(made[0], *tube(slice_index))])
    host.settle()
    node.SetName("another name")  # is not a change of voxels
    host.until(lambda: not session.at_rest)
    host.settle()
    assert not host.texts(Notice)
    scalars = node.GetImageData().GetPointData().GetScalars()
    numpy_support.vtk_to_numpy(scalars).reshape(made[0].shape)[slice_index] = 0
    scalars.Modified()
    node.Modified()
    host.until(lambda: any("voxels have changed" in text for text in host.texts(Notice)))
    host.settle()


@pytest.fixture
def cine(open_session, slicer_scene, made):
    """(host, function that shows a frame) of a sequence of two frames, the second 6 columns to the right."""
    from mrml.scenes import image_of, matrix_of
    from region_engine import WINDOW

    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(slicer_scene.scene)
    sequence = slicer_scene.add("vtkMRMLSequenceNode", "cine")
    for number in (0, 1):
        frame = slicer.vtkMRMLScalarVolumeNode()
        frame.SetAndObserveImageData(image_of(np.roll(made[0].array, 6 * number, axis=2)))
        frame.SetIJKToRASMatrix(matrix_of(made[0].affine))
        sequence.SetDataNodeAtValue(frame, str(number))
    browser = slicer_scene.add("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())

    def show(number):
        browser.SetSelectedItemNumber(number)
        logic.UpdateProxyNodesFromSequences(browser)

    show(0)
    host = open_session(slicer_scene)
    host.session.set_window(WINDOW)
    host.session.set_volume_node(browser.GetProxyNode(sequence))
    host.session.set_segmentation_node(slicer_scene.add_segmentation(host.session.volume_node))
    yield host, show
    logic.SetMRMLScene(None)


def browse(host, show, number):
    show(number)
    host.until(lambda: not host.session.at_rest)
    host.settle()


def test_browsing_a_sequence_keeps_the_masks_of_their_frame(cine, made, red):
    host, show = cine
    propagating(host, made, red)
    host.settle()
    before = held_voxels(host.session, "first")
    for number in (1, 0, 1):
        browse(host, show, number)
        assert np.array_equal(held_voxels(host.session, "first"), before)
    assert sum("another frame" in text for text in host.texts(Notice)) == 2


@pytest.mark.parametrize("how", ["drawn", "clicked", "clicked at once", "propagated"])
def test_a_prompt_on_another_frame_makes_masks_anew_there(cine, made, red, how):
    host, show = cine
    session = host.session
    session.current_segment_id = "first"
    i, j, k = tube(9)
    session.place("positive", red, [ras(made[0], i + 3, j, k)])
    host.settle()
    shown = held_voxels(session, "first")
    browse(host, show, 1) if how != "clicked at once" else show(1)
    if how == "drawn":
        session.place("negative", red, [ras(made[0], 1, 1, 9)])
    elif how == "propagated":
        session.propagate("first", {"first": 9, "last": 9})
    else:
        session._nodes.point_list("first", "negative").AddControlPointWorld(*ras(made[0], 1, 1, 9))
    host.settle()
    held = held_voxels(session, "first")[9]
    assert held.any() and np.array_equal(held[:, 6:], shown[9][:, :-6])
    assert "voxels have changed" in " ".join(host.texts(Notice)) and not host.texts(Failed)
    browse(host, show, 0)
    assert np.array_equal(held_voxels(session, "first")[9], held)


def test_placing_goes_on_after_the_segmentation_was_deleted(host, made, red):
    host.session.start_placing("positive")
    host.pump()
    host.session.scene.RemoveNode(host.session.segmentation_node)
    host.pump()
    assert host.session.placing.kind == "positive" and host.session.segmentation_node is None
    host.session.stop_placing()


@pytest.mark.parametrize("kind", ["positive", "box"])
def test_placing_goes_on_after_its_segment_was_deleted(host, made, red, kind):
    import vtk

    host.session.current_segment_id = "first"
    host.session.start_placing(kind)
    host.pump()
    host.session.segmentation_node.GetSegmentation().RemoveSegment("first")
    host.session.scene.RemoveNode(host.session.placing.node)
    host.pump()
    assert host.session.placing.kind == kind and host.session.current_segment_id == "second"
    i, j, k = tube(9)
    for corner in ((i, j, k),) if kind == "positive" else ((i - 6, j - 6, k), (i + 6, j + 6, k)):
        host.session.placing.node.AddControlPointWorld(vtk.vtkVector3d(*ras(made[0], *corner)))
    host.settle()
    assert [prompt.segment_id for prompt in host.session.prompts] == ["second"]
    host.session.stop_placing()
    host.pump()
    assert host.session.placing.kind is None


# ---- dragging


def a_box(host, made, red):
    i, j, k = tube(9)
    host.session.current_segment_id = "first"
    host.session.place("box", red, [ras(made[0], i - 8, j - 8, k), ras(made[0], i + 8, j + 8, k)])
    host.settle()
    (node,) = prompt_nodes(host.session.scene)
    return node


def test_a_node_of_which_nobody_says_that_it_was_let_go(open_session, slicer_scene, made):
    """Slicer forgets to, now and then; the session must not wait for ever."""
    now = [0.0]
    host = open_session(slicer_scene, clock=lambda: now[0])
    host.session.set_volume_node(slicer_scene.add_volume(made[0], "phantom"))
    host.session.set_segmentation_node(slicer_scene.add_segmentation(host.session.volume_node))

    def pump(seconds=0.0):
        for _ in range(30):
            now[0] += seconds / 30
            host.pump()

    import vtk

    node = host.session._nodes.point_list("first", "positive")
    node.AddControlPointWorld(vtk.vtkVector3d(*ras(made[0], *tube(9))))
    host.until(lambda: len(host.session.prompts) == 1 and not pump(0.1))
    before = host.session.prompts[0].prompt
    node.InvokeEvent(node.PointStartInteractionEvent)
    for k in (10, 11):
        node.SetNthControlPointPositionWorld(0, vtk.vtkVector3d(*ras(made[0], *tube(k))))
        pump(2.0)  # slowly, but it moves
        assert host.session.prompts[0].prompt == before
    pump(2.0)
    assert np.allclose(host.session.prompts[0].prompt.ras, ras(made[0], *tube(11)))


def test_the_slice_that_the_user_looks_at_with_a_tool_in_hand_is_prepared(open_session, slicer_scene, made, red):
    now, looked_at, volume = [0.0], [], made[0]
    host = open_session(slicer_scene, clock=lambda: now[0], active_slice_node=lambda: red)
    host.session.set_volume_node(slicer_scene.add_volume(volume, "phantom"))
    host.session.client.look_at = lambda plane: looked_at.append(plane.index)

    def rest(seconds):
        for _ in range(10):
            now[0] += seconds / 10
            host.pump()

    turn_to(red, aligned_plane(volume, "axial", 5))
    rest(1.0)
    assert not looked_at, "the user reads the images"
    host.session.start_placing("positive")
    for index in (6, 7, 8):
        turn_to(red, aligned_plane(volume, "axial", index))
        rest(0.05)
    assert not looked_at, "the user scrolls"
    rest(1.0)
    assert looked_at == [8]
    host.session.set_window(IntensityWindow(0, 100, "narrow"))
    rest(1.0)
    assert looked_at == [8, 8], "it looks different to the model now"


@pytest.mark.parametrize("size", [(0.0, 0.0, 1.0), (30.0, 0.0, 1.0)])
def test_a_box_pulled_to_nothing_is_put_back_and_that_is_said(host, made, red, size):
    node = a_box(host, made, red)
    (before,) = host.session.prompts
    kept, old = held_voxels(host.session, "first"), node.GetSize()
    assert kept.any()
    node.InvokeEvent(node.PointStartInteractionEvent)
    node.SetSize(*size)
    node.InvokeEvent(node.PointEndInteractionEvent)
    host.settle()
    assert host.session.prompts == (before,) and np.allclose(node.GetSize(), old)
    assert np.array_equal(held_voxels(host.session, "first"), kept)
    assert len(host.texts(Failed)) == 1


def test_a_box_whose_points_the_markups_module_deletes_is_deleted_until_undo(host, made, red):
    node = a_box(host, made, red)
    (before,) = host.session.prompts
    kept = held_voxels(host.session, "first")
    node.RemoveAllControlPoints()
    host.settle()
    assert host.session.prompts == () and not held_voxels(host.session, "first").any() and not host.texts(Failed)
    host.session.undo()
    host.settle()
    assert host.session.prompts == (before,) and np.array_equal(held_voxels(host.session, "first"), kept)
    assert min(node.GetSize()) > 0 and node.GetNumberOfControlPoints() == 1


def test_a_box_turned_inside_out_is_turned_back_and_that_is_said(host, made, red):
    node = a_box(host, made, red)
    before, kept = host.session.prompts, held_voxels(host.session, "first")
    node.InsideOutOn()
    host.settle()
    assert not node.GetInsideOut() and host.session.prompts == before
    assert np.array_equal(held_voxels(host.session, "first"), kept)
    assert len(host.texts(Failed)) == 1


# ---- masks that get nothing


def wipe(host, slicer_scene, segment):
    """With Slicer's own logic."""
    node, volume = host.session.segmentation_node, host.session.volume
    logic, editor = slicer_scene.add_editor(node, host.session.volume_node)
    editor.SetSelectedSegmentID(segment)
    image = oriented_image_of(np.zeros(volume.shape, np.uint8), volume.affine)
    logic.ModifySegmentByLabelmap(node, segment, image, logic.ModificationModeSet, True, True)
    host.pump()
    host.settle()


def test_a_mask_of_which_nothing_is_seen_is_said_once(host, made, red, slicer_scene):
    at = ras(made[0], *tube(9))
    for segment in ("first", "second"):
        host.session.current_segment_id = segment
        host.session.place("positive", red, [at])
        host.settle()

    def said():
        return [text for text in host.texts(Notice) if "got nothing" in text]

    assert held_voxels(host.session, "first").any() and not held_voxels(host.session, "second").any()
    assert len(said()) == 1 and said()[0].startswith("second got nothing of what was found on one slice")
    turn_to(red, aligned_plane(made[0], "axial", 11))
    host.session.place("positive", red, [ras(made[0], *tube(11))])
    host.settle()
    assert held_voxels(host.session, "second").any() and len(said()) == 1
    wipe(host, slicer_scene, "second")
    assert not held_voxels(host.session, "second").any() and len(said()) == 1  # the user knows


# ---- hidden segments


@pytest.mark.parametrize("whole", [False, True])
def test_a_hidden_segment_that_changes_is_said_once(host, made, red, whole):
    display = host.session.segmentation_node.GetDisplayNode()
    host.session.current_segment_id = "first"

    def hide(hidden):
        display.SetVisibility(not hidden) if whole else display.SetSegmentVisibility("first", not hidden)

    def said():
        return sum("“first” is hidden" in text for text in host.texts(Notice))

    hide(True)
    for expected in (1, 1):
        host.session.place("positive", red, [ras(made[0], *tube(9))])
        host.settle()
        assert said() == expected
    hide(False)
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    hide(True)
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    assert said() == 2


# ---- found objects


def found(host):
    job = host.session.everything("axial", first=9, last=11)
    return job, host.until_told(Objects, job=job).objects


def names_of(session):
    segmentation = session.segmentation_node.GetSegmentation()
    return [segmentation.GetSegment(segment_id).GetName() for segment_id in segmentation.GetSegmentIDs()]


def test_names_travel_with_the_objects(host):
    job, objects = found(host)
    host.session.adopt(job, [objects[0].number, objects[1].number], ["liver", "first"])
    host.session.segmentation_node.GetSegmentation().AddEmptySegment("own", "the user's own")
    host.settle()
    assert sorted(names_of(host.session)) == ["first", "first 2", "liver", "second", "the user's own"]
    segmentation = host.session.segmentation_node.GetSegmentation()
    ids = {segmentation.GetSegment(one).GetName(): one for one in segmentation.GetSegmentIDs()}
    for name, info in (("liver", objects[0]), ("first 2", objects[1])):
        assert np.count_nonzero(held_voxels(host.session, ids[name])) == info.area
    before = {name: held_voxels(host.session, one) for name, one in ids.items()}
    host.session.undo()
    host.settle()
    assert names_of(host.session) == ["first", "second", "the user's own"]
    host.session.redo()
    host.settle()
    assert {name: segmentation.GetSegment(one).GetName() for name, one in ids.items()} == {name: name for name in ids}
    assert all(np.array_equal(held_voxels(host.session, ids[name]), before[name]) for name in ids)


def test_a_refused_adoption_renames_nobody(host):
    job, objects = found(host)
    host.session.adopt(job, [10_000], ["liver"])
    host.session.segmentation_node.GetSegmentation().AddEmptySegment("own", "own")
    host.until_told(Failed)
    host.settle()
    assert names_of(host.session) == ["first", "second", "own"]


def test_what_an_object_lacks_is_said_with_numbers(host, made, red):
    job, objects = found(host)
    largest = objects[0]
    turn_to(red, aligned_plane(made[0], "axial", 10))
    host.session.current_segment_id = "second"
    host.session.place("positive", red, [ras(made[0], 44, 36, 10)])
    host.settle()
    had = np.count_nonzero(held_voxels(host.session, "second"))
    host.session.adopt(job, [largest.number], ["ball"])
    host.settle()
    (segment,) = [one for one in host.session.segmentation_node.GetSegmentation().GetSegmentIDs()
                  if one not in ("first", "second")]  # fmt: skip
    got = np.count_nonzero(held_voxels(host.session, segment))
    assert got < largest.area and np.count_nonzero(held_voxels(host.session, "second")) == had
    assert any(f"ball got {got} of {largest.area} voxels" in text for text in host.texts(Notice))


def test_keeping_an_object_again_is_refused(host):
    job, objects = found(host)
    host.session.adopt(job, [objects[0].number], ["liver"])
    host.settle()
    for again in (job, found(host)[0]):
        host.session.adopt(again, [objects[0].number], ["liver again"])
        host.until_told(Failed)
        assert "is a segment already: liver" in host.texts(Failed)[-1]
    host.settle()
    assert names_of(host.session) == ["first", "second", "liver"]
    host.session.undo()
    host.settle()
    host.session.adopt(job, [objects[0].number], ["liver"])
    host.settle()
    assert names_of(host.session) == ["first", "second", "liver"]


def test_many_segments_come_a_few_at_a_time(host, monkeypatch):
    """As many as the time of a round allows."""
    job, objects = found(host)
    ticks = iter(range(10**9))
    host.session.adopt(job, [item.number for item in objects])
    count = host.session.segmentation_node.GetSegmentation().GetNumberOfSegments
    seen = []
    monkeypatch.setattr(host.session, "_clock", lambda: float(next(ticks)))  # every look at it takes a second
    host.until(lambda: seen.append(count()) or seen[-1] == 2 + len(objects))
    monkeypatch.undo()
    assert max(np.diff(seen)) == 1
    host.settle()
    assert not host.texts(Failed)


def test_found_objects_are_shown_a_few_at_a_time_and_go(host, made):
    job, objects = found(host)
    request = host.session.client.ask_for_masks(job, [item.number for item in objects])
    from SAMFineTuneLib.session.events import Answered

    masks = host.until_told(Answered, request=request).value
    host.session.show_found(masks)
    shown = host.session.found
    assert shown.waiting == len(masks)
    left = []
    while shown.waiting:
        shown.step(lambda: True)
        left.append(shown.waiting)
    assert left == list(range(len(masks) - 1, -1, -1))
    hierarchy = host.session.scene.GetSubjectHierarchyNode()
    assert shown.node.GetHideFromEditors() and hierarchy.GetItemByDataNode(shown.node)
    assert shown.node.GetSegmentation().GetNumberOfSegments() == len(objects)
    host.session.show_found([])
    assert shown.node is None and host.session.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


def test_surfaces_made_the_source_during_the_work(host, made, red, open_session, load_mrb, slicer_scene, tmp_path):
    """Nothing can be written then: that is said once, nothing is lost, and work goes on when they are labelmaps."""
    propagated = {"first": 6, "last": 12}
    host.session.current_segment_id = "first"
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.session.propagate("first", propagated)
    host.until_told(Finished)
    host.settle()
    before = held_voxels(host.session, "first")
    segmentation = host.session.segmentation_node.GetSegmentation()
    assert segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    turn_to(red, aligned_plane(made[0], "axial", 15))
    host.session.place("positive", red, [ras(made[0], *tube(15))])
    host.until(lambda: bool(host.texts(Failed)))
    for _ in range(300):
        host.pump()
    (said,) = host.texts(Failed)
    assert "Closed surface" in said and len(host.session.prompts) == 2
    segmentation.CreateRepresentation("Binary labelmap")
    segmentation.SetSourceRepresentationName("Binary labelmap")
    host.settle()
    after = held_voxels(host.session, "first")
    assert after[15].any() and not np.delete(after, [15], axis=0)[14:].any()
    assert np.count_nonzero(after[6:13] ^ before[6:13]) <= 0.1 * np.count_nonzero(before)  # by way of surfaces


def test_a_segmentation_of_surfaces_is_refused_at_each_use_until_it_has_labelmaps(host, made, red, slicer_scene):
    other = slicer_scene.add_segmentation(host.session.volume_node, ("ball",), "surfaces")
    segmentation = other.GetSegmentation()
    segmentation.GetSegment("ball").AddRepresentation(
        "Binary labelmap", oriented_image_of((made[1] == 2).astype(np.uint8), made[0].affine))  # fmt: skip
    segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    for use in (
        lambda: host.session.set_segmentation_node(other),
        lambda: host.session.start_placing("positive"),
        lambda: host.session.place("positive", red, [ras(made[0], *tube(9))]),
    ):
        with pytest.raises(UserError, match="Closed surface"):
            use()
    for _ in range(50):
        host.pump()
    assert not host.texts(Failed) and host.session.placing.kind is None
    segmentation.CreateRepresentation("Binary labelmap")
    segmentation.SetSourceRepresentationName("Binary labelmap")
    host.session.start_placing("positive")
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    assert held_voxels(host.session, "ball")[9].any() and len(host.session.prompts) == 1


def test_a_volume_that_moves_while_its_segmentation_cannot_be_written(host, made, red, slicer_scene):
    host.session.current_segment_id = "first"
    host.session.place("positive", red, [ras(made[0], *tube(9))])
    host.settle()
    segmentation = host.session.segmentation_node.GetSegmentation()
    assert segmentation.CreateRepresentation("Closed surface")
    segmentation.SetSourceRepresentationName("Closed surface")
    shift = np.eye(4)
    shift[:3, 3] = made[0].affine[:3, 2]
    host.session.volume_node.SetAndObserveTransformNodeID(slicer_scene.add_transform(shift).GetID())
    host.until(lambda: bool(host.texts(Failed)))
    for _ in range(300):
        host.pump()
    (said,) = host.texts(Failed)
    assert "Closed surface" in said and len(list(prompt_nodes(host.session.scene))) == 1
    segmentation.SetSourceRepresentationName("Binary labelmap")
    host.session.attach()
    host.settle()
    assert len(host.session.prompts) == 1 and not host.texts(Failed)[1:]


@pytest.mark.parametrize("k", [8, 9])
def test_a_segmentation_with_coarser_voxels_gets_every_slice(host, made, red, slicer_scene, k):
    """Of a grid of half the resolution, every second slice of the volume lies between two slices."""
    coarse = Volume(np.zeros((12, 28, 32), np.int16), made[0].affine @ np.diag([2, 2, 2, 1.0]))
    node = slicer_scene.add_segmentation(slicer_scene.add_volume(coarse, "coarse"), ("first",), "coarse segments")
    host.session.set_segmentation_node(node)
    turn_to(red, aligned_plane(made[0], "axial", k))
    host.session.place("positive", red, [ras(made[0], *tube(k))])
    host.settle()
    wanted = np.count_nonzero(made[1][k] == 1) / 4
    held = sum(held_voxels_of(node, "first", coarse).sum(axis=(1, 2)) > 0), held_voxels_of(node, "first", coarse).sum()
    assert held[0] == 1 and held[1] == pytest.approx(wanted, rel=0.25)


def held_voxels_of(node, segment_id, volume):
    from mrml.scenes import segment_voxels

    return segment_voxels(node, segment_id, volume)


@pytest.mark.parametrize("cut", [False, True])
def test_a_segmentations_grid_that_cuts_an_object_is_said_once(host, made, red, slicer_scene, cut):
    columns = np.flatnonzero((made[1][9] == 1).any(axis=0))
    first = int(columns.mean()) if cut else int(columns[0])
    shifted = np.eye(4)
    shifted[0, 3] = first
    rest = Volume(made[0].array[:, :, first:].copy(), made[0].affine @ shifted)
    node = slicer_scene.add_segmentation(slicer_scene.add_volume(rest, "rest"), ("first",), "segments of the rest")
    host.session.set_segmentation_node(node)
    for k in (9, 10):
        turn_to(red, aligned_plane(made[0], "axial", k))
        host.session.place("positive", red, [ras(made[0], *tube(k))])
        host.settle()
    said = [text for text in host.texts(Notice) if "beyond the segmentation's voxel grid" in text]
    assert len(said) == cut and not host.texts(Failed)
    held = held_voxels_of(node, "first", rest)
    assert np.array_equal(held[9], made[1][9, :, first:] == 1)


def test_what_lies_outside_the_segmentations_grid_is_said_once(host, made, red, slicer_scene):
    part = slicer_scene.add_volume(Volume(made[0].array[:6].copy(), made[0].affine), "part")
    host.session.set_segmentation_node(slicer_scene.add_segmentation(part, ("first",), "segments of a part"))
    host.session.current_segment_id = "first"
    for k in (5, 14):
        turn_to(red, aligned_plane(made[0], "axial", k))
        host.session.place("positive", red, [ras(made[0], *tube(k))])
        host.settle()
    host.session.propagate("first", {"first": 3, "last": 18})
    host.until_told(Finished)
    host.settle()
    (said,) = host.texts(Failed)
    assert "outside the voxel grid of “segments of a part”" in said
    held = held_voxels(host.session, "first")
    assert np.flatnonzero(held.any(axis=(1, 2))).tolist() == [3, 4, 5]
