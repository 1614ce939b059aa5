"""Checkpoint files are opened safely, and refused for what is wrong with them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import small_models  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.models.formats.checkpoint import load_own_checkpoint, read_checkpoint  # noqa: E402
from SAMFineTuneLib.models.formats.import_model import examine  # noqa: E402
from SAMFineTuneLib.models.load_model import load_network  # noqa: E402


@pytest.mark.parametrize("version", ["2.5.1+cpu", "2.2.0", "1.13.1", "2.5.0a0+git123"])
def test_an_older_pytorch_opens_safetensors_only(tmp_path, monkeypatch, version):
    state = {"a": torch.ones(2)}
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "a.safetensors")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("it was opened"))
    for read in (read_checkpoint, load_own_checkpoint):
        with pytest.raises(UserError, match="update PyTorch to 2.6 or newer, or use a .safetensors file"):
            read(tmp_path / "a.pth")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["a"], state["a"])


@pytest.mark.parametrize("version", ["2.6.0+cu124", "2.10.0", "2.13.0a0+git123", "3.0.0"])
def test_a_newer_pytorch_opens_all(tmp_path, monkeypatch, version):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", version)
    assert torch.equal(read_checkpoint(tmp_path / "a.pth")["a"], torch.ones(2))


def test_a_training_does_not_call_a_checkpoint_damaged_that_an_older_pytorch_must_not_open(tmp_path, monkeypatch):
    from SAMFineTuneLib.training.training_loop import load_training

    torch.save([1], tmp_path / "last.pt")
    with pytest.raises(UserError, match="is not a usable"):
        load_training(tmp_path / "last.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(UserError, match="update PyTorch"):
        load_training(tmp_path / "last.pt")


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused_by_name(tmp_path, ending, value):
    state = small_models.state(small_models.sam())
    state["mask_decoder.iou_token.weight"][0, 3] = value
    path = tmp_path / f"weights.{ending}"
    torch.save(state, path) if ending == "pth" else save_file(state, path)
    with pytest.raises(UserError, match=r"not numbers, in 1 tensor \(mask_decoder.iou_token.weight\).*another copy"):
        load_network(path)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, ending):
    state = small_models.state(small_models.sam())
    whole, path = tmp_path / f"whole.{ending}", tmp_path / f"cut.{ending}"
    torch.save(state, whole) if ending == "pth" else save_file(state, whole)
    content = whole.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, 600, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="cut"):
            load_network(path)


def test_a_changed_byte_is_not_imported(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(small_models.state(small_models.sam()), path)
    assert examine(path).findings
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(UserError, match="weights.pth is damaged in .*download it again"):
        examine(path)


def test_a_file_without_checksums_or_with_another_ending_is_imported(tmp_path):
    state, path = small_models.state(small_models.sam()), tmp_path / "weights.safetensors"
    torch.save(state, path)
    content = path.read_bytes()
    if hasattr(torch.serialization, "set_crc32_options"):
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(state, path)
        finally:
            torch.serialization.set_crc32_options(True)
        assert path.read_bytes() != content
    assert examine(path).findings


def test_a_file_that_git_lfs_has_not_fetched(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match="git lfs pull"):
        examine(path)
