"""Intensity windows: applying them, and which one is chosen for which volume."""

from __future__ import annotations

import numpy as np
import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import CT_PRESETS, IntensityWindow, choose_window
from SAMFineTuneLib.images.volume import Volume


def volume_of(values, modality="", window=None) -> Volume:
    return Volume(np.asarray(values), np.eye(4), modality=modality, window=window)


def ct(window=None, modality="CT") -> Volume:
    return volume_of(np.linspace(-1024, 1500, 1000).astype(np.int16).reshape(10, 10, 10), modality, window)


# ---- applying


def test_low_is_black_high_is_white_and_what_lies_between_is_rounded_to_the_nearest():
    shown = IntensityWindow(-160, 240).apply(
        np.array([-1000, -160, -159, 39, 40, 41, 240, 241, 3000], np.int16)
    )
    assert shown.dtype == np.uint8
    assert shown.tolist() == [0, 0, 1, 127, 128, 128, 255, 255, 255]  # 127.5 goes to the even one


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_every_number_type_gives_the_same_picture(dtype):
    values = np.arange(100, dtype=dtype)
    assert (
        IntensityWindow(10, 90).apply(values).tolist() == IntensityWindow(10, 90).apply(values * 1.0).tolist()
    )


def test_large_integers_keep_their_differences():
    values = np.array([2_000_000_000, 2_000_000_001, 2_000_000_002], np.int64)
    assert IntensityWindow(2_000_000_000, 2_000_000_002).apply(values).tolist() == [0, 128, 255]


def test_an_eight_bit_picture_passes_through_unchanged():
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(IntensityWindow(0, 255).apply(values), values)


def test_what_is_no_number_is_black_and_infinities_are_the_ends():
    values = np.array([np.nan, -np.inf, np.inf, 50], np.float32)
    assert IntensityWindow(0, 100).apply(values).tolist() == [0, 0, 255, 128]


def test_applying_does_not_change_the_values():
    values = np.linspace(-5, 5, 11, dtype=np.float32)
    before = values.copy()
    IntensityWindow(-1, 1).apply(values)
    assert np.array_equal(values, before)


@pytest.mark.parametrize(
    "low, high", [(5, 5), (6, 5), (0, float("nan")), (float("-inf"), 0), (-1.7e308, 1.7e308)]
)
def test_empty_inverted_and_infinite_windows_are_refused(low, high):
    with pytest.raises(UserError, match="window"):
        IntensityWindow(low, high)


def test_level_and_width_follow_the_dicom_standard_when_asked():
    assert IntensityWindow.from_level(40, 400) == IntensityWindow(-160, 240)
    assert IntensityWindow.from_level(2048, 4096, dicom=True) == IntensityWindow(
        0, 4095
    )  # PS3.3's own example
    window = IntensityWindow.from_level(100, 1, dicom=True)
    assert window.apply(np.array([99, 101])).tolist() == [0, 255]


# ---- choosing


def test_a_ct_without_a_window_gets_the_abdomen_preset_and_says_so():
    window = choose_window(ct())
    assert (window.low, window.high) == (-160, 240)
    assert str(window) == "CT abdomen preset in HU, -160 to 240"


@pytest.mark.parametrize("level, width", [(40, 80), (35, 350), (60, 400), (32, 8)])
def test_a_ct_keeps_its_own_window_when_it_is_for_soft_tissue(level, width):
    own = IntensityWindow.from_level(level, width, "DICOM window")
    assert choose_window(ct(own)) is own


@pytest.mark.parametrize("level, width", [(-600, 1500), (400, 1800), (300, 600), (40, 2000)])
def test_a_lung_or_bone_window_is_not_used_unasked_and_the_name_says_how_to_get_it(level, width):
    own = IntensityWindow.from_level(level, width, "DICOM window")
    window = choose_window(ct(own))
    assert (window.low, window.high) == (-160, 240) and "ask for it with dicom" in window.name
    assert choose_window(ct(own), "dicom") is own


def test_hounsfield_units_are_guessed_without_a_modality_and_the_name_says_so():
    window = choose_window(ct(modality=""))
    assert (window.low, window.high) == (-160, 240) and "guessed" in window.name
    assert "percentiles" in choose_window(ct(modality="MR")).name
    standardised = volume_of(np.random.default_rng(0).normal(0, 300, (10, 10, 10)) - 900.5)
    assert "percentiles" in choose_window(standardised).name


def test_mr_uses_percentiles_of_the_whole_volume_and_air_does_not_change_them():
    body = np.arange(1, 1001, dtype=np.int16).reshape(10, 10, 10)
    with_air = np.concatenate([np.zeros((90, 10, 10), np.int16), body])
    own = IntensityWindow(0, 5)
    for values in (body, with_air):
        window = choose_window(volume_of(values, "MR", own))
        assert abs(window.high - 995) < 2 and window.low < 7


def test_a_slice_with_nothing_bright_does_not_change_its_window():
    values = np.zeros((4, 10, 10), np.int16)
    values[2] = np.arange(100).reshape(10, 10)
    shown = choose_window(volume_of(values, "MR")).apply(values)
    assert shown[0].max() == 0 and shown[2].max() == 255


