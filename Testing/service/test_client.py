from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from in_process import InProcess
from pumped_clients import TOKEN, Host, RegionEngines
from region_engine import WINDOW, RegionEngine, phantom

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.slice_plane import SlicePlane, aligned_plane, oblique_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.inference.settings import EverythingSettings, PropagationSettings
from SAMFineTuneLib.prompts import BoxPrompt, MaskPrompt, PointPrompt
from SAMFineTuneLib.service.client import SessionClient
from SAMFineTuneLib.service.models_api import Cancelled, Library
from SAMFineTuneLib.service.server_app import ServerApp
from SAMFineTuneLib.session.events import (
    Answered,
    Busy,
    Failed,
    Finished,
    MaskChanged,
    Notice,
    Objects,
    StateChanged,
)


@pytest.fixture(scope="module")
def volume():
    return phantom()[0]


def point(volume, i, j, k, positive=True):
    return PointPrompt(tuple(volume.ijk_to_ras((i, j, k))), positive)


def tube(volume, k):
    """A point in the middle of the phantom's leaning tube."""
    return point(volume, round(14 + 0.3 * k), 16, k)


def told(host, kind):
    return [event for event in host.told if isinstance(event, kind)]


def settle(host) -> StateChanged:
    """Until nothing more is to come; the last state."""
    client = host.client
    inbox = client._conversation.inbox
    host.until(lambda _: client._settled and not client._jobs and client._journal.all_confirmed and not inbox)
    return told(host, StateChanged)[-1]


@pytest.fixture
def scene(host, volume):
    """A host with the phantom and one segment."""
    host.client.set_volume(volume, WINDOW)
    host.client.add_segment("tube", 1, (1, 0, 0))
    settle(host)
    return host


# ---- prompts and masks


def test_a_slice_that_the_user_looks_at_is_embedded_before_the_click(scene, volume, monkeypatch):
    embedded, encode = [], RegionEngine.encode
    monkeypatch.setattr(RegionEngine, "encode", lambda self, image: embedded.append(1) or encode(self, image))
    monkeypatch.setattr("SAMFineTuneLib.inference.predictor._QUICK", np.inf)  # however busy this computer is
    scene.client.look_at(SlicePlane((0, 0, 0), (1, 0, 0), (0, 1, 0), 1.0, (16384, 16384)))  # no prompt can lie there
    scene.until(lambda _: scene.client._conversation.looked_at is None)
    scene.client.look_at(aligned_plane(volume, "axial", 9))
    assert not scene.client.outstanding, "nobody waits for it"
    scene.until(lambda _: embedded)
    scene.client.add_prompt(1, tube(volume, 9))
    assert settle(scene).settled and len(embedded) == 1 and told(scene, MaskChanged)
    assert not told(scene, Failed)


def test_a_click_before_anything_is_there_gives_its_mask(host, volume):
    client = host.client
    client.set_volume(volume, WINDOW)
    client.add_segment("tube", 1)
    assert client.add_prompt(1, tube(volume, 9)) == 1
    state = settle(host)
    (mask,) = told(host, MaskChanged)
    plane = aligned_plane(volume, "axial", 9)
    assert (mask.segment, mask.plane.key, mask.mask.shape) == (1, plane.key, plane.shape)
    assert mask.mask.any() and mask.mask.dtype == bool and mask.score == pytest.approx(0.92)
    assert np.allclose(mask.points, plane.ras_to_pixel(tube(volume, 9).ras)[None], atol=1e-3)
    assert [(info.number, info.segment, info.view) for info in state.prompts] == [(1, 1, "axial")]
    assert state.undo_name == "add prompt" and state.window == WINDOW
    assert client.status.state == "ready" and client.status.model == "region"


