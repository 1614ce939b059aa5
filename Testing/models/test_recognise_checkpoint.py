"""Recognising a checkpoint file by its tensors; and a sentence for every file that is not one or does not fit."""

import argparse
import json
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import small_models  # noqa: E402

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.models.formats.recognise_checkpoint import build_network, recognise  # noqa: E402


@pytest.fixture(scope="module")
def sam_state():
    return small_models.state(small_models.sam())


def saved(folder, content, name="weights.pth"):
    path = folder / name
    torch.save(content, path)
    return path


def test_a_plain_sam_is_recognised_by_its_shapes(tmp_path, sam_state):
    found = recognise(saved(tmp_path, sam_state))
    assert (found.architecture, found.wrapper, found.prefix) == ("sam_vit", "", "")
    assert (found.input_size, found.embedding_size, found.low_res_size, found.channels) == (128, 8, 32, 3)
    assert set(found.matched) == set(sam_state) and not found.problems
    for name, value in found.state_dict.items():
        assert torch.equal(value, sam_state[name])


@pytest.mark.parametrize("prefix", ["", "module.", "sam.", "module.sam."])
@pytest.mark.parametrize("wrapper", ["", "model", "model_state", "state_dict"])
def test_wrappers_and_prefixes_are_seen_through(tmp_path, sam_state, wrapper, prefix):
    content = {prefix + name: value for name, value in sam_state.items()}
    if wrapper:
        content = {
            wrapper: content,
            "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
            "decoder_state": {"conv.weight": torch.zeros(3)},
            "loss": np.float64(0.25),
            "args": argparse.Namespace(lr=1e-4),
        }
    found = recognise(saved(tmp_path, content))
    assert (found.wrapper, found.prefix) == (wrapper, prefix)
    assert not found.problems and set(found.matched) == set(sam_state)
    assert bool(wrapper) == ("decoder_state" in found.ignored)


def test_safetensors_are_read_too(tmp_path, sam_state):
    from safetensors.torch import save_file

    save_file(sam_state, tmp_path / "w.safetensors")
    found = recognise(tmp_path / "w.safetensors")
    assert found.architecture == "sam_vit" and not found.problems


@pytest.mark.parametrize(
    ("width", "depth", "heads", "size", "global_blocks", "name"),
    [
        (768, 12, 12, 1024, (2, 5, 8, 11), "sam_vit_b"),
        (768, 12, 12, 256, (2, 5, 8, 11), "sam_vit_b"),
        (1024, 24, 16, 1024, (5, 11, 17, 23), "sam_vit_l"),
        (1280, 32, 16, 1024, (7, 15, 23, 31), "sam_vit_h"),
        (768, 12, 12, 1024, (2, 5, 8), "sam_vit"),
    ],
)
def test_published_sizes_are_named(width, depth, heads, size, global_blocks, name):
    with torch.device("meta"):
        encoder = small_models.vit(width, depth, heads, size, 14, global_blocks)
        state = {f"image_encoder.{key}": value for key, value in encoder.state_dict().items()}
    found, network = build_network(state)
    assert found == name and network.input_size == size
    shapes = {key: value.shape for key, value in network.state_dict().items() if key.startswith("image_encoder.")}
    assert shapes == {key: value.shape for key, value in state.items()}
    assert tuple(i for i, block in enumerate(network.image_encoder.blocks) if block.window_size == 0) == global_blocks
    assert all(block.attn.num_heads == heads for block in network.image_encoder.blocks)


@pytest.mark.parametrize(("stride", "name", "size"), [(4, "mobile_sam", 1024), (1, "lite_medsam", 256)])
def test_tiny_vits_are_told_apart_by_their_stem(tmp_path, stride, name, size):
    state = small_models.state(small_models.sam(small_models.tiny_vit(stride, scale=8), grid=64))
    state |= {  # the classification head that MobileSAM's file still carries, and the table of an older code
        "image_encoder.norm_head.weight": torch.ones(40),
        "image_encoder.head.weight": torch.ones(1000, 40),
        "image_encoder.layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(49, 49, dtype=torch.long),
    }
    found = recognise(saved(tmp_path, state))
    assert (found.architecture, found.input_size, found.embedding_size, found.low_res_size) == (name, size, 64, 256)
    assert not found.problems and len(found.ignored) == 3
    assert found.spec_fields().get("pixel_range") == ("minmax" if name == "lite_medsam" else None)


