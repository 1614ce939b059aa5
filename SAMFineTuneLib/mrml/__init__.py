"""The interactive session on Slicer's scene: volumes, slice views, segments, markups.

The only layer that knows `slicer` and `vtk`, and it imports them inside functions: importing these modules loads
neither, so that `samfinetune` runs where there is no Slicer.
"""
