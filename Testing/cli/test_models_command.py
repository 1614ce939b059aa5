"""`samfinetune models` as a user runs it: real files, a real server, a small SAM in a store of the test's own."""

from __future__ import annotations

import io
import json
import os
import sys
from functools import partial

import pytest
from http_fixtures import FileServer, serving

from SAMFineTuneLib.cli.main import main
from SAMFineTuneLib.files import sha256_of
from SAMFineTuneLib.models.download import manifest
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.models.store import Store

torch = pytest.importorskip("torch")


@pytest.fixture(scope="session")
def small_sam(tmp_path_factory):
    """A checkpoint of SAM with a very small ViT at 64 pixels, random weights."""
    from SAMFineTuneLib.models.architectures.segment_anything import modeling

    sam = modeling()
    torch.manual_seed(0)
    network = sam.Sam(
        sam.ImageEncoderViT(depth=2, embed_dim=16, img_size=64, num_heads=2, patch_size=16, use_rel_pos=True,
                            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), global_attn_indexes=[1], window_size=14),
        sam.PromptEncoder(embed_dim=256, image_embedding_size=(4, 4), input_image_size=(64, 64), mask_in_chans=16),
        sam.MaskDecoder(num_multimask_outputs=3, transformer_dim=256, iou_head_depth=3, iou_head_hidden_dim=256,
                        transformer=sam.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=512, num_heads=8)),
    )
    path = tmp_path_factory.mktemp("checkpoints") / "small_sam.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def published(tmp_path, small_sam, monkeypatch):
    """Start with an empty store, one bundled model, and a manifest with `entry(id, **changes)` rows of small_sam."""
    resources = tmp_path / "resources"
    (resources / "models").mkdir(parents=True)
    onnx = tmp_path / "graph.onnx"
    onnx.write_bytes(b"onnx")
    monkeypatch.setattr("SAMFineTuneLib.models.store.resources", lambda: resources)
    monkeypatch.setattr(manifest, "resources", lambda: resources)
    monkeypatch.setenv("SAMFINETUNE_MODELS", str(tmp_path / "models"))
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    compact = ModelSpec("compact", "Compact", "compact", licence="Apache-2.0", files={"encoder": "encoder.onnx"})
    Store(resources / "models").add(compact, {"encoder.onnx": onnx})
    rows = []

    def entry(model_id, **changes):
        rows.append({
            "id": model_id, "name": f"Published {model_id}", "architecture": "sam_vit", "input_size": 64,
            "preparation": {"resize": "longest_side_pad", "pixel_range": "0-255"}, "description": "A test.",
            "needs": "Little.", "licence": "CC-BY-4.0", "licence_note": "Credit the authors.", "ask_terms": False,
            "source": "https://example.org/page", "file": f"{model_id}.pth", "urls": [],
            "bytes": small_sam.stat().st_size, "digests": {"sha256": sha256_of(small_sam)},
            "how_to_get": "Ask the authors for the file.",
        } | changes)  # fmt: skip
        (resources / "models" / "manifest.json").write_text(json.dumps({"format": 1, "models": rows}))
        manifest.known_models.cache_clear()

    entry("teacher", bytes=1, digests={}, preparation={
        "resize": "squash", "interpolation": "cubic", "pixel_range": "minmax",
        "pixel_mean": [0, 0, 0], "pixel_std": [1, 1, 1]})
    yield entry
    manifest.known_models.cache_clear()


@pytest.fixture
def store(published, tmp_path):
    return Store(tmp_path / "models")


