"""Fitting a training into memory: how many pictures at once, and encoder blocks that are computed twice."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.training.training_settings import Settings

_PATCH = 16
_KEPT = 20  # tensors of a token's width that a transformer block keeps for its backward pass
_PART = 0.6  # of the free memory that activations may take


def plan(network: nn.Module, spec: ModelSpec, settings: Settings, device: torch.device) -> tuple[int, bool]:
    """(pictures at once, whether encoder blocks are to be computed twice), from a rough estimate of what is kept."""
    free = free_memory(device) * _PART
    learns = settings.method.trains_encoder
    one = activation_bytes(network, spec) if learns else activation_bytes(network, spec) / 20
    twice = settings.checkpointing == "on" or (settings.checkpointing == "auto" and learns and one > free)
    if twice:
        one /= max(1, len(_blocks(network)))
    at_once = settings.micro_batch or int(max(1, min(settings.batch, free // max(one, 1))))
    return at_once, twice and learns


def activation_bytes(network: nn.Module, spec: ModelSpec) -> float:
    """Roughly what the image encoder keeps of one picture for its backward pass, in float32."""
    blocks = _blocks(network)
    tokens = (spec.input_size / _PATCH) ** 2 if spec.input_size > 256 else (spec.input_size / 8) ** 2
    total = 0.0
    for block in blocks:
        width = block.attn.qkv.in_features if hasattr(block.attn.qkv, "in_features") else 768
        window = getattr(block, "window_size", 0) or 0
        heads = getattr(block.attn, "num_heads", 12)
        seen = window * window if window else tokens
        total += 4 * tokens * (_KEPT * width + 2 * heads * seen)
    return total or 4 * tokens * 768 * 12 * _KEPT


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # Windows, macOS: assume a modest computer
        return 4e9


def compute_blocks_twice(network: nn.Module) -> None:
    """Let encoder blocks forget their activations and compute them again in the backward pass."""
    for block in _blocks(network):
        if getattr(block, "_computed_twice", False):
            continue
        block.forward = _twice(block.forward)
        block._computed_twice = True


def _twice(forward):
    def again(*inputs):
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False)

    return again


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The image encoder's transformer blocks: what has an attention with a fused `qkv`."""
    encoder = network.image_encoder
    return [module for module in encoder.modules() if hasattr(getattr(module, "attn", None), "qkv")]
