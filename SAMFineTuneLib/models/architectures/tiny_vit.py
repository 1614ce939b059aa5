"""TinyViT (Wu et al., 2022) as MobileSAM and LiteMedSAM use it: an image encoder with a 64 x 64 output grid.

Four stages: one of inverted bottlenecks, three of windowed attention, a convolution halving the grid after the first
two. MobileSAM's stem shrinks its 1024² input by four, LiteMedSAM's keeps its 256²; both reach the stages at 256².
Names follow the published state dicts.

Shapes: B pictures, C channels, H x W grid, w window side, M heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAMFineTuneLib.errors import UserError

GRID = 64
OUTPUT_WIDTH = 256
_STEM_GRID = 4 * GRID


@dataclass(frozen=True)
class StageShape:
    """One stage; the first has neither heads nor window."""

    width: int
    depth: int
    hidden: int
    heads: int = 0
    window: int = 0


@dataclass(frozen=True)
class TinyVitShape:
    """Dimensions of a TinyViT, read from its tensors' shapes."""

    channels: int
    stem_stride: int
    stages: tuple[StageShape, ...]

    @property
    def input_size(self) -> int:
        return _STEM_GRID * self.stem_stride

    @property
    def name(self) -> str:
        return "lite_medsam" if self.stem_stride == 1 else "mobile_sam"


def tiny_vit_shape(state: Mapping[str, Tensor]) -> TinyVitShape:
    """Read a TinyViT's dimensions from its tensors. UserError when one is missing or the stem is another."""
    try:
        stem = state["image_encoder.patch_embed.seq.0.c.weight"]
        kernel = stem.shape[-1]
        if kernel not in (1, 3) or "image_encoder.patch_embed.seq.2.c.weight" not in state:
            raise UserError(
                "its TinyViT has another stem than MobileSAM's (two 3 x 3 convolutions) and LiteMedSAM's (two 1 x 1): "
                f"image_encoder.patch_embed.seq.0.c.weight has shape {tuple(stem.shape)}."
            )
        blocks: dict[int, int] = {}
        for name in state:
            if match := re.match(r"image_encoder\.layers\.(\d+)\.blocks\.(\d+)\.", name):
                stage, block = int(match[1]), int(match[2])
                blocks[stage] = max(blocks.get(stage, 0), block + 1)
        stages = tuple(_stage_shape(state, stage, depth) for stage, depth in sorted(blocks.items()))
    except KeyError as error:
        raise UserError(f"the tensor {error.args[0]} of its TinyViT is missing.") from None
    if sorted(blocks) != [0, 1, 2, 3]:
        raise UserError(f"its TinyViT has {len(blocks)} stages, MobileSAM's and LiteMedSAM's have four.")
    return TinyVitShape(stem.shape[1], 4 if kernel == 3 else 1, stages)


def _stage_shape(state: Mapping[str, Tensor], stage: int, depth: int) -> StageShape:
    first = f"image_encoder.layers.{stage}.blocks.0"
    if stage == 0:
        hidden, width = state[f"{first}.conv1.c.weight"].shape[:2]
        return StageShape(width, depth, hidden)
    hidden, width = state[f"{first}.mlp.fc1.weight"].shape
    heads, positions = state[f"{first}.attn.attention_biases"].shape
    return StageShape(width, depth, hidden, heads, round(positions**0.5))


class ConvNorm(nn.Sequential):
    """Convolution `c` without bias and batch norm `bn`."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.add_module("c", nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("bn", nn.BatchNorm2d(outputs))


class PatchEmbed(nn.Module):
    """Stem: two convolutions to the first stage's width."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        kernel, step = (3, 2) if stride == 4 else (1, 1)
        self.seq = nn.Sequential(
            ConvNorm(channels, width // 2, kernel, step), nn.GELU(), ConvNorm(width // 2, width, kernel, step)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, C, 256, 256)."""
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted bottleneck: widen, filter each channel, narrow, add."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):
    """Between stages: changes the width, and halves the grid at stride 2."""

    def __init__(self, width: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, outputs)
        self.conv2 = ConvNorm(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class Attention(nn.Module):
    """Self-attention in a window, with a learned bias for each distance along rows and columns."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        # On the CPU even when the network is built on the meta device: checkpoints do not hold this table.
        steps = torch.arange(window, device="cpu")
        rows, columns = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
        distance = (rows[:, None] - rows).abs() * window + (columns[:, None] - columns).abs()
        self.register_buffer("bias_index", distance, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Windows (B, w², C) -> the same shape."""
        # Each head's queries, keys and values lie together in the rows of `qkv`.
        heads = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = heads.chunk(3, dim=-1)
        bias = self.attention_biases[:, self.bias_index]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Norm and two linear layers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Windowed attention, a 3 x 3 filter of each channel, MLP."""

    def __init__(self, shape: StageShape) -> None:
        super().__init__()
        self.window_size = shape.window
        self.attn = Attention(shape.width, shape.heads, shape.window)
        self.mlp = Mlp(shape.width, shape.hidden)
        self.local_conv = ConvNorm(shape.width, shape.width, 3, groups=shape.width)
        self.Space_Adapter: nn.Module = nn.Identity()
        self.MLP_Adapter: nn.Module | None = None

    def attend(self, x: Tensor) -> Tensor:
        """Attention window by window, (B, H, W, C) -> the same shape; the grid is padded with zeros to whole ones."""
        size = self.window_size
        batch, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        x = x.reshape(batch, rows, size, columns, size, channels).transpose(2, 3)
        x = self.attn(x.reshape(batch * rows * columns, size * size, channels))
        x = x.reshape(batch, rows, columns, size, size, channels).transpose(2, 3)
        return x.reshape(batch, rows * size, columns * size, channels)[:, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        grid = x.permute(0, 2, 3, 1)
        grid = grid + self.Space_Adapter(self.attend(grid))
        grid = self.local_conv(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        result = grid + self.mlp(grid)
        if self.MLP_Adapter is not None:
            result = result + 0.5 * self.MLP_Adapter(grid)
        return result.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Blocks on one grid, and the transition to the next."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6).permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """The encoder: stem, four stages, SAM's neck."""

    def __init__(self, shape: TinyVitShape) -> None:
        super().__init__()
        self.img_size = shape.input_size
        self.patch_embed = PatchEmbed(shape.channels, shape.stages[0].width, shape.stem_stride)
        widths = [stage.width for stage in shape.stages]
        self.layers = nn.ModuleList()
        for i, stage in enumerate(shape.stages):
            block = (lambda s: MBConv(s.width, s.hidden)) if i == 0 else TinyViTBlock
            # The last change of width keeps the 64 x 64 grid, which SAM's decoder expects.
            merging = PatchMerging(widths[i], widths[i + 1], 1 if i == 2 else 2) if i < 3 else None
            self.layers.append(Stage([block(stage) for _ in range(stage.depth)], merging))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], OUTPUT_WIDTH, 1, bias=False),
            LayerNorm2d(OUTPUT_WIDTH),
            nn.Conv2d(OUTPUT_WIDTH, OUTPUT_WIDTH, 3, padding=1, bias=False),
            LayerNorm2d(OUTPUT_WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, padded picture (B, 3, S, S) -> (B, 256, 64, 64)."""
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)
