"""Puts an adapter into its base's network.

Own code rather than `peft.merge_and_unload`: running an adapter must not need PEFT, which comes with the extra
`training` only, and PEFT knows neither our Adapters nor the class head. A test compares both merges.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.adapters.adapter_folder import CLASS_HEAD, CONFIG, TENSORS, AdapterFolder
from SAMFineTuneLib.models.formats.checkpoint import read_checkpoint
from SAMFineTuneLib.typed_json import loaded

if TYPE_CHECKING:
    from torch import Tensor, nn

PEFT_PREFIX = "base_model.model."  # prefix of every tensor's name in PEFT's files
CLASS_HEAD_MODULE = "mask_decoder.class_head"
LORA = re.compile(r"(.+)\.lora_([AB])\.weight")


class Misfit(UserError):
    """An adapter's files are whole, but do not fit the network of its base."""


def apply_adapter(network: nn.Module, adapter: AdapterFolder) -> nn.Module:
    """Put an adapter into its base's network, in place; LoRA is merged into the weights.

    Args:
        network: the base, as `load_network` returns it.
        adapter: an adapter of that base; see `adapter_folder.require_base`.

    Returns:
        The network.

    Raises:
        UserError: when a tensor does not fit.
    """
    from SAMFineTuneLib.models.architectures import tuning_layers
    from SAMFineTuneLib.models.architectures.class_head import add_class_head

    method = adapter.card.method
    tensors = read_tensors(adapter)
    if method.method == "lora":
        tensors |= _merged(network, tensors, _lora_config(adapter), adapter.name)
    elif method.method == "adapter":
        try:
            tuning_layers.add_bottlenecks_of(network, tensors)
        except UserError as error:
            raise _misfit(adapter.name, str(error).rstrip(".")) from error
    if "automatic" in method.heads:
        add_class_head(network, len(method.classes))
    put_tensors(network, tensors, adapter.name)
    return network.eval()


def read_tensors(adapter: AdapterFolder) -> dict[str, Tensor]:
    """All tensors of an adapter, under the names of the base's."""
    tensors = {}
    for file in (TENSORS, CLASS_HEAD):
        if file in adapter.card.files:
            for name, value in read_checkpoint(adapter.path / file).items():
                tensors[name.removeprefix(PEFT_PREFIX)] = value
    return tensors


def _lora_config(adapter: AdapterFolder) -> dict[str, Any]:
    """PEFT's configuration of a LoRA."""
    try:
        config = loaded((adapter.path / CONFIG).read_text(encoding="utf-8"))
        if config["peft_type"] != "LORA" or config.get("use_rslora") or config.get("use_dora"):
            raise ValueError("it is not a plain LoRA")
        patterns = [(config.get(name) or {}).items() for name in ("rank_pattern", "alpha_pattern")]
        sizes = [("", config["r"]), ("", config["lora_alpha"]), *chain(*patterns)]
        if not all(re.compile(pattern) and 0 < float(size) < math.inf for pattern, size in sizes):
            raise ValueError("its rank or alpha is not a positive number")
        return config
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, re.error) as error:
        raise Misfit(f"{adapter.path / CONFIG} is not a valid LoRA configuration ({error}): use another "
                        "copy.") from error


def _scale(config: Mapping[str, Any], layer: str) -> float:
    """alpha / r of a layer, by PEFT's rules for patterns."""

    def of(patterns: str, common: str) -> float:
        for pattern, value in (config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                return float(value)
        return float(config[common])

    return of("alpha_pattern", "lora_alpha") / of("rank_pattern", "r")


def _merged(
    network: nn.Module, tensors: dict[str, Tensor], config: Mapping[str, Any], adapter: str
) -> dict[str, Tensor]:
    """Remove the LoRA matrices from `tensors`, and return their layers' weights with scale * B A added."""
    weights = {}
    for key, ending in (("target_modules", "lora_A.weight"), ("modules_to_save", "")):
        for part in config[key] if isinstance(config.get(key), list) else ():
            if not any(f".{part}.{ending}" in f".{name}" for name in tensors):
                raise _misfit(adapter, f"it lacks the tensors of {part}")
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        layer = name.removesuffix(".lora_A.weight")
        down, up = tensors.pop(name), tensors.pop(f"{layer}.lora_B.weight", None)
        try:
            weight = network.get_submodule(layer).weight
        except AttributeError:
            raise _misfit(adapter, f"the base has no layer {layer}") from None
        if up is None or (up.shape[0], down.shape[1], up.shape[1]) != (*weight.shape, down.shape[0]):
            raise _misfit(adapter, f"its matrices for {layer} are incomplete or of another shape")
        if not (up.is_floating_point() and down.is_floating_point()):
            raise _misfit(adapter, f"its matrices for {layer} are not floating point numbers")
        weights[f"{layer}.weight"] = weight.detach() + _scale(config, layer) * (up.float() @ down.float())
    return weights


def put_tensors(network: nn.Module, tensors: Mapping[str, Tensor], adapter: str) -> None:
    """Copy tensors into a network's tensors of the same names."""
    own = network.state_dict(keep_vars=True)
    for name, value in tensors.items():
        if name not in own:
            raise _misfit(adapter, f"the base has no tensor {name}")
        copy_tensor(own[name], value, name, adapter)
    missing = [name for name in own if name.startswith(f"{CLASS_HEAD_MODULE}.") and name not in tensors]
    if missing:
        raise _misfit(adapter, f"it lacks {missing[0]}")


def copy_tensor(target: Tensor, value: Tensor, name: str, adapter: str) -> None:
    """Copy a tensor of an adapter's file into the network; UserError, naming both, when shapes or types differ."""
    import torch

    if target.shape != value.shape:
        raise _misfit(adapter, f"{name} has shape {tuple(value.shape)} instead of {tuple(target.shape)}")
    if target.is_floating_point() != value.is_floating_point():
        raise _misfit(adapter, f"{name} is {value.dtype} instead of {target.dtype}")
    with torch.no_grad():
        target.copy_(value)


def _misfit(adapter: str, why: str) -> Misfit:
    return Misfit(f"The adapter {adapter} does not fit its base ({why}): use another copy, or train it again.")