def test_prompts_of_every_kind_come_back_as_they_went(scene, volume):
    client = scene.client
    view = oblique_plane(volume, volume.ijk_to_ras((44, 36, 11)), (-1, 0, 0), (0, -1, 0.2))
    drawn = aligned_plane(volume, "axial", 4)
    mask = np.zeros(drawn.shape, bool)
    mask[10:20, 10:20] = True
    box = BoxPrompt(tuple(volume.ijk_to_ras((5, 5, 9))), tuple(volume.ijk_to_ras((30, 30, 9))))
    client.add_prompt(1, box)
    client.add_prompt(1, point(volume, 44, 36, 11), view)
    client.add_prompt(1, MaskPrompt(mask, drawn))
    client.add_prompt(1, point(volume, 44, 36, 11), "coronal")
    state = settle(scene)
    assert state.prompts[0].prompt == box and state.prompts[3].view == "coronal"
    assert state.prompts[1].view.to_dict() == view.to_dict()
    assert np.array_equal(state.prompts[2].prompt.mask, mask)


def test_moving_deleting_undoing_and_clearing_follow(scene, volume):
    client = scene.client
    number = client.add_prompt(1, tube(volume, 9))
    settle(scene)
    client.move_prompt(number, tube(volume, 12))
    settle(scene)
    where = {(e.plane.index, e.mask is not None) for e in told(scene, MaskChanged)}
    assert where == {(9, True), (9, False), (12, True)}
    client.undo()
    assert settle(scene).redo_name == "move prompt"
    client.redo()
    client.delete_prompt(number)
    assert settle(scene).prompts == ()
    client.undo()
    client.clear(segment=1)
    state = settle(scene)
    assert state.prompts == () and state.undo_name == "clear"
    client.change_segment(1, name="other")
    assert settle(scene).segments[0].name == "other"
    client.remove_segment(1)
    assert settle(scene).segments == ()


def test_a_wrong_prompt_is_a_sentence_and_the_state_says_that_it_is_not_there(scene):
    scene.client.add_prompt(1, PointPrompt((1000.0, 0.0, 0.0)))
    state = settle(scene)
    (failed,) = told(scene, Failed)
    assert "outside the volume" in failed.text and state.prompts == ()


def test_a_state_is_told_only_when_it_holds_every_intent(scene, volume):
    """A host may write the state back into the scene: an older one would undo a drag under way."""
    client = scene.client
    numbers = [client.add_prompt(1, tube(volume, 9))]
    for k in range(10, 20):
        scene.told += client.pump(0.001)
        numbers.append(client.add_prompt(1, tube(volume, k)))
        sent, new = len(numbers), client.pump(0.02)
        assert all(len(event.prompts) == sent for event in new if isinstance(event, StateChanged))
        scene.told += new
    assert [info.number for info in settle(scene).prompts] == numbers


def test_masks_come_before_the_state_that_is_settled(scene, volume):
    for k in range(6, 16):
        scene.client.add_prompt(1, tube(volume, k))
    new = scene.until(lambda events: any(isinstance(e, StateChanged) and e.settled for e in events))
    settled = next(n for n, event in enumerate(new) if isinstance(event, StateChanged) and event.settled)
    masks = {event.plane.index for event in new[:settled] if isinstance(event, MaskChanged)}
    assert masks == set(range(6, 16))


def test_segments_of_a_host_with_a_table_are_no_steps(app, volume):
    client = SessionClient(InProcess(app, TOKEN), segments_are_steps=False)
    host = Host(client)
    client.set_volume(volume, WINDOW)
    client.add_segment("tube", 1)
    assert settle(host).undo_name is None
    client.close()


# ---- what it works on


def test_another_volume_starts_over_and_ends_what_was_running(scene, volume):
    client = scene.client
    client.add_prompt(1, tube(volume, 9))
    job = client.propagate(1)
    scene.until_told(MaskChanged)
    other = Volume(volume.array[:, :, ::-1].copy(), volume.affine)
    client.set_volume(other, WINDOW)
    client.add_segment("new", 5)
    new = scene.until(lambda events: any(isinstance(e, StateChanged) and e.settled for e in events))
    assert Finished(job, "propagate", True) in new
    assert not [event for event in new if isinstance(event, MaskChanged)]
    state = [event for event in new if isinstance(event, StateChanged)][-1]
    assert [info.value for info in state.segments] == [5] and state.undo_name == "add segment"
    request = client.take_snapshot()
    assert scene.until_told(Answered, request=request).value["volume"]["digest"] == other.digest


