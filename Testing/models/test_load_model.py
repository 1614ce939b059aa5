"""Loaded networks compute what their authors' would: each variant against its definition, written out here."""

import importlib.util
import sys

import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("segment_anything") is None:
    pytest.skip("segment-anything is not installed", allow_module_level=True)

import small_models  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.models.architectures.tiny_vit import TinyViTBlock, WindowAttention  # noqa: E402
from SAMFineTuneLib.models.formats.recognise_checkpoint import recognise  # noqa: E402
from SAMFineTuneLib.models.load_model import load_network, load_torch_model  # noqa: E402
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec  # noqa: E402

IMAGE = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(9))


def noise(*shape, seed=0, scale=0.1):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loaded(folder, state):
    torch.save(state, folder / "weights.pth")
    return load_network(folder / "weights.pth")


def folder_of(folder, **changes):
    fields = recognise(folder / "weights.pth").spec_fields() | changes
    return ModelFolder(ModelSpec(id="m", name="M", files={"weights": "weights.pth"}, **fields), folder)


def reference_encode(encoder, state, image, before_norm=False, space=None, beside=None):
    """segment-anything's encoder block by block: windows of the normed grid, or the norm inside the windows, and
    adapters by their block's name in `state`."""
    windows = sys.modules[type(encoder).__module__]
    x = encoder.patch_embed(image) + encoder.pos_embed
    for i, block in enumerate(encoder.blocks):
        adapted = any(name.startswith(f"image_encoder.blocks.{i}.") and "Adapter" in name for name in state)
        grid = x if before_norm else block.norm1(x)
        if block.window_size:
            parts, padded = windows.window_partition(grid, block.window_size)
            parts = block.attn(block.norm1(parts) if before_norm else parts)
            grid = windows.window_unpartition(parts, block.window_size, padded, x.shape[1:3])
        else:
            grid = block.attn(block.norm1(grid) if before_norm else grid)
        x = x + (space(f"image_encoder.blocks.{i}.", grid) if adapted and space else grid)
        normal = block.norm2(x)
        x = x + block.mlp(normal)
        if adapted:
            x = x + beside(f"image_encoder.blocks.{i}.", normal)
    return encoder.neck(x.permute(0, 3, 1, 2))


def bottleneck(state, name, x):
    hidden = F.gelu(F.linear(x, state[f"{name}.D_fc1.weight"], state[f"{name}.D_fc1.bias"]))
    return F.linear(hidden, state[f"{name}.D_fc2.weight"], state[f"{name}.D_fc2.bias"])


def bottleneck_tensors(name, width, hidden, seed):
    return {
        f"{name}.D_fc1.weight": noise(hidden, width, seed=seed),
        f"{name}.D_fc1.bias": noise(hidden, seed=seed + 1),
        f"{name}.D_fc2.weight": noise(width, hidden, seed=seed + 2),
        f"{name}.D_fc2.bias": noise(width, seed=seed + 3),
    }


def close(found, expected, tolerance=1e-4):
    assert (found - expected).abs().max() < tolerance * expected.std()


def test_sam_med2d_adapters_work_beside_the_mlp(tmp_path):
    base = small_models.sam()
    state = small_models.state(base)
    for i in range(4):
        name = f"image_encoder.blocks.{i}.Adapter"
        state |= {
            f"{name}.norm.weight": 1 + noise(32, seed=i),
            f"{name}.norm.bias": noise(32, seed=i + 10),
            f"{name}.channel.0.weight": noise(8, 32, seed=i + 20, scale=0.5),
            f"{name}.channel.2.weight": noise(32, 8, seed=i + 30, scale=0.5),
            f"{name}.spatial.0.weight": noise(32, 32, 3, 3, seed=i + 40),
            f"{name}.spatial.2.weight": noise(32, 32, 4, 4, seed=i + 50),
        }

    def beside(block, x):
        tensor = {name.removeprefix(f"{block}Adapter."): value for name, value in state.items() if block in name}
        x = x.permute(0, 3, 1, 2)
        share = torch.sigmoid(F.relu(x.mean((2, 3)) @ tensor["channel.0.weight"].T) @ tensor["channel.2.weight"].T)
        small = F.relu(F.conv2d(x * share[..., None, None], tensor["spatial.0.weight"], stride=2, padding=1))
        x = x + F.relu(F.conv_transpose2d(small, tensor["spatial.2.weight"], stride=2, padding=1))
        return F.layer_norm(x.permute(0, 2, 3, 1), (32,), tensor["norm.weight"], tensor["norm.bias"], 1e-5)

    recognition, network = loaded(tmp_path, {"model": state, "optimizer": {}})
    assert recognition.architecture == "sam_med2d"
    expected = reference_encode(base.image_encoder, state, IMAGE, beside=beside)
    close(network.encode(IMAGE)["image_embeddings"], expected)
    assert (expected - base.image_encoder(IMAGE)).abs().max() > 0.1 * expected.std()


