"""`Segmenter`: what a Python program gives it, what it gives back, and what it says."""

from __future__ import annotations

import io
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from SAMFineTuneLib import Segmenter
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import Volume, body_phantom, read_volume, write_dicom_series
from SAMFineTuneLib.images.sitk_images import to_sitk
from SAMFineTuneLib.inference.open_predictor import open_predictor
from SAMFineTuneLib.prompts import LassoPrompt, PointPrompt, PromptSet, ScribblePrompt, SegmentPrompts, write_prompts


@pytest.fixture(scope="module")
def body():
    return body_phantom(shape=(12, 128, 128), spacing=(2.8, 2.8, 8.0))


@pytest.fixture(scope="module")
def predictor():
    return open_predictor(device="cpu", disk_cache=False)


@pytest.fixture(scope="module")
def liver(body):
    """The true mask, and two corners of a box round it on its largest slice, as (i, j, k)."""
    _, labels, names = body
    mask = labels == next(value for value, name in names.items() if name == "liver")
    k = int(mask.sum(axis=(1, 2)).argmax())
    rows, columns = mask[k].nonzero()
    return mask, (columns.min(), rows.min(), k), (columns.max(), rows.max(), k)


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_prompts_are_written_for_another_program_and_for_slicer(body, tmp_path):
    volume, _, _ = body
    lasso = LassoPrompt(((0.0, 0.0, 0.0), (20.0, 0.0, 0.0), (20.0, 20.0, 0.0)))
    scan = Segmenter(volume).point((10, 20, 0), "Liver").point((-30, 0, 8), "Liver", positive=False)
    scan.box((-20, -20, 0), (20, 20, 0), "Spleen").prompt(lasso, "Spleen")

    [path] = scan.save_prompts(tmp_path / "prompts.json")
    placed = [(one.segment, one.prompt, one.view) for one in scan.session.prompts]
    again = [(one.segment, one.prompt, one.view) for one in Segmenter(volume).prompts(path).session.prompts]
    assert again == sorted(placed, key=lambda one: one[0])
    with pytest.raises(UserError, match="exists already"):
        scan.save_prompts(path)

    copy = Segmenter(volume)
    for file in scan.save_prompts(tmp_path / "markups"):
        copy.prompts(file)
    assert sorted(info.name for info in copy.segments) == ["Liver", "Spleen"] and len(copy.session.prompts) == 4

    scan.point((0, 0, 0), "Liver", orientation="coronal")
    with pytest.raises(UserError, match="several orientations"):
        scan.save_prompts(tmp_path / "both.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values, False),
        (lambda values: values / 1e30, False),
        (lambda values: values * 1e38, True),
        (lambda values: values / 1e300, True),
        (lambda values: values.astype(np.int64) + 2**40, True),
    ],
)
def test_values_that_32_bits_cannot_tell_apart_are_said(body, change, said):
    told = []
    Segmenter(change(body[0].array.astype(float)), affine=body[0].affine, tell=told.append)
    assert any("numbers of 32 bits" in sentence for sentence in told) == said


def test_a_box_becomes_a_mask_that_propagates_and_is_saved(body, predictor, liver, tmp_path):
    volume, _, _ = body
    truth, low, high = liver
    scan = Segmenter(volume, predictor=predictor).box(low, high, "Liver", space="ijk")
    one = scan.mask("Liver")
    assert one.dtype == bool and one.shape == volume.shape and set(one.nonzero()[0]) == {low[2]}
    assert dice(one[low[2]], truth[low[2]]) > 0.85
    scan.propagate("Liver")
    assert dice(scan.mask(), truth) > dice(one, truth)
    path = scan.save(tmp_path / "liver.nii.gz")
    written = nibabel.load(path)
    assert np.allclose(written.affine, volume.affine, atol=1e-3)
    assert np.array_equal(np.asarray(written.dataobj).T == 1, scan.mask())
    with pytest.raises(UserError, match="overwrite=True"):
        scan.save(path)
    scan.undo()
    assert np.array_equal(scan.mask(), one)
    assert scan.redo().mask().sum() > one.sum()


