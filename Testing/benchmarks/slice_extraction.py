"""How long a slice of a volume takes to become a picture: this library against SimpleITK's resampling on the same grid.

    python Testing/benchmarks/slice_extraction.py

A tilted 512 × 512 × 200 volume; aligned slices of each orientation and oblique planes. Median milliseconds of the
processor, and the ratio to SimpleITK (linear, one thread); the values of both are compared as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from SAMFineTuneLib.images.sitk_images import to_sitk
from SAMFineTuneLib.images.slice_extraction import extract
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, SlicePlane, aligned_plane, number_of_slices, oblique_plane
from SAMFineTuneLib.images.volume import Volume


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    volume = tilted_volume((200, 512, 512), (0.8, 0.8, 2.0), 0.19)
    image = to_sitk(volume.array, volume.affine)
    middle = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2)
    planes = [aligned_plane(volume, name, number_of_slices(volume, name) // 2) for name in ORIENTATIONS]
    for right, down in (((1, 0.05, 0), (0, 1, 0.05)), ((1, 0.5, 0.3), (0, 1, 0.5)), ((1, 0.2, 1), (0, 1, 0.1))):
        planes.append(oblique_plane(volume, middle, right, down))
    print("| plane | here (ms) | SimpleITK (ms) | ratio | largest difference |\n|---|---:|---:|---:|---:|")
    for plane in planes:
        ours, values = median(lambda plane=plane: extract(volume, plane), repeats)
        theirs, reference = median(lambda plane=plane: resampled(image, plane), repeats)
        inner = (slice(2, -2), slice(2, -2))  # beyond the border voxels' centres the two treat the edge differently
        difference = np.max(np.abs(values[inner] - reference[inner]))
        name = plane.orientation
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} | {difference:.3g} |")


def tilted_volume(shape: tuple[int, int, int], spacing: tuple[float, float, float], tilt: float) -> Volume:
    """Noise with whole values, tilted about the left-right axis by `tilt` radians."""
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine[:3, :3] = affine[:3, :3] * spacing
    return Volume(np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16), affine)


def resampled(image: sitk.Image, plane: SlicePlane) -> np.ndarray:
    """The plane's pixels by SimpleITK."""
    lps = np.diag([-1.0, -1.0, 1.0])
    grid = sitk.ResampleImageFilter()
    grid.SetSize((plane.shape[1], plane.shape[0], 1))
    grid.SetOutputSpacing((plane.pixel_size,) * 3)
    grid.SetOutputOrigin((lps @ plane.origin).tolist())
    grid.SetOutputDirection((lps @ np.stack([plane.right, plane.down, plane.normal], axis=1)).reshape(-1).tolist())
    grid.SetInterpolator(sitk.sitkLinear)
    grid.SetOutputPixelType(sitk.sitkFloat32)
    grid.SetDefaultPixelValue(-1000)  # the lowest voxel
    return sitk.GetArrayFromImage(grid.Execute(image))[0]


def median(work, repeats: int) -> tuple[float, np.ndarray]:
    """Median milliseconds, and what came of it."""
    work()
    seconds = []
    for _ in range(repeats):
        begun = time.process_time()
        result = work()
        seconds.append(time.process_time() - begun)
    return statistics.median(seconds) * 1000, result


if __name__ == "__main__":
    main()
