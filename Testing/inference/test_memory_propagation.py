"""Propagation with a volume memory: where it looks, how far it goes, and what it says where the structure ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from region_engine import WINDOW, phantom, region_predictor
from region_memory import RegionMemory
from scipy import ndimage

from SAMFineTuneLib.images import Volume, VolumeSource, body_phantom, choose_window
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.images.slice_plane import aligned_plane, oblique_plane
from SAMFineTuneLib.inference.block_path import BlockPath, path_through
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.memory_propagation import Slices, propagate_with_memory
from SAMFineTuneLib.inference.piece_tracks import piece_tracks
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.progress import Progress
from SAMFineTuneLib.inference.propagation import propagate
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, PropagationEnd, Seed
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.models.spec import read_model_folder
from SAMFineTuneLib.models.volume_block import CELLS, grey_evidence, sampling

BUNDLED = Path(__file__).resolve().parents[2] / "Resources" / "models" / "compact"


def truth(volume, labels, plane, value):
    return extract_labels(labels, volume, plane) == value


def seed(volume, labels, index, value=1, orientation="axial"):
    plane = aligned_plane(volume, orientation, index)
    return Seed(plane, truth(volume, labels, plane, value))


def remembering(memory=None, **options):
    predictor = region_predictor(**options)
    predictor.engine.memory = memory or RegionMemory()
    return predictor


def run(volume, seeds, predictor=None, **settings):
    items = list(propagate(predictor or remembering(), volume, WINDOW, seeds, PropagationSettings(**settings)))
    slices = {item.plane.index: item for item in items if isinstance(item, PropagatedSlice)}
    return slices, [item.reason for item in items if isinstance(item, PropagationEnd)]


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def long_tube(slices=120, absent=(), spacing=(1.0, 1.0, 1.0), drift=0.5):
    """A bright rod that leans along the columns through a dark volume, but is not there on the slices `absent`."""
    rows, columns = np.mgrid[:96, :96]
    array = np.full((slices, 96, 96), 20, np.int16)
    mask = np.zeros(array.shape, bool)
    for k in range(slices):
        if k not in absent:
            mask[k] = (rows - 48) ** 2 + (columns - 16 - drift * k) ** 2 < 64
    array[mask] = 200
    return Volume(array, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])), mask.astype(np.uint8)


# ---------------------------------------------------------------- the block


@given(
    size=st.integers(8, 80), start=st.floats(-20, 60), side=st.floats(10, 150), cells=st.sampled_from([8, 16, CELLS])
)
@settings(max_examples=60, deadline=None)
def test_cells_are_averages_of_the_pixels_they_cover(size, start, side, cells):
    weights = sampling(size, start, side, cells)
    total = weights.sum(1)
    assert np.all(np.isclose(total, 1, atol=1e-5) | (total == 0)) and weights.min() >= 0
    # A cell within the picture sees a linear ramp as it is at its own middle.
    step = side / cells
    middle = start + (np.arange(cells) + 0.5) * step - 0.5
    reach = max(step, 1.0)
    inside = (middle - reach >= 0) & (middle + reach <= size - 1)
    ramp = weights @ np.arange(size, dtype=np.float32)
    spread = 0.5 if step > 1 else 1e-3  # of few pixels, the average depends on where they lie
    assert np.all(np.abs(ramp - middle)[inside] <= spread)


@given(
    row=st.floats(10, 54), column=st.floats(10, 54), radius=st.floats(4, 14), side=st.floats(30, 110),
    shape=st.sampled_from([(64, 96), (96, 64), (80, 80)]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_what_is_cut_out_lies_where_it_was_when_it_is_pasted(row, column, radius, side, shape):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    soft = 1 / (1 + np.exp(np.hypot(rows - row, columns - column) - radius))
    path = BlockPath(np.array([[row, column]]), side)
    again = path.paste(path.cut(soft, 0), 0, shape)
    near = again > 0.05
    assert np.abs(again - soft)[near].max() < 0.35 and dice(again > 0.5, soft > 0.5) > 0.85


def test_the_path_is_straight_between_masks_and_goes_on_beyond_them():
    masks = {}
    for index, column in ((4, 20), (6, 24), (8, 28)):
        masks[index] = np.zeros((60, 60), bool)
        masks[index][20:30, column : column + 10] = True
    path = path_through(masks, 16)
    assert path.centers[5] == pytest.approx((25, 27)) and path.side == pytest.approx(20)
    assert path.centers[10] == pytest.approx((25, 37)) and path.centers[2] == pytest.approx((25, 21))
    alone = path_through({4: masks[4]}, 16)
    assert np.ptp(alone.centers, axis=0) == pytest.approx((0, 0))


def test_grey_values_tell_structure_from_surroundings():
    rng = np.random.default_rng(0)
    mask = np.zeros((1, CELLS, CELLS), np.float32)
    mask[0, 20:40, 20:40] = 1
    image = np.clip(np.where(mask, 0.5, -0.5) + 0.1 * rng.standard_normal(mask.shape), -1, 1).astype(np.float32)
    evidence = grey_evidence(image, image, mask)
    assert evidence[mask > 0].mean() > 0.5 and evidence[mask == 0].mean() < -0.5
    # Equal grey values inside and outside tell nothing.
    flat = np.zeros_like(image)
    assert np.abs(grey_evidence(flat, flat, mask)).max() < 0.1


# ---------------------------------------------------------------- how far it goes


def test_a_leaning_tube_is_followed_through_blocks_to_both_ends_of_the_volume():
    volume, labels = long_tube()
    memory = RegionMemory()
    slices, ends = run(volume, [seed(volume, labels, 60)], remembering(memory))
    assert sorted(slices) == [index for index in range(120) if index != 60] and ends == []
    for index, item in slices.items():
        assert dice(item.mask, labels[index] > 0) > 0.8
        assert item.sources == (aligned_plane(volume, "axial", 60).key,)
    assert max(block.shape[1] for block in memory.blocks) <= 40  # however long the volume is


def test_it_ends_where_the_structure_ends_and_says_so():
    volume, labels = long_tube(absent=range(71, 120))
    slices, ends = run(volume, [seed(volume, labels, 40)])
    assert sorted(slices) == [index for index in range(71) if index != 40]
    assert len(ends) == 1 and "ended before axial slice 71" in ends[0] and "not found there" in ends[0]


class LooseMemory(RegionMemory):
    """Takes everything that is brighter than the surroundings for the structure."""

    def __call__(self, block):
        region = block[0] > -0.6
        found = np.where(block[3] > 0, block[2] > 0, region)
        return np.where(found, 6.0, -6.0).astype(np.float32), np.where(found.any((1, 2)), 6.0, -6.0)


@pytest.mark.parametrize(("radius", "grey", "last"), [(8, 90, 14), (8, 195, 29), (18.7, 90, 29)])
def test_a_mask_that_spreads_into_other_grey_values_has_leaked(radius, grey, last):
    """A rod of 200 before a mass that has another grey value, or its own; or of which it is most."""
    rows, columns = np.mgrid[:96, :96]
    distance = np.hypot(rows - 48, columns - 48)
    pictures = np.where(distance < radius, 200, 20) * np.ones((30, 1, 1))
    pictures[15:] = np.where(distance < 20, grey, 20)
    pictures += np.random.default_rng(0).normal(0, 5, pictures.shape)
    asked = []

    def outlined(index: int, mask: np.ndarray) -> np.ndarray:
        asked.append(index)
        return mask.astype(np.float32)

    stack = Slices(lambda index: pictures[index].astype(np.uint8), len(pictures), 1.0)
    found = {}
    for part in propagate_with_memory(LooseMemory(), stack, {5: distance < radius}, 0, 29, outlined):
        found |= part
    assert max(index for index, answer in found.items() if answer.there) == last
    assert max(asked) <= last + 1, "what lies behind an end is not asked for"


@pytest.mark.parametrize(("neck", "last"), [(3, 14), (10, 29)])
def test_what_widens_again_behind_the_tip_of_a_structure_is_something_else(neck, last):
    """Two cones whose tips meet, or which are joined by a neck more than half as thick as they are."""
    rows, columns = np.mgrid[:96, :96]
    distance = np.hypot(rows - 48, columns - 48)
    radii = np.interp(np.arange(30), [0, 5, 14, 25, 29], [14, 14, neck, 14, 14])
    pictures = np.where(distance < radii[:, None, None], 200, 20)
    stack = Slices(lambda index: pictures[index].astype(np.uint8), len(pictures), 1.0)
    parts = propagate_with_memory(
        RegionMemory(), stack, {5: distance < radii[5]}, 0, 29, lambda index, mask: mask.astype(np.float32)
    )
    found = {index: answer for part in parts for index, answer in part.items()}
    there = max(index for index, answer in found.items() if answer.there)
    assert last <= there <= last + 1 and min(index for index, answer in found.items() if answer.there) == 0


def test_thin_slices_are_left_out_and_interpolated():
    volume, labels = long_tube(spacing=(1.0, 1.0, 0.05), drift=0.1)
    memory = RegionMemory()
    slices, _ = run(volume, [seed(volume, labels, 60)], remembering(memory))
    assert sorted(slices) == [index for index in range(120) if index != 60]
    assert np.mean([dice(item.mask, labels[index] > 0) for index, item in slices.items()]) > 0.8
    assert all(block.shape[1] < 32 for block in memory.blocks)  # fewer than the slices they answer for


def test_only_the_slices_that_are_asked_for_come():
    volume, labels = long_tube(40)
    middle = seed(volume, labels, 20)
    up, _ = run(volume, [middle], direction="up")
    down, _ = run(volume, [middle], direction="down")
    assert set(up) | set(down) == set(range(40)) - {20} and not set(up) & set(down)
    some, _ = run(volume, [middle], first=15, last=22)
    assert sorted(some) == [15, 16, 17, 18, 19, 21, 22]
    filled, ends = run(volume, [seed(volume, labels, 5), seed(volume, labels, 35)], direction="fill")
    assert sorted(filled) == list(range(6, 35)) and ends == []
    assert all(len(item.sources) == 2 for item in filled.values())


class Impatient(RegionMemory):
    """Refuses to be asked for ever."""

    def __call__(self, block):
        assert len(self.blocks) < 80, "no end in sight"
        return super().__call__(block)


@settings(deadline=None, max_examples=6)
@example({24}, [5, 11], "both", set())
@example({20, 30}, [10, 41], "both", {40, 41, 42})
@given(
    prompted=st.sets(st.integers(6, 63), min_size=1, max_size=3),
    ends=st.tuples(st.integers(-3, 75), st.integers(-3, 75)).map(sorted),
    direction=st.sampled_from(["both", "up", "down"]),
    missing=st.sets(st.integers(1, 68), max_size=12),
)
def test_any_range_is_reached_from_any_slices(prompted, ends, direction, missing):
    """The range may begin far from the prompted slices, and end where the volume has no slices of its own."""
    volume, labels = long_tube(70, drift=0.0)
    own = tuple(None if k in missing - prompted else (k, 1) for k in range(70))
    gappy = Volume(volume.array, volume.affine, source=VolumeSource((), "DICOM", slices=own))
    seeds = [seed(gappy, labels, index) for index in sorted(prompted)]
    first, last = max(ends[0], 0), max(ends[1], 0)
    slices, notes = run(gappy, seeds, remembering(Impatient()), first=first, last=last, direction=direction)
    reached = range(
        0 if direction != "up" else min(prompted), 70 if direction != "down" else max(prompted) + 1
    )  # fmt: skip
    assert sorted(slices) == [k for k in range(first, min(last, 69) + 1) if k in reached and k not in prompted]
    assert notes == []
    assert all(dice(item.mask, labels[index] > 0) > 0.7 for index, item in slices.items())


def test_a_structure_that_ends_before_the_range_is_said():
    volume, labels = long_tube(60, absent=range(30, 60), drift=0.0)
    slices, ends = run(volume, [seed(volume, labels, 20)], first=40, last=50)
    assert slices == {} and len(ends) == 1 and "ended before axial slice 30" in ends[0]


def test_a_gap_that_stays_empty_is_named():
    volume, labels = long_tube(40, absent=range(18, 23))
    slices, ends = run(volume, [seed(volume, labels, 5), seed(volume, labels, 35)], direction="fill")
    assert sorted(slices) == [index for index in range(6, 35) if not 18 <= index <= 22]
    assert len(ends) == 1 and "stay empty" in ends[0] and "prompt a slice there" in ends[0]


@pytest.mark.parametrize("orientation", ["coronal", "sagittal"])
def test_every_orientation_is_propagated_in_its_own_slices(orientation):
    volume, labels = phantom()
    middle = {"coronal": 36, "sagittal": 44}[orientation]
    start = seed(volume, labels, middle, value=2, orientation=orientation)
    slices, _ = run(volume, [start], first=middle - 4, last=middle + 4)
    assert sorted(slices) == [index for index in range(middle - 4, middle + 5) if index != middle]
    for item in slices.values():
        assert item.plane.orientation == orientation
        assert dice(item.mask, truth(volume, labels, item.plane, 2)) > 0.8


def test_oblique_slices_are_propagated_too():
    volume, labels = phantom()
    plane = oblique_plane(volume, volume.ijk_to_ras((44, 36, 11)), (-1, 0, 0), (0, -1, 0.35))
    start = Seed(plane, truth(volume, labels, plane, 2))
    predictor = remembering(RegionMemory(0.5), tolerance=60)
    items = [
        item for item in propagate(predictor, volume, WINDOW, [start], PropagationSettings())
        if isinstance(item, PropagatedSlice)
    ]  # fmt: skip
    assert len(items) >= 4
    for item in items:
        expected = truth(volume, labels, item.plane, 2)
        assert dice(item.mask, expected) > (0.8 if expected.sum() > 100 else 0.4)


def test_it_can_be_cancelled_and_tells_how_far_it_is():
    volume, labels = long_tube()
    seen: list[Progress] = []
    steps = propagate(
        remembering(), volume, WINDOW, [seed(volume, labels, 60)], None, seen.append, lambda: len(seen) >= 5
    )
    found = [item for item in steps if isinstance(item, PropagatedSlice)]
    assert 5 <= len(found) < 60
    assert [one.done for one in seen] == sorted(one.done for one in seen) and seen[0].total == 119


def test_interpolated_slices_are_not_looked_at():
    volume, labels = long_tube(30, absent=range(12, 15), drift=0.0)
    slices = tuple(None if k in (12, 13, 14) else (k, 1) for k in range(30))
    gap = Volume(volume.array, volume.affine, source=VolumeSource((), "DICOM", slices=slices))
    found, ends = run(gap, [seed(gap, labels, 4)])
    assert {12, 13, 14} <= set(found) and ends == []
    assert dice(found[13].mask, labels[16] > 0) > 0.8


def discs(*centers):
    rows, columns = np.mgrid[:60, :90]
    return np.any([np.hypot(rows - row, columns - column) < 6 for row, column in centers], axis=0)


def test_pieces_are_followed_by_overlap_and_then_by_distance():
    left, right = discs((30, 20)), discs((30, 70))
    # Two kidneys, of which one has ended on the last slice, and a speck.
    speck = np.zeros_like(left)
    speck[2, 2] = True
    parts = piece_tracks({3: left | right | speck, 9: discs((31, 22), (29, 69)), 15: discs((31, 24))})
    assert sorted(sorted(part) for part in parts) == [[3, 9], [3, 9, 15]]
    assert all(np.array_equal(part[3], left if 15 in part else right) for part in parts)
    # A thin rib moves by more than its width from one prompted slice to the next.
    (rib,) = piece_tracks({3: discs((10, 10)), 9: discs((30, 40)), 15: discs((50, 80))})
    assert sorted(rib) == [3, 9, 15]
    # Two legs of a bifurcation meet in one trunk.
    (vessel,) = piece_tracks({3: discs((30, 20), (30, 34)), 9: discs((30, 25), (30, 27), (30, 29))})
    assert np.array_equal(vessel[3], discs((30, 20), (30, 34)))


def test_two_rods_of_a_segment_are_carried_apart_and_joined():
    volume, labels = long_tube(40)
    second = np.roll(labels, (-30, 36), axis=(1, 2))
    array = np.where(second > 0, 200, volume.array).astype(np.int16)
    both = Volume(array, volume.affine)
    memory = RegionMemory()
    slices, ends = run(both, [seed(both, labels | second, 20)], remembering(memory))
    assert sorted(slices) == [index for index in range(40) if index != 20] and ends == []
    for index, item in slices.items():
        assert dice(item.mask, (labels | second)[index] > 0) > 0.75
    assert sum(bool((block[3] > 0).any()) for block in memory.blocks) == 2  # the rods are asked for one by one


def test_slices_that_keep_their_answer_cost_nothing_for_several_pieces_either():
    volume, labels = long_tube(40)
    labels = labels | np.roll(labels, (-30, 36), axis=(1, 2))
    rods = Volume(np.where(labels > 0, 200, 20).astype(np.int16), volume.affine)
    predictor = remembering()
    slices, _ = run(rods, [seed(rods, labels, 20)], predictor)
    calls = predictor.engine.decoder_calls
    kept = {index: slices[index].mask for index in range(20)}
    items = list(propagate(predictor, rods, WINDOW, [seed(rods, labels, 20)], kept=kept))
    again = {item.plane.index: item for item in items if isinstance(item, PropagatedSlice)}
    assert sorted(again) == list(range(21, 40)) and predictor.engine.decoder_calls - calls < 0.6 * calls
    assert all(dice(item.mask, slices[index].mask) > 0.95 for index, item in again.items())


# ---------------------------------------------------------------- the bundled memory


@pytest.fixture(scope="module")
def bundled():
    return Predictor(open_engine(read_model_folder(BUNDLED), threads=2))


@pytest.mark.slow
def test_one_slice_of_each_organ_gives_the_organ_in_three_dimensions(bundled):
    volume, labels, names = body_phantom()
    window = choose_window(volume, None)
    scores, over = {}, []
    for value, name in names.items():
        areas = (labels == value).sum((1, 2))
        start = int(np.argmax(areas))
        known = seed(volume, labels, start, value)
        found = np.zeros(labels.shape, bool)
        for item in propagate(bundled, volume, window, [known]):
            if isinstance(item, PropagatedSlice):
                found[item.plane.index] = on_voxels(item.mask, volume, labels, item.plane)
        found[start] = labels[start] == value
        scores[name] = dice(found, labels == value)
        over.append(np.count_nonzero(found.any((1, 2)) & (areas == 0)))
    assert min(scores.values()) > 0.9, scores  # the aorta and the spinal cord run through all slices unchanged
    assert np.mean(over) < 1


def on_voxels(mask, volume, labels, plane):
    """A slice's mask on the voxels of the volume: axial planes of the phantom have its own rows and columns, perhaps
    mirrored."""
    order = np.arange(labels[plane.index].size, dtype=np.int32).reshape(labels[plane.index].shape)
    shown = extract_labels(np.broadcast_to(order, labels.shape), volume, plane)
    result = np.zeros(order.size, bool)
    result[shown[mask]] = True
    return result.reshape(order.shape)


def test_the_bundled_memory_answers_alike_in_onnx_and_in_pytorch(bundled):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from SAMFineTuneLib.models.architectures.volume_memory import VolumeMemoryNetwork

    model = read_model_folder(BUNDLED)
    network = VolumeMemoryNetwork().eval()
    network.load_state_dict(load_file(model.file("memory_weights")))
    block = np.sin(np.arange(6 * 12 * CELLS * CELLS, dtype=np.float32)).reshape(6, 12, CELLS, CELLS)
    block = ndimage.gaussian_filter(block, (0, 1, 2, 2)).astype(np.float32)
    with torch.no_grad():
        expected = [part[0].numpy() for part in network(torch.from_numpy(block)[None])]
    for answer, wanted in zip(bundled.engine.memory(block), expected, strict=True):
        assert np.abs(answer - wanted).max() < 1e-3 * max(1, np.abs(wanted).max())
