"""Volumes, slice planes and intensity windows; reading and writing them.

NumPy arrays are [k, j, i] (slice, row, column); the world is RAS in millimetres.

Functions that read and write files are imported when they are first used: the geometry, and so a client of a remote
server, needs NumPy alone.
"""

from __future__ import annotations

import importlib

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

_LATE = {
    "as_volume": "any_image",
    "OUTPUT_ENDINGS": "labelmap_files",
    "check_output_path": "labelmap_files",
    "write_labelmap": "labelmap_files",
    "overlay_image": "overlay",
    "overlay_picture": "overlay",
    "body_phantom": "phantom",
    "write_dicom_series": "phantom",
    "list_series": "read_dicom",
    "read_volume": "read_image",
}
__all__ = [
    "IntensityWindow", "SegmentInfo", "SeriesInfo", "SlicePlane", "Volume", "VolumeSource", "aligned_plane",
    "choose_window", "extract", "number_of_slices", "oblique_plane", "picture", "plane_through", "write", *_LATE,
]  # fmt: skip


def __getattr__(name: str):
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