def test_compact_is_recognised(tmp_path):
    from SAMFineTuneLib.models.architectures.compact import build_compact

    found = recognise(saved(tmp_path, build_compact().state_dict()))
    assert found.architecture == "compact" and not found.problems
    assert (found.input_size, found.embedding_size, found.low_res_size, found.channels) == (128, 16, 64, 1)


@pytest.mark.parametrize("bare", [True, False])
def test_an_encoder_alone_needs_a_base(tmp_path, sam_state, bare):
    encoder = {k.removeprefix("image_encoder.") if bare else k: v for k, v in sam_state.items() if "image_enc" in k}
    path = saved(tmp_path, {f"module.{name}": value + 1 for name, value in encoder.items()}, "encoder.pth")
    base = saved(tmp_path, sam_state, "base.pth")
    alone = recognise(path)
    assert alone.encoder_only and alone.prefix == "module."
    with pytest.raises(UserError, match=r"only the image encoder.*prompt_encoder\..*as its base"):
        alone.require_fit()
    whole = recognise(path, base)
    whole.require_fit()
    assert len(whole.matched) == len(encoder)
    for name, value in whole.state_dict.items():
        assert torch.equal(value, sam_state[name] + (1 if name.startswith("image_encoder.") else 0))
    with pytest.raises(UserError, match="takes no base"):
        recognise(base, base)
    other = saved(tmp_path, small_models.sam(small_models.vit(size=160)).state_dict(), "other.pth")
    with pytest.raises(UserError, match="10 x 10 cells, the image encoder's 8 x 8"):
        recognise(path, other)


def test_what_does_not_fit_is_named(tmp_path, sam_state):
    state = dict(sam_state)
    del state["mask_decoder.iou_token.weight"]
    state["image_encoder.blocks.0.attn.proj.bias"] = torch.zeros(7)
    state["image_encoder.blocks.0.attn.relation"] = torch.zeros(1)
    found = recognise(saved(tmp_path, state))
    assert found.missing == ("mask_decoder.iou_token.weight",)
    assert found.unexpected == ("image_encoder.blocks.0.attn.relation",)
    assert found.misshapen == ("image_encoder.blocks.0.attn.proj.bias (7,) instead of (32,)",)
    with pytest.raises(UserError) as caught:
        found.require_fit()
    for text in ("mask_decoder.iou_token.weight", "attn.proj.bias (7,) instead of (32,)", "attn.relation"):
        assert text in str(caught.value) and text in found.summary()


def test_long_lists_of_tensors_are_cut_with_their_count(tmp_path, sam_state):
    state = {name: value for name, value in sam_state.items() if ".mlp." not in name or "blocks.0" in name}
    with pytest.raises(UserError, match=r"lacks \d+ tensors \((\S+, ){3}\S+ and \d+ more\)"):
        recognise(saved(tmp_path, state)).require_fit()


def test_finetune_sam_is_known_by_its_settings(tmp_path):
    state = small_models.state(small_models.sam(outputs=4))
    path = saved(tmp_path, state)
    settings = {"finetune_type": "vanilla", "num_cls": 3, "normalize_type": "medsam", "thd": False}
    (tmp_path / "args.json").write_text(json.dumps(settings))
    found = recognise(path)
    fields = found.spec_fields()
    assert found.architecture == "finetune_sam" and fields["resize"] == "squash"
    assert fields["classes"] == ("background", "class 1", "class 2")
    assert fields["pixel_range"] == "minmax" and fields["pixel_mean"] == (0, 0, 0)
    (tmp_path / "args.json").write_text(json.dumps(settings | {"thd": True}))
    with pytest.raises(UserError, match="3-D input"):
        recognise(path)
    (tmp_path / "args.json").write_text(json.dumps(settings | {"num_cls": 9}))  # another run's settings
    assert recognise(path).architecture == "sam_vit"
    for damaged in ("{", "[" * 100000, '{"finetune_type": "\\ud800"}'):
        (tmp_path / "args.json").write_text(damaged)
        with pytest.raises(UserError, match="args.json, which says how pictures are prepared"):
            recognise(path)


