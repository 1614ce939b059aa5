"""Pre-training: learns, resumes exactly, writes a model others can read, and refuses what it cannot use."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.process_lock import owning  # noqa: E402
from SAMFineTuneLib.simulation import simulated_annotator  # noqa: E402
from SAMFineTuneLib.simulation.device_random import Random  # noqa: E402
from SAMFineTuneLib.training import synthetic_batches, training_loop  # noqa: E402
from SAMFineTuneLib.training import synthetic_pretraining as pretrain  # noqa: E402
from SAMFineTuneLib.training.memory_pretraining import pretrain_memory  # noqa: E402
from SAMFineTuneLib.training.stopping import Stopped  # noqa: E402


@pytest.fixture
def without_export(monkeypatch):
    """The ONNX graphs take longer than the training here; one test makes them."""
    monkeypatch.setattr(pretrain, "write_model_folder", lambda average, source, folder: folder)


def train(folder, **options):
    history = []
    options = {"seed": 5, "batch_size": 2, "workers": 0, "progress": history.append, "device": "cpu", **options}
    pretrain.pretrain_synthetic(folder, **options)
    return history


def checkpoint(folder):
    return torch.load(folder / pretrain.CHECKPOINT_NAME, weights_only=True)


def steps_in(folder):
    return len(checkpoint(folder)["history"]["measured"]["loss"])


@pytest.mark.slow
def test_a_short_run_lowers_the_loss(tmp_path, without_export):
    history = train(tmp_path, steps=24, batch_size=4)
    losses = [entry.measured["loss"] for entry in history]
    assert np.mean(losses[-6:]) < 0.85 * np.mean(losses[:6])
    assert history[-1].step == 24 and history[-1].pictures == 96 and history[-1].used == 1


def test_stopping_leaves_a_checkpoint_and_a_folder_in_use_is_left_alone(tmp_path, without_export):
    folder, asked = tmp_path / "model", []
    with pytest.raises(Stopped):
        train(folder, steps=3, progress=asked.append, cancel=lambda: len(asked) > 1)
    assert [path.name for path in folder.iterdir()] == [pretrain.CHECKPOINT_NAME] and steps_in(folder) == 2
    with pytest.raises(UserError, match="continue it with --resume"):
        train(folder, steps=3)
    running = rf"A pre-training in .* is running \(process {os.getpid()}, for less than a minute\)"
    with owning(folder, f"A pre-training in {folder}"), pytest.raises(UserError, match=running):
        train(folder, steps=3, resume=True)
    assert [entry.step for entry in train(folder, steps=3, resume=True)] == [3]


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, without_export, monkeypatch):
    class Killed(Exception):
        pass

    def kill(entry):
        if entry.step == 4:
            raise Killed

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(whole, steps=6)
    # As after a power cut: the last checkpoint is older than the last step.
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training_loop, "CHECKPOINT_SECONDS", -1)
        patch.setattr(training_loop, "CHECKPOINT_SHARE", 1e9)
        train(parts, steps=6, progress=kill)
    assert steps_in(parts) == 3
    resumed = train(parts, steps=6, resume=True)
    assert [entry.step for entry in resumed] == [4, 5, 6]
    expected, found = checkpoint(whole)["state"], checkpoint(parts)["state"]
    assert {name.split(".")[0] for name in expected} == {"model", "average"}
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_without_resume_nothing_is_overwritten(tmp_path, without_export):
    train(tmp_path, steps=2)
    before = (tmp_path / pretrain.CHECKPOINT_NAME).read_bytes()
    with pytest.raises(UserError, match="--resume"):
        train(tmp_path, steps=1)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match="holds a model already"):
        train(tmp_path, steps=1)
    assert (tmp_path / pretrain.CHECKPOINT_NAME).read_bytes() == before


def test_minutes_bound_a_run(tmp_path, without_export):
    history = train(tmp_path, minutes=0.02)
    assert history and history[-1].seconds < 30


def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path, without_export):
    (tmp_path / pretrain.CHECKPOINT_NAME).write_bytes(b"half a file")
    with pytest.raises(UserError, match="not a usable checkpoint"):
        train(tmp_path, steps=1, resume=True)


def test_another_versions_checkpoint_and_another_seed_are_refused_in_one_sentence(tmp_path, without_export):
    train(tmp_path, steps=1)
    with pytest.raises(UserError, match="has another seed; give the same again"):
        train(tmp_path, steps=2, seed=6, resume=True)
    with pytest.raises(UserError, match="of another kind.*choose another folder"):
        pretrain_memory(tmp_path, Store().get(), steps=2, seed=5, resume=True, workers=0, device="cpu")
    torch.save({"model": {}, "step": 7}, tmp_path / pretrain.CHECKPOINT_NAME)
    with pytest.raises(UserError, match="started by another version of SAMFineTune"):
        train(tmp_path, steps=2, resume=True)


def test_a_resumed_run_keeps_the_size_of_its_steps(tmp_path, without_export):
    train(tmp_path, steps=1)
    assert [entry.pictures for entry in train(tmp_path, steps=2, batch_size=None, resume=True)] == [4]


def test_a_run_without_budget_is_refused(tmp_path):
    with pytest.raises(UserError, match="minutes or of steps"):
        pretrain.pretrain_synthetic(tmp_path)


def test_the_finished_folder_is_a_complete_model(tmp_path):
    from SAMFineTuneLib.models.spec import read_model_folder

    train(tmp_path, steps=1)
    model = read_model_folder(tmp_path)
    model.verify()
    assert all(model.has(role) for role in ("weights", "encoder", "decoder"))
    assert model.spec.architecture == "compact" and "seed 5" in model.spec.source


def test_learning_rate_warms_up_and_ends_near_zero():
    minutes = training_loop.Schedule(pretrain.LEARNING_RATE, pretrain.WARM_UP, minutes=60)
    rates = [minutes.rate_at(0, seconds) for seconds in np.linspace(0, 3600, 101)]
    assert rates[0] < 0.05 * max(rates) and rates[-1] < 1e-3 * max(rates)
    assert max(rates) == pytest.approx(pretrain.LEARNING_RATE, rel=1e-3)


def test_batches_depend_on_seed_and_number_only():
    batches = synthetic_batches.SyntheticBatches(3, 2)
    first, again, other = batches[7], batches[7], batches[8]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image"], other["image"])
    assert first["image"].shape == (2, 1, 128, 128) and first["target"].shape == (2, 4, 64, 64)


def test_batches_drawn_together_are_cut_in_order():
    together = synthetic_batches.SyntheticBatches(3, 2, together=3)
    whole = synthetic_batches.SyntheticBatches(3, 6)[1]["image"]
    assert torch.equal(torch.cat([together[number]["image"] for number in (3, 4, 5)]), whole)
    assert torch.equal(together[4]["image"], synthetic_batches.SyntheticBatches(3, 2, together=3)[4]["image"])


def test_first_prompts_touch_their_objects():
    batch = synthetic_batches.SyntheticBatches(3, 24)[0]
    for target, box, point in zip(*(batch[name].flatten(0, 1) for name in ("target", "box", "point")), strict=True):
        column, row = (point / 2).floor().int().tolist()
        assert target[row, column] > 0
        rows, columns = torch.where(target > 0)
        tight = torch.tensor([columns.min(), rows.min(), columns.max(), rows.max()]) * 2 + 0.5
        side = max(box[2] - box[0], box[3] - box[1])
        assert ((box - tight).abs() <= 0.1 * side + 2.5).all()


def test_pictures_are_stretched_as_the_predictor_stretches_them():
    from SAMFineTuneLib.models.preprocess import stretched

    image = torch.randint(40, 90, (2, 128, 128), generator=torch.Generator().manual_seed(0)).float()
    shape = torch.tensor([[128, 128], [128, 70]])
    ours = synthetic_batches._stretched(image, shape)
    np.testing.assert_allclose(ours[0], stretched(image[0].numpy()), atol=6)
    np.testing.assert_allclose(ours[1, :, :70], stretched(image[1, :, :70].numpy()), atol=6)


def test_a_correction_clicks_where_the_answer_is_wrong():
    target = torch.zeros(2, 64, 64)
    target[:, 20:40, 20:40] = 1
    answer = torch.full((2, 64, 64), -5.0)
    answer[0, 20:40, 20:30] = 5  # misses the right half
    answer[1, 20:40, 20:50] = 5  # too wide
    start = simulated_annotator.first_prompts(
        torch.zeros(2, 4), torch.full((2, 2), 60.0), torch.zeros(2, dtype=torch.bool)
    )
    after = simulated_annotator.correct(start, answer, target, Random((0,)))
    assert after.labels[:, -1].tolist() == [1, 0]
    assert 60 <= after.coords[0, -1, 0] < 80 and 80 <= after.coords[1, -1, 0] < 100


def test_half_of_the_corrections_are_in_the_middle_of_the_largest_error():
    target, answer = torch.zeros(400, 64, 64), torch.full((400, 64, 64), -5.0)
    target[:, 20:41, 20:41] = 1
    target[:, 5:9, 50:54] = 1  # a small error
    start = simulated_annotator.first_prompts(torch.zeros(400, 4), torch.zeros(400, 2), torch.ones(400).bool())
    cells = (simulated_annotator.correct(start, answer, target, Random((0,))).coords[:, -1] / 2).long()
    in_middle = ((cells - 30).abs() <= 5).all(1)
    assert 200 < in_middle.sum() < 300, "a half, and an eighth by chance"
    assert (cells[~in_middle, 0] > 45).any(), "the others lie anywhere"
    assert target[0, cells[:, 1], cells[:, 0]].all()


def test_the_joined_answer_is_the_predictors():
    from SAMFineTuneLib.inference.mask_candidates import joined

    generator = torch.Generator().manual_seed(0)
    logits, scores = 4 * torch.randn(3, 4, 64, 64, generator=generator), torch.rand(3, 4, generator=generator)
    for ours, *given in zip(pretrain._joined(logits, scores), logits, scores, strict=True):
        np.testing.assert_allclose(ours, joined(*(value.numpy() for value in given))[0], atol=1e-4)


def test_more_points_say_the_truth_and_stay_near():
    target = torch.zeros(3, 64, 64)
    target[0, 20:30, 30:50] = 1
    target[1, 5:8, 5:8] = 1
    target[2] = 1  # nothing is outside
    start = simulated_annotator.first_prompts(torch.zeros(3, 4), torch.zeros(3, 2), torch.tensor([True, False, True]))
    after = simulated_annotator.more_points(start, target, 30, Random((0,)))
    assert after.coords.shape == (3, 32, 2) and torch.equal(after.coords[:, :2], start.coords)
    new, labels = after.coords[:, 2:], after.labels[:, 2:]
    cells = (new / 2).long()
    for number in range(3):
        inside = target[number, cells[number, :, 1], cells[number, :, 0]]
        assert torch.equal(inside, labels[number])
    assert 12 <= labels[0].sum() <= 27 and labels[2].all()
    assert ((cells[1] >= 1) & (cells[1] < 12)).all(), "not farther off than four cells"
    assert not after.has_logits.any()
    outside = cells[0, labels[0] == 0]
    assert ((outside[:, 0] < 26) | (outside[:, 0] >= 54) | (outside[:, 1] < 16) | (outside[:, 1] >= 34)).any()
    assert ((outside[:, 0] >= 20) & (outside[:, 0] < 60) & (outside[:, 1] >= 15) & (outside[:, 1] < 35)).all()


def test_the_best_candidate_alone_learns_from_an_ambiguous_point():
    target = torch.zeros(1, 64, 64)
    target[:, :32] = 1
    right, wrong = 8 * (2 * target - 1), 8 * (1 - 2 * target)
    predicted = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    asked = predicted, target, torch.tensor([True]), torch.zeros(1)
    good = pretrain._session_loss(torch.stack([right, right, wrong, wrong], 1), *asked)
    bad = pretrain._session_loss(torch.stack([wrong, wrong, wrong, wrong], 1), *asked)
    assert good[0] < 0.25 * bad[0]
    assert good[1].tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_a_shifted_mask_moves_and_does_not_wrap_around():
    masks = torch.zeros(2, 64, 64)
    masks[:, 10:14, 60:64] = 1
    moved = simulated_annotator.shift_masks(masks, torch.tensor([[-5, 2], [3, 0]]))
    assert moved[0, 12:16, 55:59].sum() == 16 == moved[0].sum()
    assert moved[1].sum() == 4


def test_a_run_may_start_from_earlier_weights(tmp_path, without_export):
    from SAMFineTuneLib.models.store import Store

    bundled = Store().get().path
    history = train(tmp_path / "on", steps=2, start=bundled)
    fresh = train(tmp_path / "fresh", steps=2)
    first, other = history[0].measured["loss"], fresh[0].measured["loss"]
    assert first < other, "the first batch is the same, so the earlier weights show"
    assert checkpoint(tmp_path / "on")["about"]["origin"].startswith("trained by samfinetune pretrain")
    resumed = train(tmp_path / "on", steps=3, resume=True)
    assert [entry.step for entry in resumed] == [3]
    assert checkpoint(tmp_path / "on")["about"]["origin"], "a resumed run still knows where it came from"


def test_a_run_may_start_from_a_shallower_model_and_answers_like_it(tmp_path, without_export):
    from safetensors.torch import load_file, save_file

    from SAMFineTuneLib.models.architectures.compact import build_compact
    from SAMFineTuneLib.models.store import Store

    bundled = Store().get().path
    weights = load_file(bundled / "model.safetensors")
    last = f"image_encoder.blocks.{len(build_compact().image_encoder.blocks) - 1}."
    shallow = tmp_path / "shallow"
    shutil.copytree(bundled, shallow)
    save_file({name: value for name, value in weights.items() if not name.startswith(last)},
              shallow / "model.safetensors")  # fmt: skip
    model = build_compact()
    pretrain._start_from(model, shallow)
    cut = build_compact({name: value.float() for name, value in weights.items()})
    del cut.image_encoder.blocks[-1]
    image = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (model.encode(image)["image_embeddings"] for model in (model.eval(), cut))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    save_file({"other": torch.zeros(3)}, shallow / "model.safetensors")
    with pytest.raises(UserError, match="do not fit the compact model"):
        train(tmp_path / "run", steps=1, start=shallow)


def test_a_run_cannot_start_from_another_architecture(tmp_path):
    import json

    (tmp_path / "other").mkdir()
    from SAMFineTuneLib.models.store import Store

    spec = json.loads((Store().get().path / "model.json").read_text())
    spec |= {"id": "other", "architecture": "sam_vit_b", "channels": 3, "pixel_mean": [0, 0, 0], "pixel_std": [1, 1, 1]}
    (tmp_path / "other" / "model.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match="starts from compact models; other is of architecture sam_vit_b"):
        train(tmp_path / "run", steps=1, start=tmp_path / "other")
