"""Attaching and keeping adapters: nothing changes at first, what was trained comes back, PEFT reads it.

References: PEFT itself, a merge by hand, segment-anything's own modules, and parameter counts from the layers' sizes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import peft
import pytest
import small_models
import torch
from safetensors.torch import load_file, save_file
from tuned_models import CLASSES, NETWORKS, answers, distance, folder_of, fresh, load_adapter, same, shake, trained

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import sha256_of
from SAMFineTuneLib.models.adapters.adapter_card import Gain
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
from SAMFineTuneLib.models.adapters.apply_adapter import LORA
from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, restore, save_adapter, trainable
from SAMFineTuneLib.models.architectures import tiny_vit
from SAMFineTuneLib.models.architectures.compact import CompactModel
from SAMFineTuneLib.models.architectures.sam import SamModel
from SAMFineTuneLib.models.architectures.segment_anything import modeling
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec
from SAMFineTuneLib.models.store import Store

COMBINATIONS = [(kind, scope) for kind in ("lora", "adapter", "vanilla") for scope in ("decoder", "encoder+decoder")]

CASES = [(name, kind, scope) for name in NETWORKS for kind, scope in COMBINATIONS]
BOTH = {"heads": ("promptable", "automatic"), "classes": CLASSES}


@pytest.fixture(scope="module", autouse=True)
def small_grid():
    """MobileSAM's grid of 64 x 64, a quarter as long: its tests would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_vit, "GRID", 16)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Callable[[str], ModelFolder]:
    """A model of random weights on disk, by the name of its architecture."""
    return cache(lambda name: folder_of(NETWORKS[name](), tmp_path_factory.mktemp(name), name))


@pytest.fixture
def base(models, name) -> ModelFolder:
    return models(name)


@pytest.fixture(scope="module")
def small(models) -> ModelFolder:
    """The quickest of them."""
    return models("vit")


def count(network, where=""):
    return sum(value.numel() for name, value in trainable(network).items() if where in name)


# ---- attaching


@pytest.mark.parametrize("name", NETWORKS)
def test_two_readings_of_a_base_lie_alike_in_memory(base):
    """On the way to products that agree in every bit: a file's tensors lie anywhere in it."""
    for _ in range(3):
        assert not [name for name, value in fresh(base).named_parameters() if value.data_ptr() % 64]


@pytest.mark.parametrize(("name", "kind", "scope"), CASES)
def test_freshly_attached_nothing_changes_bit_by_bit(base, kind, scope):
    before = answers(fresh(base), base, pictures=2)
    network = attach(fresh(base), base.spec, Method(kind, scope, **BOTH))
    assert same(answers(network, base, pictures=2), before)
    network.train()  # batch norms keep their statistics, and there is no dropout
    assert same(answers(network, base, pictures=2), before)
    assert same(answers(network.eval(), base, pictures=2), before)