def test_more_classes_than_sam_has_masks_are_finetune_sams(tmp_path):
    found = recognise(saved(tmp_path, small_models.sam(outputs=6).state_dict()))
    assert found.architecture == "finetune_sam" and not found.problems
    assert found.spec_fields()["classes"] == ("background", *(f"class {i}" for i in range(1, 5)))


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.int(),
        lambda weight: weight.bool(),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to(torch.float8_e4m3fn),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to("meta"),
    ],
)
def test_weights_that_are_not_plain_numbers_are_refused(tmp_path, sam_state, change):
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    path = saved(tmp_path, sam_state | {name: change(sam_state[name])})
    with pytest.raises(UserError, match=f"not plain floating point numbers, in 1 tensor .{name}"):
        recognise(path)


def test_weights_without_a_number_are_refused(tmp_path, sam_state):
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    for value, sentence in ((sam_state[name] * torch.nan, "values that are not numbers"),
                            (sam_state[name] / 0, "values that are not numbers"),
                            (torch.zeros(0), "has shape")):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            recognise(saved(tmp_path, sam_state | {name: value})).require_fit()


def test_incomplete_lora_is_named(tmp_path, sam_state):
    state = dict(sam_state)
    layer = "image_encoder.blocks.1.attn.qkv"
    state[f"{layer}.linear_a_q.weight"] = torch.zeros(4, 32)
    with pytest.raises(UserError, match=r"linear_b_q\.weight is missing"):
        recognise(saved(tmp_path, state))
    state[f"{layer}.linear_b_q.weight"] = torch.zeros(31, 4)
    with pytest.raises(UserError, match="do not fit its weight"):
        recognise(saved(tmp_path, state))


class Code:
    """Unpickling it would call a function."""

    def __reduce__(self):
        return print, ("executed",)


def write(content):
    return lambda path: path.write_bytes(content)


def cut(path):
    torch.save(small_models.sam().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_safetensors(path):
    from safetensors.torch import save

    path.write_bytes(save({"a": torch.zeros(1000)})[:200])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (write(b""), "is empty"),
        (write(b"\n<!DOCTYPE html><html><body>Sign in</body></html>"), "is a web page"),
        (write(b"<html>Quota exceeded</html>"), "is a web page"),
        (write(b"some text that is no model at all"), "is not a checkpoint"),
        (write(b"\x80\x02garbage"), "damaged or is not a PyTorch checkpoint"),
        (write(b"PK\x03\x04" + b"\0" * 100), "cut short"),
        (cut, "cut short"),
        (cut_safetensors, "damaged safetensors"),
        (lambda path: path.write_bytes(pickle.dumps({"weight": Code()})), "program code|damaged"),
        (lambda path: torch.save({"weight": Code()}, path), r"program code \((\w+\.)?print\)"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), r"program code \(torch\.nn\.modules\.linear\.Linear\)"),
        (lambda path: torch.save([torch.zeros(2)], path), "holds a list"),
        (lambda path: torch.save({"epoch": 3}, path), r"holds no state dict.*epoch"),
        (lambda path: torch.save({"fc.weight": torch.zeros(2)}, path), r"not a known SAM.*fc\.weight"),
        (lambda path: torch.save({"image_encoder.trunk.patch_embed.proj.bias": torch.zeros(2)}, path), "SAM 2"),
        (
            lambda path: torch.save({"image_encoder.patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)}, path),
            r"image_encoder\.pos_embed of SAM's image encoder is missing",
        ),
        (
            lambda path: torch.save({"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(8, 3, 3, 3)}, path),
            "another stem",
        ),
    ],
)
def test_files_that_are_no_checkpoint_get_a_sentence(tmp_path, capfd, make, sentence):
    path = tmp_path / "file.pth"
    make(path)
    with pytest.raises(UserError, match=sentence) as caught:
        recognise(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert "executed" not in capfd.readouterr().out


def test_missing_files_and_folders_get_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no file"):
        recognise(tmp_path / "none.pth")
    with pytest.raises(UserError, match="is a folder"):
        recognise(tmp_path)
