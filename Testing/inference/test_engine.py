"""Engines: the choice of runtime and device, two engines with one answer, falling back, wrong input."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.engine import open_engine
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
    engine._place, engine._precision, engine._network = "cuda", "bf16", FullGpu()
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