def images_of(volume: Volume, tmp_path) -> dict:
    """The same voxels at the same place in every form that a program may have them."""
    nifti = nibabel.Nifti1Image(volume.array.T, volume.affine)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nifti, path)
    in_metres = nibabel.Nifti1Image(volume.array.T, np.diag([0.001, 0.001, 0.001, 1]) @ volume.affine)
    in_metres.header.set_xyzt_units("meter")
    return {
        "array": (volume.array, volume.affine),
        "not contiguous": (np.asfortranarray(volume.array), volume.affine),
        "SimpleITK": (to_sitk(volume.array, volume.affine), None),
        "nibabel": (nifti, None),
        "one time point": (nibabel.Nifti1Image(volume.array.T[..., None], volume.affine), None),
        "nibabel file": (nibabel.load(path), None),
        "nibabel in metres": (in_metres, None),
        "path": (path, None),
        "text": (str(path), None),
    }


def test_every_form_of_an_image_gives_the_same_volume(body, tmp_path):
    volume, _, _ = body
    for form, (image, affine) in images_of(volume, tmp_path).items():
        scan = Segmenter(image, affine=affine)
        assert np.array_equal(scan.volume.array, volume.array), form
        assert np.allclose(scan.volume.affine, volume.affine, atol=1e-3), form


def test_an_array_that_changes_afterwards_changes_nothing(body):
    """Masks from the voxels before, and statistics from those after, would be of no image."""
    for as_nibabel in (False, True):
        array = np.array(body[0].array)
        view = array.view()
        view.flags.writeable = False
        if as_nibabel:
            scan = Segmenter(nibabel.Nifti1Image(view.T, body[0].affine))
        else:
            scan = Segmenter(view, affine=body[0].affine)
        array[:] = 0
        assert np.array_equal(scan.volume.array, body[0].array)
    fixed = np.array(body[0].array)
    fixed.flags.writeable = False
    assert np.shares_memory(Segmenter(fixed, affine=body[0].affine).volume.array, fixed)


def test_threads_that_share_a_segmenter_lose_no_prompt(body, monkeypatch):
    scan = Segmenter(body[0])
    add = scan.session.add_segment

    def slowly(*given, **named):  # lets another thread run in the middle of the step
        time.sleep(0.05)
        return add(*given, **named)

    monkeypatch.setattr(scan.session, "add_segment", slowly)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: scan.point((60, 60, n), "Liver", space="ijk"), range(4)))
    assert [info.name for info in scan.segments] == ["Liver"] and len(scan.session.prompts) == 4


def test_millimetres_and_voxels_of_a_tilted_flipped_volume_are_the_same_place(body, predictor, liver):
    volume, _, _ = body
    truth, low, high = liver
    flipped = Volume(volume.array[::-1, :, ::-1], volume.affine @ np.array(
        [[-1, 0, 0, volume.shape[2] - 1], [0, 1, 0, 0], [0, 0, -1, volume.shape[0] - 1], [0, 0, 0, 1.0]]
    ))  # fmt: skip
    corners = volume.ijk_to_ras([low, high])
    first = Segmenter(volume, predictor=predictor).box(low, high, space="ijk").mask()
    other = Segmenter(flipped, predictor=predictor).box(*corners).mask()
    assert dice(first, other[::-1, :, ::-1]) > 0.98
    assert dice(other[::-1, :, ::-1][low[2]], truth[low[2]]) > 0.85


def test_what_reading_decided_is_told_once(body, tmp_path):
    """As a missing slice. Who gives a volume has read it, and knows."""
    write_dicom_series(body[0], tmp_path / "dicom")
    sorted((tmp_path / "dicom").iterdir())[3].unlink()
    told = []
    scan = Segmenter(tmp_path / "dicom", tell=told.append)
    assert len(told) == 1 and "missing" in told[0] and told == list(scan.volume.warnings)
    Segmenter(scan.volume, tell=told.append)
    assert len(told) == 1


