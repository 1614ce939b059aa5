"""Volumes, slice planes and intensity windows; reading and writing them.

NumPy arrays are [k, j, i] (slice, row, column); the world is RAS in millimetres.

Functions that read and write files are imported when they are first used: the geometry, and so a client of a remote
server, needs NumPy alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from SAMFineTuneLib.images.intensity_window import IntensityWindow, choose_window
from SAMFineTuneLib.images.segment_info import SegmentInfo
from SAMFineTuneLib.images.slice_extraction import extract, picture, write
from SAMFineTuneLib.images.slice_plane import (
    SlicePlane,
    aligned_plane,
    number_of_slices,
    oblique_plane,
    plane_through,
)
from SAMFineTuneLib.images.volume import SeriesInfo, Volume, VolumeSource

if TYPE_CHECKING:
    from SAMFineTuneLib.images.any_image import as_volume
    from SAMFineTuneLib.images.labelmap_files import OUTPUT_ENDINGS, check_output_path, write_labelmap
    from SAMFineTuneLib.images.overlay import overlay_image, overlay_picture
    from SAMFineTuneLib.images.phantom import body_phantom, write_dicom_series
    from SAMFineTuneLib.images.read_dicom import list_series
    from SAMFineTuneLib.images.read_image import read_volume

_LATE = {
    "OUTPUT_ENDINGS": "labelmap_files",
    "as_volume": "any_image",
    "body_phantom": "phantom",
    "check_output_path": "labelmap_files",
    "list_series": "read_dicom",
    "overlay_image": "overlay",
    "overlay_picture": "overlay",
    "read_volume": "read_image",
    "write_dicom_series": "phantom",
    "write_labelmap": "labelmap_files",
}

__all__ = [
    "OUTPUT_ENDINGS",
    "IntensityWindow",
    "SegmentInfo",
    "SeriesInfo",
    "SlicePlane",
    "Volume",
    "VolumeSource",
    "aligned_plane",
    "as_volume",
    "body_phantom",
    "check_output_path",
    "choose_window",
    "extract",
    "list_series",
    "number_of_slices",
    "overlay_image",
    "oblique_plane",
    "overlay_picture",
    "picture",
    "plane_through",
    "read_volume",
    "write",
    "write_dicom_series",
    "write_labelmap",
]


def __getattr__(name: str):
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    globals()[name] = value
    return value
