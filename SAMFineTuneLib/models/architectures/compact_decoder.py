"""Prompt encoder and mask decoder of the compact model; `compact` names the papers.

Shapes: B sets of prompts, N points, C channels, H x W grid, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_SIZE = 128
GRID_SIZE = 16
LOW_RES_SIZE = 64

WIDTH = 128
DECODER_DEPTH = 2
DECODER_HEADS = 4
HIGH_RES_WIDTHS = (32, 16)
MASK_TOKENS = 4
PROMPT_MAPS = 6
REFINE_WIDTH = 48
FEATURE_GROUPS = 8


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MLPBlock(nn.Module):
    """The two linear layers of a transformer block."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, hidden)
        self.lin2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return self.lin2(F.gelu(self.lin1(x)))


class MLP(nn.Module):
    """ReLU network of three linear layers; makes the mask kernels and the predicted IoU."""

    def __init__(self, width: int, output: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, size) for size in (width, width, output))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., output)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of positions in the unit square."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, features))

    def forward(self, positions: Tensor) -> Tensor:
        """Positions (..., 2) in 0..1 -> (..., 2 * features)."""
        placed, (x, y) = 2 * positions - 1, self.positional_encoding_gaussian_matrix
        # Not a matrix product: mixed precision would round its coordinates to eight bits.
        phase = 2 * torch.pi * (placed[..., :1] * x + placed[..., 1:] * y)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Points, boxes (two corner points) and the previous logits -> tokens and a dense map.

    Labels: -1 padding, 0 negative, 1 positive, 2 box top-left, 3 box bottom-right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = PositionEmbeddingRandom(WIDTH // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, WIDTH) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, WIDTH)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1 + PROMPT_MAPS, 16, 2, 2), LayerNorm2d(16), nn.GELU(),
            nn.Conv2d(16, 32, 2, 2), LayerNorm2d(32), nn.GELU(),
            nn.Conv2d(32, WIDTH, 1),
        )  # fmt: skip
        self.no_mask_embed = nn.Embedding(1, WIDTH)

    def get_dense_pe(self) -> Tensor:
        """Position code of the embedding grid, (1, 128, 16, 16)."""
        steps = (torch.arange(GRID_SIZE, device=self.no_mask_embed.weight.device) + 0.5) / GRID_SIZE
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        return self.pe_layer(torch.stack([columns, rows], dim=-1)).permute(2, 0, 1).unsqueeze(0)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Coordinates (B, N, 2) in input pixels and labels (B, N) -> tokens (B, N, 128)."""
        labels = labels.unsqueeze(-1)
        padding = (labels < 0).to(coords.dtype)
        tokens = self.pe_layer((coords + 0.5) / INPUT_SIZE) * (1 - padding) + padding * self.not_a_point_embed.weight
        for value, embedding in enumerate(self.point_embeddings):
            tokens = tokens + (labels == value).to(coords.dtype) * embedding.weight
        return tokens

    def draw(self, coords: Tensor, labels: Tensor) -> Tensor:
        """The same prompts as pictures (B, 6, 64, 64).

        Positive clicks narrow and wide, negative clicks, the box, its centre, a ring around it. SAM has prompts as
        tokens only; drawn prompts, as in RITM (Sofiiuk 2021), are learned in far fewer steps.
        """
        scale = INPUT_SIZE / LOW_RES_SIZE
        axis = (torch.arange(LOW_RES_SIZE, device=coords.device, dtype=coords.dtype) + 0.5) * scale - 0.5
        positive, negative, start, end = ((labels == value).to(coords.dtype).unsqueeze(-1) for value in (1, 0, 2, 3))

        def spots(weight: Tensor, sigma: float) -> Tensor:
            columns, rows = (torch.exp(-0.5 * ((axis - coords[..., i : i + 1]) / sigma) ** 2) for i in (0, 1))
            return ((weight * rows).transpose(1, 2) @ columns).clamp(max=1.0)

        low, high = (coords * start).sum(1, keepdim=True), (coords * end).sum(1, keepdim=True)
        given = start.sum(1, keepdim=True).clamp(max=1.0)
        middle, side = (low + high) / 2, (high - low).clamp(min=1.0)

        def shape(along: Callable[[int], Tensor]) -> Tensor:
            """A picture from its profiles along x and y."""
            columns, rows = along(0), along(1)
            return given * rows.transpose(1, 2) * columns

        def rectangle(margin: Tensor) -> Tensor:
            reach, away = side / 2 + margin, (axis - middle.transpose(1, 2)).abs()
            return shape(lambda i: ((reach[..., i : i + 1] - away[:, i : i + 1]) / scale + 0.5).clamp(0.0, 1.0))

        def bell(i: int) -> Tensor:
            return torch.exp(-0.5 * ((axis - middle[..., i : i + 1]) / (0.2 * side[..., i : i + 1] + 1.0)) ** 2)

        box, heart = rectangle(torch.zeros_like(side)), shape(bell)
        ring = rectangle(0.1 * side + 3.0) - box
        return torch.stack([spots(positive, 2.5), spots(positive, 10.0), spots(negative, 2.5), box, heart, ring], dim=1)

    def forward(
        self, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor, has_mask_input: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> sparse tokens (B, N, 128), dense map (B, 128, 16, 16), prompts as pictures (B, 7, 64, 64), and the grid's
        position code.

        The seventh picture is the previous logits, zero where there are none.
        """
        given = has_mask_input.reshape(-1, 1, 1, 1)
        # Logits of a confident model reach +-30; beyond 10 they carry no information and only disturb the norm.
        logits = given * mask_input.clamp(-10.0, 10.0) / 5
        pictures = torch.cat([self.draw(point_coords, point_labels), logits], dim=1)
        dense = self.mask_downscaling(pictures) + (1 - given) * self.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return self.embed_points(point_coords, point_labels), dense, pictures, self.get_dense_pe()