def test_finetune_sam_adapters_follow_the_attention_and_stand_beside_the_mlp(tmp_path):
    base = small_models.sam(outputs=6)
    state = small_models.state(base)
    for i in (0, 3):  # a windowed and a global block
        for seed, kind in enumerate(("Space_Adapter", "MLP_Adapter", "Depth_Adapter")):
            state |= bottleneck_tensors(f"image_encoder.blocks.{i}.{kind}", 32, 8, 100 * i + 10 * seed)
    recognition, network = loaded(tmp_path, state)
    assert recognition.architecture == "finetune_sam" and len(recognition.ignored) == 8  # the branch for 3-D input
    expected = reference_encode(
        base.image_encoder,
        state,
        IMAGE,
        before_norm=True,
        space=lambda block, x: x + bottleneck(state, f"{block}Space_Adapter", x),
        beside=lambda block, x: 0.5 * bottleneck(state, f"{block}MLP_Adapter", x),
    )
    close(network.encode(IMAGE)["image_embeddings"], expected)


def test_finetune_sam_without_adapters_still_pads_before_the_norm(tmp_path):
    base = small_models.sam(outputs=6)
    _, network = loaded(tmp_path, base.state_dict())
    expected = reference_encode(base.image_encoder, {}, IMAGE, before_norm=True)
    close(network.encode(IMAGE)["image_embeddings"], expected)
    assert (expected - base.image_encoder(IMAGE)).abs().max() > 0.01 * expected.std()


def test_finetune_sam_decoder_adapters(tmp_path):
    base = small_models.sam(outputs=6)
    state = small_models.state(base)
    name = "mask_decoder.transformer.layers.1"
    state |= bottleneck_tensors(f"{name}.Adapter", 256, 64, 1) | bottleneck_tensors(f"{name}.MLP_Adapter", 256, 64, 7)
    _, network = loaded(tmp_path, state)
    values = small_models.prompts()

    def adapted(queries, keys, query_pe, key_pe):
        placed = queries + query_pe
        queries = layer.norm1(queries + layer.self_attn(placed, placed, queries))
        queries = queries + layer.cross_attn_token_to_image(queries + query_pe, keys + key_pe, keys)
        queries = layer.norm2(queries + bottleneck(state, f"{name}.Adapter", queries))
        side = 0.5 * bottleneck(state, f"{name}.MLP_Adapter", queries)
        queries = layer.norm3(queries + layer.mlp(queries) + side)
        keys = keys + layer.cross_attn_image_to_token(keys + key_pe, queries + query_pe, queries)
        return queries, layer.norm4(keys + bottleneck(state, f"{name}.Adapter", keys))

    _, plain = loaded(tmp_path, base.state_dict())
    embedding = plain.encode(IMAGE)
    without, _ = plain.decode(embedding, *values)
    layer = plain.mask_decoder.transformer.layers[1]
    layer.forward = adapted
    expected, expected_iou = plain.decode(embedding, *values)
    masks, iou = network.decode(embedding, *values)
    close(masks, expected)
    torch.testing.assert_close(iou, expected_iou, rtol=1e-3, atol=1e-4)
    assert (without - expected).abs().max() > 0.05 * expected.std()


