"""The whole way from picture to mask against `segment_anything.SamPredictor` on the same random weights."""

import importlib.util
import sys
import types

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
if importlib.util.find_spec("segment_anything") is None:
    pytest.skip("segment-anything is not installed", allow_module_level=True)

import small_models  # noqa: E402

from SAMFineTuneLib.models.formats.recognise_checkpoint import recognise  # noqa: E402
from SAMFineTuneLib.models.load_model import load_torch_model  # noqa: E402
from SAMFineTuneLib.models.preprocess import prepare  # noqa: E402
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec  # noqa: E402

PICTURE_SHAPE = (213, 160)
POINTS = np.array([[40.0, 60.0], [100.0, 150.0], [20.0, 200.0]])
LABELS = np.array([1, 0, 1])
BOX = np.array([30.0, 40.0, 120.0, 170.0])


def stand_in_for_torchvision(monkeypatch):
    """What segment_anything takes from torchvision: on Pillow images its `resize` is Pillow's, bilinear."""
    names = ("", ".transforms", ".transforms.functional", ".ops", ".ops.boxes")
    modules = {name: types.ModuleType(f"torchvision{name}") for name in names}
    modules[".transforms.functional"].to_pil_image = Image.fromarray
    modules[".transforms.functional"].resize = lambda image, size: image.resize(size[::-1], Image.BILINEAR)
    modules[".ops.boxes"].batched_nms = modules[".ops.boxes"].box_area = None
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"torchvision{name}", module)


@pytest.fixture
def predictor_class(monkeypatch):
    """`SamPredictor`; every trace of its import is removed afterwards."""
    for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
        monkeypatch.delitem(sys.modules, name)  # another suite's import; it comes back afterwards
    if importlib.util.find_spec("torchvision") is None:
        stand_in_for_torchvision(monkeypatch)
    from segment_anything import SamPredictor

    yield SamPredictor
    for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
        del sys.modules[name]


def a_picture():
    rows, columns = np.mgrid[: PICTURE_SHAPE[0], : PICTURE_SHAPE[1]]
    blob = 200 * np.exp(-(((rows - 100) / 40) ** 2 + ((columns - 70) / 30) ** 2))
    noise = np.random.default_rng(0).normal(20, 8, PICTURE_SHAPE)
    grey = np.clip(blob + noise, 0, 255)
    return np.stack([grey, 255 - grey, grey // 2], axis=-1).astype(np.uint8)


def our_answer(model, embedding, place, points=None, box=None, mask=None):
    """Low-resolution logits (4, L, L), IoU (4,) and picture logits (4, rows, columns) for one object's prompts."""
    coords, labels = [np.zeros((0, 2))], [np.zeros(0)]
    if points is not None:
        coords, labels = [*coords, place.to_input(points)], [*labels, LABELS]
    if box is not None:
        coords, labels = [*coords, place.to_input(box.reshape(2, 2))], [*labels, [2, 3]]
    elif points is not None:
        coords, labels = [*coords, np.zeros((1, 2))], [*labels, [-1]]
    side = place.low_res_size
    low_res, iou = model.decode(
        embedding,
        torch.tensor(np.concatenate(coords), dtype=torch.float32)[None],
        torch.tensor(np.concatenate(labels), dtype=torch.float32)[None],
        torch.zeros(1, 1, side, side) if mask is None else torch.from_numpy(mask)[None],
        torch.tensor([0.0 if mask is None else 1.0]),
    )
    return low_res[0].numpy(), iou[0].numpy(), place.logits_to_picture(low_res[0].numpy())


@pytest.mark.parametrize(
    "make_encoder",
    [
        pytest.param(lambda: small_models.vit(), id="small"),
        pytest.param(lambda: small_models.vit_b(), id="vit_b", marks=pytest.mark.slow),
    ],
)
def test_masks_iou_and_logits_equal_sam_predictors(tmp_path, predictor_class, make_encoder):
    network = small_models.sam(make_encoder())
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    fields = recognise(tmp_path / "weights.pth").spec_fields()
    spec = ModelSpec(id="m", name="M", files={"weights": "weights.pth"}, **fields)
    model = load_torch_model(ModelFolder(spec, tmp_path))

    picture = a_picture()
    reference = predictor_class(network)
    reference.set_image(picture)
    tensor, place = prepare(picture, spec)
    embedding = model.encode(torch.from_numpy(tensor))
    scale = reference.features.std()
    assert (embedding["image_embeddings"] - reference.features).abs().max() < 1e-4 * scale

    side = spec.low_res_size
    mask = np.random.default_rng(1).normal(0, 6, (1, side, side)).astype(np.float32)
    cases = {
        "points": {"points": POINTS},
        "box": {"box": BOX},
        "both": {"points": POINTS, "box": BOX},
        "mask": {"mask": mask},
        "points and mask": {"points": POINTS, "mask": mask},
        "everything": {"points": POINTS, "box": BOX, "mask": mask},
    }
    answers = []
    for name, case in cases.items():
        low_res, iou, logits = our_answer(model, embedding, place, **case)
        for multimask, tokens in ((False, slice(0, 1)), (True, slice(1, 4))):
            arguments = {
                "point_coords": case.get("points"),
                "point_labels": LABELS if "points" in case else None,
                "box": case.get("box"),
                "mask_input": case.get("mask"),
                "multimask_output": multimask,
            }
            full, expected_iou, expected_low = reference.predict(**arguments, return_logits=True)
            spread = expected_low.std()
            assert np.abs(low_res[tokens] - expected_low).max() < 1e-3 * spread, name
            assert np.abs(iou[tokens] - expected_iou).max() < 1e-4, name
            assert np.abs(logits[tokens] - full).max() < 2e-3 * spread, name
            ours, theirs = logits[tokens] > 0, full > 0
            assert 2 * (ours & theirs).sum() >= 0.9999 * (ours.sum() + theirs.sum()), name
        answers.append(low_res)
    for i, one in enumerate(answers):  # each prompt says something: no two answers are alike
        assert all(np.abs(one - other).max() > 0.05 * one.std() for other in answers[:i])


def test_a_batch_of_prompts_equals_each_alone(tmp_path):
    torch.save(small_models.sam().state_dict(), tmp_path / "w.pth")
    spec = ModelSpec(id="m", name="M", files={"weights": "w.pth"}, **recognise(tmp_path / "w.pth").spec_fields())
    model = load_torch_model(ModelFolder(spec, tmp_path))
    embedding = model.encode(torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)))
    values = small_models.prompts(batch=5)
    masks, iou = model.decode(embedding, *values)
    assert masks.shape == (5, 4, 32, 32) and iou.shape == (5, 4)
    for i in range(5):
        alone, alone_iou = model.decode(embedding, *(value[i : i + 1] for value in values))
        torch.testing.assert_close(alone[0], masks[i], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alone_iou[0], iou[i], rtol=1e-4, atol=1e-4)


def test_loading_leaves_the_package_segment_anything_unimported(tmp_path):
    import subprocess

    torch.save(small_models.sam().state_dict(), tmp_path / "w.pth")
    code = (
        "import sys; from SAMFineTuneLib.models.load_model import load_network; load_network(sys.argv[1]); "
        "assert not any(n.split('.')[0] in ('segment_anything', 'torchvision') for n in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "w.pth")], check=True, timeout=120)
