"""Every method and scope trains every architecture, on random backbones small enough for tests."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("scipy")

from case_files import blob, image_of  # noqa: E402
from tuned_models import NETWORKS, folder_of, fresh  # noqa: E402
from tuning_runs import settings, trained  # noqa: E402

from SAMFineTuneLib.cases.case_slices import LabelledSlice  # noqa: E402
from SAMFineTuneLib.cases.labelled_case import LabelChoice  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning import attach  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning_method import Method  # noqa: E402
from SAMFineTuneLib.models.architectures import tiny_vit  # noqa: E402
from SAMFineTuneLib.training import device_memory  # noqa: E402
from SAMFineTuneLib.training import network_tuning as tuning  # noqa: E402
from SAMFineTuneLib.training.training_items import Items  # noqa: E402

METHODS = [(kind, scope) for kind in ("lora", "adapter", "vanilla") for scope in ("decoder", "encoder+decoder")]


@pytest.fixture(scope="module", autouse=True)
def small_and_single():
    """MobileSAM's grid a quarter as long, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_vit, "GRID", 16)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return cache(lambda name: folder_of(NETWORKS[name](), tmp_path_factory.mktemp(name), name))


def run_of(base, method: Method, **changes) -> tuning.NetworkTuning:
    shape = (3, 48, 48)
    slices = []
    for seed in range(2):
        labels = blob(shape, (20 + 4 * seed, 24), 10)[1]
        slices.append(LabelledSlice(image_of(labels, seed).astype(np.uint8), labels, None))
    chosen = settings(method=method, batch=1, small_base=False, **changes)
    chosen = chosen.for_labels(("organ",), LabelChoice())
    network = attach(fresh(base), base.spec, chosen.method)
    return tuning.NetworkTuning(network, base.spec, chosen, Items(slices, [], base.spec, chosen), torch.device("cpu"))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("kind", "scope"), METHODS)
def test_it_trains(models, name, kind, scope):
    run = run_of(models(name), Method(kind, scope), steps=1)
    before = trained(run.network)
    frozen = {key: value.clone() for key, value in run.network.named_parameters() if not value.requires_grad}
    history = tuning.tune(run)
    after = trained(run.network)
    assert np.isfinite(history.loss).all()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("mask_decoder") for key in moved)
    assert any(key.startswith("image_encoder") for key in moved) == (scope != "decoder")
    assert all(torch.equal(value, dict(run.network.named_parameters())[key]) for key, value in frozen.items())


def test_a_network_learns_one_picture(models):
    run = run_of(models("vit"), Method(), steps=25, prompts="boxes", augment=0.0, heads=("promptable",),
                 learning_rate=3e-3)  # fmt: skip
    history = tuning.tune(run)
    assert np.mean(history.loss[-5:]) < 0.7 * np.mean(history.loss[:5])


def test_encoder_blocks_are_computed_twice_only_when_memory_is_short(models, monkeypatch):
    run = run_of(models("vit"), Method())
    need = device_memory.activation_bytes(run.network, run.spec)
    for free, expected in ((1e12, (1, False)), (need, (1, True))):
        monkeypatch.setattr(device_memory, "free_memory", lambda device, free=free: free)
        assert device_memory.pictures_at_once(run.network, run.spec, run.device, run.settings.batch, 1) == expected
    frozen = run_of(models("vit"), Method(scope="decoder"))
    assert device_memory.pictures_at_once(frozen.network, frozen.spec, frozen.device, 1, learns=False)[1] is False