@pytest.mark.parametrize(("name", "kind", "scope"), CASES)
def test_every_trained_number_matters_and_no_other_has_a_gradient(base, kind, scope):
    """LoRA's A has no gradient while B is zero, so the network is shaken first."""
    network = trained(base, Method(kind, scope, **BOTH))
    spec = base.spec
    image = torch.linspace(-2, 2, spec.channels * spec.input_size**2).sin()
    embedding = network.encode(image.reshape(1, spec.channels, spec.input_size, -1))
    masks, iou = network.decode(embedding, *small_models.prompts(2, 3, spec.input_size, spec.low_res_size))
    (masks.square().mean() + iou.sum() + network.decode_classes(embedding).square().mean()).backward()
    moved = {name for name, value in network.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved <= set(trainable(network))
    # A bias before a norm over the grid has no effect; training whole weights includes it all the same.
    still = set(trainable(network)) - moved
    assert not still if kind != "vanilla" else len(still) < 0.1 * len(moved), still
    inside = [name for name in trainable(network) if name.startswith("image_encoder.")]
    assert bool(inside) == (scope == "encoder+decoder")
    assert not [name for name in trainable(network) if name.startswith("prompt_encoder.")]


def test_base_outputs_are_those_of_segment_anything(small):
    """What attaching must not change is what the authors' own modules answer."""
    reference = small_models.sam()
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(5))
    network = attach(fresh(small), small.spec, Method())
    with torch.no_grad():
        embedding = reference.image_encoder(image)
        no_mask = reference.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).repeat(1, 1, 8, 8)
        expected, expected_iou = reference.mask_decoder(
            image_embeddings=embedding,
            image_pe=reference.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.zeros(1, 0, 256),
            dense_prompt_embeddings=no_mask,
            multimask_output=True,
        )
        nothing = torch.zeros(1, 0, 2), torch.zeros(1, 0), torch.zeros(1, 1, 32, 32), torch.zeros(1)
        assert torch.equal(network.encode(image)["image_embeddings"], embedding)
        masks, iou = network.decode(network.encode(image), *nothing)
    torch.testing.assert_close(masks[:, 1:], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(iou[:, 1:], expected_iou, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "reach", "lora", "adapter"),
    [
        # q and v of every block: 2 (d r + r d) with r = 4; Adapters: two of d -> d/4 -> d with biases.
        (768, 12, 12, (2, 5, 8, 11), 147_456, 7_100_928),
        (1024, 24, 16, (5, 11, 17, 23), 393_216, 25_227_264),
        (1280, 32, 16, (7, 15, 23, 31), 655_360, 52_531_200),
    ],
    ids=["vit_b", "vit_l", "vit_h"],
)
def test_parameter_counts_of_the_published_encoders(width, depth, heads, reach, lora, adapter):
    """Laid out without memory. 147 456 is what LoRA of rank 4 adds to SAM's ViT-B in the literature."""
    spec = ModelSpec(id="m", name="M", architecture="sam_vit")

    def build():
        package = modeling()
        prompts = package.PromptEncoder(256, (64, 64), (1024, 1024), 16)
        transformer = package.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
        masks = package.MaskDecoder(transformer_dim=256, transformer=transformer)
        return SamModel(small_models.vit(width, depth, heads, 1024, 14, reach), prompts, masks)

    with torch.device("meta"):
        assert count(attach(build(), spec, Method("lora")), "image_encoder.") == lora
        assert count(attach(build(), spec, Method("adapter")), "image_encoder.") == adapter


