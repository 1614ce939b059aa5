"""`samfinetune evaluate` on small cases: the same at every run, however it is spread, and after a kill."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from case_files import blob, case_folder, image_of, save

from SAMFineTuneLib.cases.cases import find_cases
from SAMFineTuneLib.cli import main
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.evaluation import evaluation_run as run
from SAMFineTuneLib.evaluation import executors as engines
from SAMFineTuneLib.evaluation import methods
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings, parse_protocols

FEW = ("--slices", "1", "--steps", "2", "--rounds", "1", "--baseline", "growing")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return case_folder(tmp_path_factory.mktemp("cases"), count=2, shape=(4, 40, 40))


@pytest.fixture(scope="module")
def whole(cases, tmp_path_factory):
    """An evaluation that ran in one process, undisturbed."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert evaluate(cases, output, *FEW, "--jobs", "1") == 0
    return output


def evaluate(*words) -> int:
    return main.main(["evaluate", *map(str, words[:1]), "-o", *map(str, words[1:])])


def test_what_an_evaluation_leaves(whole, cases):
    with open(whole / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["contestant"] for row in rows} == {"compact", "growing", "reference"}
    assert {row["protocol"] for row in rows} == set(parse_protocols(None)) - {"automatic"}
    assert len({row["case"] for row in rows}) == len({row["patient"] for row in rows}) == 2
    boxes = [float(row["dice"]) for row in rows if row["contestant"] == "compact" and row["protocol"] == "S5"]
    assert len(boxes) == 2 and min(boxes) > 0.8
    summary = json.loads((whole / "summary.json").read_text())
    assert [table["name"] for table in summary["tables"]] == [
        "prompts", "paired", "perturbation", "interactive", "clicks", "volume boxes", "volume clicks", "volumes",
        "distance", "seconds",
    ]  # fmt: skip
    assert any("no automatic head" in note for note in summary["notes"])
    with open(whole / "cases.csv", newline="") as file:
        assert {line["name"] for line in csv.DictReader(file)} == {"a", "b"}


def test_nothing_that_is_passed_on_names_a_case(whole, cases):
    for file in ("results.csv", "summary.json", "report.html"):
        text = (whole / file).read_text()
        assert str(cases) not in text and ".nii" not in text


