"""Batched rotations agree with scipy's, at the poles and at small angles, too."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryodrgn_metric.so3 import rotations

DTYPES = (torch.float32, torch.float64)


def name_of(dtype):
    return str(dtype).removeprefix("torch.")


def random_matrices(count, dtype):
    return torch.from_numpy(Rotation.random(count, random_state=3).as_matrix()).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_euler_angles_return_to_the_matrix(dtype, tolerance):
    poles = Rotation.from_euler("ZYZ", [[0.3, 0.0, 0.4], [1.0, np.pi, 2.0], [2.0, 1e-5, -1.0]])
    near_poles = torch.from_numpy(poles.as_matrix()).to(dtype)
    matrices = torch.cat([random_matrices(200, dtype), near_poles])
    back = rotations.matrix_from_euler(*rotations.euler_from_matrix(matrices))
    assert (back - matrices).abs().max() < tolerance[name_of(dtype)]


def test_euler_convention_is_intrinsic_zyz():
    angles = torch.tensor([0.3, 1.1, -2.0], dtype=torch.float64)
    expected = Rotation.from_euler("ZYZ", angles.numpy()).as_matrix()
    np.testing.assert_allclose(rotations.matrix_from_euler(*angles), expected, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [0.0, 1e-8, 1e-3, 1.0, 3.1])
def test_rotation_vectors_agree_with_scipy(dtype, length, tolerance):
    vector = torch.tensor([[0.6, -0.64, 0.48]], dtype=dtype) * length
    expected = Rotation.from_rotvec(vector.double().numpy()).as_matrix()
    found = rotations.matrix_from_rotation_vector(vector).double().numpy()
    np.testing.assert_allclose(found, expected, atol=tolerance[name_of(dtype)])


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 1.0, np.pi])
def test_angle_between_keeps_small_angles(angle):
    base = random_matrices(1, torch.float64)[0]
    vector = torch.tensor([0.0, 0.6, 0.8], dtype=torch.float64) * angle
    turned = rotations.matrix_from_rotation_vector(vector) @ base
    # arcsin is flat at pi, where half the digits of the chord are lost
    assert float(rotations.angle_between(turned, base)) == pytest.approx(angle, abs=1e-7)


def test_nearest_rotation_squares_the_drift():
    exact = random_matrices(20, torch.float64)
    drifted = exact + 1e-4 * torch.randn(exact.shape, dtype=torch.float64)
    found = rotations.nearest_rotation(drifted)
    error = found.mT @ found - torch.eye(3, dtype=torch.float64)
    assert error.abs().max() < 1e-6
