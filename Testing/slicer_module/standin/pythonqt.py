"""PySide6 made to look like PythonQt: properties are attributes, signals are connected by their signature."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable

from PySide6 import QtCore, QtGui, QtTest, QtUiTools, QtWidgets

_get = object.__getattribute__
_connect = QtCore.QObject.connect
_disconnect = QtCore.QObject.disconnect
_own_hooks: dict[type, Callable] = {object: object.__getattribute__}  # some classes need theirs
_properties: dict[type, frozenset[str]] = {}
_VIRTUAL = {"sizeHint", "minimumSizeHint"}  # Qt itself asks Python for these, and would ask for ever


class WrongSignal(AssertionError):
    """PythonQt only prints this and goes on; a test must not."""


def _property_names(owner) -> frozenset[str]:
    kind = type(owner)
    if kind not in _properties:
        meta = _get(owner, "metaObject")()
        names = {meta.property(n).name() for n in range(meta.propertyCount())}
        _properties[kind] = frozenset(names - _VIRTUAL)
    return _properties[kind]


def _getattribute_of(kind: type):
    plain = next(_own_hooks[owner] for owner in kind.__mro__ if owner in _own_hooks)

    def _getattribute(self, name):
        if name == "name":
            name = "objectName"
        if not name.startswith("_") and name in _property_names(self):
            return plain(self, "property")(name)
        if name in _METHODS:
            return types.MethodType(_METHODS[name], self)
        return plain(self, name)

    return _getattribute


def _setattr(self, name, value):
    if name == "name":
        name = "objectName"
    if name not in _property_names(self):
        own = isinstance(value, (QtCore.QObject, QtCore.SignalInstance))  # PySide keeps those as attributes
        if type(self).__module__.startswith("PySide6") and not own:
            raise AttributeError(f"'{name}' does not exist on {type(self).__name__}")
        _get(self, "__dict__")[name] = value
    elif not self.setProperty(name, value):
        raise TypeError(f"{type(self).__name__}.{name} does not take {value!r}")


def _checked(sender, signature: str) -> str:
    meta = sender.metaObject()
    signature = re.sub(r"vtkMRML\w+\*", "PyObject", signature)  # PySide cannot name them
    normalized = bytes(QtCore.QMetaObject.normalizedSignature(signature).data()).decode()
    if meta.indexOfSignal(normalized) < 0:
        raise WrongSignal(f"{meta.className()} has no signal {signature}")
    return QtCore.SIGNAL(normalized)


def connect(self, signature, receiver, slot=None):
    """`sender.connect("clicked()", callable)`, or with a receiver and the name of its slot."""
    if not isinstance(signature, str) or signature.startswith("2"):
        return _connect(self, signature, receiver, slot)  # PySide's own loader
    target = receiver if slot is None else getattr(receiver, slot.partition("(")[0])
    return bool(_connect(self, _checked(self, signature), target))


def disconnect(self, signature, receiver=None, slot=None):
    """The reverse; without a receiver all of that signal are disconnected."""
    checked = _checked(self, signature)
    if receiver is None:
        return bool(_disconnect(self, checked, None, None))
    return bool(_disconnect(self, checked, receiver if slot is None else getattr(receiver, slot)))


class UiLoader(QtUiTools.QUiLoader):
    """Reads .ui files and fails on a widget that nobody stands in for; Qt's own puts an empty one there."""

    _alive: list = []  # what Python made and only Qt knows of would go at once

    def __init__(self, parent=None):
        super().__init__(parent)
        from . import widgets

        for kind in widgets.UI_WIDGETS:
            self.registerCustomWidget(kind)
        self._known = {str(name) for name in self.availableWidgets()}

    def createWidget(self, class_name, parent=None, name=""):
        if class_name not in self._known:
            raise SystemExit(f"no stand-in for the widget {class_name}")  # an exception would be lost in Qt
        made = super().createWidget(class_name, parent, name)
        self._alive.append(made)
        return made


_METHODS = {"connect": connect, "disconnect": disconnect}


def _patch(kinds: list[type]) -> None:
    """First note what every class has of its own, while none is changed yet, then change them all."""
    owners = {owner for kind in kinds for owner in kind.__mro__ if issubclass(owner, QtCore.QObject)}
    _own_hooks.update({owner: vars(owner)["__getattribute__"] for owner in owners if "__getattribute__" in vars(owner)})
    hooks = {owner: _getattribute_of(owner) for owner in owners}
    for owner in owners:
        owner.__getattribute__ = hooks[owner]
        owner.__setattr__ = _setattr


def _quietly(kind, context, text):
    """Qt's complaints, but for the connections in .ui files between what PySide cannot name."""
    if "mrmlSceneChanged(vtkMRMLScene*)" not in text and "(sender name:" not in text and "(receiver name:" not in text:
        print(text, file=sys.stderr)


def as_module() -> types.ModuleType:
    """The module `qt`."""
    QtCore.qInstallMessageHandler(_quietly)
    module = types.ModuleType("qt")
    kinds = []
    for source in (QtCore, QtGui, QtWidgets, QtTest):
        for name in dir(source):
            if name.startswith("Q"):
                thing = getattr(source, name)
                setattr(module, name, thing)
                if isinstance(thing, type) and issubclass(thing, QtCore.QObject):
                    kinds.append(thing)
    _patch(kinds)
    module.QUiLoader = UiLoader
    module.Signal = QtCore.Signal
    return module