def test_a_volume_chosen_during_the_upload_of_another_wins(host, volume):
    large = Volume(np.zeros((60, 256, 256), np.int16), np.eye(4))
    host.client.set_volume(large)
    for _ in range(3):
        host.client.pump(0.0005)
    host.client.set_volume(volume, WINDOW)
    host.client.add_segment("tube", 1)
    host.client.add_prompt(1, tube(volume, 9))
    settle(host)
    assert len(told(host, MaskChanged)) == 1


def test_a_volume_that_cannot_be_shown_is_a_sentence_and_the_next_one_is_answered(scene, volume):
    client = scene.client
    client.add_prompt(1, tube(volume, 9))
    settle(scene)
    client.set_volume(Volume(np.full(volume.shape, np.nan, np.float32), volume.affine))
    client.add_segment("tube", 1)
    client.add_prompt(1, tube(volume, 9))
    state = settle(scene)
    assert state.prompts == () and state.window is None
    said = [event.text for event in told(scene, Failed)]
    assert "no finite voxel" in said[0] and "There is no volume" in said[1]
    assert not any(event.details for event in told(scene, Failed))  # which would be an error in Slicer's log
    client.set_volume(volume, WINDOW)
    client.add_segment("tube", 1)
    client.add_prompt(1, tube(volume, 9))
    assert len(settle(scene).prompts) == 1
    assert len(told(scene, MaskChanged)) == 2


@pytest.mark.parametrize("kind", [">i2", "f4", "f8", "f2", "u1", "bool", "i8", "longdouble"])
def test_voxels_of_every_type_arrive(host, kind):
    array = np.zeros((12, 64, 64), kind)
    array[:, 10:30, 5:25] = 1
    host.client.set_volume(Volume(array[:, ::-1], np.eye(4)), IntensityWindow(0, 1))
    host.client.add_segment("block", 1)
    host.client.add_prompt(1, PointPrompt((12.0, 50.0, 5.0)))
    settle(host)
    assert told(host, MaskChanged)[0].mask.sum() == 20 * 20


def test_the_window_of_none_is_the_default_of_the_modality(host, volume):
    host.client.set_volume(volume)
    host.client.add_segment("tube", 1)
    default = settle(host).window
    assert "CT" in default.name
    host.client.set_window(WINDOW)
    assert settle(host).window == WINDOW
    host.client.set_window(None)
    assert settle(host).window == default


def test_a_model_that_is_not_there_is_a_sentence_and_the_old_one_answers(scene, volume):
    scene.client.set_model("no-such-model")
    assert "no-such-model" in scene.until_told(Failed).text
    scene.client.add_prompt(1, tube(volume, 9))
    settle(scene)
    assert told(scene, MaskChanged) and scene.client.status.model == "region"


class Refusing(RegionEngine):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def decode(self, *inputs):
        raise self.error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "too little memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "too little memory"),
        (RuntimeError("BFCArena: Failed to allocate memory for requested buffer"), "too little memory"),
        (RuntimeError("nonsense"), "could not segment"),
    ],
)
def test_a_model_that_fails_is_a_sentence_and_the_next_click_is_asked_again(volume, error, says):
    class Engines(RegionEngines):
        def _load(self, model, adapter, device):
            return Refusing(error) if model == "failing" else super()._load(model, adapter, device)

    app = ServerApp(TOKEN, engines=Engines())
    host = Host(SessionClient(InProcess(app, TOKEN)))
    host.client.set_model("failing")
    host.client.set_volume(volume, WINDOW)
    host.client.add_segment("tube", 1)
    host.client.add_prompt(1, tube(volume, 9))
    failed = host.until_told(Failed)
    assert says in failed.text and "Traceback" not in failed.text
    host.client.set_model("compact")
    host.until_told(MaskChanged)
    host.client.close()
    app.close()


