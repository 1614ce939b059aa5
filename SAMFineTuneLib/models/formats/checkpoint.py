"""Reads a checkpoint file without running code from it, and finds the state dict inside."""

from __future__ import annotations

import argparse
import contextlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.models.optional_packages import require, require_safe_torch

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("model", "model_state", "state_dict", "model_state_dict")


def read_checkpoint(path: str | Path) -> Any:
    """Read a `.pth`, `.pt` or `.safetensors` file onto the CPU. UserError for anything else."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: give the checkpoint file in it.")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"There is no file {path}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not head:
        raise UserError(f"{path} is empty: download it again.")
    if head.lstrip()[:1] == b"<" and re.search(rb"<(!doctype|html|head|\?xml)", head, re.IGNORECASE):
        raise UserError(f"{path} is a web page, not a checkpoint: the download failed, get the file again.")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer to a file that Git LFS has not fetched: run “git lfs pull” in its "
                        "repository.")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < max(size, 1 << 27):
        return _read_safetensors(path)
    if head[:4] == b"PK\x03\x04":
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is cut short ({size} bytes): download it again.")
    elif head[:1] != b"\x80":
        raise UserError(f"{path} is not a checkpoint: expected a PyTorch (.pth, .pt) or a safetensors file.")
    return _read_torch(path)


def require_undamaged(path: str | Path) -> None:
    """Raise UserError if a PyTorch file differs from its own checksums, which PyTorch does not compare."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            try:
                with archive.open(entry) as file:
                    while file.read(1 << 20):
                        pass
            except zipfile.BadZipFile as error:
                if entry.CRC:  # PyTorch writes 0 when asked to write no checksums
                    raise UserError(f"{path} is damaged in {entry.filename}: download it again.") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    require("Reading a checkpoint", "torch", "safetensors")
    from safetensors.torch import load

    try:
        # From bytes: tensors mapped from the file would keep it locked on Windows.
        return load(path.read_bytes())
    except Exception as error:  # the package's own error class differs between versions
        raise UserError(f"{path} is a damaged safetensors file ({error}): download it again.") from error


def _read_torch(path: Path) -> Any:
    torch = require_safe_torch(path)
    try:
        with _harmless_globals(torch), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old pickles; errors are still raised
            with open(path, "rb") as file:  # not by its name, which may end like another format's
                return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise UserError(f"{path} does not fit into this computer's memory.") from None
    except Exception as error:  # PyTorch raises errors of many kinds on damaged files
        text = str(error)
        if found := re.search(r"(?:Unsupported global: GLOBAL|Unsupported class|global) ([\w.]+)", text):
            raise UserError(
                f"{path} holds program code ({found[1]}) beside its weights, which is not run because it could do "
                "harm: save only the state dict of the model."
            ) from error
        if "TorchScript" in text:
            raise UserError(f"{path} is a TorchScript program: save the state dict of the model instead.") from error
        raise UserError(f"{path} is damaged or is not a PyTorch checkpoint: download it again.") from error


def _harmless_globals(torch: Any) -> contextlib.AbstractContextManager:
    """Allow numbers and settings that training scripts store beside the weights; they cannot run code."""
    core = getattr(np, "_core", None) or np.core
    kinds = [type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")]
    return torch.serialization.safe_globals([argparse.Namespace, core.multiarray.scalar, np.dtype, *kinds])


def load_own_checkpoint(path: Path) -> Any:
    """Read a file that a training of this program saved with `torch.save`.

    Raises:
        UserError: when this PyTorch could run code in the file. Its own errors about damaged files pass through.
    """
    return require_safe_torch(path).load(path, map_location="cpu", weights_only=True)


def unwrap(content: Any, path: Path) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    """Find the state dict in a checkpoint.

    Returns:
        The key under which the file keeps it ("" when the file is the state dict), the state dict, and the names of
        the file's other entries.

    Raises:
        UserError: when there is none.
    """
    import torch

    if isinstance(content, dict):
        for wrapper in ("", *_WRAPPERS):
            inner = content.get(wrapper) if wrapper else content
            found = inner.items() if isinstance(inner, dict) else ()
            if tensors := {name: value for name, value in found if isinstance(value, torch.Tensor)}:
                used = {wrapper} if wrapper else tensors.keys()
                return wrapper, tensors, tuple(str(name) for name in content if name not in used)
        names = ", ".join(str(name) for name in list(content)[:5]) or "nothing"
        raise UserError(f"{path} holds no state dict that is known (it holds: {names}).")
    raise UserError(f"{path} holds a {type(content).__name__}, not the state dict of a model.")