def test_the_report_opens_offline(whole):
    text, pictures = re.subn(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:", (whole / "report.html").read_text())
    assert pictures == 6 + 4  # of two objects there is no median
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", text) and "http" not in text and "<script" not in text
    for title in ("One prompt, one answer", "Misplaced prompts", "Whole volumes from the middle slice",
                  "An annotator&#x27;s time", "Best, median and worst"):  # fmt: skip
        assert title in text
    drawn = {file.name for file in (whole / "pictures").iterdir()}
    assert drawn == {f"1-{strategy}-{rank}.png" for strategy in ("S2", "S5") for rank in ("best", "worst")}


def test_the_same_again_in_two_processes_and_under_other_names(whole, cases, tmp_path):
    renamed = tmp_path / "renamed"
    for kind in ("images", "labels"):
        (renamed / kind).mkdir(parents=True)
        for old, new in zip("ab", "zy", strict=True):
            shutil.copy(cases / kind / f"{old}.nii.gz", renamed / kind / f"{new}.nii.gz")
    assert evaluate(renamed, tmp_path / "out", *FEW, "--jobs", "2") == 0
    for file in ("results.csv", "summary.json", "report.html"):
        assert (tmp_path / "out" / file).read_bytes() == (whole / file).read_bytes(), file


def test_the_same_on_a_cluster_of_two_workers(whole, cases, tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "local_directory": str(tmp_path)}
    with distributed.LocalCluster(**options) as cluster:
        spread = ("--engine", "dask", "--scheduler", cluster.scheduler_address)
        assert evaluate(cases, tmp_path / "out", *FEW, *spread) == 0
        with distributed.Client(cluster) as client:
            stories = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.transition_counter)
            assert len(client.scheduler_info()["workers"]) == 2 and stories > 10
    assert (tmp_path / "out" / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_after_a_kill_it_goes_on_and_ends_the_same(whole, cases, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["evaluate", str(cases), "-o", str(output), *FEW, "--jobs", "2"]
    command = [sys.executable, "-m", "SAMFineTuneLib.cli", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, cwd=Path(__file__).resolve().parents[2])
    try:
        until = time.monotonic() + 60
        while len(list(output.glob("parts/*.csv"))) < 5:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        assert evaluate(cases, output, *FEW, "--jobs", "1", "--resume") == 2
        assert f"is running (process {process.pid}, for " in capsys.readouterr().err
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (output / "results.csv").exists()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive  # nobody goes on working for who has died
    done = {file.name: file.stat().st_mtime_ns for file in output.glob("parts/*.csv")}
    (output / "parts" / sorted(done)[0]).write_text("cut sho")  # as a full disk leaves it
    assert evaluate(cases, output, *FEW, "--jobs", "1") == 2  # not without being told to
    assert evaluate(cases, output, *FEW, "--jobs", "1", "--resume") == 0
    assert (output / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    kept = [name for name, changed in done.items() if (output / "parts" / name).stat().st_mtime_ns == changed]
    assert len(kept) == len(done) - 1


def test_resuming_with_more_to_ask_does_only_that(cases, tmp_path, capsys):
    assert evaluate(cases, tmp_path / "out", "--protocol", "S5", "--baseline", "none", "--jobs", "1") == 0
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("out/parts/*")}
    capsys.readouterr()
    more = ("--protocol", "S5,S2", "--baseline", "otsu", "--jobs", "1", "--resume")
    assert evaluate(cases, tmp_path / "out", *more) == 0
    assert all((tmp_path / "out" / "parts" / name).stat().st_mtime_ns == changed for name, changed in before.items())
    out, err = capsys.readouterr()
    assert "| otsu | S2: 1 point inside |" in out and "8 of 8 jobs" in err


def test_resuming_after_labels_got_another_meaning_measures_them_again(tmp_path):
    cases = tmp_path / "cases"
    for name, seed in (("a", 0), ("b", 1)):
        labels = blob((4, 40, 40), (12, 12), 6, 1) + blob((4, 40, 40), (28, 28), 4, 2)
        save(cases / "imagesTr" / f"{name}_0000.nii.gz", image_of(labels, seed))
        save(cases / "labelsTr" / f"{name}.nii.gz", labels)

    def measured(folder, *more, **regions):
        (cases / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **regions}}))
        assert evaluate(cases, tmp_path / folder, "--protocol", "S5", "--baseline", "none", "--jobs", "1", *more) == 0
        return (tmp_path / folder / "results.csv").read_bytes()

    first = measured("out", liver=1, spleen=2)
    again = measured("out", "--resume", liver=2, spleen=1)
    assert again == measured("anew", liver=2, spleen=1) != first


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--protocol", "S9"), "There is no protocol 'S9'"),
        (("--baseline", "snake"), "There is no baseline 'snake'; choose from otsu"),
        (("--label", "9"), "No case has the label 9"),
        (("--model", "none"), "There is no model 'none'"),
        (("--adapter", "none"), "There is no adapter 'none'"),
        (("--model", "compact", "--model", "compact"), "compact is named twice"),
        (("--slices", "0"), "Slices and steps are 1 or more"),
        (("--tolerance", "inf"), "The tolerance of the NSD is a number of millimetres"),
        (("--jobs", "0"), "1 process or more"),
        (("--seconds", "box=x"), "'box=x' is not a time"),
        (("--scheduler", "tcp://nowhere:1"), "add --engine dask"),
        (("--engine", "dask", "--scheduler", "nowhere"), "No Dask scheduler answers at nowhere"),
        (("--engine", "dask", "--jobs", "-1"), "1 process or more"),
        (("--engine", "dask", "--scheduler", "tcp://nowhere:1", "--jobs", "2"), "leave it out with --scheduler"),
        (("--protocol", "automatic", "--baseline", "none"), "There is nothing to do"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(cases, tmp_path, capsys, options, sentence):
    assert evaluate(cases, tmp_path / "out", *options) == 2
    assert sentence in capsys.readouterr().err
    assert "--engine" in options or not (tmp_path / "out").exists(), "nothing is left that would need --resume"


def test_folders_of_others_are_left_alone(cases, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert evaluate(cases, tmp_path, "--protocol", "S5") == 2
    assert "holds something else" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    for folder in ("images", "labels/deeper"):
        assert evaluate(cases, cases / folder / "out", "--protocol", "S5") == 2
        assert "lies among the images or labels of" in capsys.readouterr().err
        assert not (cases / folder / "out").exists()


def test_cases_that_taught_an_adapter_do_not_test_it(cases, tmp_path):
    found = find_cases(cases)
    compact = methods.enter([], [])[0]
    settings = EvaluationSettings(("S5",), slices=1)
    taught = replace(compact, name="pupil", taught=(found[0].digest,))
    result = run.evaluate(found, tmp_path / "out", [compact, taught], settings, engine=engines.local(1))
    assert result.cases == 1 and "pupil learned from 1 of the patients" in " ".join(result.notes)
    assert found[0].digest[:12] not in (tmp_path / "out" / "results.csv").read_text()
    all_taught = replace(compact, name="pupil", taught=tuple(case.digest for case in found))
    with pytest.raises(UserError, match="learned from every one of these patients"):
        run.evaluate(found, tmp_path / "other", [all_taught], settings)


def test_pictures_without_a_third_dimension(tmp_path):
    import numpy as np
    from case_files import blob, image_of
    from PIL import Image

    for number in range(2):
        labels = blob((3, 40, 40), (20.0, 18.0 + number))[1]
        for kind, array in (("images", image_of(labels, number)), ("masks", labels * 255)):
            (tmp_path / "cases" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / "cases" / kind / f"p{number}x.png")
    assert evaluate(tmp_path / "cases", tmp_path / "out", "--protocol", "S5,3d,factors", "--jobs", "1") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["labels"] == ["foreground"] and "volumes" not in [table["name"] for table in summary["tables"]]


def test_specks_are_no_objects(tmp_path, capsys):
    import numpy as np

    folder = case_folder(tmp_path / "cases", count=1, shape=(4, 40, 40))
    speck = np.zeros((4, 40, 40), np.uint8)
    speck[1, 3:6, 3:6] = 1
    save(folder / "labels" / "a.nii.gz", speck)
    assert evaluate(folder, tmp_path / "out", "--baseline", "none", "--jobs", "1") == 0
    assert "No label has a piece of 20 pixels or more" in capsys.readouterr().out
    assert "No label has a piece" in (tmp_path / "out" / "report.html").read_text()


def test_factors_alone_say_what_they_lack(cases, tmp_path, capsys):
    options = ("--protocol", "factors", "--slices", "1", "--baseline", "none", "--jobs", "1")
    assert evaluate(cases, tmp_path / "out", *options) == 0
    out, err = capsys.readouterr()
    assert "takes one of S2 to S6 and answers to 8 objects or more" in out and "0 s left" not in err
    page = (tmp_path / "out" / "report.html").read_text()
    assert "takes one of S2 to S6" in page and "up to 1 slice of each label and case<tr>" in page


def test_a_missing_package_is_named(cases, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert evaluate(cases, tmp_path / "out", "--engine", "dask") == 2
    assert 'pip install "samfinetune[cluster]"' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert evaluate(cases, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "scikit-image, which is not installed" in said and 'pip install "samfinetune[evaluation]"' in said


def test_evaluating_the_bundled_model_loads_no_pytorch(cases, tmp_path):
    words = ["evaluate", str(cases), "-o", str(tmp_path / "out"), "--protocol", "S5,3d", "--rounds", "0", "--jobs", "1"]
    code = f"import sys; from SAMFineTuneLib.cli import main; main.main({words!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
                          cwd=Path(__file__).resolve().parents[2])  # fmt: skip
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_an_image_that_changes_meanwhile_is_noticed(tmp_path):
    folder = case_folder(tmp_path / "cases", count=1, shape=(4, 40, 40))
    found = find_cases(folder)

    def change_then_do(do, jobs):
        labels = __import__("case_files").blob((4, 40, 40), (10.0, 10.0))
        save(folder / "labels" / "a.nii.gz", labels)
        return engines.local(1)(do, jobs)

    with pytest.raises(UserError, match="Case a has changed since the evaluation began"):
        run.evaluate(found, tmp_path / "out", methods.enter_baselines(["otsu"]), EvaluationSettings(("S5",)),
                     engine=change_then_do)  # fmt: skip