@pytest.mark.parametrize("kind", [np.float32, np.int16])
def test_masked_voxels_hold_no_value(body, kind):
    told, array = [], body[0].array.astype(kind)
    hidden = np.zeros(array.shape, bool)
    hidden[0, :5] = True
    scan = Segmenter(np.ma.array(np.where(hidden, 30000, array), mask=hidden), affine=body[0].affine, tell=told.append)
    assert np.isnan(scan.volume.array[hidden]).all() and np.array_equal(scan.volume.array[~hidden], array[~hidden])
    assert any("hold no real number" in sentence for sentence in told)
    assert scan.session.window.high < 30000


def sheared(volume):
    affine = np.array(volume.affine)
    affine[:3, 1] += 0.3 * affine[:3, 0]
    return affine


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (lambda v: v.array, {}, "affine="),
        (lambda v: nibabel.Nifti1Image(v.array.T, v.affine), {"affine": np.eye(4)}, "affine="),
        (lambda v: v, {"affine": np.eye(4)}, "affine="),
        (lambda v: object(), {}, "not an image"),
        (lambda v: None, {}, "not an image"),
        (lambda v: v, {"series": "1"}, "series="),
        (lambda v: "nowhere.nii", {}, "does not exist"),
        (lambda v: v.array[0, 0], {"affine": np.eye(4)}, "three non-empty dimensions"),
        (lambda v: v.array, {"affine": np.zeros((4, 4))}, "."),
        (lambda v: v.array, {"affine": sheared}, "sheared"),
        (lambda v: nibabel.Nifti1Image(np.zeros((4, 4, 4, 2)), np.eye(4)), {}, "one volume"),
        (lambda v: sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3), {}, "one value a voxel"),
        (lambda v: v, {"window": "no-such"}, "window"),
        (lambda v: v, {"window": (10, 10)}, "window"),
        (lambda v: v, {"window": (1, 2, 3)}, "window must be a list of 2 numbers"),
        (lambda v: v, {"window": 40}, "window must be a list of 2 numbers"),
        (lambda v: v.array, {"affine": "identity"}, "4×4"),
        (lambda v: nibabel.Nifti1Image(v.array.T, None), {}, "no affine"),
        (lambda v: sitk.Cast(sitk.Image([4, 4, 4], sitk.sitkUInt8), sitk.sitkLabelUInt8), {}, "LabelMap"),
    ],
)
def test_what_cannot_be_an_image_is_one_sentence(body, image, options, words):
    options = {name: value(body[0]) if callable(value) else value for name, value in options.items()}
    with pytest.raises(UserError, match=words) as told:
        Segmenter(image(body[0]), **options)
    assert "\n" not in str(told.value)


def test_a_slice_alone_is_a_volume_of_one_slice(body, predictor, liver):
    volume, _, _ = body
    truth, low, high = liver
    k = low[2]
    scan = Segmenter(volume.array[k], affine=np.diag([-2.8, -2.8, 1, 1]), predictor=predictor)
    scan.box((*low[:2], 0), (*high[:2], 0), space="ijk")
    assert dice(scan.mask()[0], truth[k]) > 0.8


def test_a_prompt_that_fails_leaves_nothing_behind(body, predictor, tmp_path):
    scan = Segmenter(body[0], predictor=predictor).point((40, 60, 5), "Kept", space="ijk")
    before = scan.session.state
    wrong = [
        lambda: scan.point((9999, 0, 0), "Lost"),
        lambda: scan.point((0, 0, 99), "Lost", space="ijk"),
        lambda: scan.point((1, 2), "Lost"),
        lambda: scan.point((1, 2), "Lost", space="ijk"),
        lambda: scan.box((1, 2, 3), (4, 5), "Lost", space="ijk"),
        lambda: scan.point((1, 2, 3), "Lost", space="lps"),
        lambda: scan.point((40, 60, 5), " ", space="ijk"),
        lambda: scan.point((40, 60, 5), "Lost", space="ijk", positive="no"),
        lambda: scan.prompts(PromptSet((
            SegmentPrompts("A", 7, prompts=(PointPrompt(tuple(body[0].ijk_to_ras((40, 60, 5)))),)),
            SegmentPrompts("B", 8, prompts=(PointPrompt((9999, 0, 0)),)),
        ))),
    ]  # fmt: skip
    for number, attempt in enumerate(wrong):
        with pytest.raises(UserError):
            attempt()
        assert scan.session.state.same_as(before), number
    empty = Segmenter(body[0])
    for attempt in (lambda: scan.mask("Nobody"), empty.propagate, empty.mask):
        with pytest.raises(UserError):
            attempt()


