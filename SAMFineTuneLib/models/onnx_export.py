"""Exports a model to ONNX: an encoder and a decoder graph that ONNX Runtime runs without PyTorch.

`encoder.onnx`: `image` (1, C, S, S) -> the embedding's tensors by name. `decoder.onnx`: those, `point_coords`
(B, N, 2), `point_labels` (B, N), `mask_input` (B, 1, L, L), `has_mask_input` (B,) -> `low_res_masks` (B, T, L, L),
`iou_predictions` (B, T); B and N are free, everything is float32. `classes.onnx`, where there is a class head: the
embedding's tensors -> `class_logits` (1, C, L, L). `memory.onnx`, the volume memory: `block` (1, C, D, S, S) ->
`logits` (1, D, S, S), `presence` (1, D); D is a free multiple of 4.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.files import sha256_of, staged_folder
from SAMFineTuneLib.models.formats.graph_weights import store_as_half, take_from
from SAMFineTuneLib.models.optional_packages import require
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec, plain_id, write_spec

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 17
PROMPTS = ("point_coords", "point_labels", "mask_input", "has_mask_input")
OUTPUTS = ("low_res_masks", "iou_predictions")
CLASSES = "class_logits"
MEMORY = ("logits", "presence")
_FREE = {"point_coords": {0: "prompts", 1: "points"}, "point_labels": {0: "prompts", 1: "points"}} | {
    name: {0: "prompts"} for name in ("mask_input", "has_mask_input", *OUTPUTS)
} | {"block": {2: "slices"}} | {name: {1: "slices"} for name in MEMORY}


def export_model(model: ModelFolder, folder: str | Path, int8: bool = False) -> ModelFolder:
    """Export a model from disk, with its `model.json`.

    Args:
        model: a model with weights.
        folder: becomes a model of its own, named after the folder, with a copy of the volume memory where there is one.
            The model's own folder gets the graphs in addition; when its weights are a safetensors file, the graphs
            refer to it.
        int8: quantise the encoder; see `export_onnx`.

    Raises:
        UserError: when the weights do not fit, or a package is missing.
    """
    require_exporter()
    from SAMFineTuneLib.models.load_model import load_torch_model

    folder, spec = Path(folder), model.spec
    kept = folder.resolve() == model.path.resolve()
    weights = model.file("weights")
    shared = weights if kept and weights.suffix == ".safetensors" else None
    written = export_onnx(load_torch_model(model), spec, folder, int8, weights=shared)
    if not kept:  # its id differs from the original's, which may be on the same computer
        name = plain_id(folder.resolve().name)
        memory = {role: spec.files[role] for role in ("memory_weights", "memory") if model.has(role)}
        written += [Path(shutil.copyfile(model.path / file, folder / file)) for file in memory.values()]
        spec = replace(spec, id=name if name != spec.id else f"{name}-onnx", files=memory, sha256={})
    return describe_graphs(spec, folder, written)


def describe_graphs(spec: ModelSpec, folder: Path, written: list[Path]) -> ModelFolder:
    """Write the description of a folder into which graphs were `written`, in addition to the files of `spec`."""
    graphs = {path.stem: path.name for path in written if path.suffix == ".onnx"}
    digests = {path.name: sha256_of(path) for path in written}
    spec = replace(spec, files={**spec.files, **graphs}, sha256={**spec.sha256, **digests})
    write_spec(spec, folder)
    return ModelFolder(spec, folder)


def export_onnx(
    network: nn.Module,
    spec: ModelSpec,
    folder: str | Path,
    int8: bool = False,
    with_encoder: bool = True,
    weights: Path | None = None,
) -> list[Path]:
    """Write `encoder.onnx` and `decoder.onnx`, and `classes.onnx` when the network has a class head.

    Args:
        network: in float32, on the CPU.
        spec: the model's description.
        folder: gets the files, all or none. Tensors of 2 GiB and more go to `encoder.onnx.data`.
        int8: quantise the encoder's linear layers, each output channel with its own scale: about a quarter of the
            size, and faster on CPUs. The small decoder stays exact.
        with_encoder: whether to write the encoder.
        weights: a safetensors file in `folder`; the graphs refer to its tensors instead of holding copies.

    Returns:
        The paths of all files written.
    """
    import torch

    require_exporter()
    folder = Path(folder)
    image = torch.linspace(-1, 1, spec.channels * spec.input_size**2).reshape(1, spec.channels, spec.input_size, -1)
    with torch.no_grad(), staged_folder(folder) as building:
        embedding = network.encode(image)
        names = list(embedding)
        if with_encoder:
            encoder = _part(network, lambda image: tuple(network.encode(image).values()))
            _trace(encoder, (image,), building / "encoder", ["image"], names)
            _verify(building / "encoder", {"image": image}, embedding)
            if int8:
                _quantise(building / "encoder")

        def decode(*values: Tensor) -> tuple[Tensor, Tensor]:
            return network.decode(dict(zip(names, values, strict=False)), *values[len(names) :])

        prompts = _prompts(spec, objects=2, points=3)
        inputs = [*names, *PROMPTS]
        _trace(_part(network, decode), (*embedding.values(), *prompts), building / "decoder", inputs, list(OUTPUTS))
        # With other numbers of prompts and points than in the trace, to find those that became constants.
        values = embedding | dict(zip(PROMPTS, _prompts(spec, objects=3, points=1), strict=True))
        _verify(building / "decoder", values, dict(zip(OUTPUTS, decode(*values.values()), strict=True)))
        if getattr(network.mask_decoder, "class_head", None) is not None:
            classes = _part(network, lambda *values: network.decode_classes(dict(zip(names, values, strict=True))))
            _trace(classes, tuple(embedding.values()), building / "classes", names, [CLASSES])
            _verify(building / "classes", embedding, {CLASSES: classes(*embedding.values())})
        return [folder / path.name for part in sorted(building.iterdir()) for path in _finish(part, weights)]


def export_memory(network: nn.Module, folder: Path, weights: Path) -> Path:
    """Write `memory.onnx`, the graph of a volume memory, over its weights.

    Args:
        network: in float32, on the CPU.
        folder: gets the file.
        weights: a safetensors file in `folder` with the network's tensors.

    Returns:
        The path of the graph.
    """
    import torch

    from SAMFineTuneLib.models.volume_block import CELLS, CHANNELS

    require_exporter()
    with torch.no_grad(), staged_folder(folder) as building:
        blocks = [torch.linspace(-1, 1, CHANNELS * count * CELLS**2).reshape(1, CHANNELS, count, CELLS, CELLS).sin()
                  for count in (8, 12)]  # fmt: skip
        _trace(network, (blocks[0],), building / "memory", ["block"], list(MEMORY))
        # With another number of slices than in the trace, to find whether it became a constant.
        _verify(building / "memory", {"block": blocks[1]}, dict(zip(MEMORY, network(blocks[1]), strict=True)))
        (written,) = _finish(building / "memory", weights)
    return folder / written.name


def _part(network: nn.Module, run: Callable[..., Any]) -> nn.Module:
    """A function of plain tensors that runs a part of the network, as a module, which the exporter needs."""
    from torch import nn

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *values):
            return run(*values)

    return Part().eval()


def _trace(part: nn.Module, values: tuple, folder: Path, inputs: list[str], outputs: list[str]) -> None:
    """Write one graph into a new folder of the same name."""
    import onnx
    import torch

    folder.mkdir()
    graph = folder / f"{folder.name}.onnx"
    # The tracing exporter takes seconds, the newer one half a minute, and their graphs give the same answers.
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about sizes that become constants, as intended here
        torch.onnx.export(
            part,
            values,
            str(graph),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: axes for name, axes in _FREE.items() if name in (*inputs, *outputs)},
            opset_version=OPSET,
            **options,
        )
    if len(list(folder.iterdir())) > 1:  # beyond 2 GiB the exporter writes a file for each tensor
        model = onnx.load(graph)
        shutil.rmtree(folder)
        folder.mkdir()
        onnx.save(model, graph, save_as_external_data=True, location=f"{graph.name}.data", size_threshold=1024)


def _prompts(spec: ModelSpec, objects: int, points: int) -> tuple[Tensor, ...]:
    """Prompts of every kind, as `decode` takes them."""
    import torch

    return (
        torch.linspace(0, spec.input_size, objects * points * 2).reshape(objects, points, 2),
        (torch.arange(objects * points) % 5 - 1).reshape(objects, points).float(),
        torch.linspace(-9, 9, objects * spec.low_res_size**2).reshape(objects, 1, spec.low_res_size, -1),
        (torch.arange(objects) % 2).float(),
    )


def _verify(folder: Path, values: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError unless a graph gives PyTorch's answer in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are still raised
    graph = folder / f"{folder.name}.onnx"
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        answers = session.run(list(expected), {name: value.numpy() for name, value in values.items()})
    except Exception as error:  # ONNX Runtime raises classes of its own
        raise RuntimeError(f"the exported {folder.name} does not run in ONNX Runtime: {error}") from error
    for (name, value), answer in zip(expected.items(), answers, strict=True):
        same_shape = answer.shape == tuple(value.shape)
        wrong = float(np.abs(answer - value.numpy()).max()) if same_shape else np.inf
        if not wrong <= 1e-3 * max(1.0, float(value.abs().max())):
            raise RuntimeError(f"the exported {folder.name} differs from PyTorch by {wrong:g} in {name}")


def _quantise(folder: Path) -> None:
    """Replace a graph by one whose products with constant matrices run in 8 bits, with scales computed per picture."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = folder / f"{folder.name}.onnx"
    exact = folder.with_name(f"{folder.name}-exact")
    folder.rename(exact)
    folder.mkdir()
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the quantiser's advice
    try:
        quantize_dynamic(
            exact / graph.name,
            graph,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # 7-bit weights: CPUs without VNNI instructions overflow with 8.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=len(list(exact.iterdir())) > 1,
        )
    finally:
        logging.disable(previous)
    shutil.rmtree(exact)
    model = onnx.load(graph, load_external_data=False)
    onnx.helper.set_model_props(model, {"precision": "int8"})  # the engine reads it there
    graph.write_bytes(model.SerializeToString())


def _finish(part: Path, weights: Path | None) -> list[Path]:
    """Move a graph's files out of their folder, and store its weights in `weights` or in 16 bits."""
    files = [Path(shutil.move(path, part.parent)) for path in part.iterdir()]
    part.rmdir()
    (graph,) = (path for path in files if path.suffix == ".onnx")
    if weights is not None:
        take_from(weights, graph)
    elif len(files) == 1:
        store_as_half(graph)
    return files


def require_exporter() -> None:
    """Raise UserError when a package is missing that exporting needs."""
    require("Exporting to ONNX", "torch", "onnx")
