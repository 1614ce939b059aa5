"""The compact promptable model: Segment Anything's structure at 128 x 128 pixels, with 4.1 M parameters.

Image encoder, prompt encoder and mask decoder follow Kirillov et al., "Segment Anything" (2023); high-resolution
features for the decoder follow Ravi et al., "SAM 2" (2024). Two additions compensate for training on thousands of
pictures rather than millions: prompts are also drawn as pictures, and every position is compared with the positions
that the prompts mark as object and as background. The modules have SAM's names (`image_encoder.blocks[i].attn.qkv`,
`mask_decoder.transformer.layers[i].self_attn.q_proj`, …), so that LoRA and Adapters attach as they do to SAM.

Shapes: B prompts or pictures, N points, C channels, H x W grid. Coordinates are (x, y) pixel-index positions of the
128 x 128 input picture, so that (0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAMFineTuneLib.models.architectures.compact_decoder import (
    GRID_SIZE,
    HIGH_RES_WIDTHS,
    INPUT_SIZE,
    LOW_RES_SIZE,
    WIDTH,
    LayerNorm2d,
    MaskDecoder,
    MLPBlock,
    PromptEncoder,
)

PIXEL_MEAN = 110.0
PIXEL_STD = 60.0
ENCODER_WIDTH = 192
ENCODER_DEPTH = 8
ENCODER_HEADS = 6
STEM_WIDTHS = (24, 64)


class SelfAttention(nn.Module):
    """Global self-attention on a grid, with the fused `qkv` layer LoRA looks for."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, height, width, channels))


class Block(nn.Module):
    """Pre-norm transformer block on a (B, H, W, C) grid.

    The depth-wise convolution gives every block local context; without it so small an encoder trains slowly.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + self.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def _conv_norm(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3 x 3 convolution, group norm (it cancels a picture's contrast) and GELU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(8, outputs), nn.GELU())


def _grid_norm(channels: int) -> nn.GroupNorm:
    """Zero mean and unit deviation of each channel over the grid."""
    return nn.GroupNorm(channels, channels)


class ConvStem(nn.Module):
    """Picture -> features at strides 2, 4 and 8; the first two also serve the mask decoder."""

    def __init__(self) -> None:
        super().__init__()
        first, second = STEM_WIDTHS
        self.stride2 = _conv_norm(1, first, 2)
        self.stride4 = nn.Sequential(_conv_norm(first, second, 2), _conv_norm(second, second, 1))
        # Norms over the grid, here and after the neck: without them the encoder may settle on a constant answer
        # while the decoder learns to fill boxes, and then never recovers.
        self.proj = nn.Sequential(nn.Conv2d(second, ENCODER_WIDTH, 3, 2, 1, bias=False), _grid_norm(ENCODER_WIDTH))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 1, 128, 128) -> (B, 24, 64, 64), (B, 64, 32, 32), (B, 192, 16, 16)."""
        half = self.stride2(image)
        quarter = self.stride4(half)
        return half, quarter, self.proj(quarter)


class ImageEncoder(nn.Module):
    """Convolutional stem, transformer blocks, neck."""

    def __init__(self) -> None:
        super().__init__()
        self.img_size = INPUT_SIZE
        self.patch_embed = ConvStem()
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID_SIZE, GRID_SIZE, ENCODER_WIDTH))
        self.blocks = nn.ModuleList(Block(ENCODER_WIDTH, ENCODER_HEADS) for _ in range(ENCODER_DEPTH))
        self.neck = nn.Sequential(
            nn.Conv2d(ENCODER_WIDTH, WIDTH, 1, bias=False),
            LayerNorm2d(WIDTH),
            nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
            _grid_norm(WIDTH),
        )
        self.pyramid = Pyramid()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """(B, 1, 128, 128) -> `image_embeddings` (B, 128, 16, 16), `high_res_0` (B, 32, 32, 32) and
        `high_res_1` (B, 16, 64, 64)."""
        half, quarter, grid = self.patch_embed(image)
        x = grid.permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embedding = self.neck(x.permute(0, 3, 1, 2))
        high_res_0, high_res_1 = self.pyramid(embedding, quarter, half)
        return {"image_embeddings": embedding, "high_res_0": high_res_0, "high_res_1": high_res_1}