class DownscaledAttention(nn.Module):
    """Multi-head attention with separate projections and a narrower inner width."""

    def __init__(self, width: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = width // downsample
        self.num_heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries (B, Q, C), keys and values (B, K, C) -> (B, Q, C)."""
        q, k, v = self._split(self.q_proj(q)), self._split(self.k_proj(k)), self._split(self.v_proj(v))
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TwoWayAttentionBlock(nn.Module):
    """Tokens attend to themselves and to the picture, then the picture to the tokens."""

    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.self_attn = DownscaledAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = DownscaledAttention(width, heads, 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLPBlock(width, hidden)
        self.norm3 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = DownscaledAttention(width, heads, 2)
        self.norm4 = nn.LayerNorm(width)
        self.skip_first_layer_pe = first

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, C), picture (B, HW, C) and their position codes -> both, updated."""
        if self.skip_first_layer_pe:
            queries = self.norm1(self.self_attn(queries, queries, queries))
        else:
            placed = queries + query_pe
            queries = self.norm1(queries + self.self_attn(placed, placed, queries))
        located = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, located, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(located, queries + query_pe, queries))
        return queries, keys


class TwoWayTransformer(nn.Module):
    """Body of the mask decoder: `DECODER_DEPTH` two-way blocks, and a final attention of the tokens to the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayAttentionBlock(WIDTH, DECODER_HEADS, 2 * WIDTH, i == 0) for i in range(DECODER_DEPTH)
        )
        self.final_attn_token_to_image = DownscaledAttention(WIDTH, DECODER_HEADS, 2)
        self.norm_final_attn = nn.LayerNorm(WIDTH)

    def forward(self, image: Tensor, image_pe: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Picture (B, C, H, W), its position code (1, C, H, W), tokens (B, T, C) -> tokens, picture (B, HW, C)."""
        keys, key_pe = image.flatten(2).transpose(1, 2), image_pe.flatten(2).transpose(1, 2)
        queries = tokens
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, key_pe)
        final = self.final_attn_token_to_image(queries + tokens, keys + key_pe, keys)
        return self.norm_final_attn(queries + final), keys


