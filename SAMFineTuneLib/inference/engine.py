"""Engines, which run a model: what they have in common, and the choice of runtime, device and precision.

There are two engines, which give the same answers. ONNX Runtime does not need PyTorch and runs a model that has
`encoder.onnx` and `decoder.onnx`; PyTorch runs any checkpoint. `open_engine` takes ONNX Runtime when the files are
there, unless only PyTorch can use the GPU that was asked for.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from SAMFineTuneLib.errors import UserError, is_out_of_memory
from SAMFineTuneLib.inference.embedding_cache import Embedding
from SAMFineTuneLib.inference.onnx_memory import VolumeMemory, open_memory
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder, require_base
from SAMFineTuneLib.models.optional_packages import require
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec

DEVICES = ("auto", "cpu", "cuda", "mps", "directml", "coreml")
PRECISIONS = ("auto", "fp32", "bf16")
ENGINES = ("auto", "onnx", "torch")
Result = TypeVar("Result")


class Engine(ABC):
    """A loaded model. All arrays are `float32`; coordinates are x, y in pixels of the model's input.

    Answers with NaN or infinite values are refused. When a GPU runs out of memory, the engine continues on the CPU and
    adds a notice. Subclasses set the attributes, and run the model on `place`. Stand-ins for an engine (one that
    several sessions share, a network in training) have these attributes, `encode`, `decode` and `decode_classes`.
    """

    spec: ModelSpec
    digest: str
    """Identifies weights, adapter and precision: engines with the same digest give the same answers."""
    device: str
    """What it runs on, for messages: `CPU (ONNX Runtime, fp32)`."""
    place: str
    """The device, for the runtime: `cpu`, `cuda:1`, …"""
    notices: list[str]
    """Sentences for the user, for example about a fallback to the CPU."""
    memory: VolumeMemory | None = None
    """The model's volume memory, where it has one."""

    def __init__(self) -> None:
        self.notices = []

    @abstractmethod
    def run_encoder(self, image: np.ndarray) -> Embedding:
        """Run the image encoder on `place`; shapes as in `encode`."""

    @abstractmethod
    def run_decoder(self, embedding: Embedding, *prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Run the mask decoder on `place`; shapes as in `decode`."""

    @abstractmethod
    def run_classes(self, embedding: Embedding) -> np.ndarray:
        """Run the automatic head on `place`; shapes as in `decode_classes`."""

    @abstractmethod
    def move_to_cpu(self) -> None:
        """Free the GPU's memory and load the model on the CPU."""

    def encode(self, image: np.ndarray) -> Embedding:
        """Embed one prepared image (1, C, S, S)."""
        return self._finite(self.run_encoder, image)

    def decode(self, embedding: Embedding, *prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict low-resolution logits (B, 4, h, w) and predicted IoU (B, 4) for B sets of prompts.

        Output 0 is the single-mask token, 1 to 3 are the multimask tokens.

        Args:
            embedding: as `encode` returns it.
            prompts: `point_coords` (B, N, 2); `point_labels` (B, N) with -1 padding, 0 negative, 1 positive, 2 and 3
                top-left and bottom-right corner of a box; `mask_input` (B, 1, h, w), which counts where
                `has_mask_input` (B,) is 1.
        """
        return self._finite(self.run_decoder, embedding, *prompts)

    def decode_classes(self, embedding: Embedding) -> np.ndarray:
        """Logits (1, C, h, w) of the classes that the automatic head finds without a prompt, background first."""
        return self._finite(self.run_classes, embedding)

    def _finite(self, run: Callable[..., Result], *inputs: Any) -> Result:
        """Run the model. UserError when the answer has NaN or infinite values, which would become an empty mask."""
        answer = self.on_cpu_when_out_of_memory(run, *inputs)
        arrays = answer.values() if isinstance(answer, dict) else answer
        if not all(np.isfinite(array).all() for array in arrays):
            raise UserError(
                f"The model {self.spec.id!r} answers with values that are not numbers, so there is no mask: its "
                "weights are damaged or its training failed; import it again, or choose another model."
            )
        return answer

    def on_cpu_when_out_of_memory(self, run: Callable[..., Result], *inputs: Any) -> Result:
        """Call `run` with the inputs; when the GPU runs out of memory, move to the CPU and call it again."""
        try:
            return run(*inputs)
        except Exception as error:  # the runtimes raise classes of their own
            if self.place == "cpu" or not is_out_of_memory(error):
                raise
        # Outside the handler, whose traceback would keep the GPU's tensors alive.
        self.notices.append(f"The GPU ran out of memory; '{self.spec.id}' goes on, slower, on the CPU.")
        self.place = "cpu"
        self.move_to_cpu()
        return run(*inputs)


def try_once(engine: Engine) -> None:
    """Run an engine on an artificial picture. UserError when its answer does not match its model's description."""
    spec, size = engine.spec, engine.spec.low_res_size
    answers = []
    try:
        shape = (1, spec.channels, spec.input_size, spec.input_size)
        embedding = engine.encode(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))
        if "promptable" in spec.heads:
            middle = np.full((1, 2, 2), spec.input_size / 2, np.float32)
            nothing = np.zeros((1, 1, size, size), np.float32), np.zeros(1, np.float32)
            logits = engine.decode(embedding, middle, np.float32([[1, -1]]), *nothing)[0]
            answers.append((logits.shape, (1, logits.shape[1], size, size)))
        if "automatic" in spec.heads:
            answers.append((engine.decode_classes(embedding).shape, (1, len(spec.classes), size, size)))
    except UserError:
        raise
    except Exception as error:  # the runtimes raise classes of their own
        raise UserError(
            f"The files of the model {spec.id!r} do not run ({error}); export or import the model again."
        ) from error
    for found, expected in answers:
        if found != expected:
            raise UserError(
                f"The files of the model {spec.id!r} are not what its model.json says: they answer with masks of shape "
                f"{found} instead of {expected}; export or import the model again."
            )


def embedding_digest(engine: Engine) -> str:
    """Identifies the answers of `encode`. With an adapter that leaves the image encoder unchanged, it is the base's."""
    return getattr(engine, "embedding_digest", engine.digest)


def decodes_at_once(engine: Engine) -> bool:
    """Whether calling `decode` from several threads at once is allowed and faster."""
    return getattr(engine, "decodes_at_once", False)


def open_engine(
    model: ModelFolder,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    adapter: AdapterFolder | None = None,
    threads: int | None = None,
) -> Engine:
    """Load a model, with or without an adapter.

    Args:
        model: the model; for an adapter, its base.
        device: one of DEVICES, or a GPU by number: `cuda:1`.
        precision: one of PRECISIONS, for the image encoder.
        engine: one of ENGINES.
        adapter: runs in ONNX Runtime when it was exported, else in PyTorch.
        threads: CPU cores that one answer may use; set it when several processes predict at once.

    Raises:
        UserError: when this combination cannot run here; the sentence says what can.
    """
    if not re.fullmatch(rf"({'|'.join(DEVICES)})|(cuda|directml):\d+", device):
        raise UserError(f"Unknown device '{device}'; choose one of {', '.join(DEVICES)}, or a GPU by number: cuda:1.")
    for what, value, allowed in (("precision", precision, PRECISIONS), ("engine", engine, ENGINES)):
        if value not in allowed:
            raise UserError(f"Unknown {what} '{value}'; choose one of {', '.join(allowed)}.")
    exported = adapter.exported if adapter is not None else None
    graphs = exported or model
    runs_in_onnx = {"encoder", "decoder"} <= set(graphs.spec.files) and (adapter is None or exported is not None)
    if adapter is not None:
        require_base(adapter, model)
    if engine == "auto":
        runs_in_torch = "weights" in model.spec.files
        engine = "onnx" if runs_in_onnx and not (runs_in_torch and _torch_serves_better(device, precision)) else "torch"
    if engine == "onnx":
        if not runs_in_onnx:
            whose = f"Model '{model.spec.id}'" if adapter is None else f"The adapter {adapter.name}"
            command = "models" if adapter is None else "adapters"
            raise UserError(
                f"{whose} has no ONNX files; export it with `samfinetune {command} export`, or use the PyTorch engine."
            )
        if precision == "bf16":
            raise UserError(
                f"The model {graphs.spec.id!r} runs in ONNX Runtime, which computes in fp32; choose the precision auto."
            )
        from SAMFineTuneLib.inference.onnx_engine import OnnxEngine

        opened: Engine = OnnxEngine(graphs, device, threads)
        opened.memory = open_memory(model, threads)
        return opened
    if adapter is not None and exported is None:
        require(
            f"The adapter {adapter.name} has no ONNX files (`samfinetune adapters export` writes them, where PyTorch "
            "is), so it",
            "torch",
        )
    from SAMFineTuneLib.inference.torch_engine import TorchEngine

    opened = TorchEngine(model, device, precision, adapter, threads)
    opened.memory = open_memory(model, threads)
    return opened


def _torch_serves_better(device: str, precision: str) -> bool:
    """Whether only PyTorch can do what was asked for: bf16, MPS, or a CUDA GPU without onnxruntime-gpu."""
    if precision == "bf16":
        return True
    kind = device.partition(":")[0]
    if kind not in ("cuda", "mps"):
        return False  # importing torch takes seconds, so "auto" does without it for a model with ONNX files
    from SAMFineTuneLib.inference.onnx_engine import available_devices

    if kind in available_devices():
        return False
    try:
        import torch
    except (ImportError, OSError):
        return False
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
