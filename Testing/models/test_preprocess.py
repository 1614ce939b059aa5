"""Model inputs against the authors' definitions; logits back on the picture against PyTorch's two steps."""

import json

import numpy as np
import pytest
from PIL import Image

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.preprocess import geometry, prepare
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec, read_model_folder, write_spec

AS_THEY_ARE = {"pixel_mean": (0, 0, 0), "pixel_std": (1, 1, 1)}
ZERO_ONE = {"pixel_range": "minmax", "pixel_mean": (0, 0, 0), "pixel_std": (1, 1, 1)}


def a_spec(**changes):
    return ModelSpec(**{"id": "m", "name": "M", "architecture": "sam_vit_b", **changes})


def a_picture(rows, columns, colour=False, seed=0):
    """Smooth structure with noise: resampling rules differ visibly on it."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns]
    waves = 120 + 90 * np.sin(x / 7.0) * np.cos(y / 5.0)
    picture = waves + random.normal(0, 12, (rows, columns))
    if colour:
        picture = np.stack([picture, 255 - picture, picture / 2 + 30], axis=-1)
    return np.clip(picture, 3, 251).astype(np.uint8)


@pytest.mark.parametrize(("rows", "columns"), [(96, 150), (150, 96), (400, 300), (64, 64), (3, 300)])
def test_sam_rule_is_longest_side_then_normalise_then_zero_padding(rows, columns):
    picture = a_picture(rows, columns, colour=True)
    tensor, place = prepare(picture, a_spec(input_size=256))
    scale = 256 / max(rows, columns)
    height, width = int(rows * scale + 0.5), int(columns * scale + 0.5)
    resized = np.asarray(Image.fromarray(picture).resize((width, height), Image.BILINEAR)).astype(np.float32)
    expected = (resized - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    assert tensor.shape == (1, 3, 256, 256) and tensor.dtype == np.float32
    assert place.content == (height, width)
    np.testing.assert_allclose(tensor[0, :, :height, :width], expected.transpose(2, 0, 1), atol=1e-5)
    assert not tensor[0, :, height:].any() and not tensor[0, :, :, width:].any()


def test_a_grey_picture_equals_the_same_picture_in_three_channels():
    picture = a_picture(50, 80)
    grey, _ = prepare(picture, a_spec(input_size=128))
    colour, _ = prepare(np.repeat(picture[..., None], 3, axis=2), a_spec(input_size=128))
    np.testing.assert_array_equal(grey, colour)


@pytest.mark.parametrize(("rows", "columns"), [(96, 150), (300, 200), (256, 256), (257, 90)])
def test_medsam_rule_is_scikit_image_cubic_then_min_max(rows, columns):
    transform = pytest.importorskip("skimage.transform")
    picture = a_picture(rows, columns)
    spec = a_spec(input_size=256, resize="squash", interpolation="cubic", **ZERO_ONE)
    tensor, place = prepare(picture, spec)
    resized = transform.resize(picture, (256, 256), order=3, preserve_range=True, anti_aliasing=True)
    resized = resized.astype(np.uint8).astype(np.float64)
    expected = (resized - resized.min()) / (resized.max() - resized.min())
    difference = np.abs(tensor[0, 0] - expected)
    assert place.content == (256, 256)
    assert difference.max() <= 1.01 / (resized.max() - resized.min())  # one grey level
    assert (difference > 1e-6).mean() < 1e-3
    assert tensor.min() == 0 and tensor.max() == 1


def test_area_shrinks_by_exact_cell_means():
    """OpenCV's INTER_AREA by a fraction of 5/2: two whole cells and half of the third."""
    row = np.array([10, 20, 40, 80, 160], np.uint8)
    spec = a_spec(input_size=2, resize="squash", interpolation="area", **AS_THEY_ARE)
    tensor, _ = prepare(np.repeat(row[None], 5, axis=0), spec)
    np.testing.assert_array_equal(tensor[0, 0, 0], np.rint([(10 + 20 + 20) / 2.5, (20 + 80 + 160) / 2.5]))