@pytest.mark.parametrize("kind", ["vit", "tiny_vit"])
def test_lora_is_merged_exactly(tmp_path, kind):
    """Against the authors' formula, with hooks that add B A x to the outputs of the layers."""
    tiny = kind == "tiny_vit"
    encoder, grid = (small_models.tiny_vit(1, scale=8), 64) if tiny else (small_models.vit(), 8)
    base = small_models.sam(encoder, outputs=6, grid=grid)
    image = noise(1, 3, 256, 256, scale=1.0) if tiny else IMAGE
    state = small_models.state(base)
    _, expected = loaded(tmp_path, state)
    blocks = ("image_encoder.layers.1.blocks.0", "image_encoder.layers.3.blocks.1") if tiny else tuple(
        f"image_encoder.blocks.{i}" for i in (0, 1)
    )
    for seed, block in enumerate(blocks):
        layer = f"{block}.attn.qkv"
        width = state[f"{layer}.weight"].shape[1]
        for inner in ("weight", "bias"):
            state[f"{layer}.qkv.{inner}"] = state.pop(f"{layer}.{inner}")
        pairs = [
            (noise(4, width, seed=seed + k, scale=0.3), noise(width, 4, seed=seed + 9 + k, scale=0.3)) for k in (0, 1)
        ]
        for (down, up), part in zip(pairs, "qv", strict=True):
            state[f"{layer}.linear_a_{part}.weight"], state[f"{layer}.linear_b_{part}.weight"] = down, up

        def add_to_ends(module, inputs, output, pairs=pairs, width=width):
            (query_down, query_up), (value_down, value_up) = pairs
            output = output.clone()
            output[..., :width] += inputs[0] @ query_down.T @ query_up.T
            output[..., -width:] += inputs[0] @ value_down.T @ value_up.T
            return output

        expected.get_submodule(layer).register_forward_hook(add_to_ends)
    for seed, layer in enumerate(("layers.0.self_attn.q_proj", "layers.1.cross_attn_image_to_token.v_proj",
                                  "final_attn_token_to_image.q_proj")):
        layer = f"mask_decoder.transformer.{layer}"
        outputs, width = state[f"{layer}.weight"].shape
        for inner in ("weight", "bias"):
            state[f"{layer}.proj.{inner}"] = state.pop(f"{layer}.{inner}")
        down, up = noise(4, width, seed=seed + 60, scale=0.3), noise(outputs, 4, seed=seed + 70, scale=0.3)
        state[f"{layer}.w_a.weight"], state[f"{layer}.w_b.weight"] = down, up
        expected.get_submodule(layer).register_forward_hook(
            lambda module, inputs, output, down=down, up=up: output + inputs[0] @ down.T @ up.T
        )
    recognition, network = loaded(tmp_path, state)
    assert recognition.architecture == "finetune_sam" and len(recognition.lora) == 5
    embedding = expected.encode(image)
    close(network.encode(image)["image_embeddings"], embedding["image_embeddings"])
    values = small_models.prompts(size=image.shape[-1], low_res=4 * embedding["image_embeddings"].shape[-1])
    close(network.decode(embedding, *values)[0], expected.decode(embedding, *values)[0])


def tiny_vit_5m_shapes(stem_kernel):
    """Names and shapes of the published encoders' tensors, written down from their definition."""
    widths, heads, windows, depths = (64, 128, 160, 320), (0, 4, 5, 10), (0, 7, 14, 7), (2, 2, 6, 2)
    shapes = {}

    def conv(name, outputs, inputs, kernel):
        shapes[f"{name}.c.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{name}.bn.num_batches_tracked"] = ()
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (outputs,)

    def linear(name, outputs, inputs):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name, width):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    conv("patch_embed.seq.0", 32, 3, stem_kernel)
    conv("patch_embed.seq.2", 64, 32, stem_kernel)
    for stage, (width, head, window, depth) in enumerate(zip(widths, heads, windows, depths, strict=True)):
        for i in range(depth):
            name = f"layers.{stage}.blocks.{i}"
            if stage == 0:
                conv(f"{name}.conv1", 256, 64, 1)
                conv(f"{name}.conv2", 256, 1, 3)
                conv(f"{name}.conv3", 64, 256, 1)
                continue
            norm(f"{name}.attn.norm", width)
            linear(f"{name}.attn.qkv", 3 * width, width)
            linear(f"{name}.attn.proj", width, width)
            shapes[f"{name}.attn.attention_biases"] = (head, window * window)
            conv(f"{name}.local_conv", width, 1, 3)
            norm(f"{name}.mlp.norm", width)
            linear(f"{name}.mlp.fc1", 4 * width, width)
            linear(f"{name}.mlp.fc2", width, 4 * width)
        if stage < 3:
            outputs = widths[stage + 1]
            conv(f"layers.{stage}.downsample.conv1", outputs, width, 1)
            conv(f"layers.{stage}.downsample.conv2", outputs, 1, 3)
            conv(f"layers.{stage}.downsample.conv3", outputs, outputs, 1)
    shapes["neck.0.weight"], shapes["neck.2.weight"] = (256, 320, 1, 1), (256, 256, 3, 3)
    norm("neck.1", 256)
    norm("neck.3", 256)
    return shapes


@pytest.mark.parametrize(("stride", "kernel"), [(4, 3), (1, 1)])
def test_tiny_vits_have_the_published_tensors(stride, kernel):
    with torch.device("meta"):
        encoder = small_models.tiny_vit(stride)
    assert {name: tuple(value.shape) for name, value in encoder.state_dict().items()} == tiny_vit_5m_shapes(kernel)


