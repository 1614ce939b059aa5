"""Retraining a cohort: who judges, when an adapter replaces another, and that no kill or change meanwhile spoils it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from small_cohorts import small_cohort, truth

from SAMFineTuneLib.cli.main import main
from SAMFineTuneLib.cohort.adapter_decision import decide
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_report import write_report
from SAMFineTuneLib.cohort.cohort_state import CohortCase, CohortState, Proposal, Review, TrainedAdapter
from SAMFineTuneLib.cohort.judges import held_out, is_due
from SAMFineTuneLib.cohort.proposing import propose
from SAMFineTuneLib.cohort.retraining import retrain
from SAMFineTuneLib.cohort.review import accept, reopen
from SAMFineTuneLib.cohort.running_work import PROPOSALS, TRAINING, running
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models import optional_packages
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder

# ---- who judges


def state_of(patients: list[str], adapters: tuple[TrainedAdapter, ...] = ()) -> CohortState:
    """A cohort whose accepted cases are of these patients, in this order."""
    cases = tuple(
        CohortCase(f"case{place}", f"{place}.nii", one, "accepted", review=Review(place + 1))
        for place, one in enumerate(patients)
    )
    return CohortState({1: "liver"}, cases, ("", ""), adapters=adapters)


def adapter_of(number: int, learned, judges, in_use: bool = True) -> TrainedAdapter:
    return TrainedAdapter(number, tuple(learned), tuple(judges), "base", {}, {}, None, in_use, "", "2026-01-01")


def test_who_was_learned_from_never_judges_and_two_patients_always_do():
    rng, always = np.random.default_rng(0), set()
    for _ in range(200):
        judged = set()
        patients = [f"{rng.integers(1 << 40)}" for _ in range(rng.integers(3, 30))]
        order = [patients[place] for place in rng.integers(len(patients), size=3 * len(patients))]
        adapters, taught = (), set()
        for count in sorted(set(rng.integers(3, len(order) + 1, size=4))):
            state = state_of(order[:count], adapters)
            judges = held_out(state)
            own, there = {case.patient for case in judges}, set(order[:count])
            assert not own & taught
            assert len(own) >= min(2, len(there)) and {case.patient for case in state.accepted} == there
            assert all(case in judges for case in state.accepted if case.patient in own), "whole patients"
            lowest = {one for one in there if sha256(one.encode()).hexdigest() < "4"}
            assert lowest <= own and (own == lowest or len(own) <= max(2, min(4, len(there) // 3)))
            assert not adapters or own - lowest <= judged - taught or judged - taught <= own, "judges go on judging"
            assert len(own) >= min(4, len(there) // 3, len(there - taught))
            always, judged = always | lowest, judged | own
            taught |= there - own
            learned = [case.key for case in state.accepted if case not in judges]
            adapters += (adapter_of(len(adapters) + 1, learned, [case.key for case in judges]),)
        assert not always & taught


def test_a_case_that_taught_teaches_on_when_others_are_no_longer_accepted():
    patients = [str(number) for number in range(8)]
    judges = held_out(state_of(patients))
    others = [one for one in state_of(patients).accepted if one not in judges]
    adapter = adapter_of(1, [one.key for one in others], [one.key for one in judges])
    left = state_of(patients, (adapter,))
    for case in judges:
        left = left.with_case(case.key, state="refused")
    assert held_out(left) == ()


def test_the_next_training_is_due_when_the_cases_have_grown_by_a_fifth():
    patients = [str(number) for number in range(60)]
    due, known, adapters = [], [], ()
    for count in range(1, 61):
        state = state_of(patients[:count], adapters)
        if is_due(state):
            due.append(count)
            known = [case.key for case in state.accepted]
            adapters += (adapter_of(len(adapters) + 1, known[2:], known[:2], in_use=False),)
    assert not is_due(state_of(["one", "two", "one", "two", "one", "one"])), "nobody would be left to learn from"
    assert due[:4] == [5, 8, 11, 14] and due[-1] - due[-2] == pytest.approx(due[-2] / 5, abs=1)


# ---- what replaces what

PATIENTS = {"a": "x", "b": "x", "c": "y", "d": "z"}


def dice_of(**values: float | None) -> dict:
    return {case: {"liver": value} for case, value in values.items()}


def test_the_first_adapter_is_used_when_it_finds_a_structure():
    good = {"a": {"liver": 0.8, "spleen": 0.1}, "c": {"liver": 0.7, "spleen": None}}
    trained = decide({"base": good}, None, PATIENTS, ("k",), 1)
    assert trained.in_use and trained.dice == pytest.approx({"liver": 0.75, "spleen": 0.1}) and not trained.dice_before
    assert trained.held_out == ("a", "c") and trained.learned == ("k",) and "2 patients held out" in trained.reason
    poor = decide({"base": dice_of(a=0.5, c=0.4)}, None, PATIENTS, ("k",), 1)
    assert not poor.in_use and "not used yet" in poor.reason


def test_the_mean_gain_over_patients_decides():
    before = dice_of(a=0.8, b=0.8, c=0.6, d=0.6)
    # Cases of one patient count once: 0.1 lost by x, 0.06 gained by y and by z.
    trained = decide({"base": dice_of(a=0.7, b=0.7, c=0.66, d=0.66)}, before, PATIENTS, (), 2)
    assert trained.in_use and trained.interval[0] == pytest.approx(-0.1) and trained.interval[1] == pytest.approx(0.06)
    assert "gained 0.007 Dice" in trained.reason and "with 3 patients it may be chance" in trained.reason
    worse = decide({"base": dice_of(a=0.8, b=0.8, c=0.6, d=0.5)}, before, PATIENTS, (), 2)
    assert not worse.in_use and "lost 0.033" in worse.reason and "stays in use" in worse.reason
    same = decide({"base": before}, before, PATIENTS, (), 2)
    assert not same.in_use and "have the same Dice as" in same.reason, "equally good is not better"
    few = decide({"base": dice_of(a=0.9, b=0.9, c=0.7, d=0.7)}, before, PATIENTS, (), 2)
    assert few.in_use and few.interval[0] > 0 and "it may be chance" in few.reason, "three who gain prove nothing"
    six = {name: name for name in "abcdef"}
    good, better = (dice_of(**dict.fromkeys(six, value)) for value in (0.8, 0.9))
    sure = decide({"base": better}, good, six, (), 2)
    assert sure.in_use and "chance" not in sure.reason


def test_the_report_and_status_say_why_a_training_is_not_used(tmp_path, capsys):
    patients, before = {"a": "x", "c": "y"}, {"a": {"liver": 0.8, "spleen": 0.9}, "c": {"liver": 0.8, "spleen": None}}
    after = {"a": {"liver": 0.8, "spleen": 0.96}, "c": {"liver": 0.76, "spleen": None}}
    first, second = decide({"base": before}, None, patients, (), 1), decide({"base": after}, before, patients, (), 2)
    assert np.mean([*second.dice.values()]) > np.mean([*second.dice_before.values()]), "labels gain, patients lose"
    cohort = small_cohort(tmp_path, count=2, labelled=1)
    cohort.change(lambda state: replace(state, adapters=(first, second)))
    page = write_report(cohort, tmp_path / "report").read_text()
    assert all(f"<td>{text}" in page for text in ("0.820", "0.825", "-0.005 (-0.040 to +0.030)"))
    assert main(["cohort", "status", str(cohort.folder)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "adapter adapter 1 of" in told and "not used adapter 2 of" in told and "lost 0.005 Dice against" in told


def test_the_better_start_is_kept():
    before = dice_of(a=0.5, c=0.5)
    candidates = {"base": dice_of(a=0.6, c=0.6), "adapter 1": dice_of(a=0.7, c=0.6)}
    trained = decide(candidates, before, PATIENTS, (), 2)
    assert trained.start == "adapter 1" and trained.dice == pytest.approx({"liver": 0.65})
    assert "started from adapter 1, which was better than starting from the base" in trained.reason
    equal = decide({"base": before, "adapter 1": before}, before, PATIENTS, (), 2)
    assert "started from the base, which was as good as starting from adapter 1" in equal.reason


# ---- refusals


def test_too_few_patients_are_refused_before_pytorch_is_loaded(tmp_path, monkeypatch):
    cohort = small_cohort(tmp_path, count=3, labelled=2)
    monkeypatch.setattr(optional_packages, "require", lambda *_, **__: pytest.fail("PyTorch takes long to load"))
    with pytest.raises(UserError, match="accepted cases of 3 patients or more, .* 2 are accepted"):
        retrain(cohort)
    assert not (cohort.folder / TRAINING).exists()


def test_without_pytorch_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    cohort = small_cohort(tmp_path, count=4, labelled=4)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="Training needs .* not installed"):
        retrain(cohort)


# ---- trainings


@pytest.fixture
def tiny(monkeypatch):
    """Trainings of two steps."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from SAMFineTuneLib.training.training_settings import PRESETS

    monkeypatch.setitem(PRESETS, "quick", {**PRESETS["quick"], "steps": 2, "batch": 1, "objects": 1, "rounds": 1,
                                            "least_shown": None})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unexported(monkeypatch):
    """Adapters stay without ONNX files, which take longer to make than two steps; they run in PyTorch."""
    monkeypatch.setattr("SAMFineTuneLib.models.adapters.merged_export.make_ready", lambda *_: "")


