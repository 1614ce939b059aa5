"""Opens ONNX graphs in ONNX Runtime, all with the same options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from SAMFineTuneLib.errors import UserError

Provider = tuple[str, dict[str, str]]
"""The name of an execution provider of ONNX Runtime, and its options."""
_ON_CPU: tuple[Provider, ...] = (("CPUExecutionProvider", {}),)


def open_graph(graph: Path, threads: int | None, providers: Sequence[Provider] = _ON_CPU) -> Any:
    """Open an ONNX graph.

    Args:
        graph: the file.
        threads: number of threads, None for one per core.
        providers: execution providers in order of preference, by default the CPU's.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        Exception: of ONNX Runtime's own classes, when it cannot open the graph.
    """
    options = runtime().SessionOptions()
    options.log_severity_level = 4  # its messages would go to stderr; errors are still raised
    options.intra_op_num_threads = threads or 0
    # Threads that spin while they wait would take the cores from Slicer's window, and from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return runtime().InferenceSession(str(graph), options, providers=list(providers))


def runtime() -> Any:
    """The module `onnxruntime`; UserError when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            'ONNX Runtime is not installed; install it with `pip install onnxruntime` (or "samfinetune[gpu]").'
        ) from error
    return onnxruntime
