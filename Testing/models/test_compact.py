"""The compact architecture: shapes, the meaning of its prompts, and agreement of its ONNX graphs with PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from SAMFineTuneLib.models.architectures import compact  # noqa: E402


@pytest.fixture(scope="module")
def model() -> compact.CompactModel:
    torch.manual_seed(0)
    return compact.build_compact()


@pytest.fixture(scope="module")
def embedding(model: compact.CompactModel) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return model.encode(torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(1)))


def prompts(count: int, points: int, seed: int = 2, with_mask: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "point_coords": torch.rand(count, points, 2, generator=generator) * 127,
        "point_labels": torch.randint(0, 2, (count, points), generator=generator).float(),
        "mask_input": 5 * torch.randn(count, 1, 64, 64, generator=generator),
        "has_mask_input": torch.full((count,), float(with_mask)),
    }


def decode(model, embedding, given):
    with torch.no_grad():
        return model.decode(embedding, *given.values())


def test_it_is_small(model):
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 4.5e6


def test_lora_finds_the_names_it_knows_from_sam(model):
    names = dict(model.named_modules())
    assert names["image_encoder.blocks.0.attn.qkv"].out_features == 3 * compact.ENCODER_WIDTH
    assert names["mask_decoder.transformer.layers.1.cross_attn_token_to_image.v_proj"]
    assert names["mask_decoder.transformer.final_attn_token_to_image.q_proj"]


def test_encode_gives_three_resolutions(embedding):
    shapes = {name: tuple(value.shape) for name, value in embedding.items()}
    assert shapes == {
        "image_embeddings": (1, 128, 16, 16),
        "high_res_0": (1, 32, 32, 32),
        "high_res_1": (1, 16, 64, 64),
    }


@pytest.mark.parametrize(("count", "points"), [(1, 2), (5, 3)])
def test_decode_gives_four_candidates_an_object(model, embedding, count, points):
    masks, iou = decode(model, embedding, prompts(count, points))
    assert masks.shape == (count, 4, 64, 64) and iou.shape == (count, 4)
    assert ((iou >= 0) & (iou <= 1)).all()


def test_objects_decoded_together_or_alone_give_the_same(model, embedding):
    given = prompts(3, 2)
    together, _ = decode(model, embedding, given)
    alone, _ = decode(model, embedding, {name: value[1:2] for name, value in given.items()})
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


def test_where_a_padding_point_lies_does_not_matter(model, embedding):
    given = prompts(1, 2)
    given["point_labels"][0, 1] = -1
    moved = {**given, "point_coords": given["point_coords"].clone()}
    moved["point_coords"][0, 1] = 77
    torch.testing.assert_close(decode(model, embedding, given), decode(model, embedding, moved))


def test_the_order_of_prompts_does_not_matter(model, embedding):
    given = prompts(1, 4)
    turned = {**given, "point_coords": given["point_coords"].flip(1), "point_labels": given["point_labels"].flip(1)}
    masks, other = (decode(model, embedding, which)[0] for which in (given, turned))
    torch.testing.assert_close(masks, other, atol=1e-4, rtol=1e-4)


def test_logits_count_only_when_announced(model, embedding):
    given = prompts(1, 2)
    empty = {**given, "mask_input": torch.zeros(1, 1, 64, 64)}
    torch.testing.assert_close(decode(model, embedding, given), decode(model, embedding, empty))
    announced = prompts(1, 2, with_mask=True)
    assert not torch.allclose(decode(model, embedding, given)[0], decode(model, embedding, announced)[0])


def test_a_box_and_a_click_are_drawn_where_they_are(model):
    coords = torch.tensor([[[20.0, 30.0], [60.0, 50.0], [100.0, 10.0], [8.0, 90.0]]])
    drawn = model.prompt_encoder.draw(coords, torch.tensor([[2.0, 3.0, 1.0, 0.0]]))[0]
    rows, columns = torch.where(drawn[3] > 0.3)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 29, 15, 24)
    for plane, (x, y) in ((0, (100, 10)), (2, (8, 90))):
        row, column = divmod(int(drawn[plane].argmax()), 64)
        assert abs(2 * column + 0.5 - x) <= 1 and abs(2 * row + 0.5 - y) <= 1


def test_no_box_draws_nothing(model):
    drawn = model.prompt_encoder.draw(torch.zeros(1, 2, 2), torch.full((1, 2), -1.0))
    assert not drawn.any()


def test_half_precision_weights_are_read_and_a_wrong_name_is_refused(model):
    half = {name: value.half() for name, value in model.state_dict().items()}
    assert next(compact.build_compact(half).parameters()).dtype == torch.float32
    half["stranger"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="stranger"):
        compact.build_compact(half)


def bundled(root: Path) -> Path:
    folder = root / "Resources" / "models" / "compact"
    if not (folder / "decoder.onnx").is_file():
        pytest.skip("the bundled model is not built yet")
    return folder


@pytest.fixture(scope="module")
def sessions(root):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = bundled(root)
    return [onnxruntime.InferenceSession(folder / f"{name}.onnx") for name in ("encoder", "decoder")]


@pytest.fixture(scope="module")
def trained(root):
    from safetensors.torch import load_file

    return compact.build_compact(load_file(bundled(root) / "model.safetensors"))


@pytest.mark.parametrize(("count", "points", "with_mask"), [(1, 2, False), (3, 5, True)])
def test_the_bundled_graphs_answer_as_pytorch_does(sessions, trained, count, points, with_mask):
    encoder, decoder = sessions
    image = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(4))
    given = prompts(count, points, 5, with_mask)
    with torch.no_grad():
        expected_embedding = trained.encode(image)
        expected = trained.decode(expected_embedding, *given.values())
    names = [output.name for output in encoder.get_outputs()]
    embedding = dict(zip(names, encoder.run(None, {"image": image.numpy()}), strict=True))
    answer = decoder.run(
        ["low_res_masks", "iou_predictions"], {**embedding, **{k: v.numpy() for k, v in given.items()}}
    )
    for name, value in expected_embedding.items():
        np.testing.assert_allclose(embedding[name], value.numpy(), atol=1e-3 * float(value.abs().max()))
    for got, wanted in zip(answer, expected, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), atol=1e-3 * float(wanted.abs().max()))


def test_the_bundled_model_finds_an_obvious_disc(sessions):
    encoder, decoder = sessions
    rows, columns = np.mgrid[:128, :128]
    disc = (columns - 70) ** 2 + (rows - 60) ** 2 < 25**2
    image = ((np.where(disc, 190.0, 60.0) - compact.PIXEL_MEAN) / compact.PIXEL_STD).astype(np.float32)[None, None]
    names = [output.name for output in encoder.get_outputs()]
    embedding = dict(zip(names, encoder.run(None, {"image": image}), strict=True))
    for coords, labels in (([[45, 35], [95, 85]], [2, 3]), ([[70, 60], [0, 0]], [1, -1])):
        masks, iou = decoder.run(
            ["low_res_masks", "iou_predictions"],
            {
                **embedding,
                "point_coords": np.array([coords], np.float32),
                "point_labels": np.array([labels], np.float32),
                "mask_input": np.zeros((1, 1, 64, 64), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
            },
        )
        answer = np.kron(masks[0, iou[0].argmax()] > 0, np.ones((2, 2), bool))
        assert 2 * (answer & disc).sum() / (answer.sum() + disc.sum()) > 0.93