def test_a_missing_runtime_is_a_sentence_that_names_it(volume):
    class Engines(RegionEngines):
        def _load(self, model, adapter, device):
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    app = ServerApp(TOKEN, engines=Engines())
    host = Host(SessionClient(InProcess(app, TOKEN)))
    host.client.set_volume(volume, WINDOW)
    failed = host.until_told(Failed)
    assert "onnxruntime" in failed.text and "install" in failed.text
    host.client.close()
    app.close()


# ---- jobs


def test_a_propagation_tells_masks_progress_and_its_end(scene, volume):
    client = scene.client
    client.add_prompt(1, tube(volume, 9))
    job = client.propagate(1, PropagationSettings(direction="both"))
    scene.until_told(Finished, job=job, cancelled=False)
    busy = [event for event in told(scene, Busy) if event.job == job]
    assert busy and busy[-1].what == "propagate" and "slices" in busy[-1].text and 0 < busy[-1].fraction <= 1
    document = scene.until_told(Answered, request=client.take_snapshot()).value
    assert len(document["propagated"]) == 23
    assert {event.plane.index for event in told(scene, MaskChanged)} == set(range(24))


def test_a_cancelled_propagation_keeps_or_drops_what_it_found(scene, volume):
    client = scene.client
    client.add_prompt(1, tube(volume, 9))
    settle(scene)
    job = client.propagate(1)
    client.cancel(job, keep_results=False)
    scene.until_told(Finished, job=job, cancelled=True)
    assert scene.until_told(Answered, request=client.take_snapshot()).value["propagated"] == []


def test_a_propagation_of_nothing_is_a_failure_with_its_number(scene):
    job = scene.client.propagate(1)
    failed = scene.until_told(Failed, job=job)
    assert failed.text.endswith(".")
    assert scene.client._jobs == {}


def test_everything_finds_objects_that_can_be_looked_at_and_adopted(scene, volume):
    client = scene.client
    job = client.everything("axial", EverythingSettings(points_per_side=8), first=8, last=14)
    scene.until_told(Finished, job=job)
    (found,) = told(scene, Objects)
    assert found.job == job and len(found.objects) >= 3
    first = found.objects[0]
    assert first.orientation == "axial" and first.slices == (8, 14) and first.area > 100
    numbers = [one.number for one in found.objects]
    masks = scene.until_told(Answered, request=client.ask_for_masks(job, numbers)).value
    assert len(masks) > 16  # they come in several goes
    assert [plane.index for number, plane, _ in masks if number == first.number] == list(range(8, 15))
    for one in found.objects:
        assert sum(mask.sum() for number, _, mask in masks if number == one.number) == one.area
    assert client.adopt(job, [first.number], [40]) == (40,)
    assert settle(scene).segments[-1].value == 40
    client.undo()
    settle(scene)
    values = client.adopt(job, [first.number, found.objects[1].number])
    state = settle(scene)
    assert tuple(info.value for info in state.segments) == (1, *values)
    assert state.undo_name == "add found objects"
    assert {event.segment for event in told(scene, MaskChanged)} == {40, *values}
    client.adopt(job, [99])
    assert "does not exist" in scene.until_told(Failed).text


def test_embedding_in_the_background_tells_how_far_it_is(scene, volume):
    scene.client.embed("axial", 9)
    scene.until_told(Finished, what="embed")
    assert told(scene, Busy)[-1].fraction == 1.0 and told(scene, Busy)[-1].job is None


# ---- requests


