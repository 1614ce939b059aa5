"""Runs models as ONNX graphs in ONNX Runtime, without PyTorch, on any device that the installed runtime supports."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError, is_out_of_memory
from SAMFineTuneLib.inference.engine import Embedding, Engine
from SAMFineTuneLib.inference.onnx_session import Provider, open_graph, runtime
from SAMFineTuneLib.models.spec import ModelFolder

_PROVIDERS = {  # in the order in which "auto" tries them; CoreML rejects parts of SAM, so "auto" does not
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "cpu": "CPUExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
_AUTO = ("cuda", "directml", "cpu")
_PROMPTS = ("point_coords", "point_labels", "mask_input", "has_mask_input")
_HOW_TO_GET = {
    "cuda": 'replace onnxruntime by its build with CUDA (pip uninstall onnxruntime, then pip install '
    '"samfinetune[gpu]"), which needs an NVIDIA GPU and its driver',
    "directml": "on Windows, replace onnxruntime by onnxruntime-directml",
    "coreml": "it comes with onnxruntime on a Mac only",
    "mps": "on a Mac, choose the device coreml",
}


def available_devices() -> list[str]:
    """Devices for which the installed ONNX Runtime was built; the driver may still be missing."""
    providers = runtime().get_available_providers()
    return [device for device, provider in _PROVIDERS.items() if provider in providers]


class OnnxEngine(Engine):
    """An `Engine` on ONNX Runtime. It falls back to the CPU when no GPU can be used, unless one was asked for."""

    def __init__(self, model: ModelFolder, device: str = "auto", threads: int | None = None):
        super().__init__()
        self.spec = model.spec
        self._model = model
        self._threads = threads
        parts = ("encoder", "decoder", *(("classes",) if model.has("classes") else ()))
        self._files = {part: model.file(part) for part in parts}
        digests = {part: model.digest(part) for part in parts}
        self.digest = hashlib.sha256(f"onnx|{'|'.join(digests.values())}".encode()).hexdigest()
        self.embedding_digest = hashlib.sha256(f"onnx|{digests['encoder']}".encode()).hexdigest()
        self._asked = device
        self.place = self._choose(device, model.spec.id)
        self.on_cpu_when_out_of_memory(self._open)

    @property
    def decodes_at_once(self) -> bool:
        """True on a CPU, where one call does not keep all cores busy."""
        return self.place == "cpu" and self._threads != 1

    def run_encoder(self, image: np.ndarray) -> Embedding:
        names = [output.name for output in self._encoder.get_outputs()]
        return dict(zip(names, self._encoder.run(names, {"image": image}), strict=True))

    def run_decoder(self, embedding: Embedding, *prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = embedding | dict(zip(_PROMPTS, prompts, strict=True))
        logits, scores = self._decoder.run(["low_res_masks", "iou_predictions"], inputs)
        return logits, scores

    def run_classes(self, embedding: Embedding) -> np.ndarray:
        if self._classes is not None:
            return self._classes.run(["class_logits"], dict(embedding))[0]
        # In finetune-SAM's models the mask tokens are the classes, after one that is never read.
        size = self.spec.low_res_size
        nothing = ((1, 0, 2), (1, 0), (1, 1, size, size), (1,))
        return self.run_decoder(embedding, *(np.zeros(shape, np.float32) for shape in nothing))[0][:, 1:]

    def move_to_cpu(self) -> None:
        self._open()

    @staticmethod
    def _choose(device: str, model_id: str) -> str:
        available = available_devices()
        name = device.partition(":")[0]
        if name == "auto":
            return next(candidate for candidate in _AUTO if candidate in available)
        if name not in available:
            raise UserError(
                f"The model {model_id!r} runs in ONNX Runtime, and the one installed here ({runtime().__version__}, "
                f"for {', '.join(available)}) cannot use '{device}': {_HOW_TO_GET[name]}; or choose the device "
                f"{available[0]}."
            )
        return device

    def _open(self) -> None:
        name, _, number = self.place.partition(":")
        provider = _PROVIDERS[name]
        chosen = [(provider, {"device_id": number} if number else {})]
        if name != "cpu":
            chosen.append((_PROVIDERS["cpu"], {}))  # for operators that the GPU provider lacks
        self._encoder = self._session("encoder", chosen)
        self._decoder = self._session("decoder", chosen)
        self._classes = self._session("classes", chosen) if "classes" in self._files else None
        self._require_fit()
        if provider not in self._encoder.get_providers():  # supported, but no driver or no GPU
            if self._asked != "auto":
                raise UserError(
                    f"ONNX Runtime found no GPU or no driver that it can use for '{self._asked}': install or update "
                    "the driver, give another number if there are several GPUs, or choose the device cpu."
                )
            self.place = name = "cpu"
        precision = self._encoder.get_modelmeta().custom_metadata_map.get("precision", "fp32")
        self.device = f"{name.upper()} (ONNX Runtime, {precision})"

    def _session(self, part: str, providers: list[Provider]) -> Any:
        try:
            return open_graph(self._files[part], self._threads, providers)
        except Exception as error:  # ONNX Runtime raises classes of its own, some private
            if is_out_of_memory(error):
                raise
            self._model.verify()  # raises a sentence if a file is missing or damaged
            raise UserError(
                f"{self._files[part].name} of model '{self.spec.id}' is not an ONNX graph that this ONNX Runtime "
                f"({runtime().__version__}) can run; import or export the model again."
            ) from error

    def _require_fit(self) -> None:
        """UserError when the graphs do not match the model's description, or each other."""
        spec = self.spec
        image = {value.name: value.shape for value in self._encoder.get_inputs()}
        expected = [1, spec.channels, spec.input_size, spec.input_size]
        if image != {"image": expected}:
            found = ", ".join(f"{name} {shape}" for name, shape in image.items())
            raise UserError(
                f"encoder.onnx of model {spec.id!r} takes {found}, and not the image {expected} that its model.json "
                "describes; export or import the model again."
            )
        size = [1, spec.low_res_size, spec.low_res_size]
        masks = {value.name: value.shape[1:] for value in self._decoder.get_inputs()}.get("mask_input")
        if masks != size:
            raise UserError(
                f"decoder.onnx of model {spec.id!r} takes masks of {masks}, and not of {size} as its model.json "
                "describes; export or import the model again."
            )
        given = {value.name for value in self._encoder.get_outputs()}
        if missing := {value.name for value in self._decoder.get_inputs()} - given - set(_PROMPTS):
            raise UserError(
                f"encoder.onnx and decoder.onnx of model {spec.id!r} do not belong together: the decoder needs "
                f"{', '.join(sorted(missing))}; export or import the model again."
            )
