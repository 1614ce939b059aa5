"""The volume memory: a small 3-D network that answers for a whole block of slices from the masks of some of them.

A U-Net (Cicek et al. 2016) over `models.volume_block`. Every position is compared with what the known masks mark as
structure and as surroundings, wherever in the block they are: with the mean features of both, as in prototype networks
(Snell et al. 2017). Slices are pooled only at the coarse levels, since they are usually further apart than pixels.

Shapes: B blocks, D slices, H x W cells, C channels; D, H and W are multiples of 4, 8 and 8.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAMFineTuneLib.models.volume_block import CHANNELS

WIDTHS = (8, 24, 48, 96)
STRIDES = ((1, 2, 2), (2, 2, 2), (2, 2, 2))
_EARLIER = 0.3  # weight of an earlier answer beside a known mask
_GROUPS = 8


def _conv(inputs: int, outputs: int, stride: tuple[int, int, int] = (1, 1, 1)) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False), nn.GroupNorm(_GROUPS, outputs), nn.SiLU()
    )


class Comparison(nn.Module):
    """Compares each position with the mean features of structure and surroundings on the known slices."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv3d(3 * width, width, 1)

    def forward(self, x: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        """Features (B, C, D, H, W), weights of structure and surroundings (B, 1, D, H, W) -> (B, C, D, H, W)."""
        parts = [x]
        for weight in (inside, outside):
            mean = (x * weight).sum((2, 3, 4), keepdim=True) / weight.sum((2, 3, 4), keepdim=True).clamp(min=1e-2)
            parts.append(x * mean)
        return x + self.mix(torch.cat(parts, 1))


class VolumeMemoryNetwork(nn.Module):
    """Block (B, CHANNELS, D, H, W) -> logits of the structure (B, D, H, W) and of its presence (B, D)."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(zip(WIDTHS, WIDTHS[1:], strict=False))
        self.stem = _conv(CHANNELS, WIDTHS[0])
        self.first = _conv(WIDTHS[0], WIDTHS[0])
        self.down = nn.ModuleList(_conv(fine, coarse, s) for (fine, coarse), s in zip(pairs, STRIDES, strict=True))
        self.encode = nn.ModuleList(_conv(width, width) for width in WIDTHS[1:])
        self.compare = nn.ModuleList(Comparison(width) for width in WIDTHS[2:])
        self.deep = _conv(WIDTHS[-1], WIDTHS[-1])
        self.up = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for fine, coarse in pairs)
        self.decode = nn.ModuleList(_conv(2 * width, width) for width in WIDTHS[:-1])
        self.answer = nn.Conv3d(WIDTHS[0], 1, 1)
        self.presence = nn.Linear(2 * WIDTHS[1] + 2, 1)

    def forward(self, block: Tensor) -> tuple[Tensor, Tensor]:
        """Blocks (B, CHANNELS, D, H, W) -> logits (B, D, H, W), and logits (B, D) that a slice shows it."""
        known, there, earlier = block[:, 2:3], block[:, 3:4], block[:, 4:5]
        inside = F.relu(known) * there + _EARLIER * F.relu(earlier)
        outside = F.relu(-known) * there + _EARLIER * F.relu(-earlier)
        x = self.first(self.stem(block))
        kept = []
        for level, stride in enumerate(STRIDES):
            kept.append(x)
            inside, outside = (F.avg_pool3d(weight, stride) for weight in (inside, outside))
            x = self.encode[level](self.down[level](x))
            if level:
                x = self.compare[level - 1](x, inside, outside)
        x = self.deep(x)
        features = []
        for level in reversed(range(len(STRIDES))):
            x = F.interpolate(self.up[level](x), scale_factor=tuple(map(float, STRIDES[level])), mode="nearest")
            x = self.decode[level](torch.cat([x, kept[level]], 1))
            features.append(x)
        logits = self.answer(x)
        return logits[:, 0], self._presence(features[1], logits)

    def _presence(self, features: Tensor, logits: Tensor) -> Tensor:
        """From the features (B, C, D, H / 2, W / 2) where the structure is likely and everywhere on a slice, and how
        much of it there is."""
        share = F.avg_pool3d(logits.sigmoid(), STRIDES[0])
        amount = share.sum((3, 4))
        seen = (features * share).sum((3, 4)) / (amount + 1)
        found = torch.cat([seen, features.mean((3, 4)), torch.log1p(amount), logits.amax((3, 4)) / 8], 1)
        return self.presence(found.transpose(1, 2))[..., 0]
