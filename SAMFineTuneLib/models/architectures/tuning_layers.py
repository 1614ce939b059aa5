"""The layers that fine-tuning adds to a network: LoRA through PEFT, and Adapters, for every known architecture.

The names of the network's own tensors do not change, except that PEFT renames an adapted layer to `NAME.base_layer`.
Shapes: d width of a layer, r rank.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.architectures.third_party_adapters import Bottleneck
from SAMFineTuneLib.models.architectures.tiny_vit import WindowAttention as TinyAttention
from SAMFineTuneLib.models.optional_packages import require

if TYPE_CHECKING:
    from SAMFineTuneLib.models.adapters.tuning_method import Method

_ADAPTER_NAME = "default"  # PEFT's own
_DECODER_BOTTLENECK = 64
_ENCODER_REDUCTION = 4
# Names of Adapters in their hosts, by what they do there.
_AFTER, _BESIDE, _TOKENS = "adapter_after", "adapter_beside", "adapter_of_tokens"


def encoder_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The image encoder's transformer blocks by name, in order: those with a fused `attn.qkv`."""
    return {
        f"image_encoder.{name}": module
        for name, module in network.image_encoder.named_modules()
        if isinstance(getattr(getattr(module, "attn", None), "qkv", None), nn.Module)
    }


def chosen_blocks(network: nn.Module, method: Method) -> dict[str, nn.Module]:
    """The encoder blocks that a method adapts. UserError when there are no such blocks."""
    if method.scope == "decoder":
        return {}
    blocks = encoder_blocks(network)
    if method.blocks is None:
        return blocks
    if missing := [index for index in method.blocks if not 0 <= index < len(blocks)]:
        raise UserError(
            f"The image encoder has {len(blocks)} blocks, counted from 0, and no block {missing[0]}: choose others."
        )
    return {name: block for index, (name, block) in enumerate(blocks.items()) if index in method.blocks}


# ---- LoRA


def add_lora(network: nn.Module, method: Method) -> nn.Module:
    """Adapt q and v of the chosen encoder blocks, and `q_proj` and `v_proj` of all attention in the mask decoder.

    q and v are two slices of one layer. Their two adaptations of rank r are written as one of rank 2 r, whose B is zero
    where it would mix them or change k: so the layer is PEFT's own, and PEFT can load it. During training only the
    part of B that is not zero is a parameter.
    """
    peft = require("LoRA", "peft", extra="training")
    blocks = chosen_blocks(network, method)
    heads = _decoder_projections(network)
    _require_plain([*(f"{name}.attn.qkv" for name in blocks), *heads], network)
    network = peft.inject_adapter_in_model(lora_config(network, method), network, _ADAPTER_NAME)
    for block in blocks.values():
        _split(block.attn)
    return network


def lora_config(network: nn.Module, method: Method, modules_to_save: list[str] | None = None) -> Any:
    """PEFT's configuration of a method. Its scale alpha / r is the same for both ranks.

    Args:
        network: whose layers get the low-rank matrices.
        method: rank, blocks and so on.
        modules_to_save: names of modules that are trained whole and saved beside them.
    """
    targets = [f"{name}.attn.qkv" for name in chosen_blocks(network, method)]
    return require("LoRA", "peft", extra="training").LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        rank_pattern={"qkv": 2 * method.rank} if targets else {},
        alpha_pattern={"qkv": 2 * method.alpha} if targets else {},
        target_modules=[*targets, *_decoder_projections(network)],
        modules_to_save=modules_to_save,
    )


def lora_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The full matrices A and B of every adapted layer, under the layer's name, as PEFT saves them."""
    found = {}
    for name, layer in network.named_modules():
        if hasattr(layer, "lora_A") and _ADAPTER_NAME in layer.lora_A:
            found[f"{name}.lora_A.weight"] = layer.lora_A[_ADAPTER_NAME].weight.detach()
            found[f"{name}.lora_B.weight"] = layer.lora_B[_ADAPTER_NAME].weight.detach()
    return found


def query_and_value_rows(attention: nn.Module) -> tuple[Tensor, Tensor]:
    """The rows of an attention's fused `qkv` that make its queries, and those that make its values; (d,) each."""
    rows = torch.arange(attention.qkv.out_features)
    if isinstance(attention, TinyAttention):  # head by head
        heads = rows.unflatten(0, (attention.num_heads, 3, -1))
        return heads[:, 0].flatten(), heads[:, 2].flatten()
    query, _, value = rows.chunk(3)
    return query, value