def test_a_prompt_outside_is_named_by_its_number_in_the_file(body):
    inside, outside = PointPrompt(tuple(body[0].ijk_to_ras((64, 64, 6)))), PointPrompt((0.0, 0.0, 5000.0))
    scan = Segmenter(body[0])
    with pytest.raises(UserError, match="Point 3 of segment Liver .* outside the volume"):
        scan.prompts(PromptSet((SegmentPrompts("Liver", prompts=(inside, inside, outside)),)))


def test_several_segments_from_calls_and_a_file_keep_their_names(body, predictor, liver, tmp_path):
    volume, _, _ = body
    _, low, high = liver
    write_prompts(tmp_path / "prompts.json", PromptSet((
        SegmentPrompts("Spine", 1, prompts=(PointPrompt(tuple(volume.ijk_to_ras((64, 90, 6)))),)),
    )))  # fmt: skip
    scan = Segmenter(volume, predictor=predictor).box(low, high, "Liver", space="ijk")
    scan.prompts(tmp_path / "prompts.json")
    middle = tuple(volume.ijk_to_ras((np.array(low) + high) / 2))
    scan.prompt(ScribblePrompt((middle, middle)), "Liver")
    assert [info.name for info in scan.segments] == ["Liver", "Spine"]
    assert len({info.value for info in scan.segments}) == len({info.color for info in scan.segments}) == 2
    assert set(np.unique(scan.labelmap)) <= {0, 1, 2}
    assert [row.segment for row in scan.statistics()] == ["Liver", "Spine"]
    with pytest.raises(UserError, match="say which"):
        scan.mask()


def test_an_empty_answer_is_told_once(predictor):
    air = Volume(np.zeros((3, 64, 64), np.float32) + np.arange(3)[:, None, None], np.eye(4))
    told: list[str] = []
    scan = Segmenter(air, predictor=predictor, tell=told.append)
    scan.point((30, 30, 1), "Air", positive=False)
    assert not scan.mask().any() and not scan.mask().any()
    assert sum("Nothing was found for Air" in sentence for sentence in told) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not Segmenter(air, predictor=predictor).point((30, 30, 1), positive=False).mask().any()
    (said,) = [one for one in caught if "Nothing was found" in str(one.message)]
    assert said.filename == __file__


def test_another_model_answers_from_then_on(body, predictor, liver):
    _, low, high = liver
    scan = Segmenter(body[0], predictor=predictor).box(low, high, space="ijk")
    scan.mask()
    other = open_predictor(device="cpu", disk_cache=False)
    assert scan.use(other).mask().any() and other.encoder_calls


def test_notebooks_show_short_words_and_a_picture(body, predictor, liver):
    _, low, high = liver
    scan = Segmenter(body[0], predictor=predictor)
    without = scan._repr_png_()
    scan.box(low, high, "Liver", space="ijk")
    for shown in (scan, scan.volume, scan.busiest_plane()):
        assert len(repr(shown)) < 120 and "\n" not in repr(shown)
    assert "Liver" in repr(scan)
    plain = np.asarray(scan.slice_image()).astype(int)
    lasso = tuple(map(tuple, body[0].ijk_to_ras([(*low[:2], low[2]), (high[0], low[1], low[2]), high])))
    lassoed = np.asarray(scan.prompt(LassoPrompt(lasso, False), "Liver").slice_image()).astype(int)
    red = (lassoed[..., 0] == 240) & (lassoed[..., 1] == 51)
    assert red.sum() > 100 and not ((plain[..., 0] == 240) & (plain[..., 1] == 51)).any()
    scan.undo()
    assert scan.slice_image(np.int64(low[2])) == scan.slice_image()
    with pytest.raises(UserError):
        scan.slice_image(99)
    affine = np.array([[-2.8, 0, 0, 0], [0, 0, 8, 0], [0, -2.8, 0, 0], [0, 0, 0, 1.0]])  # coronal slices
    coronal = Segmenter(body[0].array, affine=affine, predictor=predictor)
    assert coronal.busiest_plane().index == 64 and coronal._repr_png_()
    with Image.open(io.BytesIO(scan._repr_png_())) as with_mask, Image.open(io.BytesIO(without)) as plain:
        assert with_mask.format == "PNG" and np.ptp(np.asarray(with_mask).astype(int), axis=-1).max() > 50
        assert np.ptp(np.asarray(plain).astype(int), axis=-1).max() == 0


