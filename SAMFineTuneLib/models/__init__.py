"""Models: what they are (`spec`), how pictures reach them (`preprocess`), recognise, load, export.

PyTorch is imported only inside the functions that need it, so that ONNX models run without it.
"""

from SAMFineTuneLib.models.preprocess import InputGeometry, geometry, prepare
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec, read_model_folder, write_spec

__all__ = [
    "InputGeometry",
    "ModelFolder",
    "ModelSpec",
    "geometry",
    "prepare",
    "read_model_folder",
    "write_spec",
]
