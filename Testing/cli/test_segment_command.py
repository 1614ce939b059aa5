"""`samfinetune segment`, from a DICOM series to label maps, with the bundled model."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
import time

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image

from SAMFineTuneLib.images import body_phantom, write_labelmap
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache

SEGMENT = ("-m", "SAMFineTuneLib.cli", "segment")


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / max(1, np.count_nonzero(a) + np.count_nonzero(b))


def nifti(path):
    """(array [k, j, i], RAS affine) by an independent reader."""
    image = nibabel.load(path)
    return np.asarray(image.dataobj).transpose(2, 1, 0), image.affine


def embeddings(out):
    """How many embeddings a run says it computed."""
    line = next(line for line in out.splitlines() if line.startswith("embeddings"))
    return int(line.split()[1])


def test_a_box_round_the_liver_gives_the_liver_in_the_right_place(samfinetune, phantom):
    result = samfinetune(
        "segment", phantom.folder, "-o", "liver.nii.gz", "--space", "ijk", "--box", phantom.box("liver"),
        "--label", "Liver",
    )  # fmt: skip
    assert result.code == 0, result.err
    found, affine = nifti("liver.nii.gz")
    k = phantom.slice_of("liver")
    assert np.allclose(affine, phantom.volume.affine, atol=1e-3)
    assert dice(found[k] == 1, phantom.labels[k] == phantom.values["liver"]) > 0.8
    assert not np.delete(found, k, axis=0).any()
    milliliters = found.sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    for said in ("CT, “Body phantom”, 12 DICOM files", "compact", "CPU", f"Liver: {milliliters:.2f} mL on 1 slice"):
        assert said in result.out


def test_negative_coordinates_may_follow_a_space_or_an_equals_sign(samfinetune, phantom):
    k = phantom.slice_of("liver")
    j, i = np.argwhere(phantom.labels[k] == phantom.values["spleen"]).mean(axis=0).round()
    r, a, s = phantom.volume.ijk_to_ras((i, j, k))
    assert r < 0  # on the patient's left
    text = f"{r:.3f},{a:.3f},{s:.3f}"
    spaced = samfinetune("segment", phantom.folder, "-o", "spaced.nii.gz", "--point", text, "--window", "-160,240")
    joined = samfinetune("segment", phantom.folder, "-o", "joined.nii.gz", f"--point={text}", "--window=-160,240")
    assert (spaced.code, joined.code) == (0, 0), spaced.err + joined.err
    assert "window      as given, -160 to 240" in spaced.out
    found, _ = nifti("spaced.nii.gz")
    assert found[k, int(j), int(i)] == 1
    assert np.array_equal(found, nifti("joined.nii.gz")[0])


@pytest.mark.parametrize("command", ["info", "embed", "train", "evaluate", "segment"])
def test_a_window_may_begin_with_a_minus_in_every_command_that_takes_one(samfinetune, command):
    rest = ("-o", "out.nii.gz") if command not in ("info", "embed") else ()
    result = samfinetune(command, "nowhere", *rest, "--window", "-160,240")
    assert result.code == 2 and "nowhere" in result.err and "argument" not in result.err, result.err


def test_prompts_that_may_not_be_meant_so_are_said(samfinetune, phantom):
    k = phantom.slice_of("liver")
    box = [int(number) for number in phantom.box("liver").split(",")]
    beside = f"{box[3] + 2},{box[1]},{k}"
    result = samfinetune("segment", phantom.folder, "-o", "a.nii.gz", "--space", "ijk", "--box", phantom.box("liver"),
                         "--point", beside)  # fmt: skip
    assert result.code == 0 and "lies outside the box on axial slice" in result.out
    air = samfinetune("segment", phantom.folder, "-o", "b.nii.gz", "--space", "ijk", "--point", f"1,1,{k}")
    assert air.code == 0 and "shows nothing but black" in air.out
    plain = samfinetune("segment", phantom.folder, "-o", "c.nii.gz", "--space", "ijk", "--box", phantom.box("liver"))
    assert plain.code == 0 and "note" not in plain.out


def test_a_volume_of_one_value_is_said(samfinetune):
    sitk.WriteImage(sitk.Image(32, 32, 4, sitk.sitkInt16) + 7, "flat.nii.gz")
    result = samfinetune("segment", "flat.nii.gz", "-o", "a.nii.gz", "--space", "ijk", "--box", "5,5,2,20,20,2")
    assert result.code == 0 and "All voxels of the volume hold the value 7" in result.out


def test_coordinates_outside_are_answered_in_the_space_in_which_they_were_given(samfinetune, phantom):
    voxels = samfinetune("segment", phantom.folder, "-o", "a.nii.gz", "--space", "ijk", "--point", "200,3,4")
    assert voxels.code == 2 and "i 0 to 127, j 0 to 127, k 0 to 11" in voxels.err and "mm" not in voxels.err
    ends = ((-0.5, 127.5), (-0.5, 127.5), (-0.5, 11.5))
    corners = phantom.volume.ijk_to_ras(list(itertools.product(*ends)))
    info = samfinetune("info", phantom.folder).out
    millimetres = samfinetune("segment", phantom.folder, "-o", "a.nii.gz", "--point", "0,0,900")
    ranges = zip("RAS", corners.min(axis=0), corners.max(axis=0), strict=True)
    covers = ", ".join(f"{axis} {least:.1f} to {most:.1f}" for axis, least, most in ranges)
    assert millimetres.code == 2 and covers in millimetres.err and covers in info


def test_every_orientation_puts_the_mask_on_the_prompted_voxel(samfinetune, phantom):
    k, j, i = np.argwhere(phantom.labels == phantom.values["right kidney"]).mean(axis=0).round().astype(int)
    for orientation, axis in (("axial", 0), ("coronal", 1), ("sagittal", 2)):
        result = samfinetune("segment", phantom.folder, "-o", "kidney.nii.gz", "--space", "ijk",
                             "--point", f"{i},{j},{k}", "--orientation", orientation, "--overwrite")  # fmt: skip
        assert result.code == 0, result.err
        found, _ = nifti("kidney.nii.gz")
        assert found[k, j, i] == 1, orientation
        assert len(np.unique(found.nonzero()[axis])) == 1


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".seg.nrrd", ".dcm"])
def test_every_format_holds_the_same_voxels(samfinetune, phantom, tmp_path, ending):
    result = samfinetune("segment", phantom.folder, "-o", f"liver{ending}", "--space", "ijk",
                         "--box", phantom.box("liver"), "--label", "Liver")  # fmt: skip
    assert result.code == 0, result.err
    count = round(float(result.out.split("Liver: ")[1].split()[0]) * 1000 / (2.8 * 2.8 * 8))
    if ending == ".dcm":
        seg = pydicom.dcmread(tmp_path / "liver.dcm")
        assert seg.Modality == "SEG" and seg.SegmentSequence[0].SegmentLabel == "Liver"
        assert abs(int(seg.pixel_array.sum()) - count) <= 1
        return
    image = sitk.ReadImage(f"liver{ending}")
    assert abs(int(sitk.GetArrayFromImage(image).sum()) - count) <= 1
    assert image.GetSize() == (128, 128, 12)
    if ending == ".seg.nrrd":
        assert image.GetMetaData("Segment0_Name") == "Liver"


def test_a_second_run_embeds_nothing_and_gives_the_same(samfinetune, phantom):
    command = ["segment", phantom.folder, "--space", "ijk", "--box", phantom.box("liver"), "--propagate", "both"]
    first = samfinetune(*command, "-o", "first.nii.gz")
    second = samfinetune(*command, "-o", "second.nii.gz")
    assert embeddings(first.out) > 3 and embeddings(second.out) == 0
    assert np.array_equal(nifti("first.nii.gz")[0], nifti("second.nii.gz")[0])
    without = samfinetune(*command, "-o", "third.nii.gz", "--no-cache")
    assert embeddings(without.out) == embeddings(first.out)


def test_propagation_reaches_the_slices_of_the_organ(samfinetune, phantom):
    result = samfinetune("segment", phantom.folder, "-o", "liver.nii.gz", "--space", "ijk",
                         "--box", phantom.box("liver"), "--propagate", "both")  # fmt: skip
    assert result.code == 0, result.err
    found, _ = nifti("liver.nii.gz")
    assert dice(found == 1, phantom.labels == phantom.values["liver"]) > 0.7


def test_prompt_files_give_several_segments_and_typed_prompts_join_the_named_one(samfinetune, phantom, tmp_path):
    def boxes(name):
        numbers = [float(number) for number in phantom.box(name).split(",")]
        return [{"corners": [numbers[:3], numbers[3:]]}]

    segments = [{"name": name, "value": value, "boxes": boxes(name)} for name, value in (("spleen", 4), ("liver", 9))]
    (tmp_path / "organs.json").write_text(json.dumps({"version": 1, "space": "ijk", "segments": segments}))
    command = ["segment", phantom.folder, "-o", "organs.nii.gz", "--prompts", "organs.json", "--overwrite"]
    result = samfinetune(*command)
    assert result.code == 0 and "that were found for it" not in result.out
    found, _ = nifti("organs.nii.gz")
    assert set(np.unique(found)) == {0, 4, 9}
    unnamed = samfinetune(*command, "--space", "ijk", "--point", "60,60,6")
    assert unnamed.code == 2 and "--label" in unnamed.err and "spleen, liver" in unnamed.err
    k = phantom.slice_of("liver")
    outside = samfinetune(*command, "--space", "ijk", "--negative-point", f"100,60,{k}", "--label", "liver")
    assert outside.code == 0, outside.err
    assert set(np.unique(nifti("organs.nii.gz")[0])) == {0, 4, 9}


def test_a_segment_that_lacks_what_earlier_ones_keep_is_said(samfinetune, phantom, tmp_path):
    numbers = [float(number) for number in phantom.box("liver").split(",")]
    boxes = [{"corners": [numbers[:3], numbers[3:]]}]
    segments = [{"name": name, "boxes": boxes} for name in ("liver", "again")]
    (tmp_path / "twice.json").write_text(json.dumps({"version": 1, "space": "ijk", "segments": segments}))
    result = samfinetune("segment", phantom.folder, "-o", "twice.nii.gz", "--prompts", "twice.json")
    assert result.code == 0
    count = np.count_nonzero(nifti("twice.nii.gz")[0] == 1)
    said = [line for line in result.out.splitlines() if "that were found for it" in line]
    assert len(said) == 1 and f"again lacks {count} of the {count} voxels" in said[0]


def test_the_picture_shows_the_mask(samfinetune, phantom):
    result = samfinetune("segment", phantom.folder, "-o", "liver.nii.gz", "--space", "ijk",
                         "--box", phantom.box("liver"), "--picture", "liver.png")  # fmt: skip
    assert result.code == 0, result.err
    pixels = np.asarray(Image.open("liver.png").convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) >= 128
    colored = np.ptp(pixels, axis=2) > 40
    assert 0.02 < colored.mean() < 0.6


WRONG = {
    "no prompts": ((), "--point"),
    "not numbers": (("--point", "1,2"), "3 numbers"),
    "outside": (("--point", "0,0,5000"), "outside the volume"),
    "only negative": (("--negative-point", "0,0,0"), "only negative prompts"),
    "empty box": (("--box", "0,0,0,0,0,0"), "no area"),
    "two formats": (("--point", "0,0,0", "-o", "mask.txt"), ".seg.nrrd"),
    "a folder": (("--point", "0,0,0", "-o", "."), "folder"),
    "picture": (("--point", "0,0,0", "--picture", "x.bmp"), ".png"),
    "model": (("--point", "0,0,0", "--model", "nonsense"), "nonsense"),
    "device": (("--point", "0,0,0", "--device", "abacus"), "abacus"),
    "window": (("--point", "0,0,0", "--window", "soft"), "soft"),
    "series": (("--point", "0,0,0", "--series", "nonsense"), "nonsense"),
    "file": (("--prompts", "missing.json"), "missing.json"),
    "propagate": (("--point", "0,0,0", "--propagate", "fill"), "two slices"),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_sentence_and_leaves_nothing(samfinetune, phantom, tmp_path, arguments, said):
    result = samfinetune("segment", phantom.folder, "-o", "mask.nii.gz", *arguments)
    assert result.code == 2
    assert said in result.err and result.err.count("\n") == 1 and "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


def test_the_input_is_never_overwritten(samfinetune, tmp_path):
    volume, _, _ = body_phantom(1, shape=(4, 48, 48), spacing=(7.0, 7.0, 20.0))
    write_labelmap(tmp_path / "scan.nii.gz", (volume.array > 0).astype(np.uint8), volume)
    before = hashlib.sha256((tmp_path / "scan.nii.gz").read_bytes()).hexdigest()
    (tmp_path / "link.nii.gz").symlink_to("scan.nii.gz")
    for output in ("scan.nii.gz", tmp_path / "scan.nii.gz", "link.nii.gz"):
        result = samfinetune("segment", "scan.nii.gz", "-o", output, "--space", "ijk", "--point", "24,24,2")
        assert result.code == 2 and "never overwritten" in result.err
    seg = samfinetune("segment", "scan.nii.gz", "-o", "scan.dcm", "--space", "ijk", "--point", "24,24,2")
    assert seg.code == 2 and "DICOM" in seg.err
    assert hashlib.sha256((tmp_path / "scan.nii.gz").read_bytes()).hexdigest() == before


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_the_label_map_is_written_though_nobody_reads_what_is_printed(fresh_python, phantom, tmp_path):
    command = (*SEGMENT, str(phantom.folder), "-o", "liver.nii.gz", "--space", "ijk", "--box", phantom.box("liver"))
    process = fresh_python(*command)
    process.stdout.close()
    assert not process.stderr.read() and process.wait(120) == 141
    assert nifti(tmp_path / "liver.nii.gz")[0].any()


def test_no_torch_is_needed(fresh_python, phantom, tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'peft', 'segment_anything', 'safetensors', 'highdicom', 'onnx'):\n"
        "    sys.modules[name] = None  # an import of it fails\n"
        "from SAMFineTuneLib.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = fresh_python("-c", code, "segment", phantom.folder, "-o", "liver.seg.nrrd", "--space", "ijk",
                           "--box", phantom.box("liver"), "--propagate", "both", "--picture", "liver.png")  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "PyTorch" not in out and (tmp_path / "liver.seg.nrrd").is_file() and (tmp_path / "liver.png").is_file()


def test_killed_at_any_moment_nothing_half_written_stays(fresh_python, phantom, tmp_path):
    command = (*SEGMENT, phantom.folder, "-o", "liver.nii.gz", "--space", "ijk", "--box", phantom.box("liver"),
               "--propagate", "both", "--picture", "liver.png", "--overwrite")  # fmt: skip
    output, cache = tmp_path / "liver.nii.gz", EmbeddingCache(tmp_path / "home" / "embeddings")
    started = time.monotonic()
    assert fresh_python(*command).wait(120) == 0
    whole, duration = nifti(output)[0], time.monotonic() - started
    cache.clear()
    chance, killed = random.Random(7), 0
    for attempt in range(6):
        output.unlink(missing_ok=True)
        if attempt % 2:
            cache.clear()
        process = fresh_python(*command)
        time.sleep(duration * chance.uniform(0.1, 0.9))
        process.kill()
        killed += process.wait(60) != 0
        entries = [path for path in cache.folder.glob("*.npz") if not path.name.startswith(".")]
        assert all(EmbeddingCache(cache.folder).get(path.stem) is not None for path in entries)
        if output.exists():
            assert np.array_equal(nifti(output)[0], whole)
        visible = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
        assert visible <= {"home", "liver.nii.gz", "liver.png"}
    assert killed >= 1
    assert fresh_python(*command).wait(120) == 0
    assert np.array_equal(nifti(output)[0], whole)