class _Slices(nn.Module):
    """Turns B of q above B of v (2 d, r) into the B of the fused layer (3 d, 2 r)."""

    def __init__(self, query: Tensor, value: Tensor, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.register_buffer("query", query, persistent=False)
        self.register_buffer("value", value, persistent=False)

    def forward(self, small: Tensor) -> Tensor:
        """(2 d, r) -> (3 d, 2 r)."""
        parts = zip((self.query, self.value), small.chunk(2), strict=True)
        columns = [small.new_zeros(self.outputs, small.shape[1]).index_copy(0, rows, part) for rows, part in parts]
        return torch.cat(columns, dim=1)

    def right_inverse(self, whole: Tensor) -> Tensor:
        """(3 d, 2 r) -> (2 d, r)."""
        rank = whole.shape[1] // 2
        return torch.cat([whole[self.query, :rank], whole[self.value, rank:]])


def _split(attention: nn.Module) -> None:
    """Make the slices of B the parameter."""
    layer = attention.qkv
    up = layer.lora_B[_ADAPTER_NAME]
    slices = _Slices(*query_and_value_rows(attention), layer.out_features).to(up.weight.device)
    parametrize.register_parametrization(up, "weight", slices)


def _decoder_projections(network: nn.Module) -> list[str]:
    return [
        f"mask_decoder.transformer.{name}"
        for name, module in network.mask_decoder.transformer.named_modules()
        if name.endswith((".q_proj", ".v_proj"))
    ]


def _require_plain(names: list[str], network: nn.Module) -> None:
    for name in names:
        if not isinstance(network.get_submodule(name), nn.Linear):
            raise UserError(f"{name} is adapted already: attach to a network as it was loaded.")


# ---- Adapters


def add_bottlenecks(network: nn.Module, method: Method) -> None:
    """Add Adapters to the chosen encoder blocks and to the mask decoder's layers; initially they change nothing.

    Encoder (Gu et al., 2024): d, d/4, GELU, d; one with skip after the attention, one without, at half weight, parallel
    to the MLP. Decoder: a bottleneck of 64; one for tokens and picture after cross-attention, one at half weight
    parallel to the MLP.
    """
    for name, block in chosen_blocks(network, method).items():
        width = block.attn.qkv.in_features
        _host(network, f"{name}.attn", _AFTER, width, width // _ENCODER_REDUCTION)
        _host(network, f"{name}.mlp", _BESIDE, width, width // _ENCODER_REDUCTION)
    for index, layer in enumerate(network.mask_decoder.transformer.layers):
        name, width = f"mask_decoder.transformer.layers.{index}", layer.mlp.lin1.in_features
        _host(network, name, _TOKENS, width, _DECODER_BOTTLENECK)
        _host(network, f"{name}.mlp", _BESIDE, width, _DECODER_BOTTLENECK)


def add_bottlenecks_of(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Add the Adapters for which a state dict has tensors; their values are not loaded."""
    for name, tensor in state.items():
        if match := re.fullmatch(rf"(.+)\.({_AFTER}|{_BESIDE}|{_TOKENS})\.D_fc1\.weight", name):
            hidden, width = tensor.shape
            try:
                _host(network, match[1], match[2], width, hidden)
            except AttributeError:
                raise UserError(f"the Adapter {match[2]} belongs to {match[1]}, which does not exist.") from None


def bottlenecks(network: nn.Module) -> list[str]:
    """Names of the Adapters in a network."""
    kinds = (_AFTER, _BESIDE, _TOKENS)
    return [name for name, _ in network.named_modules() if name.rpartition(".")[2] in kinds]


def _host(network: nn.Module, name: str, kind: str, width: int, hidden: int) -> None:
    """Add an Adapter to the module `name`; hooks run it, so that the module keeps its code and its names."""
    module = network.get_submodule(name)
    adapter = Bottleneck(width, hidden, skip=kind != _BESIDE)
    for value in (adapter.D_fc2.weight, adapter.D_fc2.bias):
        nn.init.zeros_(value)
    module.add_module(kind, adapter.train(module.training))
    if kind == _TOKENS:
        for norm in (module.norm2, module.norm4):
            norm.register_forward_pre_hook(partial(_before, adapter))  # a partial is copied with its network
    else:
        module.register_forward_hook(_after if kind == _AFTER else _beside)


def _after(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return module.get_submodule(_AFTER)(output)


def _beside(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    return output + 0.5 * module.get_submodule(_BESIDE)(inputs[0])


def _before(adapter: nn.Module, module: nn.Module, inputs: tuple) -> tuple:
    return (adapter(inputs[0]),)


# ---- Batch norm


class SteadyBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that uses and keeps its loaded statistics, also during training.

    TinyViT's statistics come from millions of pictures; a few cases would spoil them, and adapters do not store them.
    """

    def train(self, mode: bool = True) -> SteadyBatchNorm2d:
        """Stay in evaluation mode."""
        return super().train(False)


def keep_statistics(network: nn.Module) -> None:
    """Make all batch norms of a network keep their statistics."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SteadyBatchNorm2d
            module.train(False)