def test_parameter_counts_of_the_small_encoders():
    """MobileSAM's TinyViT at its real size, and the compact model, from their blocks' widths."""
    with torch.device("meta"):
        published = small_models.sam(small_models.tiny_vit(), grid=64)
        mobile = SamModel(published.image_encoder, published.prompt_encoder, published.mask_decoder)
        networks = {"mobile_sam": (mobile, 2 * [128] + 6 * [160] + 2 * [320]), "compact": (CompactModel(), 8 * [192])}
        for name, (network, widths) in networks.items():
            spec = ModelSpec(id="m", name="M", architecture=name)
            lora = attach(copy.deepcopy(network), spec, Method("lora"))
            assert count(lora, "image_encoder.") == sum(2 * (d * 4 + 4 * d) for d in widths)
            adapter = attach(network, spec, Method("adapter"))
            hidden = [(d, d // 4) for d in widths]
            assert count(adapter, "image_encoder.") == sum(2 * (d * h + h + h * d + d) for d, h in hidden)


def test_parameter_counts_of_sams_decoder(small):
    lora = attach(fresh(small), small.spec, Method("lora", "decoder"))
    # Self-attention keeps 256 channels, the three kinds of cross-attention halve them: q and v of each.
    attention = 2 * (2 * (256 * 4 + 4 * 256) + 2 * 2 * (256 * 4 + 4 * 128)) + 2 * (256 * 4 + 4 * 128)
    assert count(lora, ".lora_") == attention == 23_552
    hypernetworks = 4 * (2 * (256 * 256 + 256) + 256 * 32 + 32)
    iou_head = 2 * (256 * 256 + 256) + 256 * 4 + 4
    upscaling = 256 * 64 * 4 + 64 + 2 * 64 + 64 * 32 * 4 + 32
    assert count(lora) == attention + hypernetworks + iou_head + upscaling + (1 + 4) * 256
    adapter = attach(fresh(small), small.spec, Method("adapter", "decoder"))
    # Two layers, each with one for tokens and picture and one beside the MLP, 256 -> 64 -> 256.
    assert count(adapter, "adapter_") == 2 * 2 * (256 * 64 + 64 + 64 * 256 + 256) == 132_352
    vanilla = attach(fresh(small), small.spec, Method("vanilla", "decoder"))
    assert count(vanilla) == sum(value.numel() for value in small_models.sam().mask_decoder.parameters())


def test_rank_and_blocks_are_heeded(small):
    width = 32
    for rank, blocks in ((2, None), (8, (1, 3)), (4, ())):
        network = attach(fresh(small), small.spec, Method(rank=rank, blocks=blocks))
        chosen = range(4) if blocks is None else blocks
        assert count(network, "image_encoder.") == len(chosen) * 2 * 2 * rank * width
        assert all(count(network, f"image_encoder.blocks.{i}.") for i in chosen)
    with pytest.raises(UserError, match="4 blocks, counted from 0, and no block 9"):
        attach(fresh(small), small.spec, Method(blocks=(0, 9)))


@pytest.mark.parametrize("name", NETWORKS)
def test_only_queries_and_values_are_adapted(base):
    """The rows of the keys stay as they are; in TinyViT they lie head by head."""
    network = trained(base, Method())
    attentions = [module for module in network.modules() if hasattr(getattr(module, "qkv", None), "lora_A")]
    assert attentions
    for attention in attentions:
        by_head = base.spec.architecture == "mobile_sam"
        delta = attention.qkv.get_delta_weight("default")
        query, key, value = delta.unflatten(0, (attention.num_heads if by_head else 1, 3, -1)).unbind(1)
        assert not key.any()
        assert query.any(dim=-1).all() and value.any(dim=-1).all()


def test_the_seed_decides_how_it_begins(small):
    def values(seed):
        return trainable(attach(fresh(small), small.spec, Method(heads=("automatic",), classes=CLASSES), seed))

    state = torch.get_rng_state()
    assert same(values(1), values(1)) and not same(values(1), values(2))
    assert torch.equal(state, torch.get_rng_state())


def test_heads_apart_train_nothing_of_the_other(small):
    only = trainable(attach(fresh(small), small.spec, Method(heads=("automatic",), classes=CLASSES)))
    others = ("mask_tokens", "iou_prediction", "output_hypernetworks")
    assert not [name for name in only if any(other in name for other in others)]
    assert "mask_decoder.class_head.tokens.weight" in only
    assert not [name for name in trainable(attach(fresh(small), small.spec, Method())) if "class_head" in name]


@pytest.mark.parametrize("kind", ["lora", "adapter"])
def test_a_copy_of_an_attached_network_is_its_own(small, kind):
    network = trained(small, Method(kind))
    twin = copy.deepcopy(network)
    before = answers(network, small)
    assert same(answers(twin, small), before)
    shake(twin, seed=2)
    assert same(answers(network, small), before)
    assert distance(answers(twin, small), before) > 1e-3


def test_attaching_twice_is_refused(small):
    network = attach(fresh(small), small.spec, Method())
    with pytest.raises(UserError, match="adapted already"):
        attach(network, small.spec, Method())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"method": "dora"}, "Unknown method 'dora'"),
        ({"scope": "encoder"}, "Unknown scope 'encoder'"),
        ({"rank": 0}, "rank of LoRA is 0"),
        ({"dropout": 1.0}, "dropout of LoRA is 1.0"),
        ({"heads": ()}, "choose promptable, automatic, or both"),
        ({"heads": ("automatic",)}, "needs the names of its classes"),
        ({"classes": CLASSES}, "Classes belong to the automatic head"),
    ],
)
def test_methods_that_make_no_sense(values, sentence):
    with pytest.raises(UserError, match=sentence):
        Method(**values)


