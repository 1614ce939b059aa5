"""Runs any checkpoint in PyTorch: on CUDA (encoder in bf16), Apple's MPS, or the CPU."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.engine import Embedding, Engine
from SAMFineTuneLib.models.adapters.adapter_folder import AdapterFolder, tuned_spec
from SAMFineTuneLib.models.optional_packages import require
from SAMFineTuneLib.models.spec import ModelFolder


class TorchEngine(Engine):
    """An `Engine` on PyTorch. `precision` is that of the encoder; the decoder always runs in fp32.

    With `auto` the encoder runs in bf16 on a CUDA GPU that supports it, and in fp32 elsewhere. On a CPU, bf16 is faster
    for large models but changes masks slightly, so it must be asked for.
    """

    def __init__(
        self,
        model: ModelFolder,
        device: str = "auto",
        precision: str = "auto",
        adapter: AdapterFolder | None = None,
        threads: int | None = None,
    ):
        super().__init__()
        model.file("weights")  # raises a sentence for a model that has none
        self._torch = require(f"The model {model.spec.id!r}, which is a checkpoint,", "torch")
        if threads is not None:
            self._torch.set_num_threads(threads)  # for the whole process: PyTorch has no finer setting
        self.spec = tuned_spec(model.spec, adapter) if adapter is not None else model.spec
        self._adapter = adapter
        self._weights = model.digest("weights")
        self._model = model
        self.place, self._precision = self._choose(device, precision)
        self._network = None
        self.on_cpu_when_out_of_memory(self._load)

    @property
    def digest(self) -> str:
        return self._digest(self._adapter)

    @property
    def embedding_digest(self) -> str:
        return self._digest(self._adapter if self._adapter and self._adapter.card.method.trains_encoder else None)

    def _digest(self, adapter: AdapterFolder | None) -> str:
        tuned = f"|{adapter.digest}" if adapter is not None else ""
        return hashlib.sha256(f"torch|{self._weights}|{self._precision}{tuned}".encode()).hexdigest()

    @property
    def device(self) -> str:
        return f"{self.place.upper()} (PyTorch, {self._precision})"

    def run_encoder(self, image: np.ndarray) -> Embedding:
        with self._torch.inference_mode():
            embedding = self._network.encode(self._tensor(image).to(self._dtype))
        return {name: tensor.float().cpu().numpy() for name, tensor in embedding.items()}

    def run_decoder(self, embedding: Embedding, *prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with self._torch.inference_mode():
            logits, scores = self._network.decode(self._tensors(embedding), *map(self._tensor, prompts))
        return logits.cpu().numpy(), scores.cpu().numpy()

    def run_classes(self, embedding: Embedding) -> np.ndarray:
        with self._torch.inference_mode():
            return self._network.decode_classes(self._tensors(embedding)).cpu().numpy()

    def move_to_cpu(self) -> None:
        self._precision, self._network = "fp32", None
        self._torch.cuda.empty_cache()
        self._load()

    def _tensors(self, embedding: Embedding) -> dict[str, Any]:
        return {name: self._tensor(array) for name, array in embedding.items()}

    def _tensor(self, array: np.ndarray) -> Any:
        if not array.flags.writeable:  # cached embeddings are read-only, and PyTorch warns about that
            array = array.copy()
        return self._torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.place)

    def _load(self) -> None:
        from SAMFineTuneLib.models.load_model import load_torch_model

        self._dtype = self._torch.bfloat16 if self._precision == "bf16" else self._torch.float32
        self._network = load_torch_model(self._model, self.place, self._dtype, self._adapter)

    def _choose(self, device: str, precision: str) -> tuple[str, str]:
        torch = self._torch
        name, _, number = device.partition(":")
        has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        if name == "auto":
            device = name = next(candidate for candidate, there in has.items() if there)
        if not has.get(name, False):
            usable = ", ".join(candidate for candidate, there in has.items() if there)
            raise UserError(f"PyTorch here cannot use '{device}'; choose one of: {usable}.")
        if name == "cuda" and number and int(number) >= torch.cuda.device_count():
            raise UserError(f"There is no GPU '{device}'; this machine has {torch.cuda.device_count()}.")
        if precision == "auto":
            precision = "bf16" if name == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
        return device, precision
