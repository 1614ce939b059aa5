"""A volume memory whose files are gone, cut off or replaced: one sentence, and slices are still answered."""

from __future__ import annotations

import shutil

import pytest
from region_engine import WINDOW, phantom
from test_memory_propagation import BUNDLED

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.inference.open_predictor import open_predictor
from SAMFineTuneLib.prompts import BoxPrompt
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.session import Session


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other(file):
    file.write_bytes(b"something else " * 1000)


def of_another_network(file):
    shutil.copyfile(file.parent / "decoder.onnx", file)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("memory.onnx", lambda file: file.unlink()),
        ("memory.onnx", cut),
        ("memory.onnx", other),
        ("memory.onnx", of_another_network),
        ("memory.onnx", lambda file: file.write_bytes(b"")),
        ("memory.safetensors", lambda file: file.unlink()),
        ("memory.safetensors", cut),
        ("memory.safetensors", lambda file: file.write_bytes(b"")),
    ],
)
def test_a_damaged_memory_is_one_sentence_and_the_prompted_slice_stays(tmp_path, name, damage):
    folder = tmp_path / "compact"
    shutil.copytree(BUNDLED, folder)
    damage(folder / name)
    volume, _ = phantom()
    told = []
    try:
        session = Session(volume, open_predictor(folder, disk_cache=False), WINDOW)
    except UserError as error:  # at once is as good
        assert name in str(error) and str(error).endswith(".")
        return
    session.listen(told.append)
    session.add_segment("tube")
    session.set_volumetric(True)
    corners = [tuple(volume.ijk_to_ras(corner)) for corner in ((10, 9, 11), (25, 23, 11))]
    session.add_prompt(1, BoxPrompt(*corners))
    while session.work():
        pass
    (failed,) = [event.text for event in told if isinstance(event, events.Failed)]
    assert failed.endswith(".") and "\n" not in failed and "Error" not in failed and "ONNXRuntime" not in failed
    assert "memory" in failed and ("again" in failed or "copy" in failed), failed
    assert session.settled and [plane.index for plane in session.planes(1)] == [11]
    assert session.mask(1, session.planes(1)[0]).any()
