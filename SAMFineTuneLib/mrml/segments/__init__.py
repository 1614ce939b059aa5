"""Segments in the scene: the session's masks written into a segmentation."""