# ---- the automatic head


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_are_answered_for_each_picture_apart(base):
    network = trained(base, Method(**BOTH))
    spec = base.spec
    images = torch.randn(2, spec.channels, spec.input_size, spec.input_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = network.decode_classes(network.encode(images))
        apart = torch.cat([network.decode_classes(network.encode(image[None])) for image in images])
    assert together.shape == (2, 3, spec.low_res_size, spec.low_res_size)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)
    assert float((together[0] - together[1]).abs().max()) > 1e-3
    assert float((together[:, 0] - together[:, 1]).abs().max()) > 1e-4  # random hypernetworks hardly hear a token


# ---- keeping


@pytest.mark.parametrize(("name", "kind", "scope"), CASES)
def test_what_was_trained_comes_back(base, tmp_path, kind, scope):
    method = Method(kind, scope, **BOTH)
    network = trained(base, method)
    expected = answers(network, base)
    assert distance(expected, answers(fresh(base), base)) > 1e-2
    save_adapter(tmp_path / "a", network, base, method, Card(labels=CLASSES[1:], cases=("1f", "2e")))
    loaded, card = load_adapter(tmp_path / "a", base)
    assert (card.method, card.labels, card.cases, card.base) == (method, CLASSES[1:], ("1f", "2e"), base.spec.id)
    tolerance = 1e-4 * max(float(value.abs().max()) for value in expected.values())
    assert distance(answers(loaded, base), expected) < tolerance
    embedding = {name: value for name, value in expected.items() if name not in ("masks", "iou")}
    with torch.no_grad():
        difference = loaded.decode_classes(embedding) - network.decode_classes(embedding)
    assert float(difference.abs().max()) < tolerance


@pytest.mark.parametrize("name", NETWORKS)
def test_plain_peft_loads_and_merges_it(base, tmp_path):
    method = Method(rank=3, alpha=6, **BOTH)
    network = trained(base, method)
    save_adapter(tmp_path / "a", network, base, method, Card())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns about tensors it misses
        plain = peft.PeftModel.from_pretrained(fresh(base), str(tmp_path / "a"))
    rounding = 1e-5  # where weights lie in memory may choose another kernel, and with it another order of sums
    assert distance(answers(plain, base), answers(network, base)) < rounding
    assert plain.peft_config["default"].peft_type == "LORA"
    merged = plain.merge_and_unload()
    assert distance(answers(merged, base), answers(load_adapter(tmp_path / "a", base)[0], base)) < rounding


def test_the_merge_is_the_one_by_hand(small, tmp_path):
    method = Method(rank=2, alpha=5)
    save_adapter(tmp_path / "a", trained(small, method), small, method, Card())
    file = load_file(tmp_path / "a" / "adapter_model.safetensors")
    before, after = small_models.state(fresh(small)), small_models.state(load_adapter(tmp_path / "a", small)[0])
    width, rank, scale = 32, 2, 5 / 2
    layer = "image_encoder.blocks.2.attn.qkv"
    down, up = (file[f"base_model.model.{layer}.lora_{kind}.weight"].double() for kind in "AB")
    expected = before[f"{layer}.weight"].double()
    expected[:width] += scale * up[:width, :rank] @ down[:rank]
    expected[2 * width :] += scale * up[2 * width :, rank:] @ down[rank:]
    torch.testing.assert_close(after[f"{layer}.weight"].double(), expected, rtol=0, atol=1e-6)
    layer = "mask_decoder.transformer.layers.1.cross_attn_token_to_image.v_proj"
    down, up = (file[f"base_model.model.{layer}.lora_{kind}.weight"].double() for kind in "AB")
    expected = before[f"{layer}.weight"].double() + scale * up @ down
    torch.testing.assert_close(after[f"{layer}.weight"].double(), expected, rtol=0, atol=1e-6)
    untouched = {name for name in before if torch.equal(before[name], after[name])}
    assert "image_encoder.blocks.2.attn.proj.weight" in untouched
    assert not {name for name in untouched if "hypernetworks" in name or "upscaling" in name}


