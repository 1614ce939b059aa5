"""What the Slicer desktop gives a scripted module, over PySide6 and the real MRML of slicer-core.

It finds errors of wiring and state. It proves nothing of layout, of native widgets or of PythonQt itself; where
PythonQt differs from PySide in a way that a module can stumble over, it is as strict as PythonQt or stricter:
properties are values and cannot be called, a wrong signal or widget name is an error.

`install()` must run before anything imports `qt`.
"""

from __future__ import annotations

import ctypes
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["PYSIDE6_OPTION_PYTHON_ENUM"] = "0x02"  # enums are integers, as in PythonQt


def install() -> None:
    """Put `qt`, `ctk` and the application's part of `slicer` in their places; harmless when repeated."""
    if "qt" in sys.modules:
        return
    _make_immortal(None, True, False)
    from . import pythonqt

    sys.modules["qt"] = pythonqt.as_module()
    from . import widgets

    sys.modules["ctk"] = widgets.ctk_module()
    from . import application

    application.install()


def _make_immortal(*singletons) -> None:
    """PySide takes a reference too many from these with every call, as if they were immortal, which they are from
    Python 3.12 on. Before, a long test would end when the last one is gone."""
    if sys.version_info < (3, 12):
        for singleton in singletons:
            ctypes.c_ssize_t.from_address(id(singleton)).value += 1 << 40
