"""Imports packages that only some actions need (PyTorch and its helpers), or tells the user how to install them."""

from __future__ import annotations

import importlib
from types import ModuleType

from SAMFineTuneLib.errors import UserError

_NAMES = {"torch": "PyTorch", "skimage": "scikit-image", "peft": "the package peft"}
SAFE_TORCH = (2, 6)
"""The first PyTorch whose `weights_only=True` never runs code in a file (CVE-2025-32434)."""


def require(purpose: str, *packages: str, extra: str = "torch") -> ModuleType:
    """Import packages.

    Args:
        purpose: what needs them, at the beginning of the error's sentence.
        packages: module names.
        extra: the extra that installs them: `pip install "samfinetune[extra]"`.

    Returns:
        The first package.

    Raises:
        UserError: naming the first package that is missing or cannot be loaded.
    """
    imported = []
    for package in packages:
        name = _NAMES.get(package, package)
        try:
            imported.append(importlib.import_module(package))
        except ImportError:
            raise UserError(
                f'{purpose} needs {name}, which is not installed; install it with: pip install "samfinetune[{extra}]"'
            ) from None
        except OSError as error:  # for example a library that Windows does not find
            raise UserError(
                f"{purpose} needs {name}, which is installed but cannot be loaded ({error}); install it again with: "
                f'pip install --force-reinstall "samfinetune[{extra}]"'
            ) from error
    return imported[0]


def require_safe_torch(path: object) -> ModuleType:
    """PyTorch, to read a file in its own format. UserError when this version could run code in the file."""
    torch = require("Reading a checkpoint", "torch")
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < SAFE_TORCH:
        raise UserError(
            f"{path} could run harmful code when PyTorch {torch.__version__} reads it: update PyTorch to "
            f"{'.'.join(map(str, SAFE_TORCH))} or newer, or use a .safetensors file, which cannot do so."
        )
    return torch
