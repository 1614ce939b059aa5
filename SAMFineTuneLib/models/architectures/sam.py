"""Segment Anything (Kirillov et al., 2023) in its ViT and TinyViT sizes, built from the shapes of a state dict.

The modules are segment-anything's own; the prompt and mask decoding here runs them with the conventions of its ONNX
model, so that points, boxes and masks come as plain tensors, batched, and every mask token is returned.

Shapes: B prompts, N points, T mask tokens, S input side, G embedding side, L = 4 G low-resolution side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.architectures import third_party_adapters as adapters
from SAMFineTuneLib.models.architectures import tiny_vit
from SAMFineTuneLib.models.architectures.segment_anything import modeling

DECODER_HEADS = 8
_WINDOW = 14
_PUBLISHED_VITS = {
    (768, 12, 12, (2, 5, 8, 11)): "sam_vit_b",
    (1024, 24, 16, (5, 11, 17, 23)): "sam_vit_l",
    (1280, 32, 16, (7, 15, 23, 31)): "sam_vit_h",
}

State = Mapping[str, Tensor]


class SamModel(nn.Module):
    """Image encoder, prompt encoder and mask decoder; `encode` once a picture, `decode` once a set of prompts."""

    def __init__(self, image_encoder: nn.Module, prompt_encoder: nn.Module, mask_decoder: nn.Module, size: int) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.input_size = size
        self.grid_size = prompt_encoder.image_embedding_size[0]

    def encode(self, image: Tensor) -> dict[str, Tensor]:
        """Normalised, padded picture (1, 3, S, S) -> `image_embeddings` (1, C, G, G)."""
        return {"image_embeddings": self.image_encoder(image)}

    def decode(
        self,
        embedding: Mapping[str, Tensor],
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Prompts of B objects on one picture (embedding batch 1) or one each (batch B).

        `point_coords` (B, N, 2) as x, y in input pixels; `point_labels` (B, N): -1 padding, 0 negative, 1 positive,
        2 and 3 a box's corners; `mask_input` (B, 1, L, L) logits; `has_mask_input` (B,) 0 or 1. N is 0 for heads
        without prompts. -> logits (B, T, L, L), predicted IoU (B, T).
        """
        sparse = self.embed_points(point_coords, point_labels)
        dense = self.embed_mask(mask_input, has_mask_input)
        return self.decode_masks(embedding["image_embeddings"], sparse, dense)

    def decode_classes(self, embedding: Mapping[str, Tensor]) -> Tensor:
        """Embedding of B pictures, without prompts -> logits (B, C, L, L) of the class head's classes.

        Without a class head the mask tokens are finetune-SAM's classes, after one that is never read.
        """
        image = embedding["image_embeddings"]
        sparse = image.new_zeros(image.shape[0], 0, image.shape[1])
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        head = getattr(self.mask_decoder, "class_head", None)
        if head is None:
            return self.decode_masks(image, sparse, dense)[0][:, 1:]
        own = torch.cat([self.mask_decoder.iou_token.weight, head.tokens.weight])
        tokens, features = self._attend(own, image, sparse, dense)
        return head.masks(tokens[:, 1:], features)

    def forward(self, image: Tensor, **prompts: Tensor) -> tuple[Tensor, Tensor]:
        """`encode` and `decode` in one call."""
        return self.decode(self.encode(image), **prompts)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """-> tokens (B, N, C). Coordinates count from the first pixel's centre."""
        encoder = self.prompt_encoder
        labels = labels.unsqueeze(-1)
        code = self._position_code((coords + 0.5) / self.input_size)
        tokens = torch.where(labels == -1, encoder.not_a_point_embed.weight, code)
        for value, embedding in enumerate(encoder.point_embeddings):
            tokens = tokens + (labels == value).to(tokens.dtype) * embedding.weight
        return tokens

    def embed_mask(self, mask_input: Tensor, has_mask_input: Tensor) -> Tensor:
        """-> dense prompt map (B, C, G, G)."""
        encoder = self.prompt_encoder
        given = has_mask_input.reshape(-1, 1, 1, 1) > 0.5
        return torch.where(
            given, encoder.mask_downscaling(mask_input), encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        )

    def dense_position_code(self) -> Tensor:
        """Position code of the embedding grid, (1, C, G, G)."""
        steps = torch.arange(self.grid_size, device=self.prompt_encoder.no_mask_embed.weight.device) + 0.5
        steps = steps / self.grid_size
        rows, columns = torch.meshgrid(steps, steps, indexing="ij")
        return self._position_code(torch.stack([columns, rows], dim=-1)).permute(2, 0, 1).unsqueeze(0)

    def decode_masks(self, image_embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding (1 or B, C, G, G), tokens (B, N, C), dense map (B, C, G, G) -> logits (B, T, L, L), IoU (B, T)."""
        decoder = self.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens, features = self._attend(own, image_embeddings, sparse, dense)
        kernels = torch.stack(
            [head(tokens[:, 1 + i]) for i, head in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        low_res = 4 * self.grid_size
        masks = (kernels @ features.flatten(2)).unflatten(2, (low_res, low_res))
        return masks, decoder.iou_prediction_head(tokens[:, 0])

    def _attend(self, own: Tensor, image: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Output tokens (T, C), and the rest as in `decode_masks` -> tokens (B, T + N, C), features (B, F, L, L)."""
        decoder, grid = self.mask_decoder, self.grid_size
        tokens = torch.cat([own.unsqueeze(0).expand(sparse.shape[0], -1, -1), sparse], dim=1)
        tokens, image = decoder.transformer(image + dense, self.dense_position_code(), tokens)
        return tokens, decoder.output_upscaling(image.transpose(1, 2).unflatten(2, (grid, grid)))

    def _position_code(self, unit: Tensor) -> Tensor:
        """Random Fourier features of positions (..., 2) in the unit square."""
        matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        phase = 2 * torch.pi * ((2 * unit - 1) @ matrix)
        return torch.cat([phase.sin(), phase.cos()], dim=-1)


@dataclass(frozen=True)
class VitShape:
    """Dimensions of a ViT encoder, read from its tensors' shapes. `global_blocks` attend to the whole grid."""

    channels: int
    patch_size: int
    grid: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    output_width: int
    window: int
    global_blocks: tuple[int, ...]

    @property
    def input_size(self) -> int:
        return self.grid * self.patch_size

    @property
    def name(self) -> str:
        """`sam_vit_b`, `sam_vit_l`, `sam_vit_h`, or `sam_vit` for another size."""
        return _PUBLISHED_VITS.get((self.width, self.depth, self.heads, self.global_blocks), "sam_vit")


def vit_shape(state: State) -> VitShape:
    """Read a ViT encoder's dimensions from its tensors. UserError names the first one that is missing.

    The number of heads follows from the width of the relative positions, a block's reach from their length.
    """
    width, channels, patch_size, _ = _shape(state, "image_encoder.patch_embed.proj.weight", 4)
    grid = _shape(state, "image_encoder.pos_embed", 4)[1]
    depth = _count(state, r"image_encoder\.blocks\.(\d+)\.")
    lengths = [_shape(state, f"image_encoder.blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    reaches = [(length + 1) // 2 for length, _ in lengths]
    windows = {reach for reach in reaches if reach != grid}
    if len(windows) > 1 or not lengths or width % lengths[0][1]:
        raise UserError("the relative positions (rel_pos_h) of its image encoder are not SAM's.")
    return VitShape(
        channels=channels,
        patch_size=patch_size,
        grid=grid,
        width=width,
        depth=depth,
        heads=width // lengths[0][1],
        mlp_width=_shape(state, "image_encoder.blocks.0.mlp.lin1.weight", 2)[0],
        output_width=_shape(state, "image_encoder.neck.0.weight", 4)[0],
        window=windows.pop() if windows else _WINDOW,
        global_blocks=tuple(i for i, reach in enumerate(reaches) if reach == grid),
    )


def build_vit(shape: VitShape) -> nn.Module:
    """An image encoder of that shape."""
    return modeling().ImageEncoderViT(
        depth=shape.depth,
        embed_dim=shape.width,
        img_size=shape.input_size,
        in_chans=shape.channels,
        mlp_ratio=shape.mlp_width / shape.width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=shape.heads,
        patch_size=shape.patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=shape.global_blocks,
        window_size=shape.window,
        out_chans=shape.output_width,
    )


def build_sam(state: State, finetuned: bool = False) -> tuple[str, SamModel]:
    """The network whose tensors have the names and shapes of `state`, and the encoder's name.

    `state` uses SAM's names. Its values are not loaded; adapters are built where it has them. `finetuned` builds
    finetune-SAM's variant. Run inside `torch.device("meta")` to spend nothing on initial values.
    """
    if "image_encoder.patch_embed.proj.weight" in state:
        shape = vit_shape(state)
        name, size, grid, encoder = shape.name, shape.input_size, shape.grid, build_vit(shape)
    else:
        tiny = tiny_vit.tiny_vit_shape(state)
        name, size, grid, encoder = tiny.name, tiny.input_size, tiny_vit.GRID, tiny_vit.TinyViT(tiny)
    model = SamModel(encoder, _prompt_encoder(state, size, grid), _mask_decoder(state), size)
    adapters.attach(model, state, finetuned)
    return name, model.eval()


# Shapes of the published SAM, used for a file with an image encoder only, so that the missing tensors can be named.
_STANDARD = {
    "prompt_encoder.mask_downscaling.3.weight": (16, 4, 2, 2),
    "mask_decoder.mask_tokens.weight": (4, 256),
    "mask_decoder.transformer.layers.0.mlp.lin1.weight": (2048, 256),
    "mask_decoder.iou_prediction_head.layers.0.weight": (256, 256),
}


def _prompt_encoder(state: State, size: int, grid: int) -> nn.Module:
    return modeling().PromptEncoder(
        embed_dim=_shape(state, "mask_decoder.mask_tokens.weight", 2)[1],
        image_embedding_size=(grid, grid),
        input_image_size=(size, size),
        mask_in_chans=_shape(state, "prompt_encoder.mask_downscaling.3.weight", 4)[0],
    )


def _mask_decoder(state: State) -> nn.Module:
    tokens, width = _shape(state, "mask_decoder.mask_tokens.weight", 2)
    return modeling().MaskDecoder(
        num_multimask_outputs=tokens - 1,
        transformer=modeling().TwoWayTransformer(
            depth=_count(state, r"mask_decoder\.transformer\.layers\.(\d+)\.") or 2,
            embedding_dim=width,
            mlp_dim=_shape(state, "mask_decoder.transformer.layers.0.mlp.lin1.weight", 2)[0],
            num_heads=DECODER_HEADS,
        ),
        transformer_dim=width,
        iou_head_depth=_count(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.") or 3,
        iou_head_hidden_dim=_shape(state, "mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
    )


def _shape(state: State, name: str, dimensions: int) -> tuple[int, ...]:
    """Shape of a tensor that determines the architecture."""
    if name not in state and name in _STANDARD:
        return _STANDARD[name]
    if name not in state:
        raise UserError(f"the tensor {name} of SAM's image encoder is missing.")
    if state[name].ndim != dimensions:
        raise UserError(f"{name} has shape {tuple(state[name].shape)}, which is not SAM's.")
    return tuple(state[name].shape)


def _count(state: State, pattern: str) -> int:
    """How many numbered items match: one more than the highest number."""
    return 1 + max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1)
