"""Loads a model of any architecture into PyTorch, as one object with `encode` and `decode`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder, require_base
from SAMFineTuneLib.models.adapters.apply_adapter import apply_adapter
from SAMFineTuneLib.models.formats.recognise_checkpoint import Recognition, build_network, recognise
from SAMFineTuneLib.models.spec import ModelFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
_ALIGNMENT = 64  # bytes


@dataclass(frozen=True, eq=False)
class TorchModel:
    """A network on its device. The image encoder computes in `dtype`, prompt encoder and mask decoder (a few percent of
    the work) in float32, so that half precision does not change contours. Results are float32."""

    network: nn.Module
    device: torch.device
    dtype: torch.dtype

    def encode(self, image: Tensor) -> dict[str, Tensor]:
        """Image (1, C, S, S), as `preprocess.prepare` makes it → the embedding's tensors by name."""
        import torch

        with torch.inference_mode():
            embedding = self.network.encode(image.to(self.device, self.dtype))
            return {name: value.float() for name, value in embedding.items()}

    def decode_classes(self, embedding: Mapping[str, Tensor]) -> Tensor:
        """An embedding → logits (1, C, L, L) of the automatic head's classes, background first."""
        import torch

        with torch.inference_mode():
            return self.network.decode_classes(
                {name: value.to(self.device, torch.float32) for name, value in embedding.items()}
            )

    def decode(
        self,
        embedding: Mapping[str, Tensor],
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompts of B objects on one picture.

        Args:
            embedding: as `encode` returns it.
            point_coords: (B, N, 2), x and y in input pixels. Without a box, a padding point belongs to them (SAM's
                rule); heads with classes take no points (N = 0).
            point_labels: (B, N), -1 padding, 0 negative, 1 positive, 2 and 3 a box's corners.
            mask_input: logits (B, 1, L, L).
            has_mask_input: (B,), 0 or 1.

        Returns:
            Logits (B, T, L, L) and predicted IoU (B, T) of T mask tokens.
        """
        import torch

        values = (point_coords, point_labels, mask_input, has_mask_input)
        with torch.inference_mode():
            return self.network.decode(
                {name: value.to(self.device, torch.float32) for name, value in embedding.items()},
                *(value.to(self.device, torch.float32) for value in values),
            )


def load_network(path: str | Path, base: str | Path | None = None) -> tuple[Recognition, nn.Module]:
    """Load a checkpoint of any known kind.

    Args:
        path: the file.
        base: a complete checkpoint for a file with an image encoder only; see `recognise`.

    Returns:
        What the checkpoint is, and its network in float32 on the CPU.

    Raises:
        UserError: naming the tensors, when the file does not fit.
    """
    recognition = recognise(path, base)
    recognition.require_fit()
    _, network = build_network(recognition.state_dict, recognition.architecture == "finetune_sam")
    weights = {
        name: _aligned(value.float() if value.is_floating_point() else value)
        for name, value in recognition.state_dict.items()
    }
    network.load_state_dict(weights, strict=True, assign=True)
    return recognition, network.eval()


def _aligned(value: Tensor) -> Tensor:
    """The tensor in memory aligned as PyTorch's own.

    The tensors of a file have a different alignment at every reading, and the last bits of products depend on it.
    """
    return value.clone() if value.data_ptr() % _ALIGNMENT else value


def load_torch_model(
    model_folder: ModelFolder, device: Any = "cpu", dtype: Any = None, adapter: AdapterFolder | None = None
) -> TorchModel:
    """Load the model in a folder from its `weights` file.

    Args:
        model_folder: the model.
        device: of PyTorch.
        dtype: of the image encoder; float32 when None.
        adapter: an adapter of this model, which is merged into it.

    Raises:
        UserError: when the weights do not fit `model.json`, or the adapter has another base.
    """
    import torch

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
    device = torch.device(device)
    dtype = dtype or torch.float32
    network = network.requires_grad_(False).to(device)
    network.image_encoder.to(dtype)
    return TorchModel(network, device, dtype)
