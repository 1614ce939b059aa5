"""Volume: coordinates, read-only voxels, digest, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import Volume
from SAMFineTuneLib.images.volume import affine_from_lps, lps_from_affine

number = st.floats(-200, 200)


@st.composite
def rotations(draw):
    """Any orientation, right- or left-handed: the axes of a random matrix, made perpendicular."""
    seed = draw(st.integers(0, 2**32 - 1))
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]


@given(rotations(), st.tuples(*[st.floats(0.1, 10)] * 3), st.tuples(*[number] * 3), st.tuples(*[number] * 3))
def test_voxels_and_ras_are_inverse_and_lps_converts_both_ways(directions, spacing, origin, point):
    affine = affine_from_lps(origin, directions, spacing)
    volume = Volume(np.zeros((4, 5, 6), np.int16), affine)
    assert np.allclose(volume.ras_to_ijk(volume.ijk_to_ras(point)), point, atol=1e-6)
    assert np.allclose(volume.spacing, spacing)
    back = lps_from_affine(volume.affine)
    assert all(np.allclose(a, b, atol=1e-9) for a, b in zip(back, (origin, directions, spacing), strict=True))


def test_affine_takes_i_first_while_the_array_is_indexed_slice_first():
    affine = np.diag([-1.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = (10, 20, 30)
    volume = Volume(np.zeros((4, 5, 6)), affine)
    assert volume.shape == (4, 5, 6)
    assert np.allclose(volume.ijk_to_ras([5, 4, 3]), [10 - 5, 20 - 8, 30 + 9])
    assert np.allclose(volume.ijk_to_ras(np.zeros((2, 7, 3))), np.broadcast_to([10, 20, 30], (2, 7, 3)))


def test_lps_differs_from_ras_by_the_sign_of_x_and_y():
    affine = affine_from_lps((1, 2, 3), np.eye(3), (1, 1, 1))
    assert np.array_equal(affine, [[-1, 0, 0, -1], [0, -1, 0, -2], [0, 0, 1, 3], [0, 0, 0, 1]])


def test_voxels_and_affine_are_read_only_and_the_callers_array_stays_writable():
    array, affine = np.zeros((2, 2, 2)), np.eye(4)
    volume = Volume(array, affine)
    with pytest.raises(ValueError):
        volume.array[0, 0, 0] = 1
    with pytest.raises(ValueError):
        volume.affine[0, 0] = 2
    affine[0, 0] = 5
    array[1, 1, 1] = 3
    assert volume.affine[0, 0] == 1


def test_digest_depends_on_voxels_type_and_geometry_only():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    reference = Volume(array, np.eye(4)).digest
    assert Volume(array.copy(order="F"), np.eye(4), modality="CT", warnings=("odd.",)).digest == reference
    changed = array.copy()
    changed[1, 2, 3] += 1
    others = {
        Volume(changed, np.eye(4)).digest,
        Volume(array.astype(np.int32), np.eye(4)).digest,
        Volume(array.reshape(3, 2, 4), np.eye(4)).digest,
        Volume(array, np.diag([1, 1, 2, 1])).digest,
    }
    assert len(others | {reference}) == 5


@pytest.mark.parametrize(
    ("array", "affine"),
    [
        (np.zeros((3, 3)), np.eye(4)),
        (np.zeros((0, 3, 3)), np.eye(4)),
        (np.zeros((2, 2, 2), complex), np.eye(4)),
        (np.zeros((2, 2, 2)), np.eye(3)),
        (np.zeros((2, 2, 2)), np.diag([1, 0, 1, 1])),
        (np.zeros((2, 2, 2)), np.diag([1, np.nan, 1, 1])),
        (np.zeros((2, 2, 2)), np.array([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1.0]])),
    ],
)
def test_useless_volumes_are_refused(array, affine):
    with pytest.raises(UserError):
        Volume(array, affine)
