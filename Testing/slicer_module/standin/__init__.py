"""What the Slicer desktop gives a scripted module, over PySide6 and the real MRML of slicer-core.

It finds errors of wiring and state. It proves nothing of layout, of native widgets or of PythonQt itself; where
PythonQt differs from PySide in a way that a module can stumble over, it is as strict as PythonQt or stricter:
properties are values and cannot be called, a wrong signal or widget name is an error.

`install()` must run before anything imports `qt`.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ["PYSIDE6_OPTION_PYTHON_ENUM"] = "0x02"  # enums are integers, as in PythonQt


def install() -> None:
    """Put `qt`, `ctk` and the application's part of `slicer` in their places; harmless when repeated."""
    if "qt" in sys.modules:
        return
    from . import pythonqt

    sys.modules["qt"] = pythonqt.as_module()
    from . import widgets

    sys.modules["ctk"] = widgets.ctk_module()
    from . import application

    application.install()