def test_the_bundled_models_adapters_are_small(tmp_path):
    base = Store().get("compact")
    method = Method(heads=("promptable", "automatic"), classes=("background", *"abcd"))
    save_adapter(tmp_path / "a", attach(fresh(base), base.spec, method), base, method, Card(labels=tuple("abcd")))
    assert sum(file.stat().st_size for file in (tmp_path / "a").iterdir()) < 2_000_000


@pytest.mark.parametrize(("kind", "scope"), COMBINATIONS)
def test_training_can_go_on_from_a_saved_adapter(small, tmp_path, kind, scope):
    method = Method(kind, scope, **BOTH)
    network = trained(small, method)
    save_adapter(tmp_path, network, small, method, Card())
    again = attach(fresh(small), small.spec, method, seed=7)
    assert not same(trainable(again), trainable(network))
    restore(again, read_adapter_folder(tmp_path))
    assert same(trainable(again), trainable(network))


def test_a_folder_with_other_files_keeps_them_and_the_newer_adapter(small, tmp_path):
    both, method = Method(**BOTH), Method()
    save_adapter(tmp_path, trained(small, both), small, both, Card())
    (tmp_path / "report.html").write_text("mine")
    save_adapter(tmp_path, trained(small, method), small, method, Card(labels=("new",)))
    assert load_adapter(tmp_path, small)[1].labels == ("new",)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "card.json", "card.md", "report.html",
    ]  # fmt: skip


def test_numbers_that_are_none_do_not_cost_a_training_its_result(small, tmp_path):
    gain = Gain("1 point", ("a",), (float("nan"),), (np.float32(0.5),), interval_after=(0.25, np.float64(0.75)))
    card = Card(("x",), {"rate": np.float32(0.5), "path": tmp_path}, gains=(gain,), curves={"loss": (1, float("inf"))})
    save_adapter(tmp_path / "a", trained(small, Method()), small, Method(), card)
    found = load_adapter(tmp_path / "a", small)[1]
    again = found.gains[0]
    assert (again.before, again.after, again.interval_after) == ((None,), (0.5,), (0.25, 0.75))
    assert found.curves == {"loss": (1, None)} and found.recipe == {"rate": 0.5, "path": str(tmp_path)}


def test_a_save_that_fails_leaves_the_adapter_before(small, tmp_path, monkeypatch):
    save_adapter(tmp_path, trained(small, Method()), small, Method(), Card(labels=("first",)))
    monkeypatch.setattr(Card, "to_dict", lambda self: {"labels": object()})
    with pytest.raises(TypeError):
        save_adapter(tmp_path, trained(small, Method()), small, Method(), Card(labels=("second",)))
    assert load_adapter(tmp_path, small)[1].labels == ("first",)


def test_a_save_that_is_killed_midway_leaves_no_mixture(small, tmp_path, monkeypatch):
    """Whichever file comes first and last: afterwards there is the new adapter whole, or none."""
    from SAMFineTuneLib.models.adapters import adapter_folder

    real, written = adapter_folder.atomic_write, []
    for survives in range(6):
        save_adapter(tmp_path, trained(small, Method()), small, Method(), Card(labels=("first",)))

        def dies(path, limit=survives):
            if len(written) == limit:
                raise KeyboardInterrupt
            written.append(path)
            return real(path)

        monkeypatch.setattr(adapter_folder, "atomic_write", dies)
        method = Method(**BOTH)
        try:
            save_adapter(tmp_path, trained(small, method), small, method, Card(labels=("second",)))
            assert load_adapter(tmp_path, small)[1].labels == ("second",)
        except KeyboardInterrupt:
            assert "has no card.json" in refused(tmp_path, small)
        monkeypatch.setattr(adapter_folder, "atomic_write", real)
        written.clear()


# ---- what must not be loaded


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "liver"
    save_adapter(folder, trained(small, Method()), small, Method(), Card(labels=("liver",)))
    return folder


@pytest.fixture
def adapter(saved, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved, tmp_path / "liver")


