"""`samfinetune train`: checks cases, trains, says what it gained, and speaks JSON to programs."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from case_files import blob, case_folder, save
from small_files import small_files_only

from SAMFineTuneLib.files import sha256_of

BRIEF = ("--steps", 2, "--batch", 1, "--rounds", 1, "--test-slices", 1, "--device", "cpu")
FEW = (*BRIEF, "--no-add")


@pytest.fixture
def cases(tmp_path):
    return case_folder(tmp_path / "cases", count=2, shape=(4, 32, 32))


def test_a_training_from_the_command_line(samfinetune, cases, tmp_path):
    result = samfinetune("train", cases, "-o", tmp_path / "adapter", "--label", "1", "--shots", 1, "--name", "mine",
                         *BRIEF)  # fmt: skip
    assert result.code == 0, result.err
    assert "use it with --adapter mine" in result.out
    assert "mine" in samfinetune("adapters", "list").out
    again = samfinetune("train", cases, "-o", tmp_path / "other", "--name", "mine", *BRIEF)
    assert again.code == 2 and "already" in again.err and "--no-add" in again.err, "said before hours are spent"
    assert "evidence    This adapter answered 1 case of a patient" in result.out and "1 box, label 1" in result.out
    assert (tmp_path / "adapter" / "report" / "index.html").is_file()
    assert "step 2 of 2, loss" in result.err and "0 s left" not in result.err
    shown = samfinetune("adapters", "show", "mine")
    assert shown.code == 0 and "label 1" in shown.out and "ONNX Runtime" in shown.out


@pytest.mark.parametrize("command", [("train",), ("train", "--check"), ("evaluate",)])
def test_a_place_that_cannot_be_written_is_refused_before_cases_are_read(samfinetune, tmp_path, command):
    (tmp_path / "file").write_text("")
    result = samfinetune(*command, tmp_path / "no cases", "-o", tmp_path / "file" / "results")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "file" in result.err and "no cases" not in result.err


def test_what_was_trained_runs_without_pytorch_wherever_its_folder_is_copied(
    samfinetune, another_computer, cases, tmp_path
):
    trained = samfinetune("train", cases, "-o", tmp_path / "mine", "--folds", 0, *FEW)
    assert trained.code == 0 and "note" not in trained.out, trained.out + trained.err
    copy = shutil.copytree(tmp_path / "mine", tmp_path / "in an e-mail" / "Größe")
    shutil.rmtree(tmp_path / "mine")
    scan = next((cases / "images").iterdir())
    for command in (
        ("segment", scan, "-o", "a.nii.gz", "--space", "ijk", "--box", "8,8,1,24,24,1", "--adapter", copy),
        ("segment", scan, "-o", "b.nii.gz", "--auto", "--adapter", copy),
        ("adapters", "import", copy, "--name", "theirs"),
        ("segment", scan, "-o", "c.nii.gz", "--auto", "--adapter", "theirs"),
    ):
        result = another_computer(*command)
        assert result.code == 0 and result.err == "", result.err
        assert "ONNX Runtime" in result.out or "It runs without PyTorch." in result.out, result.out
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


def test_json_progress_is_one_object_a_line(samfinetune, cases, tmp_path):
    result = samfinetune("train", cases, "-o", tmp_path / "a", "--folds", 0, "--json-progress", "--heads", "promptable",
                         "--method", "adapter", "--scope", "decoder", *FEW)  # fmt: skip
    assert result.code == 0, result.err
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [one["step"] for one in events if one.get("stage") == "training"] == [1, 2]
    assert events[-1]["event"] == "done" and events[-1]["gains"] == []
    assert "No case was held out" in events[-1]["evidence"] and Path(events[-1]["adapter"], "card.json").is_file()


def test_check_says_what_would_be_done_and_writes_nothing(samfinetune, cases, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    result = samfinetune("train", cases, "-o", tmp_path / "a", "--check", *FEW)
    assert result.code == 0 and "2, of 2 patients, 4 labelled slices" in result.out and "label 1" in result.out
    assert "base        compact" in result.out and "quick: 3 trainings of 2 steps each" in result.out
    learned = [line for line in result.out.splitlines() if line.startswith("training ")]
    assert len(learned) == 3 and "is tested on 1 case (" in learned[0]
    assert "learns from 2 cases (a, b), is not tested (the adapter)" in learned[2]
    assert "time        about " in result.out and "disk        up to " in result.out
    result = samfinetune("train", cases, "-o", tmp_path / "a", "--check", "--json-progress", *FEW)
    found, plan = map(json.loads, result.out.splitlines())
    assert found["event"] == "cases" and plan["trainings"] == 3 and plan["steps"] == [2, 2, 2] and plan["seconds"] > 0
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--label", "9"), "No case has the label 9"),
        (("--shots", 3), "3 shots cannot be drawn from 2 patients"),
        (("--folds", 5), "5 folds cannot be made of 2 patients"),
        (("--blocks", "a"), "--blocks a is not a list of numbers"),
        (("--model", "none"), "There is no model 'none'"),
        (("--blocks", "99"), "no block 99"),
        (("--rank", 0), "rank of LoRA is 0"),
        (("--alpha", 0), "alpha of LoRA is 0"),
        (("--seed", -1), "seed is -1"),
        (("--seed", 10**30), "choose a whole number from 0 to"),
        (("--steps", 10**30), "choose a whole number from 1 to"),
        (("--start", ""), "after --start is empty"),
        (("--method", "vanilla", "--rank", 8), "--rank belongs to --method lora"),
        (("--method", "adapter", "--dropout", 0), "--dropout belongs to --method lora"),
        (("--method", "vanilla", "--blocks", "1"), "leave them out here"),
        (("--scope", "decoder", "--blocks", "1"), "leave them out here"),
        (("--window", "ct-foo"), "ct-foo"),
        (("--validation", 2), "2 patients cannot be set aside"),
        (("--device", "cuda:99"), "cannot train on 'cuda:99'"),
        (("--resume",), "no interrupted training"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_by_check_and_run_alike(samfinetune, cases, tmp_path, options, sentence):
    for check in ((), ("--check",)):
        result = samfinetune("train", cases, "-o", tmp_path / "a", *FEW, *options, *check)
        assert result.code == 2 and sentence in result.err and len(result.err.strip().splitlines()[-1]) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["cases"], "a refused run leaves nothing"


def test_an_adapter_does_not_lie_among_the_cases(samfinetune, cases):
    before = sorted(cases.rglob("*"))
    result = samfinetune("train", cases, "-o", cases / "images" / "a", "--check", *FEW)
    assert result.code == 2 and "lies among the images or labels of" in result.err
    assert sorted(cases.rglob("*")) == before


def test_a_running_training_is_left_alone(fresh_python, samfinetune, cases, tmp_path):
    command = ("train", cases, "-o", tmp_path / "a", "--folds", 0, *FEW, "--steps", 500, "--json-progress")
    running = fresh_python("-m", "SAMFineTuneLib.cli", *command)
    for line in running.stdout:
        if json.loads(line).get("step") == 1:
            break
    for more in ((), ("--resume",), ("--check",)):
        result = samfinetune(*command, *more)
        said = json.loads(result.out.splitlines()[-1])["message"]
        assert result.code == 2 and f"is running (process {running.pid}, for " in said and "delete" not in said
    assert running.poll() is None
    running.kill()
    running.communicate()
    again = samfinetune(*command[:-2], 3, "--resume")
    assert again.code == 2 and "had other settings" in again.err, "a kill lets go of it at once"


def test_errors_are_json_for_programs(samfinetune, cases, tmp_path):
    result = samfinetune("train", cases, "-o", tmp_path / "a", "--label", "9", "--json-progress", *FEW)
    assert result.code == 2 and "No case has" in json.loads(result.out.splitlines()[-1])["message"]


def test_a_patient_on_both_sides_is_refused(samfinetune, cases, tmp_path):
    result = samfinetune("train", cases, "--test", cases, "-o", tmp_path / "a", *FEW)
    assert result.code == 2 and "both the training and the test cases" in result.err
    result = samfinetune("train", cases, "--test", cases, "-o", tmp_path / "a", "--check", *FEW)
    assert result.code == 2 and "both the training and the test cases" in result.err


def test_ctrl_c_stops_and_resume_goes_on(fresh_python, samfinetune, cases, tmp_path):
    command = ("train", cases, "-o", tmp_path / "a", "--folds", 0, *FEW, "--steps", 6, "--json-progress")
    running = fresh_python("-m", "SAMFineTuneLib.cli", *command)
    for line in running.stdout:
        if json.loads(line).get("step") == 1:
            os.kill(running.pid, signal.SIGINT)
            break
    out, error = running.communicate(timeout=120)
    assert running.returncode == 130 and "--resume" in error, error
    result = samfinetune(*command, "--resume")
    steps = [event["step"] for event in map(json.loads, result.out.splitlines()) if event.get("stage") == "training"]
    assert result.code == 0 and 1 < steps[0] and steps[-1] == 6


def test_a_disk_that_refuses_stops_and_resume_goes_on(samfinetune, cases, tmp_path):
    command = ("train", cases, "-o", tmp_path / "adapter", "--label", "1", "--folds", 0, *FEW)
    with small_files_only():
        refused = samfinetune(*command)
    assert refused.code == 2 and "checkpoint.pt” would be larger" in refused.err
    assert refused.err.endswith("then continue with the same command and --resume.\n")
    assert not (tmp_path / "adapter").exists()
    resumed = samfinetune(*command, "--resume")
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "adapter" / "card.json").is_file() and not (tmp_path / ".adapter.training").exists()


def test_a_training_whose_loss_is_not_a_number_ends_with_a_sentence(samfinetune, cases, root, tmp_path):
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(root / "Resources" / "models" / "compact", tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    huge = {name: value.float() * 1e30 if name.startswith("mask_decoder.output_upscaling") else value
            for name, value in weights.items()}  # fmt: skip
    save_file(huge, base / "model.safetensors")
    described = json.loads((base / "model.json").read_text())
    described["sha256"]["model.safetensors"] = sha256_of(base / "model.safetensors")
    (base / "model.json").write_text(json.dumps(described))
    result = samfinetune("train", cases, "-o", tmp_path / "a", "--model", base, "--folds", 0, *FEW)
    assert result.code == 2 and "The training diverged" in result.err and not (tmp_path / "a").exists()


def test_case_files_are_never_written_to(samfinetune, tmp_path):
    folder = case_folder(tmp_path / "cases", count=1)
    save(folder / "labels" / "a.nii.gz", blob())
    before = {path: path.read_bytes() for path in folder.rglob("*.nii.gz")}
    samfinetune("train", folder, "-o", tmp_path / "a", "--check")
    assert before == {path: path.read_bytes() for path in folder.rglob("*.nii.gz")}


def test_an_encoder_is_pretrained_on_unlabelled_volumes_and_then_adapted(samfinetune, cases, tmp_path):
    out = tmp_path / "ours"
    result = samfinetune("pretrain", "--volumes", cases / "images", "-o", out, "--steps", 1, "--device", "cpu")
    assert result.code == 0 and "adapt it with" in result.out, result.err
    trained = samfinetune("train", cases, "-o", tmp_path / "a", "--model", out, "--folds", 0, *FEW)
    assert trained.code == 0, trained.err
    assert samfinetune("pretrain", "--volumes", cases, "--synthetic", "-o", out, "--steps", 1).code == 2
    assert samfinetune("pretrain", "--volumes", cases, "-o", out, "--minutes", 1).code == 2
