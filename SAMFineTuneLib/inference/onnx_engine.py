"""Models as ONNX graphs in ONNX Runtime: no torch, any provider the installed runtime offers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import sha256_of
from SAMFineTuneLib.models.spec import ModelFolder

_PROVIDERS = {  # in the order in which "auto" tries them; CoreML only when asked, for it rejects parts of SAM
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
_AUTO = ("cuda", "directml", "cpu")
_OUT_OF_MEMORY = ("out of memory", "failed to allocate", "cudaerrormemoryallocation", "e_outofmemory")
Result = TypeVar("Result")


def available_devices() -> list[str]:
    """Devices the installed ONNX Runtime was built for (a driver may still be missing)."""
    providers = _runtime().get_available_providers()
    return [device for device, provider in _PROVIDERS.items() if provider in providers]


class OnnxEngine:
    """See `engine.Engine`. Falls back to the CPU, with a notice, when a GPU is missing or out of memory."""

    def __init__(self, model: ModelFolder, device: str = "auto", threads: int | None = None):
        self.spec = model.spec
        self._threads = threads
        self.notices: list[str] = []
        parts = ("encoder", "decoder", *(("classes",) if model.has("classes") else ()))
        self._files = {part: model.file(part) for part in parts}
        digests = {part: self._digest_of(path) for part, path in self._files.items()}
        self.digest = hashlib.sha256(f"onnx|{'|'.join(digests.values())}".encode()).hexdigest()
        self.embedding_digest = hashlib.sha256(f"onnx|{digests['encoder']}".encode()).hexdigest()
        self._asked = device
        self._place = self._choose(device)
        self._on_cpu_when_out_of_memory(self._open)

    @property
    def decodes_at_once(self) -> bool:
        """One decoding does not keep the cores of a processor busy."""
        return self._place == "cpu" and self._threads != 1

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        def run() -> dict[str, np.ndarray]:
            names = [output.name for output in self._encoder.get_outputs()]
            return dict(zip(names, self._encoder.run(names, {"image": image}), strict=True))

        return self._on_cpu_when_out_of_memory(run)

    def decode(
        self,
        embedding: dict[str, np.ndarray],
        point_coords: np.ndarray,
        point_labels: np.ndarray,
        mask_input: np.ndarray,
        has_mask_input: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        inputs = {
            **embedding,
            "point_coords": point_coords,
            "point_labels": point_labels,
            "mask_input": mask_input,
            "has_mask_input": has_mask_input,
        }

        def run() -> tuple[np.ndarray, np.ndarray]:
            logits, scores = self._decoder.run(["low_res_masks", "iou_predictions"], inputs)
            return logits, scores

        return self._on_cpu_when_out_of_memory(run)

    def decode_classes(self, embedding: dict[str, np.ndarray]) -> np.ndarray:
        if self._classes is None:  # finetune-SAM's: the mask tokens are the classes, after one that is never read
            size = self.spec.low_res_size
            nothing = ((1, 0, 2), (1, 0), (1, 1, size, size), (1,))
            return self.decode(embedding, *(np.zeros(shape, np.float32) for shape in nothing))[0][:, 1:]
        return self._on_cpu_when_out_of_memory(lambda: self._classes.run(["class_logits"], dict(embedding))[0])

    def _digest_of(self, path: Path) -> str:
        return self.spec.sha256.get(path.name) or sha256_of(path)

    @staticmethod
    def _choose(device: str) -> str:
        available = available_devices()
        name = device.partition(":")[0]
        if name == "auto":
            return next(candidate for candidate in _AUTO if candidate in available)
        if name not in available:
            raise UserError(
                f"ONNX Runtime here cannot use '{device}' (it offers {', '.join(available)}); "
                + ("install onnxruntime-gpu, or " if name == "cuda" else "")
                + "choose another device."
            )
        return device

    def _open(self) -> None:
        name, _, number = self._place.partition(":")
        provider = _PROVIDERS[name]
        chosen = [(provider, {"device_id": number} if number else {})]
        if name != "cpu":
            chosen.append((_PROVIDERS["cpu"], {}))  # for what a GPU provider does not implement
        self._encoder = self._session("encoder", chosen)
        self._decoder = self._session("decoder", chosen)
        self._classes = self._session("classes", chosen) if "classes" in self._files else None
        if provider not in self._encoder.get_providers():  # built in, but no driver or no GPU
            if self._asked != "auto":
                raise UserError(f"No usable GPU driver was found for '{self._asked}'; choose device 'cpu'.")
            self._place = name = "cpu"
        precision = self._encoder.get_modelmeta().custom_metadata_map.get("precision", "fp32")
        self.device = f"{name.upper()} (ONNX Runtime, {precision})"

    def _session(self, part: str, providers: list[tuple[str, dict[str, str]]]) -> Any:
        runtime = _runtime()
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # its messages go to stderr; what matters is raised
        options.intra_op_num_threads = self._threads or 0  # 0 is as many as there are cores
        # Threads that spin while they wait take the cores from Slicer's window, and from each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return runtime.InferenceSession(str(self._files[part]), options, providers=providers)
        except Exception as error:  # ONNX Runtime raises classes of its own, some private
            if _is_out_of_memory(error):
                raise
            raise UserError(
                f"{self._files[part].name} of model '{self.spec.id}' is not an ONNX graph that this ONNX Runtime "
                "can run; import or export the model again."
            ) from error

    def _on_cpu_when_out_of_memory(self, run: Callable[[], Result]) -> Result:
        try:
            return run()
        except Exception as error:
            if self._place == "cpu" or not _is_out_of_memory(error):
                raise
        self.notices.append(f"The GPU ran out of memory; '{self.spec.id}' goes on, slower, on the CPU.")
        self._place = "cpu"
        self._open()
        return run()


def _is_out_of_memory(error: Exception) -> bool:
    return any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            'ONNX Runtime is not installed; install it with `pip install onnxruntime` (or "samfinetune[gpu]").'
        ) from error
    return onnxruntime