def test_questions_are_answered_without_a_volume(host, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path))
    models = host.until_told(Answered, request=host.client.ask("models")).value
    assert [row for row in models if row["id"] == "compact" and row["where"] == "bundled" and row["bytes"] > 0]
    assert any(row["where"] == "download" and row["licence"] and row["bytes"] for row in models)
    assert host.until_told(Answered, request=host.client.ask("cache_info")).value["entries"] == 0
    assert host.until_told(Answered, request=host.client.ask("clear_cache")).value == {"freed": 0}
    assert host.until_told(Answered, request=host.client.ask("adapters")).value == []
    request = host.client.ask("remove_model", "compact")
    assert "cannot be removed" in host.until_told(Failed, request=request).text


def test_a_download_reports_and_can_be_cancelled(host, monkeypatch):
    going = threading.Event()

    def download(self, model, report, cancelled):
        report(0.5, 3.0, "Downloading")
        going.set()
        while not cancelled():
            threading.Event().wait(0.005)
        raise Cancelled

    monkeypatch.setattr(Library, "download", download)
    request, job = host.client.download("sam_vit_b")
    busy = host.until_told(Busy, job=job, fraction=0.5)
    assert (busy.what, busy.text) == ("download", "Downloading")
    going.wait(5)
    host.client.cancel(job)
    assert host.until_told(Answered, request=request).value is None
    assert Finished(job, "download", True) in host.told or host.until_told(Finished, job=job)


def test_a_download_that_cannot_be_is_a_sentence(host):
    request, _ = host.client.download("no-such-model")
    assert "no-such-model" in host.until_told(Failed, request=request).text


def test_a_model_file_is_sent_whole_and_its_path_is_not(host, monkeypatch, tmp_path):
    content = np.random.default_rng(0).bytes(5_000_000)
    (tmp_path / "My liver.pth").write_bytes(content)
    seen = {}

    def install(self, data, name, model, like):
        seen.update(data=bytes(data), name=name, model=model, like=like)
        return {"model": "mine", "findings": [], "terms": ""}

    monkeypatch.setattr(Library, "install", install)
    request = host.client.import_model(str(tmp_path / "My liver.pth"), "mine", like="medsam")
    assert host.until_told(Answered, request=request).value["model"] == "mine"
    assert seen == {"data": content, "name": "My liver.pth", "model": "mine", "like": "medsam"}
    with pytest.raises(UserError, match="cannot be read"):
        host.client.import_model(str(tmp_path / "none.pth"))


def test_a_file_that_is_no_model_is_a_sentence(host, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))
    (tmp_path / "evil.sh").write_text("echo")
    request = host.client.import_model(str(tmp_path / "evil.sh"))
    assert ".safetensors" in host.until_told(Failed, request=request).text
    (tmp_path / "noise.pth").write_bytes(b"garbage" * 100)
    request = host.client.import_model(str(tmp_path / "noise.pth"))
    assert host.until_told(Failed, request=request).text.startswith("noise.pth is not a checkpoint")


def test_a_snapshot_restores_the_session_on_the_same_volume(scene, volume, app):
    client = scene.client
    client.add_prompt(1, tube(volume, 9))
    job = client.propagate(1)
    scene.until_told(Finished, job=job)
    document = scene.until_told(Answered, request=client.take_snapshot()).value
    host = Host(SessionClient(InProcess(app, TOKEN)))
    host.client.set_volume(volume)
    host.client.restore(document)
    number = host.client.add_prompt(1, tube(volume, 12))
    assert number == 2
    state = settle(host)
    assert state.window == WINDOW and [info.number for info in state.prompts] == [1, 2]
    assert {event.plane.index for event in told(host, MaskChanged)} == set(range(24))
    host.client.restore({"format": "something else"})
    assert "not a session" in host.until_told(Failed).text
    host.client.close()


# ---- crashes


def test_a_crash_brings_everything_back_and_one_notice(crashing, volume):
    client = crashing.client
    client.set_volume(volume, WINDOW)
    client.add_segment("tube", 1)
    client.add_prompt(1, tube(volume, 9))
    settle(crashing)
    crashing.client._connection.crash()
    client.add_prompt(1, tube(volume, 12))
    state = settle(crashing)
    assert [info.number for info in state.prompts] == [1, 2]
    assert len(told(crashing, Notice)) == 1
    assert client.status.state == "ready"


