"""What belongs to the user rather than to the scene, in Slicer's application settings."""

import qt
import slicer

_GROUP = "SAMFineTune/"


def read(name, default=""):
    return str(slicer.util.settingsValue(_GROUP + name, default))


def read_flag(name, default=False):
    return slicer.util.settingsValue(_GROUP + name, default, converter=slicer.util.toBool)


def write(name, value):
    settings = qt.QSettings()
    if settings.value(_GROUP + name) != value:
        settings.setValue(_GROUP + name, value)


def forget(name):
    qt.QSettings().remove(_GROUP + name)
