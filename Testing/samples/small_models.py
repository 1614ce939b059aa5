"""Networks small enough for tests, built from segment-anything's own modules and filled with random weights."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from SAMFineTuneLib.models.architectures.segment_anything import modeling
from SAMFineTuneLib.models.architectures.tiny_vit import StageShape, TinyViT


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of every kind away from zero, so that a tensor in the wrong place shows in the result."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(1 + 0.5 * noise.abs())
            elif name.endswith("gaussian_matrix"):
                value.copy_(noise)
            elif isinstance(value, nn.Parameter) or name.endswith("running_mean"):
                wide = value.ndim > 1 and "rel_pos" not in name
                around = 1 if "norm" in name and name.endswith("weight") else 0
                value.copy_(around + noise * (value[0].numel() ** -0.5 if wide else 0.2))
    return module.eval()


def vit(width=32, depth=4, heads=2, size=128, window=5, global_blocks=(1, 3)) -> nn.Module:
    return modeling().ImageEncoderViT(
        depth=depth,
        embed_dim=width,
        img_size=size,
        mlp_ratio=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=heads,
        patch_size=16,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=global_blocks,
        window_size=window,
        out_chans=256,
    )


def vit_b(size=1024) -> nn.Module:
    encoder = vit(768, 12, 12, size, 14, (2, 5, 8, 11))
    for block in encoder.blocks:
        block.mlp = type(block.mlp)(embedding_dim=768, mlp_dim=3072)
    return encoder


def sam(encoder: nn.Module | None = None, outputs=4, grid=None, seed=0) -> nn.Module:
    """segment-anything's own `Sam` around an image encoder."""
    package, encoder = modeling(), encoder or vit()
    grid = grid or encoder.img_size // 16
    prompts = package.PromptEncoder(
        embed_dim=256, image_embedding_size=(grid, grid), input_image_size=(encoder.img_size,) * 2, mask_in_chans=16
    )
    masks = package.MaskDecoder(
        num_multimask_outputs=outputs - 1,
        transformer=package.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=512, num_heads=8),
        transformer_dim=256,
    )
    return randomise(package.Sam(encoder, prompts, masks), seed)


def tiny_vit(stem_stride=4, scale=1) -> TinyViT:
    """MobileSAM's encoder (stem stride 4) or LiteMedSAM's (1); `scale` divides its widths."""
    widths, heads, windows = (64, 128, 160, 320), (0, 2, 1, 2), (0, 7, 14, 7)
    if scale == 1:
        heads = (0, 4, 5, 10)
    stages = tuple(
        StageShape(width // scale, depth, 4 * width // scale, head, window)
        for width, depth, head, window in zip(widths, (2, 2, 6, 2), heads, windows, strict=True)
    )
    return TinyViT(3, stem_stride, stages)


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    """Its tensors, copied, so that a test may change them."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def prompts(batch=2, points=3, size=128, low_res=32, seed=3):
    """Points, labels of every kind, mask logits and flags as `decode` takes them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 4, (batch, points), generator=generator).float()
    return (
        torch.rand(batch, points, 2, generator=generator) * size,
        labels,
        5 * torch.randn(batch, 1, low_res, low_res, generator=generator),
        torch.arange(batch).remainder(2).float(),
    )
