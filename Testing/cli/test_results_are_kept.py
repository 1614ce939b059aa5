"""What is there already is replaced only on demand, and stays where a disk refuses its successor."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from small_files import small_files_only

from SAMFineTuneLib.images import body_phantom, read_image, write_dicom_series, write_labelmap

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd", ".dcm")


@pytest.fixture
def segment(samfinetune, phantom):
    def run(*arguments):
        return samfinetune("segment", phantom.folder, "--space", "ijk", "--box", phantom.box("liver"), *arguments)

    return run


@pytest.fixture
def scans(tmp_path):
    """Two volumes, and a model that finds something by itself."""
    torch = pytest.importorskip("torch")
    import small_models

    for name in ("one", "two"):
        volume, _, _ = body_phantom(1, shape=(3, 40, 40), spacing=(8.0, 8.0, 20.0))
        write_labelmap(tmp_path / "scans" / f"{name}.nii.gz", (volume.array > 0).astype(np.uint8), volume)
    torch.save(small_models.state(small_models.sam(outputs=4)), tmp_path / "checkpoint.pth")
    (tmp_path / "args.json").write_text(json.dumps({"finetune_type": "vanilla", "num_cls": 3}))
    return tmp_path / "scans"


def only_sentence(result):
    assert result.code == 2 and result.err.count("\n") == 1 and result.err.startswith("samfinetune: "), result
    return result.err


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_refused_label_map_is_a_sentence_and_the_earlier_one_stays(segment, tmp_path, ending):
    path = tmp_path / f"liver{ending}"
    path.write_bytes(b"earlier")
    with small_files_only(300):
        said = only_sentence(segment("-o", path, "--overwrite", "--no-cache"))
    assert str(path) in said and "larger than a file may be" in said
    assert path.read_bytes() == b"earlier"
    assert {name for name in os.listdir(tmp_path)} <= {path.name, "home"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
@pytest.mark.parametrize("place", ["circle/table.csv", "circle.csv", "folder.csv", "astray/table.csv"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_all_places_are_looked_at_before_any_result_is_written(segment, tmp_path, place, overwrite):
    (tmp_path / "folder.csv").mkdir()
    for link, target in (("circle", "circle"), ("circle.csv", "circle.csv"), ("astray", "nowhere")):
        (tmp_path / link).symlink_to(target)
    said = only_sentence(segment("-o", tmp_path / "a.nrrd", "--statistics", tmp_path / place, *overwrite))
    assert str(tmp_path / place.split("/")[0]) in said and not (tmp_path / "a.nrrd").exists()


@pytest.mark.parametrize("what", ["scan.nii.gz", "cases.csv"])
def test_a_log_is_never_appended_to_what_is_not_one(samfinetune, tmp_path, what):
    image = sitk.GetImageFromArray(np.arange(64, dtype=np.int16).reshape(4, 4, 4))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    (tmp_path / "cases.csv").write_text("image,label\n")
    before = (tmp_path / what).read_bytes()
    scan = tmp_path / "scan.nii.gz"
    assert "is not a log of SAMFineTune" in only_sentence(samfinetune("info", scan, "--log-file", tmp_path / what))
    served = samfinetune("serve", "--host", "127.0.0.1", "--port", 0, "--access-log", tmp_path / what)
    assert "is not a log of SAMFineTune" in only_sentence(served)
    assert (tmp_path / what).read_bytes() == before
    assert [samfinetune("info", scan, "--log-file", tmp_path / "a.log").code for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_ending_in_capitals_is_written(segment, phantom, samfinetune, tmp_path, ending):
    assert segment("-o", "plain" + ending, "--label", "liver").code == 0
    shouted = f"LIVER{ending.upper()}"
    result = segment("-o", shouted, "--label", "liver")
    assert result.code == 0 and f"written     {shouted}" in result.out, result.err
    if ending != ".dcm":
        found = samfinetune("info", shouted)
        assert found.code == 0 and "128 × 128 × 12 voxels" in found.out, found.err
        os.replace(shouted, "again" + ending)
        first, second = (sitk.GetArrayFromImage(sitk.ReadImage(name + ending)) for name in ("plain", "again"))
        assert np.array_equal(first, second) and first.any()


def test_results_are_replaced_only_on_demand(segment, tmp_path):
    assert segment("-o", "liver.seg.nrrd", "--picture", "liver.png").code == 0
    corrected = {name: f"corrected {name}".encode() for name in ("liver.seg.nrrd", "liver.png")}
    for name, content in corrected.items():
        (tmp_path / name).write_bytes(content)
    said = only_sentence(segment("-o", "liver.seg.nrrd", "--picture", "new.png"))
    assert "“liver.seg.nrrd” exists already" in said and "--overwrite" in said
    assert "“liver.png” exists already" in only_sentence(segment("-o", "new.nii.gz", "--picture", "liver.png"))
    assert {name: (tmp_path / name).read_bytes() for name in corrected} == corrected
    assert not (tmp_path / "new.png").exists() and not (tmp_path / "new.nii.gz").exists()
    assert segment("-o", "liver.seg.nrrd", "--picture", "liver.png", "--overwrite").code == 0
    assert sitk.GetArrayFromImage(sitk.ReadImage("liver.seg.nrrd")).any()
    assert "--skip-existing is for" in only_sentence(segment("-o", "liver.seg.nrrd", "--skip-existing"))


def test_a_file_that_appears_during_the_work_is_kept(segment, tmp_path, monkeypatch):
    from SAMFineTuneLib.segmenter import Segmenter

    target, predict = tmp_path / "a.nii.gz", Segmenter.predict

    def predict_while_another_writes(*arguments):
        target.write_bytes(b"by hand")
        return predict(*arguments)

    monkeypatch.setattr(Segmenter, "predict", predict_while_another_writes)
    assert f"“{target}” exists already" in only_sentence(segment("-o", target))
    assert target.read_bytes() == b"by hand"
    assert segment("-o", target, "--overwrite").code == 0 and target.read_bytes() != b"by hand"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
@pytest.mark.parametrize("place", ["loop/a.nii.gz", "loop/further/a.nii.gz"])
def test_links_that_lead_in_a_circle_are_one_sentence(segment, tmp_path, place):
    (tmp_path / "loop").symlink_to("loop")
    result = segment("-o", tmp_path / place)
    assert result.code == 2 and "choose another place" in result.err and result.err.count("\n") == 1


def test_a_folder_of_volumes_goes_on_where_results_are_there(samfinetune, scans, tmp_path):
    assert samfinetune("models", "import", "checkpoint.pth", "--id", "theirs").code == 0
    command = ("segment", scans, "-o", "out", "--auto", "--model", "theirs", "--format", "nii.gz")
    assert samfinetune(*command).code == 0
    corrected = tmp_path / "out" / "one.nii.gz"
    corrected.write_bytes(b"corrected by hand")
    (tmp_path / "out" / "two.nii.gz").unlink()
    assert "use one of .nii.gz" in only_sentence(samfinetune(*command[:-1], ".png"))
    said = only_sentence(samfinetune(*command))
    assert "one.nii.gz” exists already" in said and "--skip-existing" in said and "--overwrite" in said
    assert os.listdir(tmp_path / "out") == ["one.nii.gz"]
    result = samfinetune(*command, "--skip-existing")
    assert result.code == 0 and "skipped     1 volume" in result.out and result.out.count("written") == 1
    assert corrected.read_bytes() == b"corrected by hand"
    result = samfinetune(*command, "--skip-existing")
    assert result.code == 0 and "skipped     all 2 volumes" in result.out
    assert "contradict" in only_sentence(samfinetune(*command, "--skip-existing", "--overwrite"))
    (tmp_path / "all.csv").write_text("of yesterday")
    said = only_sentence(samfinetune(*command, "--skip-existing", "--statistics", "all.csv"))
    assert "“all.csv” exists already: choose another name" in said and "--skip-existing" not in said
    assert samfinetune(*command, "--overwrite").out.count("written") == 2
    assert corrected.read_bytes() != b"corrected by hand"


@pytest.mark.parametrize("ends_by", ["a full disk", "Ctrl-C"])
def test_the_table_holds_what_was_done_before_the_end(samfinetune, scans, tmp_path, monkeypatch, ends_by):
    """Those volumes are left out when the run is continued, so that nothing else would measure them."""
    assert samfinetune("models", "import", "checkpoint.pth", "--id", "theirs").code == 0
    volume, _, _ = body_phantom(1, shape=(3, 80, 80), spacing=(4.0, 4.0, 20.0))
    write_labelmap(scans / "two.nii.gz", (volume.array > 0).astype(np.uint8), volume)
    command = ["segment", scans, "-o", "out", "--auto", "--model", "theirs", "--format", ".nii", "--no-cache"]
    if ends_by == "a full disk":
        with small_files_only(10_000):
            result = samfinetune(*command, "--statistics", "first.csv")
        assert result.code == 2
    else:
        def interrupted(path, *_):
            if "two" in str(path):
                raise KeyboardInterrupt
            return read(path, *_)

        read = read_image.read_volume
        with monkeypatch.context() as patched:
            patched.setattr("SAMFineTuneLib.images.read_volume", interrupted)
            assert samfinetune(*command, "--statistics", "first.csv").code == 130
    assert os.listdir("out") == ["one.nii"]
    assert samfinetune(*command, "--skip-existing", "--statistics", "second.csv").code == 0
    tables = [(tmp_path / name).read_text().splitlines() for name in ("first.csv", "second.csv")]
    assert tables[0][0] == tables[1][0] and len(tables[0]) == len(tables[1]) > 1
    assert all("one.nii.gz" in row for row in tables[0][1:]) and all("two.nii.gz" in row for row in tables[1][1:])


def test_a_demo_renews_its_own_files_and_no_others(samfinetune, tmp_path, monkeypatch):
    small = functools.partial(body_phantom, shape=(3, 64, 64), spacing=(5.6, 5.6, 32.0))
    monkeypatch.setattr("SAMFineTuneLib.images.body_phantom", small)
    assert samfinetune("demo").code == 0
    before = (tmp_path / "demo" / "prompts.json").read_bytes()
    with small_files_only(3_000):
        said = only_sentence_after_notes(samfinetune("demo", "--seed", "1"))
    assert "demo/dicom/IM" in said.replace(os.sep, "/") and "partial" not in said
    assert (tmp_path / "demo" / "prompts.json").read_bytes() == before
    assert samfinetune("demo", "--seed", "1").code == 0
    assert (tmp_path / "demo" / "prompts.json").read_bytes() != before
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    (tmp_path / "demo" / "organs.seg.nrrd").write_bytes(b"corrected")
    said = only_sentence(samfinetune("demo"))
    assert "organs.seg.nrrd” was changed since the demo wrote it" in said
    assert (tmp_path / "demo" / "organs.seg.nrrd").read_bytes() == b"corrected"
    assert samfinetune("demo", "--overwrite").code == 0
    assert (tmp_path / "demo" / "organs.seg.nrrd").read_bytes() != b"corrected"
    assert (tmp_path / "demo" / "notes.txt").read_text() == "mine"


def only_sentence_after_notes(result):
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if not line.startswith("note:")]
    assert len(lines) == 1, result.err
    return lines[0]


def test_embeddings_that_cannot_be_kept_are_not_counted(samfinetune, tmp_path):
    volume, _, _ = body_phantom(0, shape=(2, 32, 32), spacing=(8.0, 8.0, 20.0))
    write_dicom_series(volume, tmp_path / "series")
    with small_files_only(20_000):
        said = only_sentence(samfinetune("embed", "series"))
    assert "larger than a file may be" in said
    (tmp_path / "file").write_text("")
    os.environ["SAMFINETUNE_CACHE"] = str(tmp_path / "file")
    try:
        assert "file" in only_sentence(samfinetune("embed", "series"))
        result = samfinetune("segment", "series", "-o", "a.nrrd", "--space", "ijk", "--point", "16,16,0")
        assert result.code == 0 and "embeddings are not kept" in result.out
    finally:
        del os.environ["SAMFINETUNE_CACHE"]


def test_an_export_appears_whole_in_a_new_folder(samfinetune, tmp_path):
    pytest.importorskip("onnx")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    assert "exists already" in only_sentence(samfinetune("models", "export", "compact", "-o", "there"))
    with small_files_only():
        assert "new" in only_sentence(samfinetune("models", "export", "compact", "-o", "new"))
    assert set(os.listdir(tmp_path)) <= {"there", "home"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
@pytest.mark.parametrize("command", [("models", "list"), ("nonsense.nii.gz",)])
def test_output_into_a_full_file_is_a_sentence(root, tmp_path, command):
    environment = os.environ | {"PYTHONPATH": str(root), "SAMFINETUNE_HOME": str(tmp_path)}
    command = command if len(command) > 1 else ("info", *command)
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "SAMFineTuneLib.cli", *command], stdout=full, env=environment,
                              stderr=subprocess.PIPE, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
