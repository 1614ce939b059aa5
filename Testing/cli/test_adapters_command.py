"""`samfinetune adapters` and `segment --adapter` and `--auto`, run on an adapter of random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SAMFineTuneLib.images import body_phantom, write_dicom_series

CLASSES = ("background", "liver", "spleen")


@pytest.fixture(scope="session")
def adapter(tmp_path_factory) -> Path:
    """The folder of an adapter of the bundled model, promptable and automatic."""
    from tuned_models import shake

    from SAMFineTuneLib.models.adapters.adapter_card import Gain
    from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, save_adapter
    from SAMFineTuneLib.models.load_model import load_network
    from SAMFineTuneLib.models.store import Store

    base = Store().get("compact")
    method = Method(heads=("promptable", "automatic"), classes=CLASSES)
    network = shake(attach(load_network(base.file("weights"))[1], base.spec, method))
    gain = Gain("1 point", ("1f", "2e"), (0.4, 0.5), (0.7, 0.9), interval_after=(0.7, 0.9))
    liver = Gain("1 point", ("1f", "2e"), (0.1, 0.1), (0.2, 0.2), "liver")
    alone = Gain("automatic", ("1f", "2e"), (None, None), (0.95, 0.95), "all labels")
    recipe = {"steps": 120, "modality": "MR"}
    card = Card(CLASSES[1:], recipe, ("aa", "bb", "cc"), (alone, liver, gain), {"loss": (1.0, 0.5)}, 300.0, "two cores")
    folder = tmp_path_factory.mktemp("trained") / "organs"
    save_adapter(folder, network, base, method, card)
    return folder


@pytest.fixture
def here(adapter, tmp_path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(adapter, tmp_path / "organs")


@pytest.fixture(scope="session")
def exported(adapter, tmp_path_factory) -> Path:
    """The same adapter with its ONNX files."""
    from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
    from SAMFineTuneLib.models.adapters.merged_export import export_adapter
    from SAMFineTuneLib.models.store import Store

    folder = shutil.copytree(adapter, tmp_path_factory.mktemp("exported") / "organs")
    export_adapter(read_adapter_folder(folder), Store().get("compact"))
    return folder


@pytest.fixture
def ready(exported, tmp_path) -> Path:
    """A copy of that which a test may change."""
    return shutil.copytree(exported, tmp_path / "organs")


@pytest.fixture
def volumes(tmp_path) -> Path:
    """A folder with a NIfTI and a DICOM series of four slices each."""
    folder = tmp_path / "scans"
    for seed, name in ((1, "one"), (2, "two")):
        volume, _, _ = body_phantom(seed, shape=(4, 40, 40), spacing=(8.0, 8.0, 20.0))
        write_dicom_series(volume, folder / name)
    image = sitk.GetImageFromArray(volume.array.astype(np.int16))
    sitk.WriteImage(image, str(folder / "three.nii.gz"))
    return folder


def test_import_list_show_compare_remove(samfinetune, here):
    assert "There are no adapters yet" in samfinetune("adapters", "list").out
    added = samfinetune("adapters", "import", here, "--name", "mine")
    assert added.code == 0 and "--adapter mine" in added.out and "runs without PyTorch" in added.out
    listed = samfinetune("adapters", "list").out
    assert [word in listed for word in ("mine", "compact", "liver, spleen", "LoRA of rank 4", "0.450", "0.800")]
    row = next(line for line in listed.splitlines() if line.startswith("mine"))
    assert row.split()[-4:] == ["1", "point", "0.450", "0.800"], "over all labels, and of a prompt that both answer"
    assert listed.splitlines()[0].split()[-4:] == ["PROMPT", "DICE", "BEFORE", "AFTER"]
    shown = samfinetune("adapters", "show", "mine").out
    assert "Dice 0.450 before, 0.800 (0.700 to 0.900) after, on 2 held-out cases" in shown
    assert "automatic, all labels  no answer before, 0.950 after" in shown
    assert "5 min" in shown and "steps 120" in " ".join(shown.split())
    table = samfinetune("adapters", "compare", "mine", here).out
    assert table.splitlines()[0].split() == ["name", "mine", "organs"] and "cannot be compared" not in table
    card = json.loads((here / "card.json").read_text())
    other = [{**gain, "cases": ["1f"], "before": [0.4], "after": [0.7]} for gain in card["gains"]]
    (here / "card.json").write_text(json.dumps(card | {"gains": other}))
    table = samfinetune("adapters", "compare", "mine", here).out
    assert "on 1 held-out case\n" in table and "not tested on the same cases, so their Dice cannot be compared" in table
    again = samfinetune("adapters", "import", here, "--name", "mine")
    assert again.code == 2 and "already" in again.err
    assert samfinetune("adapters", "remove", "mine").code == 0
    gone = samfinetune("adapters", "show", "mine")
    assert gone.code == 2 and "There is no adapter 'mine'; the adapters on this computer are: none." in gone.err


def test_a_damaged_adapter_is_listed_as_such_and_can_be_removed(samfinetune, ready, tmp_path):
    samfinetune("adapters", "import", ready, "--name", "mine")
    with open(tmp_path / "home" / "adapters" / "mine" / "adapter_model.safetensors", "ab") as file:
        file.write(b"!")
    listed = samfinetune("adapters", "list")
    assert listed.code == 0 and "Not usable:" in listed.out and "damaged or was replaced" in listed.out
    used = samfinetune("segment", "nothing.nii.gz", "-o", "x.nii.gz", "--auto", "--adapter", "mine")
    assert used.code == 2 and "damaged or was replaced" in used.err and used.err.count("\n") == 1
    assert samfinetune("adapters", "remove", "mine").code == 0
    assert not (tmp_path / "home" / "adapters" / "mine").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [("labels", [1]), ("labels", "liver"), ("recipe", 3), ("date", ["x"]), ("seconds", "long"), ("files", 3),
     ("gains", [{"prompt": "1 box", "cases": ["a"], "before": [0.5], "after": ["high"]}]),
     ("gains", [{"prompt": "1 box", "cases": ["a"], "before": [0.5], "after": [0.6], "interval_after": [0.5]}]),
     ("gains", [{"prompt": 1, "cases": [], "before": [], "after": []}]), ("method", None), ("curves", {"loss": 1})],
    ids=str,
)  # fmt: skip
def test_a_card_with_other_values_is_one_sentence(samfinetune, here, field, value):
    card = json.loads((here / "card.json").read_text())
    (here / "card.json").write_text(json.dumps(card | {field: value}))
    for command in (("show", here), ("compare", here, here), ("import", here)):
        done = samfinetune("adapters", *command)
        assert done.code == 2 and "card.json is damaged" in done.err and done.err.count("\n") == 1


def test_a_name_comes_before_a_folder_of_that_name(samfinetune, ready, monkeypatch):
    samfinetune("adapters", "import", ready)
    monkeypatch.chdir(ready.parent)
    assert "home" in samfinetune("adapters", "show", "organs").out, "that of this computer, which is exported"
    assert "home" not in samfinetune("adapters", "show", "./organs").out


@pytest.mark.parametrize("name", ["../organs", ".", "x y", "a/b", ".hidden"])
def test_names_are_no_paths(samfinetune, here, name):
    removed = samfinetune("adapters", "remove", name)
    assert removed.code == 2 and "There is no adapter" in removed.err
    added = samfinetune("adapters", "import", here, "--name", name)
    assert added.code == 2 and "cannot be an adapter's name" in added.err
    merged = samfinetune("adapters", "merge", here, "--id", name)
    assert merged.code == 2 and "cannot be a model's id" in merged.err
    assert here.is_dir()


@pytest.mark.parametrize("name", ["con", "NUL.v2", "lpt1", "liver."])
def test_names_that_windows_cannot_have_are_refused(samfinetune, here, name):
    added = samfinetune("adapters", "import", here, "--name", name)
    assert added.code == 2 and "Windows" in added.err and "--name" in added.err
    merged = samfinetune("adapters", "merge", here, "--id", name)
    assert merged.code == 2 and "Windows" in merged.err and "--id" in merged.err


def test_automatic_on_a_folder_is_the_same_in_both_runtimes(samfinetune, here, volumes, tmp_path):
    with_torch = samfinetune("segment", volumes, "-o", tmp_path / "a", "--auto", "--adapter", here)
    assert with_torch.code == 0, with_torch.err
    assert with_torch.out.count("PyTorch") == 3
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "one.seg.nrrd", "three.seg.nrrd", "two.seg.nrrd",
    ]  # fmt: skip
    assert samfinetune("adapters", "export", here).code == 0
    without = samfinetune("segment", volumes, "-o", tmp_path / "b", "--auto", "--adapter", here, "--no-cache")
    assert without.code == 0 and without.out.count("ONNX Runtime") == 3 and "PyTorch" not in without.out
    for path in (tmp_path / "a").iterdir():
        one, other = (sitk.ReadImage(str(tmp_path / name / path.name)) for name in "ab")
        labels, others = sitk.GetArrayFromImage(one), sitk.GetArrayFromImage(other)
        assert (labels != others).mean() < 1e-3 and labels.any()
        assert [one.GetMetaData(f"Segment{i}_Name") for i in (0, 1)] == ["liver", "spleen"]
        assert set(np.unique(labels)) <= {0, 1, 2}


def test_automatic_labels_are_those_of_the_network(samfinetune, here, tmp_path):
    """An independent way: the merged network on the picture of a slice, its logits resized by torch."""
    import torch
    from tuned_models import load_adapter

    from SAMFineTuneLib.images import aligned_plane, choose_window, picture, read_volume
    from SAMFineTuneLib.models.preprocess import prepare
    from SAMFineTuneLib.models.store import Store

    volume, _, _ = body_phantom(1, shape=(3, 128, 128), spacing=(3.0, 3.0, 20.0))
    image = sitk.GetImageFromArray(volume.array.astype(np.int16))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    result = samfinetune("segment", "scan.nii.gz", "-o", "labels.nii.gz", "--auto", "--adapter", here,
                         "--orientation", "axial")  # fmt: skip
    assert result.code == 0, result.err
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "labels.nii.gz")))
    read = read_volume(tmp_path / "scan.nii.gz")
    base = Store().get("compact")
    network, _ = load_adapter(here, base)
    for k in range(3):
        plane = aligned_plane(read, "axial", k)
        tensor, _ = prepare(picture(read, plane, choose_window(read, None)), base.spec)
        with torch.no_grad():
            logits = network.decode_classes(network.encode(torch.from_numpy(tensor)))
        classes = torch.nn.functional.interpolate(logits, (128, 128), mode="bilinear").argmax(1)[0].numpy()
        # The plane shows the slice as a radiologist sees it; here both of its axes run against the voxels'.
        assert min((classes != turned).mean() for turned in turns(found[k])) < 2e-3


def turns(array):
    return array, array[::-1], array[:, ::-1], array[::-1, ::-1]


def test_one_broken_volume_does_not_stop_the_others(samfinetune, here, volumes):
    (volumes / "broken.nii.gz").write_bytes(b"not an image")
    result = samfinetune("segment", volumes, "-o", "out", "--auto", "--adapter", here, "--format", ".nii.gz")
    assert result.code == 2 and "broken.nii.gz:" in result.err and "failed      1 of 4 volumes" in result.out
    assert result.out.count("written") == 3


def test_nnunet_channels_are_one_volume(samfinetune, here, volumes, tmp_path):
    for name in ("case_0000", "case_0001"):
        (tmp_path / "imagesTs").mkdir(exist_ok=True)
        shutil.copy(volumes / "three.nii.gz", tmp_path / "imagesTs" / f"{name}.nii.gz")
    result = samfinetune("segment", "imagesTs", "-o", "out", "--auto", "--adapter", here, "--format", ".nii.gz")
    assert result.code == 0 and [path.name for path in (tmp_path / "out").iterdir()] == ["case.nii.gz"]
    assert "left out: 1 file named as further channels" in result.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("scans", "-o", "out.nii.gz", "--auto"), "-o needs a folder"),
        (("scans", "-o", "scans", "--auto"), "among the input"),
        (("scans/three.nii.gz", "-o", "scans/three.nii.gz", "--auto"), "among the input"),
        (("scans/three.nii.gz", "-o", "out.nii.gz", "--auto", "--point", "1,2,3"), "--auto needs no --point"),
        (("scans/three.nii.gz", "-o", "out.nii.gz", "--auto", "--propagate", "both"), "--auto needs no --propagate"),
        (("scans/three.nii.gz", "-o", "out.nii.gz", "--auto", "--model", "sam-vit-b"), "sam-vit-b"),
    ],
)
def test_automatic_runs_that_cannot_be(samfinetune, here, volumes, arguments, said):
    before = {path: path.stat().st_mtime_ns for path in volumes.rglob("*")}
    result = samfinetune("segment", *arguments, "--adapter", here)
    assert result.code == 2 and said in result.err and result.err.count("\n") == 1
    assert before == {path: path.stat().st_mtime_ns for path in volumes.rglob("*")}


def test_without_an_automatic_head_there_is_nothing_to_find(samfinetune, volumes):
    result = samfinetune("segment", volumes / "three.nii.gz", "-o", "out.nii.gz", "--auto")
    assert result.code == 2 and "finds nothing without prompts" in result.err


def test_prompts_are_answered_with_the_adapter_and_the_encoder_is_shared_when_it_may_be(samfinetune, here, phantom):
    box = ("--space", "ijk", "--box", phantom.box("liver"))
    plain = samfinetune("segment", phantom.folder, "-o", "plain.nii.gz", *box)
    tuned = samfinetune("segment", phantom.folder, "-o", "tuned.nii.gz", *box, "--adapter", here)
    assert "note        The adapter learned from MR, and this volume is CT" in tuned.out and "MR" not in plain.out
    assert plain.code == tuned.code == 0, tuned.err
    assert f"adapter     {here}" in tuned.out and "adapter" not in plain.out
    first, second = (sitk.GetArrayFromImage(sitk.ReadImage(name)) for name in ("plain.nii.gz", "tuned.nii.gz"))
    assert (first != second).any()
    other = samfinetune("segment", phantom.folder, "-o", "x.nii.gz", *box, "--adapter", here, "--model", "nowhere")
    assert other.code == 2 and "There is no model 'nowhere'" in other.err


def test_an_exported_adapter_needs_neither_pytorch_nor_its_base(another_computer, ready, volumes, tmp_path):
    command = ("segment", volumes / "three.nii.gz", "--auto", "--adapter", ready)
    assert another_computer(*command, "-o", "with.nii.gz").code == 0
    card = json.loads((ready / "card.json").read_text())
    (ready / "card.json").write_text(json.dumps(card | {"base": "of-the-author"}))
    result = another_computer(*command, "-o", "without.nii.gz")
    assert result.code == 0, result.err
    images = [sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / f"{name}.nii.gz")) for name in ("with", "without")]
    assert np.array_equal(*images)
    shutil.rmtree(ready / "onnx")
    refused = another_computer(*command, "-o", "x.nii.gz")
    assert refused.code == 2 and "organs needs the model it was trained on. There is no model 'of-the" in refused.err


def test_importing_without_pytorch_says_what_is_missing(another_computer, here, tmp_path):
    added = another_computer("adapters", "import", here, "--name", "mine")
    assert added.code == 0 and "mine runs with PyTorch only" in added.err and "pip install" in added.err
    used = another_computer("segment", tmp_path / "organs", "-o", "x.nii.gz", "--auto", "--adapter", "mine")
    assert used.code == 2 and used.err.count("\n") == 1


def test_a_damaged_export_is_refused_on_import(samfinetune, ready, tmp_path):
    decoder = ready / "onnx" / "decoder.onnx"
    decoder.write_bytes(decoder.read_bytes()[:100_000])
    refused = samfinetune("adapters", "import", ready)
    assert refused.code == 2 and "decoder.onnx is damaged" in refused.err
    assert not (tmp_path / "home" / "adapters" / "organs").exists()


def with_tensors(folder, change):
    """An adapter whose tensors are what `change` makes of them, and whose card says so."""
    from safetensors.torch import load_file, save_file

    from SAMFineTuneLib.files import sha256_of

    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    card = json.loads((folder / "card.json").read_text())
    card["files"][file.name] = sha256_of(file)
    (folder / "card.json").write_text(json.dumps(card))


@pytest.mark.parametrize("part", [".attn.qkv.lora_", ".v_proj.lora_", "mask_decoder.iou_token."])
def test_an_adapter_without_some_of_its_tensors_is_refused(samfinetune, here, volumes, part):
    with_tensors(here, lambda tensors: {name: value for name, value in tensors.items() if part not in name})
    used = samfinetune("segment", volumes / "three.nii.gz", "-o", "x.nii.gz", "--auto", "--adapter", here)
    assert used.code == 2 and "it lacks the tensors of" in used.err and used.err.count("\n") == 1
    added = samfinetune("adapters", "import", here)
    assert added.code == 2 and "it lacks the tensors of" in added.err and not added.out
    assert "There are no adapters yet" in samfinetune("adapters", "list").out


def test_an_adapter_of_values_that_are_not_numbers_is_refused(samfinetune, here):
    import torch

    with_tensors(here, lambda tensors: tensors | {min(tensors): tensors[min(tensors)] * torch.nan})
    for command in (("adapters", "import", here), ("adapters", "show", here)):
        refused = samfinetune(*command)
        assert refused.code == 2 and "not numbers" in refused.err and "train it again" in refused.err


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("./nowhere", "There is no adapter folder"),
        ("nowhere", "There is no adapter 'nowhere'; the adapters on this computer are: none."),
        ("", "The argument after --adapter is empty"),
        ("empty", "has no adapter: choose a folder"),
        ("a-model", "is a model, not an adapter: use it with `samfinetune segment --model`"),
        ("checkpoints", "holds a checkpoint, not an adapter"),
        ("unfinished", "holds an unfinished training, not an adapter"),
        ("parent", "is not an adapter, but holds organs"),
        ("parent/organs/card.json", "is one file of an adapter: give its folder"),
        ("checkpoints/last.pth", "is a file, not an adapter"),
    ],
)
def test_a_path_that_is_no_adapter_is_answered_for_what_it_is(samfinetune, adapter, volumes, tmp_path, path, sentence):
    for folder in ("empty", "a-model", "checkpoints", "unfinished"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a-model" / "model.json").write_text("{}")
    (tmp_path / "checkpoints" / "last.pth").write_bytes(b"weights")
    (tmp_path / "unfinished" / "run.json").write_text("{}")
    shutil.copytree(adapter, tmp_path / "parent" / "organs")
    used = samfinetune("segment", volumes / "three.nii.gz", "-o", "x.nii.gz", "--auto", "--adapter", path)
    assert used.code == 2 and sentence in used.err and used.err.count("\n") == 1
    if "/" in path and path != "./nowhere":
        assert samfinetune("adapters", "import", path).err == used.err


def test_an_adapter_or_a_file_is_not_a_model(samfinetune, here, volumes):
    command = ("segment", volumes / "three.nii.gz", "-o", "x.nii.gz", "--auto", "--model")
    said = samfinetune(*command, here).err
    assert f"is an adapter, not a model: use it with “samfinetune segment --adapter {here}”" in said
    file = here / "adapter_model.safetensors"
    assert "is a file, not a model: add it with `samfinetune models import" in samfinetune(*command, file).err
    assert "is not a model folder" in samfinetune(*command, volumes).err


def test_a_model_of_onnx_files_is_not_the_base_of_an_adapter(samfinetune, here, volumes):
    assert samfinetune("models", "export", "compact", "-o", "c").code == 0
    command = ("segment", volumes / "three.nii.gz", "-o", "x.nii.gz", "--auto")
    used = samfinetune(*command, "--adapter", here, "--model", "c")
    assert used.code == 2 and "was trained on the model 'compact', and does not fit 'c'" in used.err


def test_export_to_a_folder_and_merge_make_models(samfinetune, here, volumes, tmp_path):
    exported = samfinetune("adapters", "export", here, "-o", "onnx-model")
    assert exported.code == 0, exported.err
    assert samfinetune("models", "import", "onnx-model", "--id", "portable").code == 0
    merged = samfinetune("adapters", "merge", here, "--id", "organs-model")
    assert merged.code == 0, merged.err
    reference = samfinetune("segment", volumes / "three.nii.gz", "-o", "adapter.nii.gz", "--auto", "--adapter", here)
    assert reference.code == 0
    expected = sitk.GetArrayFromImage(sitk.ReadImage("adapter.nii.gz"))
    for name, runtime in (("portable", "ONNX Runtime"), ("organs-model", "PyTorch")):
        result = samfinetune("segment", volumes / "three.nii.gz", "-o", f"{name}.nii.gz", "--auto", "--model", name)
        assert result.code == 0 and runtime in result.out, result.err
        assert (sitk.GetArrayFromImage(sitk.ReadImage(f"{name}.nii.gz")) != expected).mean() < 1e-3
    shown = samfinetune("models", "show", "organs-model").out
    assert "automatic     liver, spleen" in shown
    assert samfinetune("adapters", "export", here, "-o", "onnx-model").code == 2  # exists
    assert samfinetune("adapters", "merge", here, "--id", "organs-model").code == 2


def test_an_adapter_of_another_base_is_refused(samfinetune, here, volumes):
    card = json.loads((here / "card.json").read_text())
    (here / "card.json").write_text(json.dumps(card | {"base": "sam-vit-b", "base_digest": "0" * 64}))
    for model in ((), ("--model", "compact")):
        result = samfinetune("segment", volumes / "three.nii.gz", "-o", "o.nii.gz", "--auto", "--adapter", here, *model)
        assert result.code == 2 and "sam-vit-b" in result.err and result.err.count("\n") == 1


def test_finetune_sam_class_models_segment_by_themselves(samfinetune, volumes, tmp_path):
    """Its mask tokens are classes: it refuses prompts, and finds its classes without."""
    import small_models
    import torch

    torch.save(small_models.state(small_models.sam(outputs=4)), tmp_path / "checkpoint.pth")
    (tmp_path / "args.json").write_text(json.dumps({"finetune_type": "vanilla", "num_cls": 3}))
    assert samfinetune("models", "import", "checkpoint.pth", "--id", "theirs").code == 0
    refused = samfinetune("segment", volumes / "three.nii.gz", "-o", "o.nii.gz", "--model", "theirs", "--space", "ijk",
                          "--point", "5,5,1")  # fmt: skip
    assert refused.code == 2 and "takes no prompts" in refused.err
    result = samfinetune("segment", volumes / "three.nii.gz", "-o", "o.seg.nrrd", "--model", "theirs", "--auto")
    assert result.code == 0, result.err
    image = sitk.ReadImage("o.seg.nrrd")
    assert [image.GetMetaData(f"Segment{i}_Name") for i in (0, 1)] == ["class 1", "class 2"]


def test_a_server_finds_the_labels_of_its_adapters(samfinetune, ready, volumes, tmp_path, monkeypatch):
    """The server has the adapter, in the same folders of data as the command beside it."""
    import threading

    from SAMFineTuneLib.service.server import WorkerServer
    from SAMFineTuneLib.service.server_app import ServerApp

    samfinetune("adapters", "import", ready)
    monkeypatch.setenv("SAMFINETUNE_TOKEN", "a token for tests")
    server = WorkerServer(ServerApp("a token for tests"))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    command = ("segment", volumes / "one", "--auto", "--adapter", "organs", "-o")
    local = samfinetune(*command, "local.nrrd")
    remote = samfinetune(*command, "remote.nrrd", "--server", f"http://127.0.0.1:{server.server_port}")
    assert (local.code, remote.code) == (0, 0), remote.err
    labels, others = (sitk.GetArrayFromImage(sitk.ReadImage(f"{name}.nrrd")) for name in ("local", "remote"))
    assert labels.any() and (labels == others).all()
    found = [[line for line in said.splitlines() if line.startswith("segment ")] for said in (local.out, remote.out)]
    assert found[0] == found[1] and len(found[0]) == 2
    server.shutdown()
    thread.join()
    server.server_close()
