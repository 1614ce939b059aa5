"""TinyViT (Wu et al., 2022) as MobileSAM and LiteMedSAM use it: an image encoder with a 64 x 64 output grid.

Four stages: one of inverted bottlenecks, three of windowed attention, a convolution halving the grid after the first
two. MobileSAM's stem shrinks its 1024² input by four, LiteMedSAM's keeps its 256²; both reach the stages at 256².
Names follow the published state dicts.

Shapes: B pictures, C channels, H x W grid, w window side, M heads.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.architectures.compact_decoder import LayerNorm2d
from SAMFineTuneLib.models.architectures.segment_anything import in_windows

GRID = 64
OUTPUT_WIDTH = 256


@dataclass(frozen=True)
class StageShape:
    """One stage; the first has neither heads nor window."""

    width: int
    depth: int
    hidden: int
    heads: int = 0
    window: int = 0


def build_tiny_vit(state: Mapping[str, Tensor]) -> tuple[str, TinyViT]:
    """The encoder with the shapes of these tensors, and its name; `UserError` when one is missing or does not fit."""
    try:
        stem = state["image_encoder.patch_embed.seq.0.c.weight"]
        kernel = stem.shape[-1]
        if kernel not in (1, 3) or "image_encoder.patch_embed.seq.2.c.weight" not in state:
            raise UserError(
                "its TinyViT has another stem than MobileSAM's (two 3 x 3 convolutions) and LiteMedSAM's (two 1 x 1): "
                f"image_encoder.patch_embed.seq.0.c.weight has shape {tuple(stem.shape)}."
            )
        count = how_many(state, r"image_encoder\.layers\.(\d+)\.blocks\.")
        if count != 4:
            raise UserError(f"its TinyViT has {count} stages, MobileSAM's and LiteMedSAM's have four.")
        stages = [_stage_shape(state, stage) for stage in range(count)]
    except KeyError as error:
        raise UserError(f"the tensor {error.args[0]} of its TinyViT is missing.") from None
    name, stride = ("mobile_sam", 4) if kernel == 3 else ("lite_medsam", 1)
    return name, TinyViT(stem.shape[1], stride, stages)


def how_many(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbered modules a state dict has: one more than the highest number in its names."""
    return 1 + max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1)


def _stage_shape(state: Mapping[str, Tensor], stage: int) -> StageShape:
    first = f"image_encoder.layers.{stage}.blocks.0"
    depth = how_many(state, rf"image_encoder\.layers\.{stage}\.blocks\.(\d+)\.")
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


class ThreeConvolutions(nn.Module):
    """Change the width, filter each channel, change the width again; at stride 2 the filter halves the grid."""

    def __init__(self, width: int, hidden: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(width, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, stride, groups=hidden)
        self.conv3 = ConvNorm(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class MBConv(ThreeConvolutions):
    """Inverted bottleneck: widen, filter each channel, narrow, add."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return F.gelu(x + super().forward(x))


class WindowAttention(nn.Module):
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
        self.attn = WindowAttention(shape.width, shape.heads, shape.window)
        self.mlp = Mlp(shape.width, shape.hidden)
        self.local_conv = ConvNorm(shape.width, shape.width, 3, groups=shape.width)
        self.Space_Adapter: nn.Module = nn.Identity()
        self.MLP_Adapter: nn.Module | None = None

    def attend(self, x: Tensor) -> Tensor:
        """Attention window by window, (B, H, W, C) -> the same shape; the grid is padded with zeros to whole ones."""
        size = self.window_size
        return in_windows(lambda windows: self.attn(windows.flatten(1, 2)).unflatten(1, (size, size)), x, size)

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


class TinyViT(nn.Module):
    """The encoder: stem, four stages, SAM's neck."""

    def __init__(self, channels: int, stem_stride: int, stages: Sequence[StageShape]) -> None:
        super().__init__()
        self.img_size = 4 * GRID * stem_stride
        widths = [stage.width for stage in stages]
        half = widths[0] // 2
        kernel, step = (3, 2) if stem_stride == 4 else (1, 1)
        stem = nn.Sequential(ConvNorm(channels, half, kernel, step), nn.GELU(), ConvNorm(half, widths[0], kernel, step))
        self.patch_embed = nn.Sequential(OrderedDict(seq=stem))  # (B, 3, S, S) -> (B, C, 256, 256)
        self.layers = nn.ModuleList()
        for i, stage in enumerate(stages):
            block = (lambda s: MBConv(s.width, s.hidden, s.width)) if i == 0 else TinyViTBlock
            # The last change of width keeps the 64 x 64 grid, which SAM's decoder expects.
            stride = 1 if i == 2 else 2
            merging = ThreeConvolutions(widths[i], widths[i + 1], widths[i + 1], stride) if i < 3 else None
            self.layers.append(Stage([block(stage) for _ in range(stage.depth)], merging))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], OUTPUT_WIDTH, 1, bias=False),
            LayerNorm2d(OUTPUT_WIDTH, eps=1e-6),
            nn.Conv2d(OUTPUT_WIDTH, OUTPUT_WIDTH, 3, padding=1, bias=False),
            LayerNorm2d(OUTPUT_WIDTH, eps=1e-6),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised, padded picture (B, 3, S, S) -> (B, 256, 64, 64)."""
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)
