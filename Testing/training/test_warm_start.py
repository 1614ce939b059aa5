"""A fine-tuning that continues from an earlier adapter: it begins with its weights, and refuses one that does not fit.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("scipy")

import tuned_models  # noqa: E402
from case_files import blob, case_folder, image_of, save  # noqa: E402
from tuned_models import CLASSES, NETWORKS, folder_of  # noqa: E402
from tuning_runs import same, settings  # noqa: E402

from SAMFineTuneLib.cases.cases import find_cases  # noqa: E402
from SAMFineTuneLib.cases.label_map import Meaning  # noqa: E402
from SAMFineTuneLib.cli.main import main  # noqa: E402
from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.models.adapters.adapter_card import Card  # noqa: E402
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning import save_adapter, trainable  # noqa: E402
from SAMFineTuneLib.models.adapters.tuning_method import Method  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.training.fine_tuning import fine_tune  # noqa: E402
from SAMFineTuneLib.training.stopping import Stopped  # noqa: E402
from SAMFineTuneLib.training.training_plan import attached, make_plan  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"steps": 1, "batch": 1, "objects": 1, "rounds": 1, "folds": 0, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return cache(lambda name: folder_of(NETWORKS[name](), tmp_path_factory.mktemp(name), name))


@pytest.mark.parametrize("name", ["vit", "compact"])
@pytest.mark.parametrize("kind", ["lora", "adapter", "vanilla"])
def test_it_begins_where_the_earlier_training_ended(models, name, kind, tmp_path):
    base, method = models(name), Method(kind, heads=("promptable", "automatic"), classes=CLASSES)
    before = tuned_models.trained(base, method)
    save_adapter(tmp_path / "earlier", before, base, method, Card(labels=CLASSES[1:]))
    after = attached(base, settings(method=method, seed=3), read_adapter_folder(tmp_path / "earlier"))
    assert same(dict(trainable(before)), dict(trainable(after)))
    assert tuned_models.same(tuned_models.answers(before, base), tuned_models.answers(after, base))


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return find_cases(case_folder(tmp_path_factory.mktemp("cases"), count=3, shape=(5, 32, 32)))


@pytest.fixture(scope="module")
def earlier(cases, tmp_path_factory):
    """An adapter that learned from case a."""
    output = tmp_path_factory.mktemp("out") / "earlier"
    fine_tune(cases[:1], output, Store().get(), settings(**SMALL))
    return read_adapter_folder(output)


def test_the_card_says_where_it_began_and_names_all_cases(cases, earlier, tmp_path):
    stop = [False]

    def told(now) -> None:
        stop[0] = now.step == 1

    longer = settings(**{**SMALL, "steps": 2})
    with pytest.raises(Stopped):
        fine_tune(cases[1:], tmp_path / "a", Store().get(), longer, told, lambda: stop[0], start=earlier)
    with pytest.raises(UserError, match="had other settings, another model, or other cases"):
        fine_tune(cases[1:], tmp_path / "a", Store().get(), longer, resume=True)
    card = fine_tune(cases[1:], tmp_path / "a", Store().get(), longer, resume=True, start=earlier).card
    assert card.recipe["start"] == f"adapter {earlier.digest[:12]}"
    assert set(card.cases) == {case.digest for case in cases}
    assert "start" not in earlier.card.recipe
    still = fine_tune(cases[1:], tmp_path / "b", Store().get(), settings(**{**SMALL, "learning_rate": 1e-12}),
                      start=earlier)  # fmt: skip
    again = attached(Store().get(), settings(method=earlier.card.method), read_adapter_folder(still.adapter))
    first = attached(Store().get(), settings(method=earlier.card.method), earlier)
    for name, value in trainable(first).items():
        assert torch.allclose(value, trainable(again)[name], atol=1e-6), name


def test_labels_with_another_meaning_are_not_what_was_begun(cases, tmp_path):
    def meaning(name):
        return [replace(case, meaning=Meaning({1: name})) for case in cases]

    steps, longer = [0], settings(**{**SMALL, "steps": 2})
    with pytest.raises(Stopped):
        fine_tune(meaning("liver"), tmp_path / "a", Store().get(), longer, lambda now: steps.append(now.step),
                  lambda: max(steps) > 0)  # fmt: skip
    with pytest.raises(UserError, match="other cases or labels"):
        fine_tune(meaning("spleen"), tmp_path / "a", Store().get(), longer, resume=True)


def test_what_does_not_fit_is_refused_in_a_sentence(models, cases, earlier, tmp_path):
    def refused(base=None, some=cases[1:], test=(), **changes):
        with pytest.raises(UserError) as caught:
            make_plan(some, tmp_path / "a", base or Store().get(), settings(**{**SMALL, **changes}), test=test,
                      start=earlier)  # fmt: skip
        return str(caught.value)

    assert "choose the model 'compact'" in refused(base=models("vit"))
    assert "LoRA of rank 8" in refused(method=Method(rank=8))
    assert "start from the base" in refused(method=Method("adapter"))
    assert "(promptable and automatic), and this training is" in refused(heads=("promptable",))
    assert "learned from the case a, which would test" in refused(some=cases[1:2], test=[cases[0]])
    two = blob((5, 32, 32))
    two[1, 2:8, 2:8] = 2
    save(tmp_path / "two" / "images" / "x.nii.gz", image_of(two, 9))
    save(tmp_path / "two" / "labels" / "x.nii.gz", two)
    assert "finds label 1, and the cases hold label 1, label 2" in refused(some=find_cases(tmp_path / "two"))
    assert not (tmp_path / "a").exists()


def test_the_command_goes_on_from_an_adapter(cases, earlier, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAMFINETUNE_HOME", str(tmp_path / "home"))
    source = case_folder(tmp_path / "new", count=2, shape=(5, 36, 36))
    common = ["train", str(source), "-o", str(tmp_path / "later"), "--steps", "1", "--batch", "1", "--rounds", "1",
              "--folds", "0", "--no-add"]  # fmt: skip
    for wrong, words in {
        "nowhere": "nowhere",
        str(source): "has no adapter",
        str(earlier.path): "LoRA of rank 8",
    }.items():
        assert main([*common, "--rank", "8", "--start", wrong]) == 2
        told = capsys.readouterr().err.strip()
        assert words in told and "\n" not in told.rpartition("samfinetune: ")[2]
    assert main([*common, "--start", str(earlier.path)]) == 0
    card = read_adapter_folder(tmp_path / "later").card
    assert card.recipe["start"] == f"adapter {earlier.digest[:12]}" and len(card.cases) == 3
