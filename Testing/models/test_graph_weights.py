"""Weights are stored once: graphs take them from the weights file, and answer as graphs that hold them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
import onnxruntime  # noqa: E402

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.inference.engine import open_engine, try_once  # noqa: E402
from SAMFineTuneLib.models.formats.graph_weights import files_beside, store_as_half, take_from  # noqa: E402
from SAMFineTuneLib.models.formats.safetensors_file import first_not_finite, read_places  # noqa: E402
from SAMFineTuneLib.models.spec import ModelFolder, read_model_folder  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402


def bundled() -> ModelFolder:
    return Store().get("compact")


def some_answers(model: ModelFolder) -> list[np.ndarray]:
    """Embedding, logits and predicted IoU of a made-up picture and prompts."""
    engine = open_engine(model, "cpu", engine="onnx", threads=1)
    random = np.random.default_rng(0)
    embedding = engine.encode(random.normal(size=(1, 1, 128, 128)).astype(np.float32))
    points, labels = random.uniform(0, 128, (3, 4, 2)), random.integers(-1, 4, (3, 4))
    masks = random.normal(size=(3, 1, 64, 64))
    prompts = (value.astype(np.float32) for value in (points, labels, masks, np.array([0, 1, 0])))
    return [*embedding.values(), *engine.decode(embedding, *prompts)]


def holding_all(model: ModelFolder, folder) -> ModelFolder:
    """The same model with graphs that hold their weights themselves, as older folders have them."""
    shutil.copytree(model.path, folder)
    for role in ("encoder", "decoder"):
        onnx.save(onnx.load(model.file(role)), folder / model.file(role).name)  # loads the weights, saves them inside
        assert files_beside(folder / model.file(role).name) == []
    (folder / "model.safetensors").unlink()
    return ModelFolder(model.spec, folder)


def test_the_bundled_model_stores_its_weights_once():
    model = bundled()
    model.verify()
    assert files_beside(model.file("encoder")) == files_beside(model.file("decoder")) == ["model.safetensors"]
    graphs = sum(model.file(role).stat().st_size for role in ("encoder", "decoder"))
    assert graphs < 0.06 * model.file("weights").stat().st_size


def test_graphs_answer_bit_by_bit_as_those_that_hold_their_weights(tmp_path):
    old = holding_all(bundled(), tmp_path / "old")
    assert all(np.array_equal(a, b) for a, b in zip(some_answers(bundled()), some_answers(old), strict=True))


def test_nothing_more_is_computed_at_a_click(tmp_path):
    """Casting and transposing happen when a graph is opened: what is left to run is the same."""
    old = holding_all(bundled(), tmp_path / "old")
    for role in ("encoder", "decoder"):
        counts = []
        for model in (bundled(), old):
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
            onnxruntime.InferenceSession(str(model.file(role)), options, providers=["CPUExecutionProvider"])
            counts.append(sorted(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node))
        assert counts[0] == counts[1]


@pytest.mark.parametrize("name", ["with spaces", "Größe_测试", "read-only"])
def test_wherever_the_folder_lies(tmp_path, monkeypatch, name):
    folder = tmp_path / name
    shutil.copytree(bundled().path, folder)
    if name == "read-only":
        folder.chmod(0o555)
    monkeypatch.chdir(tmp_path)
    expected = some_answers(bundled())
    for path in (folder, folder.relative_to(tmp_path)):
        assert all(np.array_equal(a, b) for a, b in zip(some_answers(read_model_folder(path)), expected, strict=True))
    folder.chmod(0o755)


@pytest.mark.parametrize("harm", ["missing", "cut short", "replaced"])
def test_a_weights_file_that_is_not_whole_is_named(tmp_path, harm):
    folder = tmp_path / "model"
    shutil.copytree(bundled().path, folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    if harm != "missing":
        weights.write_bytes(content[:500_000] if harm == "cut short" else b"something else")
    with pytest.raises(UserError, match="model.safetensors|no weights file"):
        open_engine(read_model_folder(folder), "cpu", engine="onnx")


def test_weights_that_are_not_numbers_are_said_not_answered_with_an_empty_mask(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(bundled().path, folder)
    weights = folder / "model.safetensors"
    assert first_not_finite(weights) == ""
    place = read_places(weights)["image_encoder.neck.2.weight"]
    content = bytearray(weights.read_bytes())
    content[place.offset : place.offset + 2] = np.float16(np.nan).tobytes()
    weights.write_bytes(content)
    assert first_not_finite(weights) == "image_encoder.neck.2.weight"
    with pytest.raises(UserError, match="not numbers"):
        try_once(open_engine(read_model_folder(folder), "cpu", engine="onnx"))


def matrix_graph(path, weight: np.ndarray) -> None:
    """x @ weight + 1, with the weight inside."""
    helper = onnx.helper
    tensors = [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(np.ones(1, np.float32), "one")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Add", ["xw", "one"], ["y"])]
    float32 = onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info("x", float32, [2, weight.shape[0]]),
            helper.make_tensor_value_info("y", float32, [2, weight.shape[1]])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def product(path, x: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_weight_is_found_in_either_precision_and_transposed(tmp_path, kind, transposed):
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    weight = random.normal(size=(40, 30)).astype(np.float16).astype(np.float32)
    stored = (weight.T if transposed else weight).astype(kind)
    others = {name: random.normal(size=(40, 30)).astype(kind) for name in ("a", "z")}
    save_file({"here": np.ascontiguousarray(stored), **others}, tmp_path / "weights.safetensors")
    matrix_graph(tmp_path / "graph.onnx", weight)
    x = random.normal(size=(2, 40)).astype(np.float32)
    expected, size = product(tmp_path / "graph.onnx", x), (tmp_path / "graph.onnx").stat().st_size
    take_from(tmp_path / "weights.safetensors", tmp_path / "graph.onnx")
    assert (tmp_path / "graph.onnx").stat().st_size < size / 4
    assert np.array_equal(product(tmp_path / "graph.onnx", x), expected)


def test_a_weight_that_is_not_in_the_file_stays_in_the_graph(tmp_path):
    from safetensors.numpy import save_file

    weight = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    save_file({"other": weight + 1}, tmp_path / "weights.safetensors")
    matrix_graph(tmp_path / "graph.onnx", weight)
    take_from(tmp_path / "weights.safetensors", tmp_path / "graph.onnx")
    assert files_beside(tmp_path / "graph.onnx") == []
    assert np.array_equal(product(tmp_path / "graph.onnx", np.ones((2, 40), np.float32)),
                          np.ones((2, 40), np.float32) @ weight + 1)  # fmt: skip


@pytest.mark.parametrize("exact", [True, False])
def test_only_what_loses_nothing_is_stored_in_16_bits(tmp_path, exact):
    weight = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    weight = weight.astype(np.float16).astype(np.float32) if exact else weight
    matrix_graph(tmp_path / "graph.onnx", weight)
    x, size = np.ones((2, 40), np.float32), (tmp_path / "graph.onnx").stat().st_size
    expected = product(tmp_path / "graph.onnx", x)
    store_as_half(tmp_path / "graph.onnx")
    assert ((tmp_path / "graph.onnx").stat().st_size < 0.6 * size) == exact
    assert np.array_equal(product(tmp_path / "graph.onnx", x), expected)


@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16"])
def test_what_is_not_a_number_is_found_in_every_precision(tmp_path, kind):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    types = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    for value in (float("nan"), float("inf"), -float("inf"), 3.0):
        tensor = torch.arange(5).to(types[kind])
        tensor[2] = value
        tensors = {"fine": torch.zeros(3).to(types[kind]), "t": tensor, "n": torch.arange(3)}
        save_file(tensors, tmp_path / "x.safetensors")
        assert first_not_finite(tmp_path / "x.safetensors") == ("" if value == 3.0 else "t")
