"""Volumes, slice planes and intensity windows; reading and writing them.

NumPy arrays are [k, j, i] (slice, row, column); the world is RAS in millimetres.
"""

from SAMFineTuneLib.images.segments import SegmentInfo
from SAMFineTuneLib.images.volume import SeriesInfo, Volume, VolumeSource
from SAMFineTuneLib.images.window import IntensityWindow

__all__ = ["IntensityWindow", "SegmentInfo", "SeriesInfo", "Volume", "VolumeSource"]
