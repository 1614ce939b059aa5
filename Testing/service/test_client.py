from __future__ import annotations

import numpy as np
import pytest
from region_engine import WINDOW, phantom

from SAMFineTuneLib.images.plane import aligned_plane
from SAMFineTuneLib.prompts.prompts import PointPrompt
from SAMFineTuneLib.service.events import Answered, Finished, MaskChanged, StateChanged


@pytest.fixture(scope="module")
def volume():
    return phantom()[0]


def point(volume, i, j, k, positive=True):
    return PointPrompt(tuple(volume.ijk_to_ras((i, j, k))), positive)


def tube(k):
    """A voxel in the middle of the phantom's leaning tube."""
    return round(14 + 0.3 * k), 16, k


def test_a_click_before_anything_is_there_gives_its_mask(host, volume):
    client = host.client
    client.set_volume(volume, WINDOW)
    client.add_segment(1, "tube")
    assert client.add_prompt(1, point(volume, *tube(9))) == 1
    masks = []
    state = host.until_told(StateChanged, settled=True)
    masks = [event for event in host.told if isinstance(event, MaskChanged)]
    (mask,) = masks
    plane = aligned_plane(volume, "axial", 9)
    assert (mask.segment, mask.plane.key, mask.mask.shape) == (1, plane.key, plane.shape)
    assert mask.mask.any() and mask.score == pytest.approx(0.92)
    assert np.allclose(mask.points, plane.ras_to_pixel(point(volume, *tube(9)).ras)[None], atol=1e-3)
    assert [(info.number, info.segment, info.view) for info in state.prompts] == [(1, 1, "axial")]
    assert state.undo_name == "add prompt" and state.window == WINDOW
    assert client.status.state == "ready" and client.status.model == "region"


def test_a_propagation_tells_masks_progress_and_its_end(host, volume):
    client = host.client
    client.set_volume(volume, WINDOW)
    client.add_segment(1, "tube")
    client.add_prompt(1, point(volume, *tube(9)))
    job = client.propagate(1, {"direction": "both"})
    host.until_told(Finished, job=job, cancelled=False)
    request = client.snapshot()
    answered = host.until_told(Answered, request=request)
    assert len(answered.value["propagated"]) == 23
    planes = {event.plane.key for event in host.told if isinstance(event, MaskChanged)}
    assert len(planes) == 24
