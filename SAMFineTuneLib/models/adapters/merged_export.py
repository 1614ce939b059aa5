"""Exports a base with an adapter merged into it: ONNX graphs that run without PyTorch, or a model of its own."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import staged_folder
from SAMFineTuneLib.models.adapters.adapter_folder import (
    ONNX,
    AdapterFolder,
    read_adapter_folder,
    require_base,
    tuned_spec,
)
from SAMFineTuneLib.models.adapters.apply_adapter import Misfit
from SAMFineTuneLib.models.formats.graph_weights import files_beside
from SAMFineTuneLib.models.optional_packages import require
from SAMFineTuneLib.models.spec import SPEC_FILE, ModelFolder, ModelSpec, read_model_folder
from SAMFineTuneLib.models.store import Store


def export_adapter(adapter: AdapterFolder, base: ModelFolder) -> ModelFolder:
    """Write ONNX graphs into the adapter's own folder, where engines find them, completely or not at all."""
    folder = adapter.path / ONNX
    with staged_folder(folder, [file for file in folder.glob("*") if file.is_file()]) as building:
        export_merged(adapter, base, building, base.spec.id)
        (folder / SPEC_FILE).unlink(missing_ok=True)  # first, so that nobody takes old and new for one export
    return read_model_folder(folder)


def make_ready(folder: str | Path, base: ModelFolder) -> str:
    """Export an adapter, unless it was exported before, when its base has ONNX graphs, so that it runs without PyTorch.

    Returns:
        A sentence when the export failed, else "".

    Raises:
        Misfit: when the adapter cannot run at all.
        UserError: when it was trained on another model.
    """
    adapter = read_adapter_folder(folder)
    if adapter.exported is not None:
        return ""
    require_base(adapter, base)
    if not base.has("encoder"):
        return ""
    try:
        export_adapter(adapter, base)
        return ""
    except Misfit:
        raise
    except Exception as error:  # of any kind; the adapter itself is complete
        known = isinstance(error, (UserError, OSError))
        why = str(error) if known else f"Its export failed ({type(error).__name__})."
    return f"{adapter.name} runs with PyTorch only, because its folder has no ONNX files. {why}"


def export_merged(
    adapter: AdapterFolder, base: ModelFolder, folder: Path, model_id: str, int8: bool = False
) -> ModelFolder:
    """Write a base with an adapter in it as ONNX graphs: a model that any computer can import.

    Args:
        adapter: the adapter to merge.
        base: the model that it was trained on, with PyTorch weights.
        folder: new.
        model_id: of the new model.
        int8: quantise the encoder; see `onnx_export.export_onnx`.

    Returns:
        The model in its folder, not in a store.
    """
    from SAMFineTuneLib.models.load_model import load_torch_model
    from SAMFineTuneLib.models.onnx_export import describe_graphs, export_onnx, require_exporter

    require_exporter()
    network = load_torch_model(base, adapter=adapter)
    spec = _spec(adapter, base, model_id)
    # An encoder that the adapter does not change is copied, so that cached embeddings stay valid.
    share = base.has("encoder") and not adapter.card.method.trains_encoder and not int8
    written = export_onnx(network, spec, folder, int8, with_encoder=not share)
    if share:
        graph = base.file("encoder")
        for name in (graph.name, *files_beside(graph)):
            written.append(Path(shutil.copyfile(graph.with_name(name), folder / name)))
    return describe_graphs(spec, folder, written)


def add_merged(adapter: AdapterFolder, base: ModelFolder, store: Store, model_id: str) -> ModelFolder:
    """Install a base with an adapter in it as a model of its own, to run or to fine-tune further.

    Args:
        adapter: the adapter to merge.
        base: the model that it was trained on, with PyTorch weights.
        store: that gets the model.
        model_id: of the new model.

    Raises:
        UserError: when the store has a model of this id.
    """
    require("Merging an adapter", "torch", "safetensors")
    from safetensors.torch import save_file

    from SAMFineTuneLib.models.load_model import load_torch_model

    store.check_new(model_id)
    network = load_torch_model(base, adapter=adapter)
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    spec = replace(_spec(adapter, base, model_id), files={"weights": "weights.safetensors"})
    return store.add(spec, {"weights.safetensors": lambda path: save_file(tensors, path)})


def _spec(adapter: AdapterFolder, base: ModelFolder, model_id: str) -> ModelSpec:
    require_base(adapter, base)
    source = f"{base.spec.id} with the adapter {adapter.name} ({adapter.digest})"
    name = base.spec.name if model_id == base.spec.id else f"{base.spec.name} with {adapter.name}"
    return replace(tuned_spec(base.spec, adapter), id=model_id, name=name, source=source, files={}, sha256={})