def test_masks_that_do_not_come_again_are_taken_back(crashing, volume):
    """A propagation that is cancelled while the worker is down leaves nothing behind."""
    client = crashing.client
    client.set_volume(volume, WINDOW)
    client.add_segment("tube", 1)
    client.add_prompt(1, tube(volume, 9))
    settle(crashing)
    job = client.propagate(1)
    crashing.until(lambda events: sum(isinstance(event, MaskChanged) for event in events) >= 3)
    if job in client._jobs:
        crashing.client._connection.crash()
        client.cancel(job, keep_results=False)
        crashing.until_told(Finished, job=job, cancelled=True)
        settle(crashing)
        shown = {}
        for event in told(crashing, MaskChanged):
            shown[event.plane.index] = event.mask is not None
        assert [index for index, there in shown.items() if there] == [9]


def test_found_objects_can_be_adopted_after_a_crash(crashing, volume):
    client = crashing.client
    client.set_volume(volume, WINDOW)
    job = client.everything("axial", EverythingSettings(points_per_side=8), first=8, last=12)
    found = crashing.until_told(Objects, job=job)
    crashing.until(lambda _: not client._jobs)
    crashing.client._connection.crash()
    values = client.adopt(job, [found.objects[0].number])
    state = crashing.until_told(StateChanged, settled=True, undo_name="add found objects")
    assert [info.value for info in state.segments] == list(values)
    crashing.client._connection.crash()
    client.add_segment("more", 77)
    state = settle(crashing)
    assert [info.value for info in state.segments] == [*values, 77]


def test_an_unanswered_question_is_asked_again_after_a_crash(crashing, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path))
    client = crashing.client
    client.start()
    crashing.until(lambda _: client.status.state == "ready")
    request = client.ask("models")
    crashing.client._connection.crash()
    assert crashing.until_told(Answered, request=request).value


def test_a_long_session_is_stored_now_and_then_and_replayed_from_there(crashing, volume):
    client = crashing.client
    client.set_volume(volume, WINDOW)
    client.add_segment("tube", 1)
    number = client.add_prompt(1, tube(volume, 9))
    for turn in range(900):
        client.move_prompt(number, tube(volume, 5 + turn % 10))
        if turn % 50 == 0:
            settle(crashing)
    state = settle(crashing)
    assert len(client._journal) < 700
    before = state.prompts[0].prompt
    crashing.client._connection.crash()
    second = client.add_prompt(1, tube(volume, 20))
    state = settle(crashing)
    assert [info.number for info in state.prompts] == [number, second] and state.prompts[0].prompt == before


# ---- weight


