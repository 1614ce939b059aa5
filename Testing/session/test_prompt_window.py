"""What the model sees if the volume's window hides the structure under a prompt."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from SAMFineTuneLib.images import IntensityWindow, Volume, aligned_plane, read_volume
from SAMFineTuneLib.images.phantom import write_dicom_series
from SAMFineTuneLib.inference.mask_shapes import interior_points
from SAMFineTuneLib.metrics.mask_metrics import dice
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.segmenter import Segmenter
from SAMFineTuneLib.session.answers import window_for

ABDOMEN = IntensityWindow(-160, 240)
SLICE = 3
NO_POINTS = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)


def values_of(vessel: float = 350.0, chamber: float = 280.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A slice in HU with a contrast-filled vessel in a chamber, and the vessel's mask."""
    y, x = np.indices((160, 160)) - 80.0
    grey = np.where((x / 75) ** 2 + (y / 60) ** 2 < 1, 40.0, -1000.0)
    grey[(x / 34) ** 2 + (y / 27) ** 2 < 1] = chamber
    inside = (x - 10) ** 2 + (y - 4) ** 2 < 11**2
    grey[inside] = vessel
    noise = np.random.default_rng(seed).normal(0, 15, grey.shape)
    return ndimage.gaussian_filter(grey, 0.7) + noise, inside


def box_of(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.float32([columns.min(), rows.min(), columns.max(), rows.max()])


def prompts_of(mask: np.ndarray) -> dict[str, PlanePrompts]:
    return {
        "box": PlanePrompts(*NO_POINTS, box=box_of(mask)),
        "mask": PlanePrompts(*NO_POINTS, mask=mask),
        "point": PlanePrompts(interior_points(mask), np.ones(1, np.int64)),
    }


@pytest.mark.parametrize("kind", ["box", "mask", "point"])
def test_a_window_that_hides_a_vessel_is_widened_as_far_as_needed(kind):
    values, vessel = values_of()
    window = window_for(values, prompts_of(vessel)[kind], ABDOMEN)
    assert window.low == ABDOMEN.low and 450 < window.high < 600
    mirrored = window_for(-values, prompts_of(vessel)[kind], IntensityWindow(-240, 160))
    assert (mirrored.low, mirrored.high) == (-window.high, -window.low), "the same for what is all black"
    wide = IntensityWindow(-160, 500)
    assert window_for(values, prompts_of(vessel)[kind], wide) is wide, "the user's window shows it"


@pytest.mark.parametrize("kind", ["box", "mask", "point"])
def test_a_single_vessel_among_soft_tissue_stays_in_the_window(kind):
    values, vessel = values_of(chamber=60.0)
    assert window_for(values, prompts_of(vessel)[kind], ABDOMEN) is ABDOMEN


def test_values_at_the_ends_of_the_window_are_not_hidden():
    picture = np.where(np.indices((40, 40)).sum(axis=0) > 40, 255.0, 0.0)
    for point in ((5, 5), (35, 35)):
        prompts = PlanePrompts(np.float32([point]), np.ones(1, np.int64))
        window = IntensityWindow(0, 255)
        assert window_for(picture, prompts, window) is window


def test_voxels_that_are_no_number_widen_nothing():
    values, vessel = values_of()
    for value in (np.inf, -np.inf, np.nan):
        values[vessel] = value
        for prompts in prompts_of(vessel).values():
            assert window_for(values, prompts, ABDOMEN) is ABDOMEN


@pytest.fixture(scope="module")
def contrast_ct(tmp_path_factory):
    """A tilted CT series with a vessel of 350 HU in a chamber of 280 HU, as it is read from DICOM files."""
    slices = [values_of(seed=number)[0] for number in range(6)]
    turn = np.deg2rad(12)
    affine = np.eye(4)
    affine[:3, :3] = [[-0.8, 0, 0], [0, -0.8 * np.cos(turn), -3 * np.sin(turn)],
                      [0, -0.8 * np.sin(turn), 3 * np.cos(turn)]]  # fmt: skip
    affine[:3, 3] = 60, 70, -20
    folder = tmp_path_factory.mktemp("ct")
    write_dicom_series(Volume(np.rint(np.stack(slices)).clip(-1024).astype(np.int16), affine, modality="CT"), folder)
    return read_volume(folder)


def vessel_in(volume: Volume) -> np.ndarray:
    return np.stack([values_of()[1]] * volume.shape[0])


def segmenter_of(volume: Volume, kind: str, notes: list[str], window=(-160, 240)) -> Segmenter:
    prompt = prompts_of(values_of()[1])[kind]
    scan = Segmenter(volume, window=window, tell=notes.append)
    if kind == "box":
        x0, y0, x1, y1 = map(float, prompt.box)
        return scan.box((x0, y0, SLICE), (x1, y1, SLICE), "Vessel", space="ijk", orientation="axial")
    x, y = map(float, prompt.points[0])
    return scan.point((x, y, SLICE), "Vessel", space="ijk", orientation="axial")


@pytest.mark.parametrize("kind", ["box", "point"])
def test_a_hidden_vessel_is_found_on_its_slice_and_through_the_volume(contrast_ct, kind):
    notes: list[str] = []
    scan = segmenter_of(contrast_ct, kind, notes)
    reference = vessel_in(contrast_ct)
    assert dice(scan.mask()[SLICE], reference[SLICE]) > 0.85
    assert sum("so the model sees" in note for note in notes) == 1
    scan.propagate()
    assert dice(scan.mask(), reference) > 0.85


def test_in_3d_a_prompt_finds_the_hidden_vessel(contrast_ct):
    scan = segmenter_of(contrast_ct, "point", [])
    scan.mask()
    scan.session.set_volumetric(True)
    x, y = map(float, prompts_of(values_of()[1])["point"].points[0])
    scan.point((x - 4, y, SLICE), "Vessel", space="ijk")
    while not scan.session.settled or scan.session.jobs:
        scan.session.work(0.0)
    assert dice(scan.mask(), vessel_in(contrast_ct)) > 0.85


def test_a_click_that_follows_sees_the_same_picture_and_undo_gives_the_same_mask(contrast_ct):
    scan = segmenter_of(contrast_ct, "point", [])
    first = scan.mask().copy()
    [(value, plane)] = scan.prompted_planes
    [window] = scan.session.answer(value, plane).windows
    scan.point((20, 80, SLICE), "Vessel", positive=False, space="ijk").point((90, 92, SLICE), "Vessel", space="ijk")
    corrected = scan.mask().copy()
    assert scan.session.answer(value, plane).windows == (window,)
    assert np.array_equal(scan.undo().undo().mask(), first)
    assert np.array_equal(scan.redo().redo().mask(), corrected)


def test_nothing_changes_where_the_window_hides_nothing(contrast_ct):
    notes: list[str] = []
    scan = segmenter_of(contrast_ct, "box", notes, (-160, 500))
    assert scan.mask().any() and not any("so the model sees" in note for note in notes)
    assert not scan.session.answer(1, aligned_plane(contrast_ct, "axial", SLICE)).windows