class Upscaling(nn.Module):
    """From the grid to the mask's resolution, with the picture's features and the drawn prompts."""

    def __init__(self) -> None:
        super().__init__()
        quarter, half = HIGH_RES_WIDTHS
        prompts = PROMPT_MAPS + 1
        self.to_quarter = nn.ConvTranspose2d(WIDTH, quarter, 2, 2)
        self.mix = nn.Conv2d(2 * quarter + prompts + 2 * FEATURE_GROUPS, REFINE_WIDTH, 3, padding=1)
        self.near = nn.Conv2d(REFINE_WIDTH, REFINE_WIDTH, 3, padding=1)
        self.far = nn.Conv2d(REFINE_WIDTH, REFINE_WIDTH, 3, padding=3, dilation=3)
        self.norm = LayerNorm2d(REFINE_WIDTH)
        self.to_half = nn.ConvTranspose2d(REFINE_WIDTH, half, 2, 2)
        self.prompts_to_half = nn.Conv2d(prompts, half, 1)
        self.smooth = nn.Conv2d(half, half, 3, padding=1)

    def compare(self, features: Tensor, pictures: Tensor) -> Tensor:
        """Similarity (B, 16, 32, 32) of every position to those that the prompts mark as object, and as background.

        Features (B or 1, 32, 32, 32), prompts (B, 7, 32, 32). Eight groups of channels are compared separately.
        """
        positive, _, negative, _, heart, ring, _ = pictures.unbind(1)
        marked = torch.stack([4 * positive + heart, 4 * negative + ring], dim=1).flatten(2)
        marked = marked / (marked.sum(-1, keepdim=True) + 1e-3)
        flat = features.flatten(2)
        typical = marked @ flat.transpose(1, 2)
        groups, channels, side = 2 * FEATURE_GROUPS, features.shape[1] // FEATURE_GROUPS, features.shape[-1]
        distance = (flat.unsqueeze(1) - typical.unsqueeze(-1)) ** 2
        distance = distance.reshape(-1, groups, channels, side * side).mean(2)
        return torch.exp(-distance).reshape(-1, groups, side, side)

    def forward(self, grid: Tensor, high_res_0: Tensor, high_res_1: Tensor, pictures: Tensor) -> Tensor:
        """(B, 128, 16, 16), the encoder's features (batch 1 or B), prompts (B, 7, 64, 64) -> (B, 16, 64, 64)."""
        small = F.avg_pool2d(pictures, 2)
        features = high_res_0.expand(grid.shape[0], -1, -1, -1)
        x = torch.cat([self.to_quarter(grid), features, small, self.compare(high_res_0, small)], dim=1)
        # ReLU, because GELU alone would take a tenth of the training time at these sizes.
        x = F.relu(self.mix(x))
        x = x + F.relu(self.near(x))
        x = self.norm(x + F.relu(self.far(x)))
        x = F.relu(self.to_half(x) + high_res_1 + self.prompts_to_half(pictures))
        return x + F.relu(self.smooth(x))


class MaskDecoder(nn.Module):
    """Tokens and picture -> four mask candidates and their predicted IoU.

    Candidate 0 is for boxes and several prompts, 1 to 3 for the readings of one ambiguous point.
    """

    def __init__(self) -> None:
        super().__init__()
        half = HIGH_RES_WIDTHS[1]
        self.transformer = TwoWayTransformer()
        self.iou_token = nn.Embedding(1, WIDTH)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, WIDTH)
        self.output_upscaling = Upscaling()
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(WIDTH, half) for _ in range(MASK_TOKENS))
        self.iou_prediction_head = MLP(WIDTH, MASK_TOKENS)

    def forward(self, embedding: dict[str, Tensor], *prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Encoder's answer (batch 1 or B), and the prompt encoder's -> logits (B, 4, 64, 64), predicted IoU (B, 4)."""
        tokens, features = self._attend(self.mask_tokens, embedding, *prompts)
        kernels = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (kernels @ features.flatten(2)).reshape(-1, MASK_TOKENS, LOW_RES_SIZE, LOW_RES_SIZE)
        return masks, self.iou_prediction_head(tokens[:, 0]).sigmoid()

    def classes(self, embedding: dict[str, Tensor], *prompts: Tensor) -> Tensor:
        """The same with the tokens of the class head -> logits (B, C, 64, 64)."""
        tokens, features = self._attend(self.class_head.tokens, embedding, *prompts)
        return self.class_head.masks(tokens[:, 1:], features)

    def _attend(
        self, output: nn.Embedding, embedding: dict[str, Tensor], sparse: Tensor, dense: Tensor, pictures: Tensor,
        image_pe: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """T tokens for masks or classes, and the rest as in `forward` -> tokens (B, 1 + T + N, 128), features
        (B, 16, 64, 64)."""
        own = torch.cat([self.iou_token.weight, output.weight])
        tokens = torch.cat([own.unsqueeze(0).expand(sparse.shape[0], -1, -1), sparse], dim=1)
        tokens, image = self.transformer(embedding["image_embeddings"] + dense, image_pe, tokens)
        grid = image.transpose(1, 2).reshape(-1, WIDTH, GRID_SIZE, GRID_SIZE)
        return tokens, self.output_upscaling(grid, embedding["high_res_0"], embedding["high_res_1"], pictures)
