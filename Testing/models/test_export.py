"""The exported graphs answer as PyTorch does, for any number of objects and points."""

import importlib.util
import os
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("segment_anything", "onnx"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed", allow_module_level=True)

import onnxruntime  # noqa: E402
import small_models  # noqa: E402

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.inference.engine import open_engine  # noqa: E402
from SAMFineTuneLib.models import onnx_export as export  # noqa: E402
from SAMFineTuneLib.models.formats.recognise_checkpoint import recognise  # noqa: E402
from SAMFineTuneLib.models.load_model import load_torch_model  # noqa: E402
from SAMFineTuneLib.models.onnx_export import OUTPUTS, PROMPTS, export_model, export_onnx  # noqa: E402
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec, read_model_folder  # noqa: E402


def recognised(folder, network):
    """Save a network's weights into a folder and tell what they are."""
    folder.mkdir(exist_ok=True)
    torch.save(network.state_dict(), folder / "weights.pth")
    return recognise(folder / "weights.pth").spec_fields()


def model_in(folder, network):
    fields = recognised(folder, network)
    return ModelFolder(ModelSpec(id="m", name="M", files={"weights": "weights.pth"}, **fields), folder)


def compact():
    from SAMFineTuneLib.models.architectures.compact import build_compact

    torch.manual_seed(0)
    return build_compact()


def session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def image_for(spec):
    """A smooth picture in the model's units."""
    rows, columns = np.mgrid[: spec.input_size, : spec.input_size] / spec.input_size
    waves = [np.sin(9 * rows * (channel + 1)) + np.cos(7 * columns + channel) for channel in range(spec.channels)]
    return np.stack(waves)[None].astype(np.float32)


def run(folder, image, values):
    encoder, decoder = session(folder / "encoder.onnx"), session(folder / "decoder.onnx")
    names = [output.name for output in encoder.get_outputs()]
    embedding = dict(zip(names, encoder.run(None, {"image": image}), strict=True))
    prompts = dict(zip(PROMPTS, (value.numpy() for value in values), strict=True))
    return embedding, decoder.run(list(OUTPUTS), embedding | prompts)


def a_vit_b():
    return small_models.sam(small_models.vit_b(256))


VIT_B = pytest.param(a_vit_b, id="vit_b", marks=pytest.mark.slow)


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


@pytest.mark.parametrize("make", [compact, small_models.sam, lambda: small_models.sam(outputs=6), VIT_B])
def test_graphs_equal_pytorch_for_any_number_of_prompts(tmp_path, make):
    model = model_in(tmp_path, make())
    exported = export_model(model, tmp_path / "onnx")
    assert exported == read_model_folder(tmp_path / "onnx")
    assert set(exported.spec.files) == {"encoder", "decoder"}
    exported.verify()
    spec, reference, image = model.spec, load_torch_model(model), image_for(model.spec)
    expected = reference.encode(torch.from_numpy(image))
    for batch, points in ((1, 1), (1, 2), (5, 3), (2, 9), (1, 0)):
        values = small_models.prompts(batch, points, spec.input_size, spec.low_res_size)
        embedding, (masks, iou) = run(tmp_path / "onnx", image, values)
        assert list(embedding) == list(expected)
        for name, value in embedding.items():
            assert np.abs(value - expected[name].numpy()).max() < 1e-3 * expected[name].std()
        expected_masks, expected_iou = (value.numpy() for value in reference.decode(expected, *values))
        assert masks.shape == expected_masks.shape and iou.shape == expected_iou.shape
        assert np.abs(masks - expected_masks).max() < 1e-3 * expected_masks.std()
        assert np.abs(iou - expected_iou).max() < 1e-3
        assert dice(masks > 0, expected_masks > 0) >= 0.999


@pytest.mark.parametrize("make", [compact, lambda: small_models.sam(small_models.vit(width=256, heads=4)), VIT_B])
def test_int8_is_smaller_and_nearly_the_same(tmp_path, make):
    model = model_in(tmp_path, make())
    export_model(model, tmp_path / "exact")
    export_model(model, tmp_path / "int8", int8=True)
    sizes = [(tmp_path / kind / "encoder.onnx").stat().st_size for kind in ("exact", "int8")]
    assert sizes[1] < 0.7 * sizes[0]
    values = small_models.prompts(8, 3, model.spec.input_size, model.spec.low_res_size)
    image = image_for(model.spec)
    _, (exact, exact_iou) = run(tmp_path / "exact", image, values)
    _, (masks, iou) = run(tmp_path / "int8", image, values)
    assert not np.array_equal(masks, exact)
    assert dice(masks > 0, exact > 0) >= 0.99
    assert np.abs(iou - exact_iou).max() < 0.05
    devices = [open_engine(read_model_folder(tmp_path / kind), "cpu").device for kind in ("exact", "int8")]
    assert devices == ["CPU (ONNX Runtime, fp32)", "CPU (ONNX Runtime, int8)"]


def test_exporting_into_the_models_own_folder_adds_the_graphs(tmp_path):
    model = model_in(tmp_path, compact())
    exported = export_model(model, tmp_path)
    assert exported.spec.files == {"weights": "weights.pth", "encoder": "encoder.onnx", "decoder": "decoder.onnx"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "decoder.onnx", "encoder.onnx", "model.json", "weights.pth",
    ]  # fmt: skip
    read_model_folder(tmp_path).verify()


def test_a_failing_export_leaves_nothing(tmp_path, monkeypatch):
    network = compact()
    spec = model_in(tmp_path / "model", network).spec
    target = tmp_path / "out"
    target.mkdir()
    (target / "encoder.onnx").write_text("the previous one")
    traced = []

    def trace_once(*arguments):
        if traced:
            raise OSError("disk full")
        traced.append(arguments)
        real(*arguments)

    real = export._trace
    monkeypatch.setattr(export, "_trace", trace_once)
    with pytest.raises(OSError, match="disk full"):
        export_onnx(network, spec, target)
    assert [path.name for path in target.iterdir()] == ["encoder.onnx"]
    assert (target / "encoder.onnx").read_text() == "the previous one"


def test_what_a_killed_export_left_is_swept_when_it_is_old(tmp_path):
    old, fresh = f".{'0' * 12}.partial", f".{'f' * 12}.partial"
    for name, hours in ((old, 48), (fresh, 0)):
        left = tmp_path / name
        left.mkdir()
        (left / "encoder.onnx").write_text("half")
        for path in (left / "encoder.onnx", left):
            os.utime(path, (time.time() - 3600 * hours,) * 2)
    network = compact()
    spec = ModelSpec(id="m", name="M", files={}, **recognised(tmp_path, network))
    export_onnx(network, spec, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert old not in names and fresh in names


def test_a_graph_that_answers_otherwise_is_refused(tmp_path):
    spec = model_in(tmp_path / "model", compact()).spec

    class Frozen(torch.nn.Module):
        """Tracing keeps the number of objects it was traced with."""

        def encode(self, image):
            return {"image_embeddings": image[:, :, :16, :16]}

        def decode(self, embedding, point_coords, point_labels, mask_input, has_mask_input):
            used = embedding["image_embeddings"].sum() + point_labels.sum() + mask_input.sum() + has_mask_input.sum()
            objects = [point_coords[i].sum() + used for i in range(len(point_coords))]
            masks = torch.stack(objects).reshape(-1, 1, 1, 1).expand(-1, 4, 64, 64)
            return masks, masks[:, :, 0, 0]

    with pytest.raises(RuntimeError, match="exported decoder"):
        export_onnx(Frozen(), spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_onnx_the_package_is_named(tmp_path, monkeypatch):
    spec = ModelSpec(id="m", name="M", architecture="sam_vit")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r'needs onnx.*pip install "samfinetune\[torch\]"'):
        export_onnx(torch.nn.Identity(), spec, tmp_path)
