"""Models with random weights, on disk and loaded as any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec


@pytest.fixture(scope="session")
def random_compact(tmp_path_factory) -> ModelFolder:
    """The bundled architecture with random weights, as safetensors and ONNX."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from SAMFineTuneLib.models.architectures import compact
    from SAMFineTuneLib.models.onnx_export import export_model

    torch.manual_seed(0)
    folder: Path = tmp_path_factory.mktemp("random-compact")
    save_file(compact.build_compact().state_dict(), folder / "model.safetensors")
    spec = ModelSpec(
        id="random-compact",
        name="Random compact",
        architecture="compact",
        input_size=compact.INPUT_SIZE,
        pixel_mean=(compact.PIXEL_MEAN,),
        pixel_std=(compact.PIXEL_STD,),
        channels=1,
        coordinates="centred",
        embedding_size=compact.GRID_SIZE,
        low_res_size=compact.LOW_RES_SIZE,
        zoom=True,
        files={"weights": "model.safetensors"},
    )
    return export_model(ModelFolder(spec, folder), folder)
