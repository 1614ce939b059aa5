"""Loads a model of any architecture into PyTorch, as a network with `encode` and `decode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder, require_base
from SAMFineTuneLib.models.adapters.apply_adapter import apply_adapter
from SAMFineTuneLib.models.formats.recognise_checkpoint import Recognition, build_network, recognise
from SAMFineTuneLib.models.spec import ModelFolder

if TYPE_CHECKING:
    from torch import nn

_ALIGNMENT = 64  # bytes, as of PyTorch's own tensors


def load_network(path: str | Path) -> tuple[Recognition, nn.Module]:
    """Load a checkpoint of any known kind.

    Args:
        path: the file; it must hold the complete network.

    Returns:
        What the checkpoint is, and its network in float32 on the CPU.

    Raises:
        UserError: naming the tensors, when the file does not fit.
    """
    recognition = recognise(path)
    recognition.require_fit()
    _, network = build_network(recognition.state_dict, recognition.architecture == "finetune_sam")
    weights = {}
    for name, value in recognition.state_dict.items():
        value = value.float() if value.is_floating_point() else value
        # The tensors of a file have a different alignment at every reading, and the last bits of products depend on it.
        weights[name] = value.clone() if value.data_ptr() % _ALIGNMENT else value
    network.load_state_dict(weights, strict=True, assign=True)
    return recognition, network.eval()


def load_torch_model(
    model_folder: ModelFolder, device: Any = "cpu", dtype: Any = None, adapter: AdapterFolder | None = None
) -> nn.Module:
    """Load the model in a folder from its `weights` file, to run it.

    Args:
        model_folder: the model.
        device: of PyTorch.
        dtype: of the image encoder and its input; float32 when None. Prompt encoder and mask decoder, a few percent of
            the work, stay in float32, so that half precision does not change contours.
        adapter: an adapter of this model, which is merged into it.

    Raises:
        UserError: when the weights do not fit `model.json`, or the adapter has another base.
    """
    recognition, network = load_network(model_folder.file("weights"))
    spec = model_folder.spec
    found = (recognition.architecture, recognition.input_size, recognition.channels, recognition.low_res_size)
    if found != (spec.architecture, spec.input_size, spec.channels, spec.low_res_size):
        raise UserError(
            f"The weights of {spec.id!r} do not fit its model.json: they are {recognition.architecture} at "
            f"{recognition.input_size} pixels instead of {spec.architecture} at {spec.input_size}; import them again."
        )
    if adapter is not None:
        require_base(adapter, model_folder)
        network = apply_adapter(network, adapter)
    network = network.requires_grad_(False).to(device)
    if dtype is not None:
        network.image_encoder.to(dtype)
    return network
