"""Runs the volume memory of a model (`models.architectures.volume_memory`) in ONNX Runtime, on the CPU.

The network is small, and runtimes for GPUs lack some of its 3-D operators, so it always runs there, without PyTorch.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.onnx_session import open_graph, runtime
from SAMFineTuneLib.models.spec import ModelFolder


class VolumeMemory(Protocol):
    """A volume memory, in any runtime."""

    digest: str
    """Identifies its weights."""

    def __call__(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict the structure on D slices, D a multiple of 4, from a block (CHANNELS, D, CELLS, CELLS): logits
        (D, CELLS, CELLS) of its mask, and logits (D,) of its presence on each slice."""
        ...


def open_memory(model: ModelFolder, threads: int | None = None) -> VolumeMemory | None:
    """The volume memory of a model, or None when it has none.

    Args:
        model: the model, for an adapter its base.
        threads: number of CPU cores that it may use, by default all.
    """
    return OnnxMemory(model, threads) if "memory" in model.spec.files else None


class OnnxMemory:
    """A `VolumeMemory` in ONNX Runtime. Its graph is read on first use."""

    def __init__(self, model: ModelFolder, threads: int | None) -> None:
        self._model, self._threads = model, threads
        role = "memory_weights" if "memory_weights" in model.spec.files else "memory"
        self.digest = model.digest(role)

    def __call__(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, presence = self._session.run(["logits", "presence"], {"block": block[None]})
        if not (np.isfinite(logits).all() and np.isfinite(presence).all()):
            raise UserError(
                f"The volume memory of the model {self._model.spec.id!r} answers with values that are not numbers; "
                "import the model again, or choose another one."
            )
        return logits[0], presence[0]

    @cached_property
    def _session(self) -> Any:
        version, graph = runtime().__version__, self._model.file("memory")
        try:
            session = open_graph(graph, self._threads)
            if [one.name for one in session.get_inputs()] != ["block"]:
                raise ValueError("unexpected inputs")
            return session
        except Exception as error:  # ONNX Runtime raises classes of its own
            self._model.verify()  # raises a sentence if a file is missing or damaged
            raise UserError(
                f"The volume memory of the model {self._model.spec.id!r} does not run in this ONNX Runtime "
                f"({version}); import the model again."
            ) from error
