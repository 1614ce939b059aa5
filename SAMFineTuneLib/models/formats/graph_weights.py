"""Stores the weights of ONNX graphs in 16 bits where that is exact, or refers to them in the model's weights file.

Instead of a tensor, an ONNX graph can hold a file name, an offset and a length. A safetensors file is a sequence of
tensors, so a graph can point into it, and a model's weights are stored once. ONNX Runtime reads, casts and transposes
them when it opens the graph; running it costs nothing more. Needs the package onnx.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.models.formats.safetensors_file import TensorPlace, read_places

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

_SMALL = 256  # values; smaller tensors stay in the graph as they are
_TYPES = {"F16": np.float16, "F32": np.float32}


def store_as_half(graph: Path) -> None:
    """Store the weights that 16 bits hold exactly in 16 bits. The graph still computes in 32 bits."""
    from onnx import numpy_helper

    def halved(name: str, values: np.ndarray) -> tuple[TensorProto, list[NodeProto]] | None:
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half, values):
            return None
        tensor = numpy_helper.from_array(half, f"{name}_half")
        return tensor, _back(tensor.name, name, cast=True)

    _replace(graph, halved)


def take_from(weights: Path, graph: Path) -> None:
    """Replace the weights that a safetensors file in the graph's folder holds, in 16 or 32 bits, by references to
    it."""
    from onnx import TensorProto

    by_shape: dict[tuple[int, ...], list[TensorPlace]] = {}
    for place in read_places(weights).values():
        if place.dtype in _TYPES:
            by_shape.setdefault(place.shape, []).append(place)
    content = np.memmap(weights, np.uint8, "r")

    def stored(place: TensorPlace) -> np.ndarray:
        return content[place.offset : place.offset + place.length].view(_TYPES[place.dtype]).reshape(place.shape)

    def taken(name: str, values: np.ndarray) -> tuple[TensorProto, list[NodeProto]] | None:
        for turned in (values, values.T) if values.ndim == 2 else (values,):
            for place in by_shape.get(turned.shape, ()):
                if np.array_equal(stored(place), turned):
                    half, transposed = place.dtype == "F16", turned is not values
                    tensor = TensorProto(
                        name=f"{name}_stored" if half or transposed else name,
                        data_type=TensorProto.FLOAT16 if half else TensorProto.FLOAT,
                        dims=place.shape,
                        data_location=TensorProto.EXTERNAL,
                    )
                    where = {"location": weights.name, "offset": place.offset, "length": place.length}
                    for key, value in where.items():
                        tensor.external_data.add(key=key, value=str(value))
                    return tensor, _back(tensor.name, name, half, transposed)
        return None

    _replace(graph, taken)


def files_beside(graph: Path) -> list[str]:
    """Names of the files to which a graph refers for weights."""
    import onnx

    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    found = {entry.value: None for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return list(found)


def _back(stored: str, name: str, cast: bool, transposed: bool = False) -> list[NodeProto]:
    """Nodes that compute the tensor `name` from the stored one."""
    from onnx import TensorProto, helper

    nodes = []
    if cast:
        to = f"{name}_cast" if transposed else name
        nodes.append(helper.make_node("Cast", [stored], [to], to=TensorProto.FLOAT))
        stored = to
    if transposed:
        nodes.append(helper.make_node("Transpose", [stored], [name]))
    return nodes


def _replace(
    graph: Path, replacement: Callable[[str, np.ndarray], tuple[TensorProto, list[NodeProto]] | None]
) -> None:
    """Replace a graph's large tensors by others, with nodes that compute the old from the new."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(graph)
    first = []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= _SMALL and (found := replacement(tensor.name, values)):
            tensor.CopyFrom(found[0])
            first += found[1]
    nodes = [*first, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    with atomic_write(graph) as temporary:
        onnx.save(model, temporary)
