"""Engines: the choice of runtime and device, two engines with one answer, falling back, wrong input."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.engine import open_engine, try_once
from SAMFineTuneLib.models.spec import ModelFolder, write_spec


def some_prompts(engine) -> tuple[np.ndarray, ...]:
    size = engine.spec.low_res_size
    random = np.random.default_rng(0)
    return (
        np.float32([[[30, 40], [10, 90]], [[5, 6], [100, 120]]]),
        np.float32([[1, -1], [2, 3]]),
        random.normal(size=(2, 1, size, size)).astype(np.float32),
        np.float32([0, 1]),
    )


def some_image(engine) -> np.ndarray:
    shape = (1, engine.spec.channels, engine.spec.input_size, engine.spec.input_size)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_onnx_runtime_and_pytorch_give_one_answer(random_compact):
    onnx = open_engine(random_compact, device="cpu", engine="onnx")
    torch = open_engine(random_compact, device="cpu", engine="torch")
    image = some_image(onnx)
    ours, theirs = onnx.encode(image), torch.encode(image)
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-4 * np.abs(theirs[name]).max())
    answers = onnx.decode(ours, *some_prompts(onnx)), torch.decode(theirs, *some_prompts(torch))
    for mine, other in zip(*answers, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-3 * np.abs(other).max())
    assert onnx.digest != torch.digest


def test_a_model_with_onnx_files_never_imports_torch(random_compact):
    code = (
        "import sys; from pathlib import Path; from SAMFineTuneLib.models.spec import read_model_folder;"
        "from SAMFineTuneLib.inference.engine import open_engine; import numpy as np;"
        f"e = open_engine(read_model_folder(Path({str(random_compact.path)!r})));"
        "e.encode(np.zeros((1, 1, 128, 128), np.float32)); print(e.device, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False" and "ONNX Runtime" in done.stdout


def test_a_model_without_onnx_files_runs_in_pytorch(random_compact):
    weights_only = replace(random_compact.spec, files={"weights": "model.safetensors"})
    engine = open_engine(ModelFolder(weights_only, random_compact.path), device="cpu")
    assert engine.device == "CPU (PyTorch, fp32)"
    with pytest.raises(UserError, match="no ONNX files"):
        open_engine(ModelFolder(weights_only, random_compact.path), engine="onnx")


def test_bf16_has_embeddings_of_its_own_close_to_the_exact_ones(random_compact):
    exact = open_engine(random_compact, device="cpu", engine="torch")
    rough = open_engine(random_compact, device="cpu", precision="bf16")
    assert "bf16" in rough.device and rough.digest != exact.digest
    image = some_image(exact)
    first, second = exact.encode(image)["image_embeddings"], rough.encode(image)["image_embeddings"]
    assert second.dtype == np.float32
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.99


def test_out_of_gpu_memory_goes_on_on_the_cpu_and_says_so(random_compact):
    import torch

    class FullGpu:
        def encode(self, image):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    engine = open_engine(random_compact, device="cpu", engine="torch")
    expected, digest = engine.encode(some_image(engine)), engine.digest
    engine.place, engine._precision, engine._network = "cuda", "bf16", FullGpu()
    engine._tensor = torch.from_numpy  # there may be no GPU to move it to
    assert engine.digest != digest
    found = engine.encode(some_image(engine))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert engine.digest == digest and engine.device.startswith("CPU")
    assert len(engine.notices) == 1 and "out of memory" in engine.notices[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "gpu"}, "Unknown device 'gpu'"),
        ({"precision": "fp8"}, "Unknown precision"),
        ({"engine": "jax"}, "Unknown engine"),
        ({"engine": "onnx", "precision": "bf16"}, "fp32"),
        ({"engine": "torch", "device": "cuda:99"}, "cuda:99"),
        ({"engine": "onnx", "device": "mps"}, "'mps'"),
    ],
)
def test_what_cannot_run_is_refused_with_a_sentence(random_compact, options, words):
    with pytest.raises(UserError, match=words):
        open_engine(random_compact, **options)


def test_a_damaged_graph_is_refused_by_name(random_compact, tmp_path):
    for name in random_compact.spec.files.values():
        (tmp_path / name).write_bytes((random_compact.path / name).read_bytes())
    (tmp_path / "decoder.onnx").write_bytes(b"<html>not found</html>")
    write_spec(random_compact.spec, tmp_path)
    with pytest.raises(UserError, match="decoder.onnx is damaged"):
        open_engine(ModelFolder(random_compact.spec, tmp_path), engine="onnx")
    unrecorded = replace(random_compact.spec, sha256={})
    with pytest.raises(UserError, match="decoder.onnx of model 'random-compact'"):
        open_engine(ModelFolder(unrecorded, tmp_path), engine="onnx")
    (tmp_path / "encoder.onnx").unlink()
    with pytest.raises(UserError, match="encoder"):
        open_engine(ModelFolder(random_compact.spec, tmp_path), engine="onnx")


@pytest.fixture
def only_onnx(random_compact) -> ModelFolder:
    """As `models export` writes it."""
    files = {role: name for role, name in random_compact.spec.files.items() if role != "weights"}
    return ModelFolder(replace(random_compact.spec, files=files), random_compact.path)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cuda", r"onnxruntime.*CUDA.*samfinetune\[gpu\]"),
        ("cuda:1", r"cannot use 'cuda:1'.*onnxruntime.*CUDA"),
        ("mps", "on a Mac, choose the device coreml"),
        ("directml", "onnxruntime-directml"),
        ("coreml", "on a Mac only"),
    ],
)
@pytest.mark.parametrize("with_torch", [True, False])
def test_a_device_that_onnx_runtime_lacks_is_said_to_be_that(monkeypatch, only_onnx, device, words, with_torch):
    from SAMFineTuneLib.inference import onnx_engine

    monkeypatch.setattr(onnx_engine, "available_devices", lambda: ["cpu"])
    if not with_torch:
        monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=words) as caught:
        open_engine(only_onnx, device)
    assert "ONNX Runtime" in str(caught.value) and "or choose the device cpu" in str(caught.value)
    assert "bundled" not in str(caught.value) and "weights" not in str(caught.value)


@pytest.mark.parametrize("with_weights", [True, False])
def test_pytorch_serves_a_gpu_that_onnx_runtime_lacks_if_there_are_weights(
    monkeypatch, random_compact, only_onnx, with_weights
):
    import torch

    from SAMFineTuneLib.inference import onnx_engine, torch_engine

    monkeypatch.setattr(onnx_engine, "available_devices", lambda: ["cpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch_engine, "TorchEngine", lambda *args: SimpleNamespace(device="PyTorch"))
    if with_weights:
        assert open_engine(random_compact, "cuda").device == "PyTorch"
    else:
        with pytest.raises(UserError, match="onnxruntime"):
            open_engine(only_onnx, "cuda")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "bf16"}, "choose the precision auto"),
        ({"engine": "torch"}, "has only ONNX files, which can be run, but neither trained nor used in PyTorch"),
        ({"device": "cpu:1"}, "Unknown device 'cpu:1'"),
        ({"device": "cuda:first"}, "Unknown device 'cuda:first'"),
    ],
)
def test_what_a_model_of_onnx_files_cannot_do(only_onnx, options, words):
    with pytest.raises(UserError, match=words):
        open_engine(only_onnx, **options)


def test_graphs_of_another_model_are_refused_when_they_are_opened_or_tried(random_compact, tmp_path):
    other = ModelFolder(replace(random_compact.spec, input_size=256), random_compact.path)
    with pytest.raises(UserError, match=r"takes image \[1, 1, 128, 128\], and not the image \[1, 1, 256, 256\]"):
        open_engine(other, "cpu", engine="onnx")
    other = ModelFolder(replace(random_compact.spec, low_res_size=128), random_compact.path)
    with pytest.raises(UserError, match=r"takes masks of \[1, 64, 64\], and not of \[1, 128, 128\]"):
        open_engine(other, "cpu", engine="onnx")
    automatic = replace(random_compact.spec, heads=("automatic",), classes=("background", "liver"))
    with pytest.raises(UserError, match="masks of shape"):
        try_once(open_engine(ModelFolder(automatic, random_compact.path), "cpu", engine="onnx"))
    for name in ("encoder.onnx", "decoder.onnx", "model.safetensors"):
        (tmp_path / name).write_bytes((random_compact.path / name.replace("encoder", "decoder")).read_bytes())
    with pytest.raises(UserError, match="encoder.onnx"):
        open_engine(ModelFolder(random_compact.spec, tmp_path), "cpu", engine="onnx")
    try_once(open_engine(random_compact, "cpu", engine="onnx"))
    try_once(open_engine(random_compact, "cpu", engine="torch"))


def test_answers_that_are_not_numbers_are_an_error_in_either_engine(random_compact):
    for name in ("onnx", "torch"):
        engine = open_engine(random_compact, "cpu", engine=name)
        embedding = engine.encode(some_image(engine))
        with pytest.raises(UserError, match="'random-compact' answers with values that are not numbers"):
            engine.decode({key: value * np.nan for key, value in embedding.items()}, *some_prompts(engine))
        with pytest.raises(UserError, match="not numbers"):
            engine.encode(some_image(engine) * np.nan)


def test_onnx_runtime_tells_nobody_about_sessions(root, tmp_path):
    program = """
from SAMFineTuneLib.inference.onnx_session import open_graph
from SAMFineTuneLib.models.store import Store
open_graph(Store().find("compact").file("decoder"), 1)
"""
    own = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", program], env=own | home, check=True)
    assert not list(tmp_path.iterdir()), "its telemetry keeps a number of this computer"