class Pyramid(nn.Module):
    """Top-down path of a feature pyramid (Lin 2017): the grid's features at the stem's resolutions."""

    def __init__(self) -> None:
        super().__init__()
        quarter, half = HIGH_RES_WIDTHS
        self.top = nn.Conv2d(WIDTH, quarter, 1)
        self.lateral_quarter = nn.Conv2d(STEM_WIDTHS[1], quarter, 1)
        self.smooth_quarter = nn.Sequential(nn.Conv2d(quarter, quarter, 3, padding=1, bias=False), _grid_norm(quarter))
        self.down = nn.Conv2d(quarter, half, 1)
        self.lateral_half = nn.Conv2d(STEM_WIDTHS[0], half, 1)
        self.smooth_half = nn.Sequential(nn.Conv2d(half, half, 3, padding=1, bias=False), _grid_norm(half))

    def forward(self, grid: Tensor, quarter: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 128, 16, 16), (B, 64, 32, 32), (B, 24, 64, 64) -> (B, 32, 32, 32), (B, 16, 64, 64)."""
        x = F.interpolate(self.top(grid), scale_factor=2.0, mode="nearest") + self.lateral_quarter(quarter)
        high_res_0 = self.smooth_quarter(F.relu(x))
        x = F.interpolate(self.down(high_res_0), scale_factor=2.0, mode="nearest") + self.lateral_half(half)
        return high_res_0, self.smooth_half(F.relu(x))


class CompactModel(nn.Module):
    """The whole model; `encode` once a picture, `decode` once a set of prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder()
        self.prompt_encoder = PromptEncoder()
        self.mask_decoder = MaskDecoder()
        self.grid_size = GRID_SIZE

    def encode(self, image: Tensor) -> dict[str, Tensor]:
        """Normalised, padded picture (B, 1, 128, 128) -> `image_embeddings`, `high_res_0`, `high_res_1`."""
        return self.image_encoder(image)

    def decode(self, embedding: dict[str, Tensor], *prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts of B objects on one picture (embedding batch 1) or one each (batch B).

        `prompts` are `point_coords` (B, N, 2) input pixels, `point_labels` (B, N), `mask_input` (B, 1, 64, 64) previous
        logits, `has_mask_input` (B,) 0 or 1 -> logits (B, 4, 64, 64) and predicted IoU (B, 4).
        """
        return self.mask_decoder(embedding, *self.prompt_encoder(*prompts))

    def decode_classes(self, embedding: dict[str, Tensor]) -> Tensor:
        """Embedding of B pictures, without prompts -> logits (B, C, 64, 64) of the class head's classes."""
        image = embedding["image_embeddings"]
        batch = image.shape[0]
        nothing = ((batch, 0, 2), (batch, 0), (batch, 1, LOW_RES_SIZE, LOW_RES_SIZE), (batch,))
        prompts = self.prompt_encoder(*(image.new_zeros(shape) for shape in nothing))
        return self.mask_decoder.classes(embedding, *prompts)


def _initialise(model: nn.Module) -> None:
    """Truncated normals for linear layers and embeddings, PyTorch's defaults for the rest."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 * 0.7)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Block):
            # Blocks start close to the identity, so that the stem learns from the first step on.
            for layer in (module.local, module.attn.proj, module.mlp.lin2):
                layer.weight.data.mul_(0.2)


def build_compact(state_dict: dict[str, Tensor] | None = None) -> CompactModel:
    """A fresh model, or one with the given weights (any float type; every name and shape must fit)."""
    model = CompactModel()
    _initialise(model)
    nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.02)
    if state_dict is not None:
        model.load_state_dict(state_dict, strict=True)
    return model.eval()
