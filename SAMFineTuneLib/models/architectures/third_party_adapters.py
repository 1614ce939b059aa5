"""Adapters in published SAM checkpoints: SAM-Med2D's (Cheng et al., 2023) and finetune-SAM's (Gu et al., 2024).

A block with an adapter is replaced by an adapted one that takes over its layers, so that names follow the published
state dicts. LoRA needs no modules: it is merged into the weights when a file is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.architectures.segment_anything import in_windows


class Bottleneck(nn.Module):
    """finetune-SAM's adapter: narrow, GELU, widen; with the input added when `skip`."""

    def __init__(self, width: int, hidden: int, skip: bool) -> None:
        super().__init__()
        self.D_fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.D_fc2 = nn.Linear(hidden, width)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        change = self.D_fc2(self.act(self.D_fc1(x)))
        return x + change if self.skip else change


class ChannelSpatialAdapter(nn.Module):
    """SAM-Med2D's adapter: channels weighted by their mean, a strided convolution and its transpose, norm."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, width, bias=False), nn.Sigmoid()
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, 2, 1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        weighed = x * self.channel(x.mean(dim=(1, 2)))[:, None, None]
        return self.norm(x + self.spatial(weighed.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class _VitBlock(nn.Module):
    """A ViT block's own layers."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        self.window_size = block.window_size


class Med2DBlock(_VitBlock):
    """SAM-Med2D's block: the adapter is parallel to the MLP."""

    def __init__(self, block: nn.Module, width: int, hidden: int) -> None:
        super().__init__(block)
        self.Adapter = ChannelSpatialAdapter(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = x + in_windows(self.attn, self.norm1(x), self.window_size)
        normal = self.norm2(x)
        return x + self.mlp(normal) + self.Adapter(normal)


class FinetuneVitBlock(_VitBlock):
    """finetune-SAM's block, with or without an adapter after the attention and one parallel to the MLP at half weight.

    It pads windows before the norm, SAM after it: the padding then is the norm's bias instead of zero, also in blocks
    without adapters.
    """

    def __init__(self, block: nn.Module, adapter: tuple[int, int] | None) -> None:
        super().__init__(block)
        self.adapted = adapter is not None
        if adapter is not None:
            self.Space_Adapter = Bottleneck(*adapter, skip=True)
            self.MLP_Adapter = Bottleneck(*adapter, skip=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        attended = in_windows(lambda window: self.attn(self.norm1(window)), x, self.window_size)
        x = x + (self.Space_Adapter(attended) if self.adapted else attended)
        normal = self.norm2(x)
        x = x + self.mlp(normal)
        return x + 0.5 * self.MLP_Adapter(normal) if self.adapted else x


class FinetuneTwoWayBlock(nn.Module):
    """finetune-SAM's mask decoder layer: an adapter shared by tokens and picture, and one parallel to the MLP."""

    def __init__(self, block: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        for name, layer in block.named_children():
            self.add_module(name, layer)
        self.skip_first_layer_pe = block.skip_first_layer_pe
        self.Adapter = Bottleneck(width, hidden, skip=True)
        self.MLP_Adapter = Bottleneck(width, hidden, skip=False)

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C), picture (B, HW, C) and their position codes -> both, updated."""
        if self.skip_first_layer_pe:
            queries = self.norm1(self.self_attn(q=queries, k=queries, v=queries))
        else:
            placed = queries + query_pe
            queries = self.norm1(queries + self.self_attn(q=placed, k=placed, v=queries))
        seen = self.cross_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys)
        queries = self.norm2(self.Adapter(queries + seen))
        queries = self.norm3(queries + self.mlp(queries) + 0.5 * self.MLP_Adapter(queries))
        told = self.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries)
        return queries, self.norm4(self.Adapter(keys + told))


def attach(model: nn.Module, state: Mapping[str, Tensor], finetuned: bool) -> None:
    """Add the adapters for which a state dict has tensors; `finetuned` makes all blocks finetune-SAM's."""
    med2d = _adapted(state, r"image_encoder\.blocks\.(\d+)\.Adapter\.channel\.0\.weight")
    vit = _adapted(state, r"image_encoder\.blocks\.(\d+)\.Space_Adapter\.D_fc1\.weight")
    tiny = _adapted(state, r"image_encoder\.layers\.(\d+)\.blocks\.(\d+)\.Space_Adapter\.D_fc1\.weight")
    decoder = _adapted(state, r"mask_decoder\.transformer\.layers\.(\d+)\.Adapter\.D_fc1\.weight")
    if set(med2d) & set(vit):
        raise UserError("one of its blocks has both SAM-Med2D's and finetune-SAM's adapter.")
    for (i,), size in med2d.items():
        model.image_encoder.blocks[i] = Med2DBlock(model.image_encoder.blocks[i], *size)
    if finetuned:
        for i, block in enumerate(getattr(model.image_encoder, "blocks", ())):
            model.image_encoder.blocks[i] = FinetuneVitBlock(block, vit.get((i,)))
    for (stage, i), size in tiny.items():
        block = model.image_encoder.layers[stage].blocks[i]
        block.Space_Adapter = Bottleneck(*size, skip=True)
        block.MLP_Adapter = Bottleneck(*size, skip=False)
    for (i,), size in decoder.items():
        layers = model.mask_decoder.transformer.layers
        layers[i] = FinetuneTwoWayBlock(layers[i], *size)


def _adapted(state: Mapping[str, Tensor], pattern: str) -> dict[tuple[int, ...], tuple[int, int]]:
    """Position of each adapted block -> (width, hidden) of its adapter."""
    found = {}
    for name, tensor in state.items():
        if match := re.fullmatch(pattern, name):
            hidden, width = tensor.shape
            found[tuple(int(number) for number in match.groups())] = (width, hidden)
    return found
