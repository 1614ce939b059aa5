"""Entries in Slicer's Sample Data module: two images from Slicer's own store, and a phantom that needs no network."""

import logging

import slicer

CATEGORY = "SAMFineTune"
PHANTOM = "BodyPhantom"
# name, file, SHA-256: as Slicer's own entries have them, so that its cache holds one copy.
_SLICERS_OWN = (
    ("MRHead", "MR-head.nrrd", "cc211f0dfd9a05ca3841ce1141b292898b2dd2d3f08286affadf823a7e58df93"),
    ("CTChest", "CT-chest.nrrd", "4507b664690840abb6cb9af2d919377ffc4ef75b167cb6fd0f747befdb12e38e"),
)


def register():
    """Register the entries, after Slicer has started; without the module Sample Data there is nothing to do."""
    try:
        from SampleData import SampleDataLogic
    except ImportError:
        return
    try:
        SampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=PHANTOM,
            uris="generated:phantom",  # a name only; the downloader below makes the volume
            fileNames="samfinetune-phantom.nrrd",
            nodeNames=PHANTOM,
            customDownloader=make_phantom,
        )
        for name, file, digest in _SLICERS_OWN:
            SampleDataLogic.registerCustomSampleDataSource(
                category=CATEGORY,
                sampleName=name,
                uris=slicer.util.TESTING_DATA_URL + "SHA256/" + digest,
                fileNames=file,
                nodeNames=name,
                checksums="SHA256:" + digest,
            )
    except Exception:
        logging.exception("SAMFineTune: sample data could not be registered")


def make_phantom(source=None, shape=(40, 256, 256), spacing=(1.4, 1.4, 3.0)):
    """Make a volume node of the body phantom and show it in the views; returned in a list.

    `source` is what Slicer calls a downloader with.
    """
    from SAMFineTuneLib.images.phantom import body_phantom

    volume, _, _ = body_phantom(shape=shape, spacing=spacing)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", PHANTOM)
    node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(volume.affine))
    slicer.util.updateVolumeFromArray(node, volume.array)
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetAutoWindowLevel(False)
    display.SetWindowLevel(400, 40)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return [node]
