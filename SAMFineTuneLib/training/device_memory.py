"""The device of a training, and fitting a training into its memory."""

from __future__ import annotations

import os

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.architectures.tuning_layers import encoder_blocks
from SAMFineTuneLib.models.spec import ModelSpec

_PATCH = 16
_KEPT = 20  # tensors of a token's width that a transformer block keeps for the backward pass
_PART = 0.6  # of the free memory that activations may take


def device_of(name: str) -> str:
    """The PyTorch device to train on, by its name or "auto"; UserError when it is unavailable."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    able = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    there = number == "" or (number.isdigit() and kind == "cuda" and int(number) < torch.cuda.device_count())
    if not able.get(kind, False) or not there:
        usable = ", ".join(one for one, there in able.items() if there)
        raise UserError(f"PyTorch here cannot train on {name!r}; choose one of: auto, {usable}.")
    return name


def pictures_at_once(
    network: nn.Module, spec: ModelSpec, device: torch.device, batch: int, micro_batch: int | None = None,
    checkpointing: str = "auto", learns: bool = True,
) -> tuple[int, bool]:  # fmt: skip
    """How many pictures of a batch fit into memory, from a rough estimate of what the image encoder keeps.

    Args:
        network: The network to train.
        spec: Its model.
        device: Where it is trained.
        batch: Pictures of a step.
        micro_batch: Pictures at once, if the user has set it.
        checkpointing: "on" or "off" if the user has set it, else "auto".
        learns: Whether the image encoder is trained.

    Returns:
        Pictures at once, and whether to compute encoder blocks twice (see `compute_blocks_twice`).
    """
    free = free_memory(device) * _PART
    one = activation_bytes(network, spec) if learns else activation_bytes(network, spec) / 20
    twice = checkpointing == "on" or (checkpointing == "auto" and learns and one > free)
    if twice:
        one /= max(1, len(encoder_blocks(network)))
    return micro_batch or int(max(1, min(batch, free // max(one, 1)))), twice and learns


def mixed_precision(device: torch.device, wanted: str = "auto", on_processor: bool = False) -> torch.autocast:
    """A context in which products are computed in bfloat16; weights and losses stay in 32 bits.

    Args:
        device: Where they are computed.
        wanted: "bf16", "fp32", or "auto": if a graphics card supports it.
        on_processor: With "auto", also on a processor with matrix instructions for it (AMX). With vector instructions
            alone, a step of pre-training takes 1.6 times as long as in 32 bits.
    """
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    if on_processor and device.type == "cpu":
        able = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted == "bf16" or (wanted == "auto" and able))


def activation_bytes(network: nn.Module, spec: ModelSpec) -> float:
    """Rough size of what the image encoder keeps of one picture for its backward pass, in float32."""
    tokens = (spec.input_size / _PATCH) ** 2 if spec.input_size > 256 else (spec.input_size / 8) ** 2
    total = 0.0
    for block in encoder_blocks(network).values():
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
    """Checkpoint the encoder's blocks: they drop their activations, and compute them again in the backward pass."""
    for block in encoder_blocks(network).values():
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