@pytest.fixture
def models(capsys):
    """Run `samfinetune models ...`: exit code, stdout, stderr."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["models", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def answering(monkeypatch, text):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(text))


def left_in(store):
    return sorted(path.name for path in store.folder.iterdir()) if store.folder.exists() else []


def test_list_says_what_is_here_and_what_could_be(models, published, small_sam, store):
    published("served", urls=["https://example.org/served.pth"], bytes=375_042_383)
    assert models("import", small_sam, "--id", "mine")[0] == 0
    code, out, err = models("list")
    rows = {line.split()[0]: line for line in out.splitlines() if line and line[0].islower()}
    assert code == 0 and err == ""
    assert "bundled" in rows["compact"] and "Apache-2.0" in rows["compact"]
    assert "installed" in rows["mine"]
    assert "375 MB" in rows["served"] and "download" in rows["served"] and "CC-BY-4.0" in rows["served"]
    assert "import" in rows["teacher"]
    assert str(store.folder) in out


def test_a_damaged_model_is_listed_as_such(models, small_sam, store):
    models("import", small_sam, "--id", "mine")
    (store.folder / "mine" / "model.json").write_text("{")
    code, out, _ = models("list")
    assert code == 0 and "Not usable:" in out and "compact" in out
    assert models("remove", "mine")[0] == 0


def test_show_tells_terms_and_how_to_get_a_model_that_is_not_here(models, published):
    published("served", urls=["https://example.org/served.pth"])
    code, out, _ = models("show", "served")
    assert code == 0
    for text in ("not on this computer", "CC-BY-4.0", "Credit the authors.", "https://example.org/served.pth",
                 "Little.", "64 x 64 pixels", "samfinetune models download served"):
        assert text in out
    assert "Ask the authors for the file." in models("show", "teacher")[1]


def test_show_tells_files_and_digests_of_a_model_that_is_here(models, small_sam, store):
    models("import", small_sam, "--id", "mine")
    code, out, _ = models("show", "mine")
    assert code == 0 and sha256_of(small_sam) in out
    assert str(store.folder / "mine") in out and "PyTorch" in out


def test_unknown_models_are_one_sentence(models, published):
    for action in (["show", "x"], ["remove", "x"], ["download", "x"], ["export", "x", "-o", "y"]):
        code, out, err = models(*action)
        assert (code, out) == (2, "") and err.startswith("samfinetune: ") and err.count("\n") == 1


def test_an_imported_file_is_recognised_copied_and_stays(models, small_sam, store, published):
    before = small_sam.read_bytes()
    code, out, err = models("import", small_sam)
    assert (code, err) == (0, "")
    assert "input 64 x 64 pixels" in out and "tensors match" in out and "taken for your own" in out
    model = store.get("small-sam")
    model.verify()
    assert model.file("weights").read_bytes() == before == small_sam.read_bytes()
    assert model.spec.licence == "" and model.spec.input_size == 64


def test_a_published_file_is_known_by_its_digest(models, published, small_sam, store):
    published("famous")
    code, out, _ = models("import", small_sam)
    assert code == 0 and "the published Published famous" in out and "CC-BY-4.0. Credit the authors." in out
    assert store.get("famous").spec.licence == "CC-BY-4.0"


def test_a_file_that_claims_to_be_published_and_is_not_is_refused_naming_both(models, published, small_sam, store):
    published("famous", digests={"sha256": "0" * 64})
    code, _, err = models("import", small_sam, "--id", "famous")
    actual = sha256_of(small_sam)
    assert code == 2 and actual in err and "0" * 64 in err and "--like famous" in err
    assert left_in(store) == []


def test_a_file_with_a_published_name_but_other_content_is_told_and_taken_as_ones_own(
    models, published, small_sam, store, tmp_path
):
    published("famous", digests={"sha256": "0" * 64})
    own = tmp_path / "famous.pth"
    own.write_bytes(small_sam.read_bytes())
    code, out, _ = models("import", own, "--id", "mine")
    assert code == 0 and "is not that file" in out
    assert store.get("mine").spec.licence == ""


def test_like_gives_the_pixel_rule_of_the_model_it_was_trained_from(models, small_sam, store, published):
    models("import", small_sam, "--id", "plain")
    assert store.get("plain").spec.pixel_range == "minmax", "the only published model of this kind"
    published("sams-own", bytes=1, digests={})
    code, out, _ = models("import", small_sam, "--id", "told", "--like", "sams-own")
    assert code == 0 and "prepared as for Published sams-own" in out
    assert (store.get("told").spec.pixel_range, store.get("told").spec.resize) == ("0-255", "longest_side_pad")
    published("other-kind", architecture="mobile_sam", input_size=1024)
    code, _, err = models("import", small_sam, "--id", "wrong", "--like", "other-kind")
    assert code == 2 and "same architecture" in err


def test_what_is_not_a_known_checkpoint_is_refused_and_leaves_nothing(models, small_sam, store, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n")
    other = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(3)}, other)
    state = torch.load(small_sam, weights_only=True)
    state.pop("mask_decoder.iou_token.weight")
    lacking = tmp_path / "lacking.pth"
    torch.save(state, lacking)
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(small_sam.read_bytes()[:100_000])
    for path in (picture, other, lacking, truncated, tmp_path / "missing.pth"):
        code, out, err = models("import", path)
        assert code == 2 and str(path) in err and err.count("\n") == 1
    assert "mask_decoder.iou_token.weight" in models("import", lacking)[2]
    assert left_in(store) == []


def test_unstated_terms_are_asked_for(models, published, small_sam, store, monkeypatch):
    published("unclear", ask_terms=True, licence="not stated")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, _, err = models("import", small_sam)
    assert code == 2 and "--yes" in err and left_in(store) == []
    answering(monkeypatch, "n\n")
    code, out, _ = models("import", small_sam)
    assert code == 0 and "Nothing was changed." in out and left_in(store) == []
    answering(monkeypatch, "y\n")
    assert models("import", small_sam)[0] == 0 and store.get("unclear")
    models("remove", "unclear")
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert models("import", small_sam, "--yes")[0] == 0 and store.get("unclear")


def test_an_encoder_alone_needs_a_base_and_becomes_a_model_of_its_own(models, published, small_sam, store, tmp_path):
    from SAMFineTuneLib.models.load_model import load_torch_model

    state = torch.load(small_sam, weights_only=True)
    changed = {f"module.{name.removeprefix('image_encoder.')}": value + 1 for name, value in state.items()
               if name.startswith("image_encoder.")}
    encoder = tmp_path / "encoder.pth"
    torch.save(changed, encoder)
    code, _, err = models("import", encoder, "--yes")
    assert code == 2 and "image encoder" in err and "base" in err
    assert models("import", small_sam, "--id", "whole")[0] == 0
    for base in (small_sam, "whole"):
        code, out, err = models("import", encoder, "--id", "both", "--base", base, "--yes")
        assert (code, err) == (0, "") and "completed by" in out
        network = load_torch_model(store.get("both")).state_dict()
        assert torch.equal(network["image_encoder.pos_embed"], state["image_encoder.pos_embed"] + 1)
        assert torch.equal(network["mask_decoder.iou_token.weight"], state["mask_decoder.iou_token.weight"])
        models("remove", "both")
    assert models("import", encoder, "--base", "nowhere")[0] == 2


@pytest.mark.parametrize("model_id", ["prostate", "finetune-sam"])
def test_finetune_sams_settings_come_along(models, published, small_sam, store, tmp_path, model_id):
    published("finetune-sam", architecture="finetune_sam", file="", bytes=None, digests={})
    run = tmp_path / "run"
    run.mkdir()
    checkpoint = run / "checkpoint_best.pth"
    checkpoint.write_bytes(small_sam.read_bytes())
    settings = {"finetune_type": "vanilla", "num_cls": 3, "normalize_type": "medsam", "arch": "vit_b"}
    (run / "args.json").write_text(json.dumps(settings))
    code, out, _ = models("import", checkpoint, "--id", model_id)
    spec = store.get(model_id).spec
    assert code == 0 and "args.json" in out
    assert (spec.architecture, spec.pixel_range, spec.resize) == ("finetune_sam", "minmax", "squash")
    assert spec.classes[0] == "background"
    assert json.loads((store.folder / model_id / "args.json").read_text()) == settings


def test_a_download_shows_the_licence_and_installs_what_it_verified(models, published, small_sam, store, monkeypatch):
    with serving(FileServer(small_sam.read_bytes())) as server:
        published("served", urls=[f"{server.url}/file"], how_to_get="")
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code, out, err = models("download", "served")
        assert code == 2 and "CC-BY-4.0. Credit the authors." in out and "--yes" in err
        answering(monkeypatch, "\n")
        code, out, _ = models("download", "served")
        assert code == 0 and "Nothing was changed." in out
        assert server.requests == [] and left_in(store) == []
        code, out, err = models("download", "served", "--yes")
        assert code == 0 and "is the published one" in out and "Installed served" in out
        assert "100%" in err and "served.pth" in err
    assert left_in(store) == ["served"]
    store.get("served").verify()
    code, _, err = models("download", "served", "--yes")
    assert code == 2 and "already" in err


def test_a_download_with_a_wrong_digest_leaves_nothing(models, published, small_sam, store):
    with serving(FileServer(small_sam.read_bytes())) as server:
        published("served", urls=[f"{server.url}/file"], digests={"sha256": "0" * 64})
        code, _, err = models("download", "served", "--yes")
    assert code == 2 and "0" * 64 in err and sha256_of(small_sam) in err
    assert left_in(store) == []


def test_an_interrupted_download_is_kept_continued_or_removed(models, published, small_sam, store, monkeypatch):
    from tqdm import tqdm

    def interrupt(bar, more):
        if more:
            raise KeyboardInterrupt

    with serving(FileServer(small_sam.read_bytes())) as server:
        published("served", urls=[f"{server.url}/file"])
        with monkeypatch.context() as context:
            context.setattr(tqdm, "update", interrupt)
            code, _, err = models("download", "served", "--yes")
        assert code == 130 and "run the same command again to continue" in err
        assert [model.spec.id for model in store.list()] == ["compact"]
        assert models("remove", "served")[1] == "Removed an unfinished download of served.\n"
        assert left_in(store) == []

        with monkeypatch.context() as context:
            context.setattr(tqdm, "update", interrupt)
            models("download", "served", "--yes")
        assert models("download", "served", "--yes")[0] == 0
        assert server.requests[-1][1] is not None, "the download began anew"
    assert left_in(store) == ["served"]


def test_what_could_not_run_is_not_downloaded(models, published, store, monkeypatch):
    code, _, err = models("download", "teacher", "--yes")
    assert code == 2 and "Ask the authors for the file." in err and "https://example.org/page" in err
    published("served", urls=["https://example.org/served.pth"])
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = models("download", "served", "--yes")
    assert code == 2 and "PyTorch" in err and "pip install" in err


def test_a_second_address_is_tried(models, published, small_sam, store):
    with serving(FileServer(small_sam.read_bytes())) as server:
        published("served", urls=[f"{server.url}/gone", f"{server.url}/file"])
        assert models("download", "served", "--yes")[0] == 0
    assert left_in(store) == ["served"]


def test_bundled_models_stay(models, store):
    code, _, err = models("remove", "compact")
    assert code == 2 and "cannot be removed" in err
    assert models("download", "compact")[0] == 2


def test_an_exported_model_is_imported_without_torch(models, published, small_sam, store, tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    models("import", small_sam, "--id", "mine")
    exported = tmp_path / "exported"
    code, out, err = models("export", "mine", "-o", exported)
    assert code == 0 and "encoder.onnx" in out and "--model exported" in out
    code, _, err = models("export", "mine", "-o", exported)
    assert code == 2 and "exists already" in err
    with monkeypatch.context() as without_torch:
        without_torch.setitem(sys.modules, "torch", None)
        code, out, err = models("import", exported)
    assert (code, err) == (0, ""), "it has an id of its own, so that the one it was made of may stay"
    model = store.get("exported")
    model.verify()
    assert model.has("encoder") and model.has("decoder") and not model.has("weights")
    assert models("import", exported)[0] == 2, "a second one of the same id"
    (exported / "decoder.onnx").write_bytes(b"changed")
    code, _, err = models("import", exported, "--id", "other")
    assert code == 2 and "damaged" in err


def test_a_folder_that_reaches_outside_itself_is_refused(models, published, store, tmp_path):
    outside = tmp_path / "secret.txt"
    outside.write_text("secret")
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({
        "format": 1, "id": "trap", "name": "Trap", "architecture": "sam_vit", "files": {},
        "sha256": {"../secret.txt": sha256_of(outside)},
    }))  # fmt: skip
    code, _, err = models("import", folder)
    assert code == 2 and "../secret.txt" in err and left_in(store) == []
