"""The volume memory: synthetic volumes and what is known of them, a run that resumes exactly, a model with a memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from SAMFineTuneLib.cli.main import main  # noqa: E402
from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.images import body_phantom  # noqa: E402
from SAMFineTuneLib.images.sitk_images import to_sitk  # noqa: E402
from SAMFineTuneLib.models.spec import read_model_folder  # noqa: E402
from SAMFineTuneLib.models.volume_block import CELLS, CHANNELS  # noqa: E402
from SAMFineTuneLib.training import memory_pretraining as pretrain  # noqa: E402
from SAMFineTuneLib.training import volume_items  # noqa: E402
from SAMFineTuneLib.training.stopping import Stopped  # noqa: E402
from SAMFineTuneLib.training.synthetic_volumes import GENERATOR_VERSION, synthetic_volume  # noqa: E402
from SAMFineTuneLib.training.volume_items import MOST_SLICES, draw_items  # noqa: E402

BUNDLED = Path(__file__).resolve().parents[2] / "Resources" / "models" / "compact"


@pytest.fixture
def without_export(monkeypatch):
    """The graph takes longer than the training here; one test makes it."""
    monkeypatch.setattr(pretrain, "add_memory", lambda average, source, base, folder: folder)


def train(folder, **options):
    history = []
    options = {"seed": 5, "workers": 0, "progress": history.append, "device": "cpu", **options}
    pretrain.pretrain_memory(folder, read_model_folder(BUNDLED), **options)
    return history


def weights(folder):
    return torch.load(folder / pretrain.CHECKPOINT_NAME, weights_only=True)["state"]


def test_a_volume_follows_from_its_seed_and_shows_its_objects():
    for seed in range(6):
        volume, again = synthetic_volume((3, seed)), synthetic_volume((3, seed))
        assert np.array_equal(volume.image, again.image) and np.array_equal(volume.tissue, again.tissue)
        assert volume.image.min() >= 0 and volume.image.max() <= 255 and volume.image.shape == volume.tissue.shape
        assert volume.objects.shape[1] == volume.tissue.max() + 1 or volume.objects.shape[1] > volume.tissue.max()
        assert any(volume.mask(number).any() for number in range(len(volume.objects)))


def test_an_item_tells_what_is_known_and_asks_for_one_structure_in_one_piece():
    items = []
    for seed in range(8):
        items += draw_items(np.random.default_rng((4, seed)), synthetic_volume((4, seed)), 4)
    assert len(items) > 12
    known_of, earlier_of = 0, 0
    for item in items:
        channels, slices, *cells = item.block.shape
        assert channels == CHANNELS and slices <= MOST_SLICES and cells == [CELLS, CELLS]
        assert item.target.shape == item.block.shape[1:] and 0 <= item.target.min() <= item.target.max() <= 1 + 1e-5
        image, evidence, masks, known, earlier, spacing = item.block
        assert np.abs(item.block[:5]).max() <= 1 + 1e-5 and np.ptp(spacing) == 0
        assert np.array_equal(known[:, 0, 0] > 0, item.known) and np.all(masks[~item.known] == 0)
        assert np.all(earlier[item.known & (earlier == 0).all((1, 2))] == 0)
        assert item.known.any() or (earlier != 0).any()  # something tells which structure is meant
        known_of += item.known.any()
        earlier_of += (earlier != 0).any()
        drawn = [k for k in np.flatnonzero(item.known) if (masks[k] > 0).any() and item.present[k]]
        for k in drawn:  # faults are at the border
            inside = ndimage.binary_erosion(masks[k] > 0, iterations=8)
            assert not inside.any() or item.target[k][inside].mean() > 0.5
    assert known_of > 8 and earlier_of > 2


def test_known_masks_carried_along_with_the_picture_are_earlier_answers(monkeypatch):
    """As propagation begins: they are near the structure, with the known slices left out."""
    monkeypatch.setattr(volume_items, "CARRIED", 1.0)
    agreement = []
    for seed in range(8):
        for item in draw_items(np.random.default_rng((6, seed)), synthetic_volume((6, seed)), 4):
            earlier, known = item.block[4], np.flatnonzero(item.known & item.target.any((1, 2)))
            assert not known.size or (earlier[item.known] == 0).all()
            near = {k for one in known for k in (one - 1, one + 1) if 0 <= k < len(earlier) and not item.known[k]}
            for k in near:
                inside, target = earlier[k] > 0, item.target[k] > 0.5
                if inside.any() and target.any():
                    agreement.append(2 * (inside & target).sum() / (inside.sum() + target.sum()))
    assert len(agreement) > 15 and np.mean(agreement) > 0.7


def test_blocks_follow_the_structure_as_in_use(monkeypatch):
    """What is known or was carried to a slice lies in the middle of it, wherever the structure wanders."""
    monkeypatch.setattr(volume_items, "CARRIED", 1.0)
    off = []
    for seed in range(8):
        for item in draw_items(np.random.default_rng((7, seed)), synthetic_volume((7, seed)), 4):
            for mask in (item.block[2] > 0) | (item.block[4] > 0):
                lines = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
                off += [abs((line[0] + line[-1] + 1) / 2 / CELLS - 0.5) for line in lines if line.size]
    assert len(off) > 200 and np.median(off) < 0.055  # 0.07 in blocks that stay where they begin


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path, without_export):
    whole, parted, seen = tmp_path / "whole", tmp_path / "parted", []
    history = train(whole, steps=3)
    assert [entry.step for entry in history] == [1, 2, 3] and history[-1].measured["dice"] > 0
    with pytest.raises(Stopped):
        train(parted, steps=3, progress=seen.append, cancel=lambda: len(seen) > 1)
    with pytest.raises(UserError, match="continue it with --resume"):
        train(parted, steps=3)
    train(parted, steps=3, resume=True)
    one, other = weights(whole), weights(parted)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_the_command_writes_a_model_that_propagates(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "carrying"
    assert main(["pretrain", "--memory", "-o", str(folder), "--steps", "1", "--device", "cpu"]) == 0
    model = read_model_folder(folder)
    model.verify()
    assert {"memory", "memory_weights", "encoder", "decoder", "weights"} <= set(model.spec.files)
    assert f"--memory: generator {GENERATOR_VERSION}, seed 0, 1 volumes" in model.spec.source
    assert sum(file.stat().st_size for file in folder.glob("*.onnx")) < 1e6  # weights are stored once
    volume, labels, _ = body_phantom()
    scan, result = tmp_path / "scan.nii.gz", tmp_path / "out.nii.gz"
    sitk.WriteImage(to_sitk(volume.array, volume.affine), str(scan))
    row, column = (int(axis.mean()) for axis in np.nonzero(labels[len(labels) // 2]))
    x, y, z = volume.ijk_to_ras((column, row, len(labels) // 2))
    prompt = f"--point={x:.1f},{y:.1f},{z:.1f}"
    command = ["segment", str(scan), "-o", str(result), prompt, "--propagate", "both", "--model", str(folder)]
    assert main(command) == 0
    assert result.is_file()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--memory", "--synthetic", "--steps", "1"], "Choose what to learn from"),
        (["--memory", "--steps", "1", "--batch", "4"], "--batch belongs to --synthetic"),
        (["--memory"], "Choose how long to train"),
        (["--memory", "--steps", "1", "--start", "nowhere"], "not a model folder"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(tmp_path, capsys, options, sentence):
    assert main(["pretrain", "-o", str(tmp_path / "x"), *options]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "x").exists()
