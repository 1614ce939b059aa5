"""The command line for programs: JSON, quiet and logged runs, completion, tables, several volumes with prompts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_samples import image_dataset, save
from PIL import Image

from SAMFineTuneLib.cli import main as frame
from SAMFineTuneLib.images import body_phantom
from SAMFineTuneLib.images.sitk_images import to_sitk


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two volumes, and a prompts file for each: a box round the liver."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "volumes").mkdir()
    (folder / "prompts").mkdir()
    for name, seed in (("one", 1), ("two", 2)):
        volume, truth, names = body_phantom(seed)
        value = next(value for value, known in names.items() if known == "liver")
        k = int((truth == value).sum(axis=(1, 2)).argmax())
        keep = slice(k - 1, k + 2)
        affine = volume.affine.copy()
        affine[:3, 3] = volume.ijk_to_ras([0, 0, k - 1])
        sitk.WriteImage(to_sitk(volume.array[keep], affine), str(folder / "volumes" / f"{name}.nii.gz"))
        rows, columns = np.nonzero(truth[k] == value)
        corners = [(columns.min(), rows.min(), k), (columns.max(), rows.max(), k)]
        a, b = volume.ijk_to_ras(corners).tolist()
        prompts = {"version": 1, "segments": [{"name": "liver", "value": 1, "boxes": [{"corners": [a, b]}]}]}
        (folder / "prompts" / f"{name}.json").write_text(json.dumps(prompts))
    return folder


def run(*arguments) -> int:
    return frame.main([str(argument) for argument in arguments])


def test_a_document_is_all_that_json_prints(scans, tmp_path, capsys):
    image, prompts, out = scans / "volumes" / "one.nii.gz", scans / "prompts" / "one.json", tmp_path / "a.nii.gz"
    assert run("info", image, "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert info["size"] == [256, 256, 3] and len(info["ijk_to_ras"]) == 4
    assert run("segment", image, "-o", out, "--prompts", prompts, "--json") == 0
    [segment] = json.loads(capsys.readouterr().out)["segments"]
    voxels = int((sitk.GetArrayFromImage(sitk.ReadImage(str(out))) == 1).sum())
    assert (segment["segment"], segment["voxels"], segment["slices"]) == ("liver", voxels, 1)
    assert run("models", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["id"] == "compact"
    assert run("adapters", "list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == []


def test_what_fails_prints_no_document(scans, capsys):
    assert run("info", scans / "nothing.nii.gz", "--json") == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1


def test_quiet_prints_notes_and_errors_alone(scans, tmp_path, capsys):
    image, prompts = scans / "volumes" / "one.nii.gz", scans / "prompts" / "one.json"
    assert run("segment", image, "-o", tmp_path / "a.nii.gz", "--prompts", prompts, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    far = ("segment", image, "-o", tmp_path / "b.nii.gz", "--space", "ijk", "--point", "3,3,1", "-q")
    assert run(*far) == 0  # in the air
    out, err = capsys.readouterr()
    assert out == "" and "shows nothing but black" in err


def test_a_log_file_is_appended_and_one_that_cannot_be_is_a_sentence(scans, tmp_path, capsys):
    log = tmp_path / "run.log"
    log.write_text("before\n")
    assert run("info", scans / "volumes" / "one.nii.gz", "--log-file", log) == 0
    assert log.read_text().startswith("before\n")
    assert run("info", scans / "volumes" / "one.nii.gz", "--log-file", tmp_path / "none" / "x.log") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_the_command_alone_prints_help_and_the_package_is_a_command(root, capsys):
    assert frame.main([]) == 0
    assert capsys.readouterr().out.startswith("usage: samfinetune")
    command = [sys.executable, "-m", "SAMFineTuneLib", "--version"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("samfinetune ")


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("samfinetune seg", "segment"),
        ("samfinetune segment x --stat", "--statistics"),
        ("samfinetune segment x --model comp", "compact"),
    ],
)
def test_a_shell_completes_commands_options_and_names(line, offered, root, tmp_path):
    pytest.importorskip("argcomplete")
    told = tmp_path / "told"
    environment = os.environ | {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)),
                                "_ARGCOMPLETE_STDOUT_FILENAME": str(told), "_ARGCOMPLETE_IFS": "\n"}  # fmt: skip
    code = "import sys; from SAMFineTuneLib.cli.main import main; sys.exit(main([]))"
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=60)
    assert offered in [word.strip() for word in told.read_text().split("\n")]


def test_statistics_agree_with_simpleitk(scans, tmp_path):
    image, out, table = scans / "volumes" / "one.nii.gz", tmp_path / "a.nii.gz", tmp_path / "a.csv"
    assert run("segment", image, "-o", out, "--prompts", scans / "prompts" / "one.json", "--statistics", table) == 0
    with open(table, newline="") as file:
        [row] = csv.DictReader(file)
    labels = sitk.ReadImage(str(out))
    statistics = sitk.LabelIntensityStatisticsImageFilter()
    statistics.Execute(labels, sitk.ReadImage(str(image)))
    assert float(row["milliliters"]) == pytest.approx(statistics.GetPhysicalSize(1) / 1000, rel=1e-4)
    assert float(row["mean"]) == pytest.approx(statistics.GetMean(1), rel=1e-4)
    width, height, depth = statistics.GetBoundingBox(1)[3:]
    expected = np.array([width, height, depth]) * labels.GetSpacing()
    names = ("extent_right_left_mm", "extent_anterior_posterior_mm", "extent_superior_inferior_mm")
    assert [float(row[name]) for name in names] == pytest.approx(expected, rel=1e-3)


def test_several_volumes_are_segmented_from_the_prompts_of_their_names(scans, tmp_path, capsys):
    command = ("segment", scans / "volumes", "-o", tmp_path / "out", "--prompts", scans / "prompts")
    table = ("--statistics", tmp_path / "all.csv")
    assert run(*command, *table, "--format", ".nii.gz", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["segments"][0]["segment"] for entry in document["volumes"]] == ["liver", "liver"]
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 3
    for name in ("one", "two"):
        alone = tmp_path / f"{name}.nii.gz"
        volume, prompts = scans / "volumes" / f"{name}.nii.gz", scans / "prompts" / f"{name}.json"
        assert run("segment", volume, "-o", alone, "--prompts", prompts) == 0
        together = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out" / f"{name}.nii.gz")))
        np.testing.assert_array_equal(together, sitk.GetArrayFromImage(sitk.ReadImage(str(alone))))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_a_sentence(scans, tmp_path, capsys):
    """As archives from older computers have them; ITK ends the process at such a name."""
    odd, volumes = os.fsdecode(b"caf\xe9"), tmp_path / "volumes"
    volumes.mkdir()
    slices = sitk.GetArrayFromImage(sitk.ReadImage(str(scans / "volumes" / "one.nii.gz")))
    Image.fromarray((slices[1].clip(-160, 240) + 160).astype(np.uint16)).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / f"{odd}.png")
    point = ("--space", "ijk", "--point", "120,120,0")
    table = tmp_path / "table.csv"
    assert run("segment", tmp_path / f"{odd}.png", "-o", tmp_path / "a.nrrd", *point, "--statistics", table) == 0
    assert b"caf\xe9.png" in table.read_bytes()
    assert run("segment", tmp_path / f"{odd}.png", "-o", tmp_path / f"{odd}.nrrd", *point) == 2
    assert "not encoded as UTF-8" in capsys.readouterr().err
    for ending in (".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(slices), str(tmp_path / f"b{ending}"))
        os.rename(tmp_path / f"b{ending}", volumes / f"{odd}{ending}")
        assert run("info", volumes / f"{odd}{ending}") == 2
        assert "not encoded as UTF-8" in capsys.readouterr().err


def test_dicom_files_beside_volumes_are_said_to_be_left_out(scans, tmp_path, capsys):
    shutil.copytree(scans, tmp_path / "scans")
    save(image_dataset(np.zeros((4, 4), np.int16)), tmp_path / "scans" / "volumes" / "three.dcm")
    (tmp_path / "scans" / "volumes" / "notes.txt").write_text("no image")
    folders = tmp_path / "scans" / "volumes", "-o", tmp_path / "out", "--prompts", tmp_path / "scans" / "prompts"
    assert run("segment", *folders) == 0
    assert "1 DICOM file, such as three.dcm; give each series a folder" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_does_not_stop_the_others(scans, tmp_path, capsys):
    shutil.copytree(scans, tmp_path / "scans")
    for kind, ending in (("volumes", ".nii.gz"), ("prompts", ".json")):
        folder = tmp_path / "scans" / kind
        os.rename(folder / f"one{ending}", folder / os.fsdecode(b"\xe9" + ending.encode()))
    folders = tmp_path / "scans" / "volumes", "-o", tmp_path / "out", "--prompts", tmp_path / "scans" / "prompts"
    assert run("segment", *folders) == 2
    assert "not encoded as UTF-8" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["two.seg.nrrd"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_links_to_volumes_have_names_of_their_own(scans, tmp_path, capsys):
    """As a store of data by content has them: both links may point to files of one name."""
    links = tmp_path / "links"
    links.mkdir()
    for name in ("one", "two"):
        stored = tmp_path / "store" / name / "image.nii.gz"
        stored.parent.mkdir(parents=True)
        stored.write_bytes((scans / "volumes" / f"{name}.nii.gz").read_bytes())
        (links / f"{name}.nii.gz").symlink_to(stored)
    assert run("segment", links, "-o", tmp_path / "out", "--prompts", scans / "prompts") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.seg.nrrd", "two.seg.nrrd"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a permission there")
def test_two_results_never_become_one_file(scans, tmp_path, capsys):
    """As on a disk that takes A and a for one letter."""
    out, shared = tmp_path / "out", tmp_path / "shared.seg.nrrd"
    out.mkdir()
    shared.touch()
    for name in ("one", "two"):
        (out / f"{name}.seg.nrrd").symlink_to(shared)
    assert run("segment", scans / "volumes", "-o", out, "--prompts", scans / "prompts", "--overwrite") == 2
    assert "holds the result of another volume" in capsys.readouterr().err
    alone = tmp_path / "alone.seg.nrrd"
    volume, prompts = scans / "volumes" / "one.nii.gz", scans / "prompts" / "one.json"
    assert run("segment", volume, "-o", alone, "--prompts", prompts) == 0
    assert np.array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (alone, shared)))


def test_prompts_and_volumes_that_do_not_belong_together_are_said(scans, tmp_path, capsys):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    command = ("segment", scans / "volumes", "-o", tmp_path / "out", "--prompts", prompts)
    (prompts / "three.json").write_text((scans / "prompts" / "one.json").read_text())
    assert run(*command) == 2
    assert "No file in" in capsys.readouterr().err
    (prompts / "one_liver.json").write_text((scans / "prompts" / "one.json").read_text())
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert "holds no prompts for them: two.nii.gz" in out and "three.json is left out" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one.seg.nrrd"]