def use(cohort: Cohort) -> None:
    """Two steps learn nothing; mark the last adapter as used nevertheless."""
    cohort.change(lambda now: replace(now, adapters=(*now.adapters[:-1], replace(now.adapters[-1], in_use=True))))


def test_an_adapter_is_trained_then_two_candidates_and_a_new_structure_only_from_the_base(tiny, tmp_path):
    cohort, told = small_cohort(tmp_path, count=6, labelled=4), []
    judges = {case.key for case in held_out(cohort.state)}
    taught = next(case for case in cohort.state.accepted if case.key not in judges)

    def meanwhile(now) -> None:
        told.append(now)
        if len(told) == 1:  # a reviewer takes a case back that is being learned from
            reopen(cohort, taught.key)

    first = retrain(cohort, progress=meanwhile)
    assert set(first.held_out) == judges and taught.key in first.learned and first.start == "base"
    assert cohort.state.adapters == (first,) and first.interval is None and not first.dice_before
    folder = read_adapter_folder(cohort.adapter(1))
    assert folder.exported is not None, "it runs without PyTorch"
    (gain,) = folder.card.gains
    assert set(gain.cases) == judges and gain.prompt == "automatic" and gain.means == (None, first.dice["blob"])
    assert folder.card.recipe["evidence"] == first.reason
    assert folder.card.recipe["orientation"] == "auto", "its slices are thick"
    assert folder.card.labels == ("blob",) and len(folder.card.cases) == len(first.learned)
    assert {one.stage for one in told} == {"training", "judging", "export"} and not (cohort.folder / TRAINING).exists()
    assert "Training 1 of 1, from the base: step 2 of 2" in {one.sentence for one in told}
    assert any(one.seconds_left for one in told)

    use(cohort)
    for number, name in ((3, taught.key), (4, "e"), (5, "f")):
        accept(cohort, name, None if name == taught.key else truth(number))
    second = retrain(cohort, progress=told.append)
    assert second.number == 2 and second.dice_before and {one.parts for one in told} == {1, 2}
    assert not set(second.held_out) & set(first.learned)
    if second.start == "adapter 1":
        card = read_adapter_folder(cohort.adapter(2)).card
        assert card.recipe["start"] == f"adapter {folder.digest[:12]}"

    def with_another(state: CohortState) -> CohortState:
        return replace(state, labels={**state.labels, 2: "cyst"})

    cohort.change(with_another)
    both = truth(3).copy()
    both[2:4, 2:8, 2:8] = 2
    accept(cohort, first.learned[-1], both)
    told.clear()
    third = retrain(cohort, progress=told.append)
    assert third.start == "base" and {one.parts for one in told} == {1}, "adapter 1 does not know the new structure"
    assert read_adapter_folder(cohort.adapter(3)).card.labels == ("blob", "cyst")