@pytest.mark.parametrize("name", ["liver.nii.gz", "liver.dcm", "liver.seg.nrrd"])
def test_nothing_is_written_among_the_slices_that_were_read(body, predictor, tmp_path, name):
    write_dicom_series(body[0], tmp_path / "series")
    before = sorted(os.listdir(tmp_path / "series"))
    scan = Segmenter(tmp_path / "series", predictor=predictor).point((64, 64, 6), space="ijk")
    with pytest.raises(UserError, match="among the slices that were read; choose another folder"):
        scan.save(tmp_path / "series" / name)
    for prompts in ("prompts.json", "markups"):
        with pytest.raises(UserError, match="among the slices that were read; choose another folder"):
            scan.save_prompts(tmp_path / "series" / prompts)
    assert sorted(os.listdir(tmp_path / "series")) == before
    scan.save(tmp_path / name)


def test_the_file_that_was_read_is_never_overwritten(body, predictor, tmp_path):
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(body[0].array.T, body[0].affine), path)
    before = path.read_bytes()
    scan = Segmenter(path, predictor=predictor).point((64, 64, 6), space="ijk")
    with pytest.raises(UserError, match="was read"):
        scan.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert read_volume(path).shape == body[0].shape


def test_an_adapter_answers_by_name_and_by_folder(body, predictor, liver, tmp_path, monkeypatch):
    from tuned_models import shake

    from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, save_adapter
    from SAMFineTuneLib.models.load_model import load_network
    from SAMFineTuneLib.models.store import Store

    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path))
    base = Store().get("compact")
    method = Method(scope="decoder")
    network = attach(load_network(base.file("weights"))[1], base.spec, method)
    folder = tmp_path / "adapters" / "liver"
    save_adapter(folder, shake(network, 1, 0.03), base, method, Card(labels=("liver",), recipe={"modality": "MR"}))
    _, low, high = liver
    plain = Segmenter(body[0], predictor=predictor).box(low, high, space="ijk").mask()
    told: list[str] = []
    masks = [
        Segmenter(body[0], adapter=adapter, device="cpu", tell=told.append).box(low, high, space="ijk").mask()
        for adapter in ("liver", folder, str(folder))
    ]
    assert np.array_equal(masks[0], masks[1]) and np.array_equal(masks[0], masks[2])
    assert masks[0].any() and not np.array_equal(masks[0], plain)
    assert sum("learned from MR" in sentence for sentence in told) == 3


@pytest.mark.parametrize("ending", [".nii.gz", ".seg.nrrd"])
def test_what_another_program_writes_meanwhile_stays(body, predictor, tmp_path, monkeypatch, ending):
    scan, path, write = Segmenter(body[0], predictor=predictor), tmp_path / f"organs{ending}", sitk.WriteImage
    scan.point((40, 60, 5), "Kept", space="ijk")

    def overtaken(*arguments, **options):
        write(*arguments, **options)
        path.write_bytes(b"another's")

    monkeypatch.setattr(sitk, "WriteImage", overtaken)
    with pytest.raises(UserError, match="written by another program meanwhile"):
        scan.save(path)
    assert path.read_bytes() == b"another's" and len(list(tmp_path.iterdir())) == 1
    scan.save(path, overwrite=True)
    assert path.read_bytes() != b"another's"
