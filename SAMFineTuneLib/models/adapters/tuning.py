"""Attaches LoRA, Adapters or whole weights to a network for training, and saves the result.

The mask decoder alone is trained, or the image encoder too. `attach` prepares a network, `save_adapter` saves the
trained tensors, `apply_adapter` puts them into a network. PyTorch and PEFT are imported inside the functions; only
training LoRA needs PEFT.

After Gu et al., "How to build the best medical image segmentation algorithm using foundation models" (2024), but
freshly attached modules change nothing, and only trained tensors are saved.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib import __version__
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.adapters.adapter_card import Card
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder, write_adapter_folder
from SAMFineTuneLib.models.adapters.apply_adapter import (
    CLASS_HEAD_MODULE,
    LORA,
    PEFT_PREFIX,
    copy_tensor,
    put_tensors,
    read_tensors,
)
from SAMFineTuneLib.models.adapters.tuning_method import Method
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


def attach(network: nn.Module, spec: ModelSpec, method: Method, seed: int = 0) -> nn.Module:
    """Prepare a network for training, in place.

    Only trained tensors require a gradient. Until the first step, `encode` and `decode` give bit by bit the same
    answers. Batch norms keep their statistics during training.

    Args:
        network: as `load_network` returns it.
        spec: the model's description.
        method: what is trained. With an automatic head, `decode_classes(embedding)` gives logits (B, C, L, L).
        seed: of all random initial values.

    Returns:
        The network.

    Raises:
        UserError: when the method does not suit the model.
    """
    import torch

    from SAMFineTuneLib.models.architectures import tuning_layers
    from SAMFineTuneLib.models.architectures.class_head import add_class_head

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
    if "promptable" not in method.heads:
        for name in _prompt_heads(network):
            network.get_submodule(name).requires_grad_(False)
    return network.eval()


def trainable(network: nn.Module) -> dict[str, Tensor]:
    """The parameters that an attached network trains, by name."""
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def save_adapter(folder: str | Path, network: nn.Module, base: ModelFolder, method: Method, card: Card) -> None:
    """Write the trained tensors into a folder, completely or not at all; other files there stay.

    Plain PEFT can load a LoRA's folder into the base; see `tuning_layers.add_lora`.

    Args:
        folder: the adapter's folder.
        network: the attached network.
        base: the model to which the method was attached.
        method: as given to `attach`.
        card: its base, method, date and version are filled in.
    """
    from safetensors.torch import save

    from SAMFineTuneLib.models.architectures import tuning_layers

    found = {name: value for name, value in trainable(network).items() if ".lora_" not in name}
    if not found:
        raise UserError("The network has no trained tensors: attach a method to it first.")
    if method.method == "lora":
        found |= tuning_layers.lora_tensors(network)
    tensors = {name: value.detach().cpu() for name, value in found.items()}
    head = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{CLASS_HEAD_MODULE}.")}
    card = replace(
        card,
        base=base.spec.id,
        base_digest=base.digest("weights"),
        base_architecture=base.spec.architecture,
        method=method,
        date=card.date or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        version=card.version or __version__,
    )
    prefix = PEFT_PREFIX if method.method == "lora" else ""
    named = {f"{prefix}{name}": value.contiguous() for name, value in tensors.items()}
    write_adapter_folder(
        folder,
        _config(network, base, method),
        save(named, metadata={"format": "pt"}),
        save({name: value.contiguous() for name, value in head.items()}) if head else None,
        card,
    )


def restore(network: nn.Module, adapter: AdapterFolder) -> None:
    """Put an adapter's tensors into a network with the same method attached, to train it further."""
    from torch.nn.utils import parametrize

    tensors = read_tensors(adapter)
    matrices = {name: value for name, value in tensors.items() if LORA.fullmatch(name)}
    for name, value in matrices.items():
        layer, kind = LORA.fullmatch(name).groups()
        holder = getattr(network.get_submodule(layer), f"lora_{kind}")["default"]
        if parametrize.is_parametrized(holder):
            holder.weight = value  # the parametrization keeps the trained slices
        else:
            copy_tensor(holder.weight, value, name, adapter.name)
        del tensors[name]
    put_tensors(network, tensors, adapter.name)


# ---- what is trained


def _trained_modules(network: nn.Module, method: Method) -> list[str]:
    """Modules whose parameters are all trained, in addition to LoRA's matrices."""
    from SAMFineTuneLib.models.architectures import tuning_layers

    if method.method == "vanilla":
        return ["mask_decoder", *(["image_encoder"] if method.trains_encoder else [])]
    names = ["mask_decoder.iou_token", "mask_decoder.output_upscaling"]
    if "promptable" in method.heads:
        names += _prompt_heads(network)
    if "automatic" in method.heads:
        names.append(CLASS_HEAD_MODULE)
    return [*names, *tuning_layers.bottlenecks(network)]


def _prompt_heads(network: nn.Module) -> list[str]:
    """One by one, because PEFT does not accept lists of modules."""
    count = len(network.mask_decoder.output_hypernetworks_mlps)
    return [
        "mask_decoder.mask_tokens",
        "mask_decoder.iou_prediction_head",
        *(f"mask_decoder.output_hypernetworks_mlps.{index}" for index in range(count)),
    ]


def _config(network: nn.Module, base: ModelFolder, method: Method) -> dict[str, Any]:
    """`adapter_config.json`: PEFT's own for LoRA."""
    if method.method != "lora":
        return {"samfinetune_method": method.method, "base_model_name_or_path": base.spec.id, "inference_mode": True}
    from SAMFineTuneLib.models.architectures import tuning_layers

    whole = [name for name in _trained_modules(network, method) if name != CLASS_HEAD_MODULE]
    config = tuning_layers.lora_config(network, method, whole)
    config.base_model_name_or_path = base.spec.id
    config.inference_mode = True
    values = {key: value for key, value in config.to_dict().items() if value is not None}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