def test_percentiles_of_large_volumes_are_close_to_exact(monkeypatch):
    monkeypatch.setattr("SAMFineTuneLib.images.intensity_window._SAMPLE", 20_000)
    values = np.random.default_rng(1).gamma(2, 200, (32, 64, 64)).astype(np.float32)
    values *= np.linspace(0.2, 2, 64)  # a coil that is brighter on one side: an uneven sample would show
    window = choose_window(volume_of(values, "MR"), "percentiles:2,98")
    low, high = np.percentile(values, [2, 98])
    assert abs(window.low - low) < 0.05 * high and abs(window.high - high) < 0.05 * high


def test_the_window_of_a_large_volume_is_found_at_once_and_is_always_the_same(monkeypatch):
    values = np.random.default_rng(2).gamma(2, 200, (20, 128, 512)).astype(np.int16)  # 1.3 million voxels
    looked_at = []
    whole = np.percentile
    monkeypatch.setattr(np, "percentile", lambda a, q: looked_at.append(len(a)) or whole(a, q))
    window = choose_window(volume_of(values, "MR"))
    assert looked_at and max(looked_at) <= 500_000
    assert choose_window(volume_of(values, "MR")) == window
    low, high = whole(values, 0.5), whole(values[values > 0], 99.5)
    assert abs(window.low - low) < 0.005 * high and abs(window.high - high) < 0.02 * high


def test_the_few_finite_voxels_of_a_large_volume_are_found():
    values = np.full((20, 128, 512), np.nan, np.float32)
    values[3, 5, 7:9] = 10, 20
    window = choose_window(volume_of(values))
    assert (window.low, window.high) == pytest.approx((10, 20), abs=0.1)


def test_pictures_of_eight_bits_stay_as_they_are():
    one_slice = volume_of(np.full((1, 8, 8), 100, np.uint8))
    assert choose_window(one_slice).apply(one_slice.array).tolist() == one_slice.array.tolist()
    ultrasound = volume_of(np.full((3, 8, 8), 100, np.uint8), "US")
    assert (choose_window(ultrasound).low, choose_window(ultrasound).high) == (0, 255)
    labels_of_mr = volume_of(np.arange(27, dtype=np.uint8).reshape(3, 3, 3), "MR")
    assert "percentiles" in choose_window(labels_of_mr).name


@pytest.mark.parametrize("value", [0, -1000, 5, 1e9, -1e9])
@pytest.mark.parametrize("request_", [None, "minmax", "percentiles"])
def test_constant_volumes_are_black_not_an_error(value, request_):
    volume = volume_of(np.full((3, 4, 5), value, np.float32), "MR")
    window = choose_window(volume, request_)
    assert window.apply(volume.array).max() == 0 and "constant" in window.name


def test_a_single_bright_voxel_is_still_seen():
    values = np.zeros((10, 10, 10), np.int16)
    values[5, 5, 5] = 700
    window = choose_window(volume_of(values, "MR"))
    assert window.apply(values)[5, 5, 5] == 255 and window.apply(values)[0, 0, 0] == 0


def test_voxels_that_are_no_numbers_do_not_count():
    values = np.linspace(0, 100, 1000, dtype=np.float32).reshape(10, 10, 10)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    for request in (None, "minmax", "percentiles:1,99"):
        window = choose_window(volume_of(values, "MR"), request)
        assert 0 <= window.low < 5 and 95 < window.high <= 100
    with pytest.raises(UserError, match="no finite voxel"):
        choose_window(volume_of(np.full((2, 2, 2), np.nan, np.float32)))


def test_requests():
    volume = ct()
    assert (choose_window(volume, "minmax").low, choose_window(volume, "minmax").high) == (-1024, 1500)
    assert (choose_window(volume, "-160, 240").low, choose_window(volume, "-160,240").high) == (-160, 240)
    assert choose_window(volume, "ct-lung") == choose_window(volume, "LUNG")
    assert (choose_window(volume, "ct-lung").low, choose_window(volume, "ct-lung").high) == (-1350, 150)
    assert choose_window(volume, "percentiles:10,90").low > choose_window(volume, "percentiles").low
    assert choose_window(volume, "auto") == choose_window(volume)
    for name in CT_PRESETS:
        assert f"CT {name} preset" in str(choose_window(volume, f"ct-{name}"))


@pytest.mark.parametrize(
    "request_, says",
    [
        ("ct-liverr", "LOW,HIGH"),
        ("1,2,3", "LOW,HIGH"),
        ("abc,5", "LOW,HIGH"),
        (",", "LOW,HIGH"),
        ("240,-160", "larger"),
        ("5,5", "larger"),
        ("nan,5", "finite"),
        ("percentiles:99,1", "percentiles:1,99"),
        ("percentiles:-1,50", "percentiles:1,99"),
        ("percentiles:x", "percentiles:1,99"),
        ("dicom", "no DICOM window"),
    ],
)
def test_requests_that_make_no_sense_are_refused_with_what_to_do(request_, says):
    with pytest.raises(UserError, match=says):
        choose_window(ct(), request_)


def test_hounsfield_presets_are_refused_on_what_is_no_ct():
    with pytest.raises(UserError, match="Hounsfield.*this volume is MR"):
        choose_window(ct(modality="MR"), "ct-brain")


def test_masks_as_volumes_have_a_window_too():
    mask = np.zeros((4, 5, 6), bool)
    mask[1:3] = True
    window = choose_window(volume_of(mask))
    assert np.array_equal(window.apply(mask), mask * 255)
