"""What the base learned from is shown again, so that a few cases do not make it forget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("scipy")

from case_files import case_folder  # noqa: E402
from tuning_runs import settings, training  # noqa: E402

from SAMFineTuneLib.models.adapters.tuning import trainable  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning_method import Method  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.training import network_tuning as tuning  # noqa: E402
from SAMFineTuneLib.training.rehearsal import Rehearsal, rehearsal_of  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return case_folder(tmp_path_factory.mktemp("cases"))


def test_prompts_of_a_rehearsed_picture_lie_on_its_objects():
    spec = Store().get().spec
    rehearsal = Rehearsal(spec, settings(objects=3, rounds=2))
    kinds = set()
    for number in range(30):
        item = rehearsal(number)
        assert item.images[0].shape == (1, 128, 128) and item.classes is None
        assert 1 <= len(item.coords) == len(item.targets) == len(item.chances) <= 3
        for coords, labels, target in zip(item.coords, item.labels, item.targets, strict=True):
            rows, columns = (np.flatnonzero(target.any(axis)) for axis in (1, 0))
            kinds.add(labels[0])
            if labels[0] == 2:
                middle = coords[:2].mean(0) / 2
                assert columns[0] - 2 <= middle[0] <= columns[-1] + 2 and rows[0] - 2 <= middle[1] <= rows[-1] + 2
            else:
                assert all(target[int(y) // 2, int(x) // 2] > 0 for x, y in coords[labels == 1])
    assert kinds == {1, 2}


def test_a_rehearsed_picture_follows_from_seed_part_and_number():
    spec, chosen = Store().get().spec, settings()
    picture = Rehearsal(spec, chosen, 1)(5).images[0]
    assert np.array_equal(picture, Rehearsal(spec, chosen, 1)(5).images[0])
    others = (Rehearsal(spec, chosen, 1)(6), Rehearsal(spec, chosen, 0)(5), Rehearsal(spec, settings(seed=1), 1)(5))
    assert not any(np.array_equal(picture, other.images[0]) for other in others)


def test_only_what_a_base_learned_from_is_rehearsed():
    spec, chosen = Store().get().spec, settings()
    assert rehearsal_of(spec, chosen)
    assert rehearsal_of(replace(spec, architecture="sam_vit_b"), chosen) is None
    assert rehearsal_of(spec, replace(chosen, method=Method(heads=("automatic",), classes=("background", "a")))) is None


@pytest.mark.slow
def test_rehearsing_remembers(folder):
    """After a few hasty steps the base answers its own pictures better if it saw such pictures meanwhile."""
    runs = {}
    for rehearsed in (True, False):
        run = training(folder, steps=20, batch=2, learning_rate=1.6e-2)
        fresh = [run.rehearsal(10_000 + number) for number in range(12)]
        run.rehearsal = run.rehearsal if rehearsed else None
        history = tuning.tune(run)
        with torch.no_grad():
            loss = tuning.batch_loss(run, tuning.Embeddings(run, 4), fresh)[0].mean()
        runs[rehearsed] = float(loss), history.loss[0]
    assert runs[True][0] < 0.9 * runs[False][0]
    assert runs[True][1] == pytest.approx(runs[False][1], rel=1e-4), "the curve is that of the cases alone"


def test_the_bases_own_modules_learn_at_the_rate_of_whole_weights(folder):
    rates = {}
    for kind in ("lora", "adapter", "vanilla"):
        run = training(folder, method=Method(kind), learning_rate=None)
        names = {id(value): name for name, value in trainable(run.network).items()}
        for group in tuning.make_optimiser(run.network, run.settings).param_groups:
            for tensor in group["params"]:
                rates[kind, names[id(tensor)]] = run.settings.rate * group["share"]
    whole = {kind: rates[kind, "mask_decoder.output_upscaling.mix.weight"] for kind in ("lora", "adapter", "vanilla")}
    assert len(set(whole.values())) == 1
    lora = max(rate for (kind, name), rate in rates.items() if kind == "lora" and ".lora_" in name)
    assert lora > 2 * whole["lora"]
