"""Volumes, slice planes, intensity windows; reading and writing them. NumPy arrays are [k, j, i], world is RAS mm."""

from SAMFineTuneLib.images.segments import SegmentInfo
from SAMFineTuneLib.images.volume import SeriesInfo, Volume, VolumeSource
from SAMFineTuneLib.images.window import IntensityWindow

__all__ = ["IntensityWindow", "SegmentInfo", "SeriesInfo", "Volume", "VolumeSource"]
