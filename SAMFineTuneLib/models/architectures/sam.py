"""Segment Anything (Kirillov et al., 2023) in its ViT and TinyViT sizes, built from the shapes of a state dict.

The modules are segment-anything's own; the prompt and mask decoding here runs them with the conventions of its ONNX
model, so that points, boxes and masks come as plain tensors, batched, and every mask token is returned.

Shapes: B prompts, N points, T mask tokens, S input side, G embedding side, L = 4 G low-resolution side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.architectures import third_party_adapters as adapters
from SAMFineTuneLib.models.architectures import tiny_vit
from SAMFineTuneLib.models.architectures.segment_anything import modeling

DECODER_HEADS = 8
_WINDOW = 14
_PUBLISHED_VITS = {  # by width, depth, heads and global blocks
    (768, 12, 12, (2, 5, 8, 11)): "sam_vit_b",
    (1024, 24, 16, (5, 11, 17, 23)): "sam_vit_l",
    (1280, 32, 16, (7, 15, 23, 31)): "sam_vit_h",
}

State = Mapping[str, Tensor]


class SamModel(nn.Module):
    """Image encoder, prompt encoder and mask decoder; `encode` once a picture, `decode` once a set of prompts."""

    def __init__(self, image_encoder: nn.Module, prompt_encoder: nn.Module, mask_decoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.input_size = image_encoder.img_size
        self.grid_size = prompt_encoder.image_embedding_size[0]

    def encode(self, image: Tensor) -> dict[str, Tensor]:
        """Normalised, padded picture (1, 3, S, S) -> `image_embeddings` (1, C, G, G)."""
        return {"image_embeddings": self.image_encoder(image)}

    def decode(self, embedding: Mapping[str, Tensor], *prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts of B objects on one picture (embedding batch 1) or one each (batch B).

        `prompts` are `point_coords` (B, N, 2) as x, y in input pixels; `point_labels` (B, N): -1 padding, 0 negative,
        1 positive, 2 and 3 a box's corners; `mask_input` (B, 1, L, L) logits; `has_mask_input` (B,) 0 or 1. N is 0 for
        heads without prompts. -> logits (B, T, L, L), predicted IoU (B, T).
        """
        point_coords, point_labels, mask_input, has_mask_input = prompts
        given = has_mask_input.reshape(-1, 1, 1, 1) > 0.5
        dense = torch.where(given, self.prompt_encoder.mask_downscaling(mask_input), self._no_mask())
        return self.decode_masks(embedding["image_embeddings"], self.embed_points(point_coords, point_labels), dense)

    def decode_classes(self, embedding: Mapping[str, Tensor]) -> Tensor:
        """Embedding of B pictures, without prompts -> logits (B, C, L, L) of the class head's classes.

        Without a class head the mask tokens are finetune-SAM's classes, after one that is never read.
        """
        image = embedding["image_embeddings"]
        sparse = image.new_zeros(image.shape[0], 0, image.shape[1])
        dense = self._no_mask()
        head = getattr(self.mask_decoder, "class_head", None)
        if head is None:
            return self.decode_masks(image, sparse, dense)[0][:, 1:]
        tokens, features = self._attend(head.tokens, image, sparse, dense)
        return head.masks(tokens[:, 1:], features)

    def embed_points(self, coords: Tensor, labels: Tensor) -> Tensor:
        """-> tokens (B, N, C). Coordinates count from the first pixel's centre."""
        encoder = self.prompt_encoder
        labels = labels.unsqueeze(-1)
        code = encoder.pe_layer._pe_encoding((coords + 0.5) / self.input_size)
        tokens = torch.where(labels == -1, encoder.not_a_point_embed.weight, code)
        for value, embedding in enumerate(encoder.point_embeddings):
            tokens = tokens + (labels == value).to(tokens.dtype) * embedding.weight
        return tokens

    def _no_mask(self) -> Tensor:
        """The dense prompt map without a mask, (1, C, 1, 1)."""
        return self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)

    def decode_masks(self, image_embeddings: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding (1 or B, C, G, G), tokens (B, N, C), dense map (B, C, G, G) -> logits (B, T, L, L), IoU (B, T)."""
        decoder = self.mask_decoder
        tokens, features = self._attend(decoder.mask_tokens, image_embeddings, sparse, dense)
        kernels = torch.stack(
            [head(tokens[:, 1 + i]) for i, head in enumerate(decoder.output_hypernetworks_mlps)], dim=1
        )
        low_res = 4 * self.grid_size
        masks = (kernels @ features.flatten(2)).unflatten(2, (low_res, low_res))
        return masks, decoder.iou_prediction_head(tokens[:, 0])

    def _attend(self, output: nn.Embedding, image: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """T tokens for masks or classes, and the rest as in `decode_masks` -> tokens (B, 1 + T + N, C), features
        (B, F, L, L)."""
        decoder, grid = self.mask_decoder, self.grid_size
        own = torch.cat([decoder.iou_token.weight, output.weight])
        tokens = torch.cat([own.unsqueeze(0).expand(sparse.shape[0], -1, -1), sparse], dim=1)
        tokens, image = decoder.transformer(image + dense, self.prompt_encoder.get_dense_pe(), tokens)
        return tokens, decoder.output_upscaling(image.transpose(1, 2).unflatten(2, (grid, grid)))


def build_sam(state: State, finetuned: bool = False) -> tuple[str, SamModel]:
    """The network whose tensors have the names and shapes of `state`, and the encoder's name.

    `state` uses SAM's names. Its values are not loaded; adapters are built where it has them. `finetuned` builds
    finetune-SAM's variant. Run inside `torch.device("meta")` to spend nothing on initial values.
    """
    if "image_encoder.patch_embed.proj.weight" in state:
        name, encoder, grid = _vit(state)
    else:
        name, encoder, grid = *tiny_vit.build_tiny_vit(state), tiny_vit.GRID
    model = SamModel(encoder, _prompt_encoder(state, encoder.img_size, grid), _mask_decoder(state))
    adapters.attach(model, state, finetuned)
    return name, model.eval()


def _vit(state: State) -> tuple[str, nn.Module, int]:
    """The ViT encoder with the shapes of these tensors: its name, itself, and the side of its embedding.

    The number of heads follows from the width of the relative positions, a block's reach from their length: blocks
    that reach over the whole embedding are global. UserError names the first tensor that is missing.
    """
    width, channels, patch_size, _ = _shape(state, "image_encoder.patch_embed.proj.weight", 4)
    grid = _shape(state, "image_encoder.pos_embed", 4)[1]
    depth = tiny_vit.how_many(state, r"image_encoder\.blocks\.(\d+)\.")
    lengths = [_shape(state, f"image_encoder.blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    reaches = [(length + 1) // 2 for length, _ in lengths]
    windows = {reach for reach in reaches if reach != grid}
    if len(windows) > 1 or not lengths or width % lengths[0][1]:
        raise UserError("the relative positions (rel_pos_h) of its image encoder are not SAM's.")
    heads = width // lengths[0][1]
    global_blocks = tuple(i for i, reach in enumerate(reaches) if reach == grid)
    encoder = modeling().ImageEncoderViT(
        depth=depth,
        embed_dim=width,
        img_size=grid * patch_size,
        in_chans=channels,
        mlp_ratio=_shape(state, "image_encoder.blocks.0.mlp.lin1.weight", 2)[0] / width,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=heads,
        patch_size=patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=global_blocks,
        window_size=windows.pop() if windows else _WINDOW,
        out_chans=_shape(state, "image_encoder.neck.0.weight", 4)[0],
    )
    return _PUBLISHED_VITS.get((width, depth, heads, global_blocks), "sam_vit"), encoder, grid


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
            depth=tiny_vit.how_many(state, r"mask_decoder\.transformer\.layers\.(\d+)\.") or 2,
            embedding_dim=width,
            mlp_dim=_shape(state, "mask_decoder.transformer.layers.0.mlp.lin1.weight", 2)[0],
            num_heads=DECODER_HEADS,
        ),
        transformer_dim=width,
        iou_head_depth=tiny_vit.how_many(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\.") or 3,
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
