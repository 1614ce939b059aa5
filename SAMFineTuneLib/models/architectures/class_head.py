"""The automatic head: the mask decoder segments without prompts, with one output token per class, background first.

finetune-SAM (Gu et al., 2024) uses SAM's mask tokens for that; here the tokens are additional, so that one decoder has
both heads. The classes share one hypernetwork and differ by their token.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

TOKENS = "mask_decoder.class_head.tokens.weight"


class ClassHead(nn.Module):
    """Tokens of C classes, and the network that makes a mask kernel from each."""

    def __init__(self, classes: int, hypernetwork: nn.Module) -> None:
        super().__init__()
        self.tokens = nn.Embedding(classes, hypernetwork.layers[0].in_features)
        self.hypernetwork = hypernetwork

    def masks(self, tokens: Tensor, features: Tensor) -> Tensor:
        """The decoder's tokens (B, C, W) and upscaled features (B, F, L, L) -> logits (B, C, L, L)."""
        return (self.hypernetwork(tokens) @ features.flatten(2)).unflatten(2, features.shape[-2:])


def add_class_head(network: nn.Module, classes: int) -> None:
    """Give a network's mask decoder a class head; its hypernetwork begins as the first mask token's."""
    decoder = network.mask_decoder
    head = ClassHead(classes, copy.deepcopy(decoder.output_hypernetworks_mlps[0]))
    if not head.tokens.weight.is_meta:
        with torch.no_grad():  # as large as the tokens that the transformer was trained with, in random directions
            head.tokens.weight.mul_(decoder.mask_tokens.weight.std())
    decoder.class_head = head.train(decoder.training)