def test_everybody_sees_that_an_adapter_is_trained_and_cases_are_proposed(tiny, unexported, tmp_path, capsys):
    cohort, told = small_cohort(tmp_path, count=6, labelled=5), []

    def status(*_) -> None:
        capsys.readouterr()
        assert main(["cohort", "status", str(cohort.folder), "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))

    status()
    retrain(cohort, progress=status)
    use(cohort)
    propose(cohort, device="cpu", progress=status)
    status()
    assert "cohort train" in told[0]["advice"] and not told[0]["running"] and not told[-1]["running"]
    assert all("Wait for the" in one["advice"] for one in told[1:-2])
    sentences = [sentence for one in told for sentence in one["running"].values()]
    assert sentences[0].startswith("Training 1 of 1")
    assert f"(process {os.getpid()}, for less than a minute)" in sentences[0]
    assert any(sentence.startswith("Proposing case") for sentence in sentences)
    assert not running(cohort.folder) and {*(cohort.folder / PROPOSALS).iterdir()} == {
        cohort.proposal(case.key) for case in cohort.state.those("proposed")
    }


def test_a_cohort_whose_adapter_is_gone_is_trained_anew(tiny, unexported, tmp_path):
    cohort = small_cohort(tmp_path, count=4, labelled=4)
    retrain(cohort)
    use(cohort)
    shutil.rmtree(cohort.adapter(1))
    again = retrain(cohort)
    assert again.start == "base" and not again.dice_before
    assert again.reason.startswith("Adapter 1 is gone or damaged, so this training began anew.")
    assert read_adapter_folder(cohort.adapter(2)).card.recipe["evidence"] == again.reason


def test_labels_that_began_as_its_own_proposals_do_not_judge_for_the_adapter_in_use(tiny, tmp_path):
    cohort = small_cohort(tmp_path, count=9, labelled=4)
    # By their digests patient 7 is always held out, and 4 and 8 would judge before 0 and 3.
    names = {case.key: case.patient[-1] for case in cohort.state.cases}

    def accept_proposed(numbers, adapter: int) -> None:
        for number in numbers:
            key = cohort.state.cases[number].key
            cohort.change(lambda now, key=key: now.with_case(key, proposal=Proposal(adapter, {"blob": 0.9})))
            accept(cohort, key, truth(number))

    def compared(number: int) -> str:
        return "".join(sorted(names[key] for key in read_adapter_folder(cohort.adapter(number)).card.gains[0].cases))

    first = retrain(cohort)
    assert compared(1) == "03" and "not compared" not in first.reason
    use(cohort)
    accept_proposed(range(4, 9), adapter=1)
    second = retrain(cohort)
    assert "".join(sorted(names[key] for key in second.held_out)) == "037" and compared(2) == "03"
    assert "1 further case is held out but not compared" in second.reason
    use(cohort)
    accept_proposed(range(9), adapter=2)  # now no other case is left
    third = retrain(cohort)
    assert set(third.held_out) == set(second.held_out) and compared(3) == "037" and "not compared" not in third.reason


def test_isotropic_volumes_are_learned_in_all_orientations_and_so_judged(tiny, tmp_path, monkeypatch):
    from SAMFineTuneLib.inference import automatic_head

    cohort, seen, whole = small_cohort(tmp_path, 3, 3, np.diag([-1.0, -1.0, 1.5, 1.0])), [], automatic_head.slice_logits

    def slice_logits(predictor, volume, window, orientations, *others, **named):
        seen.append(orientations)
        return whole(predictor, volume, window, orientations, *others, **named)

    monkeypatch.setattr(automatic_head, "slice_logits", slice_logits)
    retrain(cohort)
    assert read_adapter_folder(cohort.adapter(1)).card.recipe["orientation"] == "all"
    assert [len(orientations) for orientations in seen] == [3, 3], "of the two that are held out"


def test_a_stopped_training_goes_on_and_a_changed_case_begins_it_anew(tiny, tmp_path):
    from SAMFineTuneLib.training.stopping import Stopped

    cohort, told = small_cohort(tmp_path, count=4, labelled=4), []
    with pytest.raises(Stopped):
        retrain(cohort, progress=told.append, cancelled=lambda: any(one.step == 1 for one in told))
    assert (cohort.folder / TRAINING).is_dir() and not cohort.state.adapters
    with pytest.raises(Stopped):
        retrain(cohort, progress=told.append, cancelled=lambda: told[-1].sentence.endswith("continue where it stopped"))
    learned = next(case for case in cohort.state.accepted if case not in held_out(cohort.state))
    accept(cohort, learned.key, np.roll(truth(1), 2, axis=1))
    told.clear()
    trained = retrain(cohort, progress=told.append)
    steps = [one.step for one in told if one.stage == "training" and one.steps]
    assert steps == [1, 2] and trained.number == 1, "its labels are new, so nothing of the old training is used"
    assert told[0].sentence.endswith(": reading the cases") and any("writing" in one.sentence for one in told)


def test_running_out_of_memory_is_one_sentence_and_one_process_trains(tiny, tmp_path):
    cohort = small_cohort(tmp_path, count=4, labelled=4)

    def fail(now) -> None:
        raise MemoryError

    with pytest.raises(UserError, match="ran out of memory; close other programs"):
        retrain(cohort, progress=fail)
    code = "import sys; from SAMFineTuneLib.process_lock import owning; from pathlib import Path\n"
    code += "with owning(Path(sys.argv[1]), 'It'): print('owned', flush=True); sys.stdin.readline()"
    other = subprocess.Popen([sys.executable, "-c", code, str(cohort.folder / TRAINING)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert other.stdout.readline() == "owned\n"
        with pytest.raises(UserError, match="The training of this cohort is running"):
            retrain(cohort)
    finally:
        other.communicate("go\n")


_KILLED = """
import os, signal, sys
import torch
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.retraining import retrain
from SAMFineTuneLib.training.training_settings import PRESETS

torch.set_num_threads(1)
PRESETS["quick"].update(steps=2, batch=1, objects=1, rounds=1, least_shown=None)
folder, where = sys.argv[1:]
moved = False

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def hook(event, arguments):
    global moved
    if moved and event == "open":
        die()  # it is in its place, and the history does not say so yet
    moved = moved or (where == "moved" and event == "os.rename" and str(arguments[1]).endswith("adapters/1"))

def told(now):
    if now.stage == where and (where != "training" or now.step == 2):
        die()

sys.addaudithook(hook)
retrain(Cohort(folder), progress=told)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_kill_at_any_moment_leaves_a_cohort_that_opens_and_a_training_that_goes_on(tiny, root, tmp_path):
    cohort, whole = (small_cohort(tmp_path / name, count=4, labelled=4) for name in ("killed", "whole"))
    for where in ("training", "judging", "moved"):
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", _KILLED, str(cohort.folder), where], env=environment)
        assert done.returncode == -signal.SIGKILL
        opened = Cohort(cohort.folder).state
        assert len(opened.accepted) == 4 and not opened.adapters
    assert cohort.adapter(1).is_dir()
    told: list = []
    trained, other = retrain(cohort, progress=told.append), retrain(whole)
    assert not told, "all was done but the last line"
    assert replace(trained, date="") == replace(other, date="") and cohort.state.adapters == (trained,)
    names = ("adapter_model.safetensors", "class_head.safetensors")
    assert all((cohort.adapter(1) / name).read_bytes() == (whole.adapter(1) / name).read_bytes() for name in names)
    assert not (cohort.folder / TRAINING).exists()
