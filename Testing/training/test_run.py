"""A whole fine-tuning: evidence from cases that were not seen, an adapter that loads, a report, and a way back in."""

from __future__ import annotations

import csv
import json
import re
from types import SimpleNamespace

import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("scipy")

from case_files import case_folder  # noqa: E402
from tuned_models import load_adapter  # noqa: E402

from SAMFineTuneLib.cases.cases import find_cases  # noqa: E402
from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.training.evidence import advice, gains  # noqa: E402
from SAMFineTuneLib.training.fine_tuning import TrainingProgress, fine_tune  # noqa: E402
from SAMFineTuneLib.training.stopping import Stopped  # noqa: E402
from SAMFineTuneLib.training.training_plan import make_plan, working_folder  # noqa: E402
from SAMFineTuneLib.training.training_report import draw_curves, smooth  # noqa: E402
from SAMFineTuneLib.training.training_settings import PRESETS, TrainingSettings  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"steps": 2, "batch": 1, "objects": 1, "rounds": 1, "test_slices": 1}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return find_cases(case_folder(tmp_path_factory.mktemp("cases"), count=3, shape=(4, 32, 32)))


@pytest.fixture(scope="module")
def done(cases, tmp_path_factory):
    """Three cases, leave one out."""
    told: list[TrainingProgress] = []
    output = tmp_path_factory.mktemp("out") / "adapter"
    result = fine_tune(cases, output, Store().get(), TrainingSettings(**SMALL), told.append)
    return SimpleNamespace(result=result, told=told, output=output)


def test_every_case_is_tested_once_by_an_adapter_that_did_not_see_it(done, cases):
    card = done.result.card
    digests = {case.digest for case in cases}
    assert set(card.cases) == digests, "the delivered adapter learned from all"
    assert [gain.prompt for gain in card.gains] == ["1 box", "1 point", "automatic"]
    for gain in card.gains:
        assert set(gain.cases) == digests and None not in gain.after
        assert (None in gain.before) == (gain.prompt == "automatic"), "the base finds nothing by itself"
        assert gain.interval_after[0] <= gain.means[1] <= gain.interval_after[1]
    assert card.recipe["rehearsal"] == "synthetic pictures"
    assert "3 adapters of this recipe were trained leaving out each patient once" in done.result.evidence
    assert "learned from all 3 cases" in done.result.evidence and card.recipe["evidence"] == done.result.evidence


def test_the_adapter_loads_and_is_small(done):
    network, card = load_adapter(done.output, Store().get())
    assert card.gains == done.result.card.gains and card.method.classes == ("background", "label 1")
    embedding = network.encode(torch.zeros(1, 1, 128, 128))
    assert network.decode_classes(embedding).shape == (1, 2, 64, 64)
    weights = sum(file.stat().st_size for file in done.output.glob("*.safetensors"))
    assert weights < 2_000_000


def test_progress_says_how_far_it_is(done):
    training = [one for one in done.told if one.stage == "training"]
    assert [(one.part, one.step) for one in training] == [(part, step) for part in (1, 2, 3, 4) for step in (1, 2)]
    assert all(one.parts == 4 and one.steps == 2 and one.loss > 0 for one in training)
    left = [one.seconds_left for one in done.told if one.seconds_left is not None]
    assert left and left[-1] == 0 and left[0] > 0
    assert [one.stage for one in done.told][0] == "cases" and done.told[-1].stage == "report"


def test_the_report_shows_curves_figures_and_pictures(done, cases):
    folder = done.output / "report"
    page = (folder / "index.html").read_text()
    for name in ("loss.svg", "case-1-1-box-before.png", "case-3-1-point-after.png", "case-1-automatic-after.png"):
        assert name in page and (folder / name).is_file()
    assert "With one box, the adapter reaches a Dice of " in page and "than the base (difference " in page
    assert "case 1, 1 box, before: Dice on this slice label 1 " in page and "with SAMFineTune" in page
    with open(folder / "dice.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    everything = page + (folder / "dice.csv").read_text() + (done.output / "card.json").read_text()
    assert all(str(case.image.parent) not in everything for case in cases)


def test_nothing_is_left_beside_the_adapter(done):
    assert [path.name for path in done.output.parent.iterdir()] == ["adapter"]


def test_a_finished_adapter_is_not_overwritten(done, cases):
    for resume, sentence in ((False, "holds an adapter already"), (True, "is finished: the folder holds its adapter")):
        with pytest.raises(UserError, match=sentence):
            fine_tune(cases, done.output, Store().get(), TrainingSettings(**SMALL), resume=resume)


def test_shots_test_the_adapter_itself_and_a_cancelled_run_goes_on(cases, tmp_path):
    settings = TrainingSettings(**SMALL, shots=1, heads=("promptable",))
    told = []
    with pytest.raises(Stopped):
        fine_tune(cases, tmp_path / "a", Store().get(), settings, told.append, lambda: told[-1].step == 1)
    assert working_folder(tmp_path / "a").is_dir() and not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="continue it with --resume"):
        fine_tune(cases, tmp_path / "a", Store().get(), settings)
    other = TrainingSettings(**{**SMALL, "steps": 3}, shots=1, heads=("promptable",))
    with pytest.raises(UserError, match="had other settings"):
        fine_tune(cases, tmp_path / "a", Store().get(), other, resume=True)
    told.clear()
    state = working_folder(tmp_path / "a") / "run.json"
    written = state.read_text()
    state.write_text(json.dumps({**json.loads(written), "format": 2}))
    with pytest.raises(UserError, match="started by another version of SAMFineTune"):
        fine_tune(cases, tmp_path / "a", Store().get(), settings, resume=True)
    state.write_text(written)
    worked = working_folder(tmp_path / "a") / "seconds.json"
    worked.write_text(str(float(worked.read_text()) + 5000))
    resumed = fine_tune(cases, tmp_path / "a", Store().get(), settings, told.append, resume=True)
    assert [one.step for one in told if one.stage == "training"] == [2], "it went on"
    whole = fine_tune(cases, tmp_path / "b", Store().get(), settings)
    assert resumed.card.seconds > 5000 > whole.card.seconds, "all sessions count"
    assert resumed.card.gains == whole.card.gains and len(resumed.card.cases) == 1
    assert "This adapter answered 2 cases" in resumed.evidence
    names = ("adapter_model.safetensors",)
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_resuming_what_was_never_begun_is_refused(cases, tmp_path):
    with pytest.raises(UserError, match="no interrupted training"):
        fine_tune(cases, tmp_path / "a", Store().get(), TrainingSettings(**SMALL), resume=True)


