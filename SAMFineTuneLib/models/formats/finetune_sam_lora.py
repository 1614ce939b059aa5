"""Merges finetune-SAM's LoRA tensors into the weights that they adapt.

The authors add `linear_b(linear_a(x))` to the first and the last `width` outputs of `attn.qkv`, and `w_b(w_a(x))` to
`q_proj` and `v_proj` of the mask decoder, with scale 1. Both are linear, so adding `B @ A` to the weight is
equivalent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_ENCODER = re.compile(r"(?P<layer>.+\.attn\.qkv)\.linear_a_(?P<part>[qv])\.weight")
_DECODER = re.compile(r"(?P<layer>.+\.[qv]_proj)\.w_a\.weight")


def merge_lora(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Merge a state dict.

    Returns:
        The state dict with plain names and merged weights, and the names of the layers with LoRA.

    Raises:
        UserError: when a LoRA tensor is missing or does not fit.
    """
    merged = dict(state)
    layers: dict[str, None] = {}
    for name in state:
        if match := _ENCODER.fullmatch(name):
            part = match["part"]
            matrices, inner = (f"linear_a_{part}", f"linear_b_{part}"), "qkv"
        elif match := _DECODER.fullmatch(name):
            part, matrices, inner = "all", ("w_a", "w_b"), "proj"
        else:
            continue
        layer = match["layer"]
        down, up = (_take(merged, layer, kind) for kind in matrices)
        weight = _plain(merged, layer, inner)
        third = len(weight) // 3
        rows = {"q": slice(0, third), "v": slice(2 * third, None), "all": slice(None)}[part]
        if (*up.shape, *down.shape) != (len(weight[rows]), down.shape[0], down.shape[0], weight.shape[1]):
            raise UserError(
                f"The LoRA tensors of {layer} do not fit its weight: shapes {tuple(down.shape)} and "
                f"{tuple(up.shape)} for {tuple(weight.shape)}."
            )
        weight[rows] += up.float() @ down.float()
        layers[layer] = None
    return merged, tuple(layers)


def _take(state: dict[str, Tensor], layer: str, kind: str) -> Tensor:
    """Remove one of a layer's LoRA matrices from the state dict."""
    name = f"{layer}.{kind}.weight"
    if name not in state:
        raise UserError(f"The LoRA of {layer} is incomplete: the tensor {name} is missing.")
    return state.pop(name)


def _plain(state: dict[str, Tensor], layer: str, inner: str) -> Tensor:
    """A copy of the weight that LoRA adapts, under its plain name."""
    for kind in ("weight", "bias"):
        if f"{layer}.{inner}.{kind}" in state:
            state[f"{layer}.{kind}"] = state.pop(f"{layer}.{inner}.{kind}").float().clone()
    if f"{layer}.weight" not in state:
        raise UserError(
            f"The file holds LoRA tensors without the weight they adapt: {layer}.{inner}.weight is missing."
        )
    return state[f"{layer}.weight"]
