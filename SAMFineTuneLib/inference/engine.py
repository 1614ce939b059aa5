"""What runs a model: the protocol of engines, their common part, and the choice of runtime, device and precision.

There are two engines, with the same answers. ONNX Runtime does not need PyTorch and runs a model that has
`encoder.onnx` and `decoder.onnx`; PyTorch runs any checkpoint. `open_engine` takes ONNX Runtime when the files are
there, unless only PyTorch can use the GPU that was asked for.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import numpy as np

from SAMFineTuneLib.errors import UserError, is_out_of_memory
from SAMFineTuneLib.inference.embedding_cache import Embedding
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder, require_base
from SAMFineTuneLib.models.optional_packages import require
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec

DEVICES = ("auto", "cpu", "cuda", "mps", "directml", "coreml")
PRECISIONS = ("auto", "fp32", "bf16")
ENGINES = ("auto", "onnx", "torch")
Result = TypeVar("Result")


class Engine(Protocol):
    """A loaded model. All arrays are `float32`; coordinates are x, y in pixels of the model's input."""

    spec: ModelSpec
    digest: str
    """Identifies weights, adapter and precision: engines with the same digest give the same answers."""
    device: str
    """What it runs on, for messages: `CPU (ONNX Runtime, fp32)`."""
    notices: list[str]
    """Sentences for the user, for example about a fallback to the CPU."""

    def encode(self, image: np.ndarray) -> Embedding:
        """Embed one prepared image (1, C, S, S)."""
        ...

    def decode(
        self,
        embedding: Embedding,
        point_coords: np.ndarray,
        point_labels: np.ndarray,
        mask_input: np.ndarray,
        has_mask_input: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Low-resolution logits (B, 4, h, w) and predicted IoU (B, 4).

        `point_coords` is (B, N, 2); `point_labels` is (B, N) with -1 padding, 0 negative, 1 positive, 2 and 3
        top-left and bottom-right corner of a box; `mask_input` is (B, 1, h, w) and counts where
        `has_mask_input` (B,) is 1. Output 0 is the single-mask token, 1 to 3 are the multimask tokens.
        """
        ...

    def decode_classes(self, embedding: Embedding) -> np.ndarray:
        """Logits (1, C, h, w) of the classes that a model finds without a prompt, background first."""
        ...


class RuntimeEngine(ABC):
    """What the engines share: they check that answers are numbers, and go on, with a notice, on the CPU when a GPU runs
    out of memory. A subclass sets `spec` and `place`, the device it runs on."""

    spec: ModelSpec
    place: str

    def __init__(self) -> None:
        self.notices: list[str] = []

    @abstractmethod
    def run_encoder(self, image: np.ndarray) -> Embedding:
        """`encode`, on the device alone."""

    @abstractmethod
    def run_decoder(self, embedding: Embedding, *prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`decode`, on the device alone; `prompts` in the order in which it has them."""

    @abstractmethod
    def run_classes(self, embedding: Embedding) -> np.ndarray:
        """`decode_classes`, on the device alone."""

    @abstractmethod
    def move_to_cpu(self) -> None:
        """Free the GPU, and be ready to run on the CPU."""

    def encode(self, image: np.ndarray) -> Embedding:
        """See `Engine`."""
        embedding = self.on_cpu_when_out_of_memory(lambda: self.run_encoder(image))
        require_numbers(embedding.values(), self.spec.id)
        return embedding

    def decode(
        self,
        embedding: Embedding,
        point_coords: np.ndarray,
        point_labels: np.ndarray,
        mask_input: np.ndarray,
        has_mask_input: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine`."""
        prompts = (point_coords, point_labels, mask_input, has_mask_input)
        answer = self.on_cpu_when_out_of_memory(lambda: self.run_decoder(embedding, *prompts))
        require_numbers(answer, self.spec.id)
        return answer

    def decode_classes(self, embedding: Embedding) -> np.ndarray:
        """See `Engine`."""
        logits = self.on_cpu_when_out_of_memory(lambda: self.run_classes(embedding))
        require_numbers([logits], self.spec.id)
        return logits

    def on_cpu_when_out_of_memory(self, run: Callable[[], Result]) -> Result:
        """What `run` returns, if need be on the CPU."""
        try:
            return run()
        except Exception as error:  # the runtimes raise classes of their own
            if self.place == "cpu" or not is_out_of_memory(error):
                raise
        # Outside the handler, whose traceback would keep the GPU's tensors alive.
        self.notices.append(f"The GPU ran out of memory; '{self.spec.id}' goes on, slower, on the CPU.")
        self.place = "cpu"
        self.move_to_cpu()
        return run()


def require_numbers(arrays: Iterable[np.ndarray], model_id: str) -> None:
    """UserError when an answer has NaN or infinite numbers, which would become an empty mask."""
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError(
            f"The model {model_id!r} answers with values that are not numbers, so there is no mask: its weights are "
            "damaged or its training failed; import it again, or choose another model."
        )


def try_once(engine: Engine) -> None:
    """Run an engine on an artificial picture. UserError when its answer does not fit its model's description."""
    try:
        _ask(engine)
    except UserError:
        raise
    except Exception as error:  # the runtimes raise classes of their own
        raise UserError(
            f"The files of the model {engine.spec.id!r} do not run ({error}); export or import the model again."
        ) from error


def _ask(engine: Engine) -> None:
    spec = engine.spec
    shape = (1, spec.channels, spec.input_size, spec.input_size)
    embedding = engine.encode(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))
    size = spec.low_res_size
    if "promptable" in spec.heads:
        middle = np.full((1, 2, 2), spec.input_size / 2, np.float32)
        nothing = np.zeros((1, 1, size, size), np.float32), np.zeros(1, np.float32)
        logits = engine.decode(embedding, middle, np.float32([[1, -1]]), *nothing)[0]
        _require_shape(logits, (1, logits.shape[1], size, size), spec)
    if "automatic" in spec.heads:
        _require_shape(engine.decode_classes(embedding), (1, len(spec.classes), size, size), spec)


def _require_shape(logits: np.ndarray, expected: tuple[int, ...], spec: ModelSpec) -> None:
    if logits.shape != expected:
        raise UserError(
            f"The files of the model {spec.id!r} are not what its model.json says: they answer with masks of shape "
            f"{logits.shape} instead of {expected}; export or import the model again."
        )


def embedding_digest(engine: Engine) -> str:
    """Identifies the answers of `encode`: for an adapter that leaves the image encoder unchanged, those of its base."""
    return getattr(engine, "embedding_digest", engine.digest)


def decodes_at_once(engine: Engine) -> bool:
    """Whether `decode` in several threads at the same time is allowed and faster."""
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
    _check("precision", precision, PRECISIONS)
    _check("engine", engine, ENGINES)
    base = model
    exported = adapter.exported if adapter is not None else None
    if adapter is not None:
        require_base(adapter, model)
        model = exported or model
    if engine == "auto":
        runs_in_onnx = {"encoder", "decoder"} <= set(model.spec.files) and (adapter is None or exported is not None)
        runs_in_torch = "weights" in base.spec.files
        only_torch = runs_in_torch and (not runs_in_onnx or _torch_serves_better(device, precision))
        engine = "torch" if only_torch or not runs_in_onnx else "onnx"
    if engine == "onnx":
        if adapter is not None and exported is None:
            raise UserError(
                f"The adapter {adapter.name} has no ONNX files; export it with `samfinetune adapters export`, or use "
                "the PyTorch engine."
            )
        if not {"encoder", "decoder"} <= set(model.spec.files):
            raise UserError(
                f"Model '{model.spec.id}' has no ONNX files; export them with `samfinetune models export`, "
                "or use the PyTorch engine."
            )
        if precision == "bf16":
            raise UserError(
                f"The model {model.spec.id!r} runs in ONNX Runtime, which computes in fp32; choose the precision auto."
            )
        from SAMFineTuneLib.inference.onnx_engine import OnnxEngine

        return OnnxEngine(model, device, threads)
    if adapter is not None and exported is None:
        require(
            f"The adapter {adapter.name} has no ONNX files (`samfinetune adapters export` writes them, where PyTorch "
            "is), so it",
            "torch",
        )
    from SAMFineTuneLib.inference.torch_engine import TorchEngine

    return TorchEngine(base, device, precision, adapter, threads)


def _check(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"Unknown {what} '{value}'; choose one of {', '.join(allowed)}.")


def _torch_serves_better(device: str, precision: str) -> bool:
    """Whether only PyTorch can do what was asked for: bf16, MPS, or a CUDA GPU without onnxruntime-gpu."""
    if precision == "bf16":
        return True
    kind = device.partition(":")[0]
    if kind not in ("cuda", "mps"):
        return False  # importing torch takes seconds: on "auto" a model with ONNX files stays without it
    from SAMFineTuneLib.inference.onnx_engine import available_devices

    if kind in available_devices():
        return False
    try:
        import torch
    except (ImportError, OSError):
        return False
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()
