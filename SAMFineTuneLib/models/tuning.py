"""Fine-tuning's methods: LoRA, Adapters or whole weights, in the mask decoder alone or in the image encoder too.

`attach` prepares a network for training, `save_adapter` keeps what was trained, `load_adapter` puts it back. PyTorch
and PEFT are imported inside the functions; loading needs no PEFT.

After Gu et al., "How to build the best medical image segmentation algorithm using foundation models" (2024), but
freshly attached modules change nothing, and only what was trained is saved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import UserError
from .adapter_folder import (
    CLASS_HEAD,
    CONFIG,
    TENSORS,
    AdapterFolder,
    digest_of_base,
    read_adapter_folder,
    require_base,
    write_adapter_folder,
)
from .card import Card, Gain
from .method import HEADS, METHODS, SCOPES, Method
from .spec import ModelFolder, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "HEADS", "METHODS", "SCOPES", "Card", "Gain", "Method", "apply_adapter", "attach", "load_adapter", "restore",
    "save_adapter", "trainable",
]  # fmt: skip

_PEFT_PREFIX = "base_model.model."  # begins every tensor's name in PEFT's files
_CLASS_HEAD_MODULE = "mask_decoder.class_head"


def attach(network: nn.Module, spec: ModelSpec, method: Method, seed: int = 0) -> nn.Module:
    """Prepare a network, as `load_network` gives it, for training: in place, and returned.

    Only what is trained requires a gradient. Until the first step `encode` and `decode` answer bit by bit as before.
    With an automatic head, `decode_classes(embedding)` gives logits (B, C, L, L). Batch norms keep their statistics
    in training too. `seed` decides the beginning of everything random. UserError when the method does not suit.
    """
    import torch

    from . import tuning_layers
    from .architectures.class_head import add_class_head

    if "promptable" not in spec.heads:
        raise UserError(f"The model {spec.id!r} takes no prompts; choose a promptable model as the base.")
    network.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if method.method == "lora":
            network = tuning_layers.add_lora(network, method)
        elif method.method == "adapter":
            tuning_layers.add_bottlenecks(network, method)
        if "automatic" in method.heads:
            add_class_head(network, len(method.classes))
    tuning_layers.keep_statistics(network)
    for name in _trained_modules(network, method):
        network.get_submodule(name).requires_grad_(True)
    for name in _unused_heads(method):
        network.get_submodule(name).requires_grad_(False)
    return network.eval()


def trainable(network: nn.Module) -> dict[str, Tensor]:
    """What an attached network trains, by name: the parameters themselves."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def save_adapter(folder: str | Path, network: nn.Module, base: ModelFolder, method: Method, card: Card) -> None:
    """Write what was trained into a folder, whole or not at all; other files there stay.

    Base, method, date and version of the card are filled in. A LoRA's folder is loaded by plain PEFT into the base,
    where the layers are its own; see `tuning_layers.add_lora`.
    """
    from safetensors.torch import save

    tensors = {name: value.detach().cpu() for name, value in _to_save(network, method).items()}
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{_CLASS_HEAD_MODULE}.")}
    card = replace(
        card,
        base=base.spec.id,
        base_digest=digest_of_base(base),
        base_architecture=base.spec.architecture,
        method=method,
        date=card.date or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=card.version or __version__,
    )
    prefix = _PEFT_PREFIX if method.method == "lora" else ""
    named = {f"{prefix}{name}": value.contiguous() for name, value in tensors.items()}
    write_adapter_folder(
        folder,
        _config(network, base, method),
        save(named, metadata={"format": "pt"}),
        save({name: value.contiguous() for name, value in head.items()}) if head else None,
        card,
    )


def load_adapter(folder: str | Path, base: ModelFolder) -> tuple[nn.Module, Card]:
    """The base with an adapter in it, float32 on the CPU, and its card. LoRA is merged, so it costs nothing to run.

    UserError when the base is another one, or the folder is not whole.
    """
    from .load import load_network

    adapter = read_adapter_folder(folder)
    require_base(adapter, base)
    _, network = load_network(base.file("weights"))
    return apply_adapter(network, adapter), adapter.card


def apply_adapter(network: nn.Module, adapter: AdapterFolder) -> nn.Module:
    """Put an adapter into its base's network, in place; LoRA is merged. UserError for tensors that do not fit."""
    from . import tuning_layers
    from .architectures.class_head import add_class_head

    method = adapter.card.method
    tensors = _read_tensors(adapter)
    if method.method == "lora":
        tensors |= _merged(network, tensors, _lora_config(adapter), adapter.name)
    elif method.method == "adapter":
        tuning_layers.add_bottlenecks_of(network, tensors)
    if "automatic" in method.heads:
        add_class_head(network, len(method.classes))
    _put(network, tensors, adapter.name)
    return network.eval()


def restore(network: nn.Module, adapter: AdapterFolder) -> None:
    """Put an adapter's tensors into a network to which the same method was attached, to train it further."""
    from torch.nn.utils import parametrize

    tensors = _read_tensors(adapter)
    matrices = {name: value for name, value in tensors.items() if _LORA.fullmatch(name)}
    for name, value in matrices.items():
        layer, kind = _LORA.fullmatch(name).groups()
        holder = getattr(network.get_submodule(layer), f"lora_{kind}")["default"]
        if parametrize.is_parametrized(holder):
            holder.weight = value  # keeps the slices that are trained
        else:
            _copy(holder.weight, value, name, adapter.name)
        del tensors[name]
    _put(network, tensors, adapter.name)


# ---- what is trained


