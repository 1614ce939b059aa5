"""SAMFineTune: segment DICOM and NIfTI volumes from point and box prompts, and fine-tune SAM on a few cases.

Layers, each importing only from those before it:
`images → prompts → models → inference → training, evaluation → service → mrml → web, cli`.
Importing this package loads nothing heavier than the standard library.
"""

__version__ = "0.1.0"
