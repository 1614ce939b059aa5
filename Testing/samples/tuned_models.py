"""Models of random weights on disk, of every architecture, and adapters on them that stand for trained ones."""

from __future__ import annotations

import small_models
import torch
from safetensors.torch import save_file
from torch import nn

from SAMFineTuneLib.files import sha256_of
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, trainable
from SAMFineTuneLib.models.architectures import tiny_vit
from SAMFineTuneLib.models.architectures.compact import build_compact
from SAMFineTuneLib.models.architectures.tiny_vit import StageShape, TinyViT
from SAMFineTuneLib.models.formats.recognise_checkpoint import recognise
from SAMFineTuneLib.models.load_model import load_network, load_torch_model
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec, write_spec

CLASSES = ("background", "liver", "spleen")


def mobile_sam() -> nn.Module:
    """MobileSAM with one narrow block a stage; its grid is the module's, which a test may make smaller."""
    sizes = ((8, 0, 0), (16, 2, 7), (16, 1, 14), (32, 2, 7))
    stages = [StageShape(width, 1, 2 * width, heads, reach) for width, heads, reach in sizes]
    network = small_models.sam(TinyViT(3, 4, stages), grid=tiny_vit.GRID)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data += 1  # otherwise nothing of the picture reaches the end
    return network


NETWORKS = {
    "vit": small_models.sam,
    "compact": lambda: small_models.randomise(build_compact()),
    "mobile_sam": mobile_sam,
}


def folder_of(network: nn.Module, folder, name: str) -> ModelFolder:
    """A network as a model of that id."""
    weights = folder / "weights.safetensors"
    save_file(small_models.state(network), weights)
    spec = ModelSpec(
        id=name, name=name, files={"weights": weights.name}, sha256={weights.name: sha256_of(weights)},
        **recognise(weights).spec_fields(),
    )  # fmt: skip
    write_spec(spec, folder)
    return ModelFolder(spec, folder)


def fresh(base: ModelFolder) -> nn.Module:
    return load_network(base.file("weights"))[1]


def load_adapter(folder, base: ModelFolder) -> tuple[nn.Module, Card]:
    """The base with an adapter in it, float32 on the CPU, and its card."""
    adapter = read_adapter_folder(folder)
    return load_torch_model(base, adapter=adapter), adapter.card


def shake(network: nn.Module, seed: int = 1, strength: float = 0.05) -> nn.Module:
    """Stands for training: every trained number changes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in trainable(network).values():
            value.add_(strength * torch.randn(value.shape, generator=generator))
    return network


def trained(base: ModelFolder, method: Method) -> nn.Module:
    return shake(attach(fresh(base), base.spec, method))


def answers(network: nn.Module, base: ModelFolder, pictures: int = 1) -> dict[str, torch.Tensor]:
    """Embedding, masks and predicted IoU for always the same pictures and prompts."""
    spec = base.spec
    image = torch.linspace(-20, 20, pictures * spec.channels * spec.input_size**2).sin()
    prompts = small_models.prompts(max(pictures, 2), 3, spec.input_size, spec.low_res_size)
    with torch.no_grad():
        embedding = network.encode(image.reshape(pictures, spec.channels, spec.input_size, -1))
        masks, iou = network.decode(embedding, *prompts)
    return {**embedding, "masks": masks, "iou": iou}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)
