"""What needs PyTorch, or what comes with it, says so in a sentence where that is not installed, and leaves nothing."""

from __future__ import annotations

import sys

import pytest

INSTALL = 'pip install "samfinetune['
WITH_PYTORCH = ("torch", "onnx", "onnxscript", "peft", "safetensors", "segment_anything", "skimage")


@pytest.fixture
def checkpoints(tmp_path):
    """A model of a checkpoint that is installed, and an adapter that was not exported."""
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, save_adapter
    from SAMFineTuneLib.models.load_model import load_network
    from SAMFineTuneLib.models.store import Store

    base = Store().get("compact")
    method = Method(scope="decoder")
    network = attach(load_network(base.file("weights"))[1], base.spec, method)
    save_adapter(tmp_path / "tuned", network, base, method, Card(("liver",)))
    return base.file("weights")


def test_every_command_that_needs_more_than_segmenting_says_so(
    samfinetune, phantom, checkpoints, tmp_path, monkeypatch
):
    box = ("--space", "ijk", "--box", phantom.box("liver"), "-o", tmp_path / "out" / "x.nii.gz")
    assert samfinetune("models", "import", checkpoints, "--id", "weights-only").code == 0
    commands = (
        ("models", "export", "compact", "-o", tmp_path / "out"),
        ("models", "export", "compact", "-o", tmp_path / "out", "--int8"),
        ("models", "import", checkpoints, "--id", "another"),
        ("models", "download", "sam-vit-b", "--yes"),
        ("adapters", "export", "tuned"),
        ("adapters", "export", "tuned", "-o", tmp_path / "out"),
        ("adapters", "merge", "tuned", "--id", "merged"),
        ("train", phantom.folder, "-o", tmp_path / "out"),
        ("pretrain", "--synthetic", "-o", tmp_path / "out", "--steps", 1),
        ("pretrain", "--volumes", phantom.folder, "-o", tmp_path / "out", "--steps", 1),
        ("evaluate", phantom.folder, "-o", tmp_path / "out"),
        ("segment", phantom.folder, *box, "--model", "weights-only"),
        ("segment", phantom.folder, *box, "--adapter", "./tuned"),
        ("embed", phantom.folder, "--model", "weights-only"),
    )
    for missing in (WITH_PYTORCH, ("onnx", "safetensors", "peft")):
        with monkeypatch.context() as patch:
            for name in missing:
                patch.setitem(sys.modules, name, None)
            for command in commands if missing == WITH_PYTORCH else commands[:1] + commands[4:8]:
                result = samfinetune(*command)
                assert result.code == 2 and INSTALL in result.err, (command, result.err)
                assert result.err.count("\n") == 1 and "which is not installed" in result.err
                assert not (tmp_path / "out").exists()
