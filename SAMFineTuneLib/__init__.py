"""SAMFineTune: segment DICOM and NIfTI volumes from point and box prompts, and fine-tune SAM on a few cases.

    from SAMFineTuneLib import Segmenter

    scan = Segmenter("path/to/dicom").box((120, 60, -40), (-10, -80, -40), "Liver").propagate()
    scan.save("liver.seg.nrrd")

Importing this package loads nothing heavier than the standard library.
"""

from __future__ import annotations

import os

# ONNX Runtime's packages send events about sessions to Microsoft unless this is set before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

TYPE_CHECKING = False  # True for type checkers, as in `typing`, which takes longer to import than this whole package
if TYPE_CHECKING:
    from SAMFineTuneLib.segmenter import Segmenter as Segmenter

__version__ = "0.1.0"
__all__ = ["Segmenter", "__version__"]


def __getattr__(name: str):
    if name == "Segmenter":
        from SAMFineTuneLib.segmenter import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