def refused(folder, base) -> str:
    with pytest.raises(UserError) as caught:
        load_adapter(folder, base)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_the_wrong_base_is_refused_by_name(adapter, small, tmp_path):
    other = folder_of(small_models.sam(seed=9), tmp_path, "other")
    assert refused(adapter, other) == (
        "The adapter liver was trained on the model 'vit', and does not fit 'other': choose the model 'vit'."
    )
    namesake = ModelFolder(replace(other.spec, id="vit"), other.path)
    assert "was trained on other weights of 'vit'" in refused(adapter, namesake)


def test_damaged_and_missing_files_are_named(adapter, small):
    tensors = adapter / "adapter_model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    assert "adapter_model.safetensors is damaged or was replaced" in refused(adapter, small)
    tensors.write_bytes(content[:1000])
    assert "adapter_model.safetensors is damaged or was replaced" in refused(adapter, small)
    tensors.unlink()
    assert "lacks its file adapter_model.safetensors" in refused(adapter, small)
    (adapter / "card.json").write_text('{"format": 1, "method": {"method": "lora"}, "labels": 5}')
    assert "card.json is damaged" in refused(adapter, small)
    (adapter / "card.json").write_text("{")
    assert "card.json cannot be read" in refused(adapter, small)
    (adapter / "card.json").unlink()
    assert "has no card.json, without which its base is not known" in refused(adapter, small)
    (adapter / "adapter_config.json").unlink()
    assert "has no adapter" in refused(adapter, small)
    assert "There is no adapter folder" in refused(adapter / "nowhere", small)


def test_a_card_that_reaches_out_of_its_folder_is_refused(adapter, small):
    (adapter.parent / "secret").write_text("")
    change_card(adapter, files=lambda files: files | {"../secret": hashlib.sha256(b"").hexdigest()})
    assert "lacks its file ../secret" in refused(adapter, small)


def test_tensors_of_another_network_are_refused(small, tmp_path):
    """Even when the card claims the base."""
    wide = folder_of(small_models.sam(small_models.vit(width=64, heads=2)), tmp_path, "wide")
    save_adapter(tmp_path / "a", trained(wide, Method()), wide, Method(), Card())
    digest = hashlib.sha256(small.file("weights").read_bytes()).hexdigest()
    change_card(tmp_path / "a", base_digest=lambda _: digest)
    sentence = refused(tmp_path / "a", small)
    assert re.search(r"does not fit its base \(its matrices for image_encoder.blocks.\d.attn.qkv are inc", sentence)


@pytest.mark.parametrize(
    "values",
    [
        "[" * 100000,
        {"r": 0},
        {"lora_alpha": 10**400},
        {"lora_alpha": "two"},
        {"alpha_pattern": 3},
        {"rank_pattern": {"((": 1}},
        {"rank_pattern": {"qkv": -1}},
        {"r": None},
    ],
)
def test_settings_that_are_not_of_a_lora_are_refused(adapter, small, values):
    file = adapter / "adapter_config.json"
    file.write_text(values if isinstance(values, str) else json.dumps(json.loads(file.read_text()) | values))
    change_card(adapter, files=lambda files: files | {file.name: sha256_of(file)})
    assert re.search(r"adapter_config.json is not a valid LoRA configuration \(.+\)", refused(adapter, small))


def test_weights_that_are_not_floats_are_refused(adapter, small):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    own = next(name for name in tensors if not LORA.fullmatch(name))
    lora = tensors.keys() - {own}
    for changed, sentence in ((lora, "are not floating point numbers"), ({own}, "instead of torch.f")):
        save_file({name: value.int() if name in changed else value for name, value in tensors.items()}, file)
        change_card(adapter, files=lambda files: files | {file.name: sha256_of(file)})
        assert sentence in refused(adapter, small)


def change_card(folder, **changes):
    card = json.loads((folder / "card.json").read_text())
    for name, change in changes.items():
        card[name] = change(card[name])
    (folder / "card.json").write_text(json.dumps(card))