def test_the_client_loads_neither_runtimes_nor_readers(root):
    code = (
        "import sys, SAMFineTuneLib.service.client, SAMFineTuneLib.service.worker\n"
        "heavy = ('SimpleITK', 'pydicom', 'PIL', 'onnxruntime', 'torch', 'tqdm', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "outside = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names)\n"
        "print(sorted(name for name in outside if not name.startswith('_')))"
    )
    result = subprocess.run([sys.executable, "-S", "-c", _with_site(code)], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    heavy, outside = result.stdout.splitlines()
    assert heavy == "[]" and set(eval(outside)) <= {"SAMFineTuneLib", "numpy", "sitecustomize"}


def _with_site(code: str) -> str:
    """Packages on the path, but nothing that their installation loads at the start."""
    import numpy

    return f"import sys; sys.path.append({str(__import__('pathlib').Path(numpy.__file__).parents[1])!r})\n" + code


# ---- prompts that answer in 3-D


@pytest.fixture
def in_3d(crashing, volume):
    """A host whose worker may crash, with the phantom and one segment, whose prompts answer for the whole object."""
    client = crashing.client
    client.set_volumetric(True)
    client.set_volume(volume, WINDOW)
    client.add_segment("tube", 1)
    settle(crashing)
    return crashing


def planes(host):
    return {plane.index for plane, _, _ in host.client.told.values()}


def test_a_prompt_in_3d_tells_all_slices_its_progress_and_its_end(in_3d, volume):
    client = in_3d.client
    client.add_prompt(1, tube(volume, 9))
    state = settle(in_3d)
    assert planes(in_3d) == set(range(24)) and state.undo_name == "add prompt" and state.settled
    (finished,) = told(in_3d, Finished)
    assert finished.job < 0 and not finished.cancelled and finished.document is None
    assert any(event.job == finished.job and event.fraction > 0.5 for event in told(in_3d, Busy))
    assert not client.jobs and not client.outstanding
    client.undo()
    assert settle(in_3d).prompts == () and planes(in_3d) == set()
    client.redo()
    settle(in_3d)
    assert planes(in_3d) == set(range(24)) and len(told(in_3d, Finished)) == 1


def test_the_answer_in_3d_is_cancelled_by_its_number(in_3d, volume):
    client = in_3d.client
    client.add_prompt(1, tube(volume, 9))
    in_3d.until(lambda _: client.jobs)
    (job,) = client.jobs
    client.cancel(job)
    state = settle(in_3d)
    assert state.settled and not client.jobs and told(in_3d, Finished)[-1].job == job
    kept = planes(in_3d)
    in_3d.client._connection.crash()
    client.add_prompt(1, tube(volume, 3))
    client.undo()
    settle(in_3d)
    assert planes(in_3d) == kept, "a replay does not begin it again"


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_a_crash_around_an_answer_in_3d(in_3d, volume, when):
    client = in_3d.client
    client.set_volumetric(False)
    client.add_segment("other", 2)
    client.add_prompt(2, point(volume, 12, 44, 9))  # stays on its slice, also in a replay
    client.set_volumetric(True)
    settle(in_3d)
    client.add_prompt(1, tube(volume, 9))
    if when != "before":
        in_3d.until(lambda _: client.jobs)
    if when == "after":
        settle(in_3d)
        in_3d.told.clear()
    client._connection.crash()
    client.add_prompt(2, point(volume, 60, 2, 9, positive=False))
    client.undo()
    state = settle(in_3d)
    assert state.settled and not client.jobs and len(state.prompts) == 2
    assert [value for value, _ in client.told].count(2) == 1
    assert {shown.plane.index for (value, _), shown in client.told.items() if value == 1} == set(range(24))
    finished = [event for event in told(in_3d, Finished) if not event.cancelled]
    assert not [event for event in finished if event.job == -1] or when != "after", "its result was stored"
    client.undo()
    settle(in_3d)
    assert {value for value, _ in client.told} == {2}
    client.redo()
    settle(in_3d)
    assert {shown.plane.index for (value, _), shown in client.told.items() if value == 1} == set(range(24))


def test_many_prompts_in_3d_end_with_the_answer_to_all(in_3d, volume):
    client = in_3d.client
    numbers = []
    for k in (9, 4, 14, 18):
        numbers.append(client.add_prompt(1, tube(volume, k)))
        in_3d.told += client.pump(0.02)
    client.delete_prompt(numbers[1])
    client.undo()
    state = settle(in_3d)
    assert [info.number for info in state.prompts] == numbers and planes(in_3d) == set(range(24))
    assert not told(in_3d, Notice)


def test_another_volume_ends_an_answer_in_3d(in_3d, volume):
    client = in_3d.client
    client.add_prompt(1, tube(volume, 9))
    in_3d.until(lambda _: client.jobs)
    client.set_volume(Volume(volume.array[:, :, ::-1].copy(), volume.affine), WINDOW)
    assert not client.jobs
    client.add_segment("new", 5)
    client.add_prompt(5, point(volume, 63 - 12, 44, 9))
    settle(in_3d)
    assert planes(in_3d) == set(range(24)) and {value for value, _ in client.told} == {5}
