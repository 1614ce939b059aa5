"""Runs the volume memory of a model (`models.architectures.volume_memory`) in ONNX Runtime, on the processor.

It is small, and graphics cards' runtimes lack some of its 3-D operators, so it needs neither PyTorch nor a GPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.spec import ModelFolder

VolumeMemory = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Block (CHANNELS, D, CELLS, CELLS) → logits (D, CELLS, CELLS) of the structure and (D,) of its presence; D is a
multiple of 4."""


def open_memory(model: ModelFolder, threads: int | None = None) -> VolumeMemory | None:
    """The volume memory of a model, or None when it has none. Its graph is read when it is first used.

    Args:
        model: the model, for an adapter its base.
        threads: CPU cores that it may use; None is all.
    """
    if not model.has("memory"):
        return None
    session = None

    def answer(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nonlocal session
        session = session or _open(model, threads)
        logits, presence = session.run(["logits", "presence"], {"block": block[None]})
        if not (np.isfinite(logits).all() and np.isfinite(presence).all()):
            raise UserError(
                f"The volume memory of the model {model.spec.id!r} answers with values that are not numbers; import "
                "the model again, or choose another one."
            )
        return logits[0], presence[0]

    return answer


def _open(model: ModelFolder, threads: int | None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its messages would go to stderr; errors are raised all the same
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(model.file("memory")), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises classes of its own
        model.verify()  # raises a sentence if a file is missing or damaged
        raise UserError(
            f"The volume memory of the model {model.spec.id!r} does not run in this ONNX Runtime "
            f"({onnxruntime.__version__}); import the model again."
        ) from error