def test_litemedsam_stretches_before_it_pads():
    picture = a_picture(100, 200)
    spec = a_spec(input_size=128, interpolation="area", **ZERO_ONE)
    tensor, place = prepare(picture, spec)
    content = tensor[0, :, : place.content[0]]
    assert place.content == (64, 128)
    assert content.min() == 0 and content.max() == 1
    assert not tensor[0, :, 64:].any()
    bright, _ = prepare((picture // 2 + 128).astype(np.uint8), spec)
    assert np.abs(bright - tensor).max() < 0.03  # contrast and brightness are gone


def test_percentiles_show_a_dark_picture_with_a_flare_like_a_bright_one():
    picture = a_picture(128, 128)
    spec = a_spec(input_size=128, pixel_range="percentiles", **AS_THEY_ARE)
    tensor, _ = prepare(picture, spec)
    np.testing.assert_allclose(np.percentile(tensor, (0.5, 99.5)), (0, 255), atol=1e-3)
    dark = picture // 4
    dark[60:64, 60:64] = 255  # of 16,384 pixels
    again, _ = prepare(dark, spec)
    kept = np.ones((128, 128), bool)
    kept[60:64, 60:64] = False
    assert np.abs(again - tensor)[0, :, kept].max() < 9  # grey levels that the dark picture no longer tells apart
    squeezed, _ = prepare(picture[:64], spec)
    assert not squeezed[0, :, 64:].any()  # padding is not counted


def test_sam_med2d_rule_is_nearest_on_the_squashed_picture():
    picture = a_picture(97, 301)
    spec = a_spec(input_size=256, resize="squash", interpolation="nearest")
    tensor, _ = prepare(picture, spec)
    rows, columns = (np.floor(np.arange(256) * side / 256).astype(int) for side in picture.shape)
    expected = (picture[np.ix_(rows, columns)] - 123.675) / 58.395
    np.testing.assert_allclose(tensor[0, 0], expected, atol=1e-5)


def test_one_channel_models_get_one_channel():
    spec = a_spec(architecture="compact", input_size=32, channels=1, pixel_mean=[110], pixel_std=[60])
    tensor, _ = prepare(np.full((10, 20), 170, np.uint8), spec)
    assert tensor.shape == (1, 1, 32, 32)
    np.testing.assert_allclose(tensor[0, 0, :16], 1.0)
    assert not tensor[0, 0, 16:].any()


@pytest.mark.parametrize("interpolation", ["bilinear", "cubic", "area", "nearest"])
def test_a_constant_picture_stays_constant(interpolation):
    spec = a_spec(input_size=100, resize="squash", interpolation=interpolation, **AS_THEY_ARE)
    tensor, _ = prepare(np.full((37, 213), 201, np.uint8), spec)
    np.testing.assert_array_equal(tensor, np.float32(201))
    for stretch in ("minmax", "percentiles"):
        black, _ = prepare(np.zeros((5, 7), np.uint8), a_spec(input_size=100, **ZERO_ONE | {"pixel_range": stretch}))
        assert not black.any()


def test_pictures_that_are_none_are_refused():
    for wrong in (np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            prepare(wrong, a_spec())


def test_prompts_follow_sams_rule_or_the_pixel_centres():
    scaled = geometry((100, 200), a_spec(input_size=1024))
    np.testing.assert_allclose(scaled.to_input([[0, 0], [100, 50]]), [[0, 0], [512, 256]])
    squashed = geometry((100, 200), a_spec(input_size=1024, resize="squash"))
    np.testing.assert_allclose(squashed.to_input(np.array([100, 50])), [512, 512])
    centred = geometry((128, 128), a_spec(input_size=64, coordinates="centred"))
    np.testing.assert_allclose(centred.to_input([[0.5, 0.5]]), [[0, 0]])  # four pixels' corner


@pytest.mark.parametrize("resize", ["longest_side_pad", "squash"])
@pytest.mark.parametrize("shape", [(97, 150), (333, 200), (64, 64), (20, 700)])
def test_logits_return_to_the_picture_as_in_pytorch(shape, resize):
    torch = pytest.importorskip("torch")
    interpolate = torch.nn.functional.interpolate
    place = geometry(shape, a_spec(input_size=256, low_res_size=64, embedding_size=16, resize=resize))
    low = np.random.default_rng(1).normal(0, 8, (2, 3, 64, 64)).astype(np.float32)
    large = interpolate(torch.from_numpy(low), (256, 256), mode="bilinear", align_corners=False)
    cut = large[..., : place.content[0], : place.content[1]]
    expected = interpolate(cut, shape, mode="bilinear", align_corners=False).numpy()
    found = place.logits_to_picture(low)
    assert found.dtype == np.float32 and found.shape == (2, 3, *shape)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("shape", [(97, 150), (333, 200), (64, 64), (20, 700)])
def test_a_pixels_shares_are_the_logits_that_it_shows(shape):
    place = geometry(shape, a_spec(input_size=256, low_res_size=64, embedding_size=16, coordinates="centred"))
    random = np.random.default_rng(2)
    low = random.normal(0, 8, (64, 64)).astype(np.float32)
    pixels = np.stack([random.integers(0, side, 20) for side in shape[::-1]], axis=1)
    shares = place.shares(pixels + random.uniform(-0.4, 0.4, pixels.shape))
    assert shares.shape == (20, 64, 64)
    shown = place.logits_to_picture(low)[pixels[:, 1], pixels[:, 0]]
    np.testing.assert_allclose((shares * low).sum(axis=(1, 2)), shown, atol=1e-4)
    cells = np.round(place.to_low_res(pixels)).astype(int).clip(0, 63)
    assert (shares[np.arange(20), cells[:, 1], cells[:, 0]] > 0).all(), "the cell it lies in is among them"
    outside = np.array([[-1, 0], [shape[1], 0], [0, shape[0]]])
    assert not place.shares(outside).any() and place.shares(np.zeros((0, 2))).shape == (0, 64, 64)


@pytest.mark.parametrize("shape", [(200, 320), (40, 30), (500, 500)])
def test_a_mask_prompt_comes_back_as_the_mask(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]
    mask = ((y / shape[0] - 0.5) / 0.35) ** 2 + ((x / shape[1] - 0.4) / 0.3) ** 2 < 1
    place = geometry(shape, a_spec())
    logits = place.mask_to_low_res(mask)
    assert logits.shape == (1, 256, 256) and logits.dtype == np.float32
    assert logits.min() == pytest.approx(-10) and logits.max() == pytest.approx(10)
    back = place.logits_to_picture(logits)[0] > 0
    assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.97
    outside = int(np.ceil(place.content[0] / 4))
    assert (logits[0, outside:] == -10).all()
    with pytest.raises(ValueError, match="do not belong"):
        place.mask_to_low_res(mask[:-1])


def test_a_description_survives_its_file(tmp_path):
    files = {"files": {"weights": "w.pth"}, "sha256": {"w.pth": "0" * 64}}
    spec = a_spec(**files, classes=["none", "liver"], zoom=True)
    write_spec(spec, tmp_path)
    assert read_model_folder(tmp_path) == ModelFolder(spec, tmp_path)
    (tmp_path / "w.pth").write_bytes(b"not these")
    with pytest.raises(UserError, match="0{64}"):
        read_model_folder(tmp_path).verify()
    with pytest.raises(UserError, match="no encoder file"):
        read_model_folder(tmp_path).file("encoder")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architecture": "resnet"}, "architecture is 'resnet'"),
        ({"input_size": 0}, "input_size"),
        ({"input_size": "big"}, "input_size"),
        ({"pixel_mean": [1.0]}, "pixel_mean must hold 3"),
        ({"pixel_std": [1, 0, 1]}, "positive"),
        ({"files": {"weights": "../../etc/passwd"}}, "own folder"),
        ({"files": {"weights": "C:\\w.pth"}}, "own folder"),
        ({"sha256": {"../w.pth": "0"}}, "own folder"),
        ({"files": {"virus": "a"}}, "'virus'"),
        ({"id": "../x"}, "its id"),
        ({"colour": "red"}, "not known: colour"),
        ({"format": 99}, "format 99"),
    ],
)
def test_wrong_descriptions_are_refused_by_name(tmp_path, change, sentence):
    content = {**a_spec().to_dict(), **change}
    (tmp_path / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        read_model_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff"])
def test_damaged_descriptions_are_refused(tmp_path, text):
    (tmp_path / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"model\.json"):
        read_model_folder(tmp_path)
    with pytest.raises(UserError, match="not a model folder"):
        read_model_folder(tmp_path / "nowhere")
