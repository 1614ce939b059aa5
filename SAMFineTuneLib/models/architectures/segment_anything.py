"""segment-anything's network modules, without its package.

`import segment_anything` imports torchvision, which only its picture transforms need. Its sub-package `modeling` is
self-contained, so it is loaded here under a private name, and `segment_anything` itself is not imported.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from SAMFineTuneLib.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_PRIVATE_NAME = "_samfinetune_segment_anything_modeling"
_INSTALL = 'install them with: pip install "samfinetune[torch]"'


@cache
def modeling() -> ModuleType:
    """The sub-package `modeling`; `UserError` when segment-anything is not installed."""
    package = importlib.util.find_spec("segment_anything")
    if package is None or not package.submodule_search_locations:
        raise UserError(f"SAM's network needs the package segment-anything, which is not installed; {_INSTALL}")
    folder = Path(next(iter(package.submodule_search_locations))) / "modeling"
    spec = importlib.util.spec_from_file_location(
        _PRIVATE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None or not (folder / "__init__.py").is_file():
        raise UserError(f"The installed segment-anything in {folder.parent} is incomplete; {_INSTALL}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PRIVATE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(_PRIVATE_NAME, None)
        raise
    return module


def in_windows(function: Callable[[Tensor], Tensor], x: Tensor, size: int) -> Tensor:
    """`function` of each window of a grid (B, H, W, C), padded with zeros to whole windows; the same shape.

    `function` takes and returns windows (n, size, size, C); size 0 makes one window of the grid.
    """
    if size == 0:
        return function(x)
    modeling()
    encoder = sys.modules[f"{_PRIVATE_NAME}.image_encoder"]
    windows, padded = encoder.window_partition(x, size)
    return encoder.window_unpartition(function(windows), size, padded, x.shape[1:3])