def test_an_adapter_knows_the_modality_that_all_its_cases_have(cases, tmp_path):
    plan = make_plan(cases, tmp_path / "a", Store().get(), TrainingSettings(**SMALL))
    assert plan.modality == "", "the files do not say"
    folder = case_folder(tmp_path / "ct", count=2, shape=(4, 32, 32))
    for path in (folder / "images").iterdir():
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(sitk.ShiftScale(image, -1024), str(path))
    found = find_cases(folder)
    settings = TrainingSettings(**SMALL, folds=0)
    plan = make_plan(found, tmp_path / "a", Store().get(), settings)
    assert plan.modality == "CT" and [len(fold.train) for fold in plan.trainings] == [2] and plan.steps == (2,)
    assert make_plan([*found, cases[0]], tmp_path / "a", Store().get(), settings).modality == "", "they differ"
    assert not (tmp_path / "a").exists() and not working_folder(tmp_path / "a").exists()


def test_too_many_set_aside_for_validation(cases, tmp_path):
    with pytest.raises(UserError, match="2 patients cannot be set aside for validation from 2"):
        fine_tune(cases, tmp_path / "a", Store().get(), TrainingSettings(**SMALL, validation=2, shots=2))


def test_settings_survive_json_and_refuse_nonsense():
    for preset in PRESETS:
        settings = TrainingSettings.of_preset(preset, seed=3)
        assert TrainingSettings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    for wrong in ({"steps": 0}, {"augment": 3.0}, {"heads": ()}, {"orientation": "diagonal"}, {"learning_rate": -1.0}):
        with pytest.raises(UserError):
            TrainingSettings(**wrong)
    with pytest.raises(UserError, match="Unknown preset"):
        TrainingSettings.of_preset("instant")


def test_many_slices_are_learned_from_longer_and_few_shorter():
    quick = TrainingSettings.of_preset("quick")
    lengths = {slices: quick.for_slices(slices).steps for slices in (2, 5, 100, 250, 400, 1000, 100_000)}
    assert lengths == {2: 100, 5: 250, 100: 250, 250: 250, 400: 400, 1000: 1000, 100_000: 1000}
    assert TrainingSettings.of_preset("quick", steps=30).for_slices(1000).steps == 30, "as it was asked for"


def test_curves_are_drawn_to_scale():
    svg = draw_curves({"a": [(0, 0.0), (10, 2.0)]}, "x < y")
    assert 'points="46.0,214.0 594.0,46.0"' in svg and "x &lt; y" in svg
    for largest, marks in ((0.93, ["0", "0.5", "1"]), (2.0, ["0", "0.5", "1", "1.5", "2"]), (1100, ["0", "500", "1000",
                           "1500"]), (7e-5, ["0", "2e-05", "4e-05", "6e-05", "8e-05"])):  # fmt: skip
        svg = draw_curves({"none": [], "a": [(1, largest), (12, 0.0)]}, "")
        assert re.findall(r'"end">([\d.e-]+)<', svg) == marks
        assert re.findall(r'"middle">([\d.]+)<', svg) == ["0", "5", "10"]
    assert smooth([1.0, 3.0, 5.0, 7.0], points=2) == [(2, 2.0), (4, 6.0)]


def test_intervals_are_over_patients():
    measured = {case: {"1 box": [value]} for case, value in {"a": 0.2, "b": 0.4, "c": 0.9}.items()}
    (gain,) = gains({}, measured, {"a": "x", "b": "x", "c": "y"}, ["liver"], ["1 box"])
    assert gain.after == (0.2, 0.4, 0.9) and gain.before == (None, None, None) and gain.interval_before is None
    assert gain.interval_after == pytest.approx((0.3, 0.9)), "two patients: means of 0.3 and 0.9"


def test_where_the_base_was_better_the_user_is_told():
    names, ways = ["liver", "spleen"], ["1 box", "1 point", "automatic"]
    before = {"a": {"1 box": [0.9, 0.9], "1 point": [0.5, 0.5]}}
    after = {"a": {"1 box": [0.95, 0.81], "1 point": [0.45, 0.65], "automatic": [0.4, 0.4]}}
    (sentence,) = advice(gains(before, after, {"a": "x"}, names, ways))
    assert "better with 1 box (Dice 0.900, with the adapter 0.880); keep it for such prompts" in sentence
    assert advice(gains(before, before, {"a": "x"}, names, ways)) == ()
    assert advice(()) == ()