def test_tiny_vit_attention_is_biased_by_distance():
    attention = small_models.randomise(WindowAttention(8, 2, 3))
    x = noise(1, 9, 8, scale=1.0)
    rows = attention.qkv(attention.norm(x))[0].reshape(9, 2, 12)
    expected = torch.zeros(9, 2, 4)
    for head in range(2):
        query, key, value = rows[:, head].split(4, dim=-1)
        for i in range(9):
            distance = [abs(i // 3 - j // 3) * 3 + abs(i % 3 - j % 3) for j in range(9)]
            weight = (query[i] @ key.T / 2 + attention.attention_biases[head, distance]).softmax(-1)
            expected[i, head] = weight @ value
    torch.testing.assert_close(attention(x)[0], attention.proj(expected.flatten(1)))


def test_tiny_vit_windows_are_padded_with_zeros():
    """A 4 x 4 grid in windows of 3: the last window holds one real cell and eight zeros."""
    from SAMFineTuneLib.models.architectures.tiny_vit import StageShape

    block = small_models.randomise(TinyViTBlock(StageShape(8, 1, 16, heads=2, window=3)))
    x = noise(1, 4, 4, 8, scale=1.0)
    corner = torch.zeros(1, 9, 8)
    corner[0, 0] = x[0, 3, 3]
    torch.testing.assert_close(block.attend(x)[0, 3, 3], block.attn(corner)[0, 0])
    torch.testing.assert_close(block.attend(x)[0, :3, :3].reshape(1, 9, 8), block.attn(x[:, :3, :3].reshape(1, 9, 8)))


@pytest.mark.parametrize(("stride", "size"), [(1, 256), (4, 1024)])
def test_tiny_vits_run(tmp_path, stride, size):
    torch.save(small_models.sam(small_models.tiny_vit(stride, scale=8), grid=64).state_dict(), tmp_path / "weights.pth")
    model = load_torch_model(folder_of(tmp_path))
    embedding = model.encode(noise(1, 3, size, size, scale=1.0))
    assert embedding["image_embeddings"].shape == (1, 256, 64, 64)
    masks, iou = model.decode(embedding, *small_models.prompts(3, 2, size, 256))
    assert masks.shape == (3, 4, 256, 256) and iou.shape == (3, 4)


def test_compact_embeddings_keep_their_names(tmp_path):
    from SAMFineTuneLib.models.architectures.compact import build_compact

    torch.save(build_compact().state_dict(), tmp_path / "weights.pth")
    model = load_torch_model(folder_of(tmp_path))
    embedding = model.encode(noise(1, 1, 128, 128, scale=1.0))
    assert list(embedding) == ["image_embeddings", "high_res_0", "high_res_1"]
    assert model.decode(embedding, *small_models.prompts(2, 3, 128, 64))[0].shape == (2, 4, 64, 64)


def test_automatic_heads_take_no_prompts_at_all(tmp_path):
    base = small_models.sam(outputs=6)
    torch.save(base.state_dict(), tmp_path / "weights.pth")
    model = load_torch_model(folder_of(tmp_path))
    assert model.mask_decoder.num_mask_tokens == len(folder_of(tmp_path).spec.classes) + 1
    embedding = model.encode(IMAGE)
    none = torch.zeros(1, 0, 2), torch.zeros(1, 0), torch.zeros(1, 1, 32, 32), torch.zeros(1)
    sparse, dense = base.prompt_encoder(points=None, boxes=None, masks=None)
    expected, _ = base.mask_decoder(
        image_embeddings=embedding["image_embeddings"],
        image_pe=base.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    close(model.decode(embedding, *none)[0][:, 1:], expected)


def test_half_precision_is_only_the_encoders(tmp_path):
    torch.save(small_models.sam().state_dict(), tmp_path / "weights.pth")
    exact = load_torch_model(folder_of(tmp_path))
    half = load_torch_model(folder_of(tmp_path), "cpu", torch.bfloat16)
    assert half.image_encoder.pos_embed.dtype == torch.bfloat16
    assert {value.dtype for value in half.mask_decoder.parameters()} == {torch.float32}
    embedding = half.encode(IMAGE.to(torch.bfloat16))["image_embeddings"].float()
    expected = exact.encode(IMAGE)["image_embeddings"]
    assert 0 < (embedding - expected).abs().mean() < 0.05 * expected.std()


def test_weights_of_another_kind_than_the_description_are_refused(tmp_path):
    torch.save(small_models.sam().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="sam_vit at 128 pixels instead of sam_vit_b at 128"):
        load_torch_model(folder_of(tmp_path, architecture="sam_vit_b"))
    with pytest.raises(UserError, match="instead of sam_vit at 1024"):
        load_torch_model(folder_of(tmp_path, input_size=1024))


def test_half_precision_files_load_in_float32(tmp_path):
    state = {name: value.half() for name, value in small_models.sam().state_dict().items()}
    _, network = loaded(tmp_path, state)
    assert {value.dtype for value in network.parameters()} == {torch.float32}
    assert all(value.requires_grad for value in network.parameters())


def test_a_missing_package_is_named(monkeypatch):
    import SAMFineTuneLib.models.architectures.segment_anything as loader

    monkeypatch.setattr(loader.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "samfinetune\[torch\]"'):
        loader.modeling.__wrapped__()