def _trained_modules(network: nn.Module, method: Method) -> list[str]:
    """Modules that are trained whole; LoRA's matrices are trained anyway."""
    from . import tuning_layers

    if method.method == "vanilla":
        return ["mask_decoder", *(["image_encoder"] if method.trains_encoder else [])]
    names = ["mask_decoder.iou_token", "mask_decoder.output_upscaling"]
    if "promptable" in method.heads:
        names += _prompt_heads(network)
    if "automatic" in method.heads:
        names.append(_CLASS_HEAD_MODULE)
    return [*names, *tuning_layers.bottlenecks(network)]


def _prompt_heads(network: nn.Module) -> list[str]:
    """One by one, because PEFT takes no lists of modules."""
    count = len(network.mask_decoder.output_hypernetworks_mlps)
    return [
        "mask_decoder.mask_tokens",
        "mask_decoder.iou_prediction_head",
        *(f"mask_decoder.output_hypernetworks_mlps.{index}" for index in range(count)),
    ]


def _unused_heads(method: Method) -> list[str]:
    """Modules that no head of the method uses; so they are not trained either."""
    if "promptable" in method.heads:
        return []
    return ["mask_decoder.mask_tokens", "mask_decoder.iou_prediction_head", "mask_decoder.output_hypernetworks_mlps"]


def _to_save(network: nn.Module, method: Method) -> dict[str, Tensor]:
    """What was trained, under the names of the base's tensors; LoRA's matrices under their layer's."""
    from . import tuning_layers

    plain = {name: value for name, value in trainable(network).items() if ".lora_" not in name}
    if not plain:
        raise UserError("The network has nothing that was trained: attach a method to it first.")
    return plain | (tuning_layers.lora_tensors(network) if method.method == "lora" else {})


def _config(network: nn.Module, base: ModelFolder, method: Method) -> dict[str, Any]:
    """`adapter_config.json`: PEFT's own for LoRA."""
    if method.method != "lora":
        return {"samfinetune_method": method.method, "base_model_name_or_path": base.spec.id, "inference_mode": True}
    from . import tuning_layers

    whole = [name for name in _trained_modules(network, method) if name != _CLASS_HEAD_MODULE]
    config = tuning_layers.lora_config(network, method, whole)
    config.base_model_name_or_path = base.spec.id
    config.inference_mode = True
    values = {key: value for key, value in config.to_dict().items() if value is not None}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}


# ---- what was saved

_LORA = re.compile(r"(.+)\.lora_([AB])\.weight")


def _read_tensors(adapter: AdapterFolder) -> dict[str, Tensor]:
    """All tensors of an adapter, under the names of the base's."""
    from .checkpoint import read_checkpoint

    tensors = {}
    for file in (TENSORS, CLASS_HEAD):
        if file in adapter.card.files:
            for name, value in read_checkpoint(adapter.path / file).items():
                tensors[name.removeprefix(_PEFT_PREFIX)] = value
    return tensors


def _lora_config(adapter: AdapterFolder) -> dict[str, Any]:
    """PEFT's configuration of a LoRA."""
    import json

    try:
        config = json.loads((adapter.path / CONFIG).read_text(encoding="utf-8"))
        if config["peft_type"] != "LORA" or config.get("use_rslora") or config.get("use_dora"):
            raise ValueError("it is no plain LoRA")
        return config
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{adapter.path / CONFIG} is not the LoRA it should be ({error}): use another copy.") from error


def _scale(config: Mapping[str, Any], layer: str) -> float:
    """alpha / r of a layer, by the rules of PEFT's patterns."""

    def of(patterns: str, common: str) -> float:
        for pattern, value in (config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return float(value)
        return float(config[common])

    return of("alpha_pattern", "lora_alpha") / of("rank_pattern", "r")


def _merged(
    network: nn.Module, tensors: dict[str, Tensor], config: Mapping[str, Any], adapter: str
) -> dict[str, Tensor]:
    """Takes the LoRA matrices out of `tensors`; the weights of their layers with scale * B A added."""
    weights = {}
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        layer = name.removesuffix(".lora_A.weight")
        down, up = tensors.pop(name), tensors.pop(f"{layer}.lora_B.weight", None)
        try:
            weight = network.get_submodule(layer).weight
        except AttributeError:
            raise _misfit(adapter, f"the base has no layer {layer}") from None
        if up is None or (up.shape[0], down.shape[1], up.shape[1]) != (*weight.shape, down.shape[0]):
            raise _misfit(adapter, f"its matrices for {layer} are incomplete or of another shape")
        weights[f"{layer}.weight"] = weight.detach() + _scale(config, layer) * (up.float() @ down.float())
    return weights


def _put(network: nn.Module, tensors: Mapping[str, Tensor], adapter: str) -> None:
    """Copy tensors into those of a network that have their names."""
    own = network.state_dict(keep_vars=True)
    for name, value in tensors.items():
        if name not in own:
            raise _misfit(adapter, f"the base has no tensor {name}")
        _copy(own[name], value, name, adapter)
    missing = [name for name in own if name.startswith(f"{_CLASS_HEAD_MODULE}.") and name not in tensors]
    if missing:
        raise _misfit(adapter, f"it lacks {missing[0]}")


def _copy(target: Tensor, value: Tensor, name: str, adapter: str) -> None:
    import torch

    if target.shape != value.shape:
        raise _misfit(adapter, f"{name} has shape {tuple(value.shape)} instead of {tuple(target.shape)}")
    with torch.no_grad():
        target.copy_(value)


def _misfit(adapter: str, why: str) -> UserError:
    return UserError(f"The adapter {adapter} does not fit its base ({why}): use another copy, or train it again.")

