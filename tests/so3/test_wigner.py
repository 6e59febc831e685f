"""Wigner matrices turn functions, multiply like rotations, and stay orthogonal at high degree."""

import math

import pytest
import torch

from cryodrgn_metric.so3.harmonics import complex_from_real, gauss_legendre, legendre_table
from cryodrgn_metric.so3.rotations import matrix_from_euler, matrix_from_rotation_vector
from cryodrgn_metric.so3.turning import from_planes, plane_generators, to_planes, turned
from cryodrgn_metric.so3.wigner import generators, small_wigner_d, tilt_matrix

DEGREES = (0, 1, 2, 5, 12)


def real_harmonics(degree, directions):
    """Y_lm at unit vectors (n, 3), orders m = -l .. l: (2l + 1, n)."""
    x, y, z = directions.T
    theta, phi = torch.arccos(z.clamp(-1, 1)), torch.atan2(y, x)
    table = legendre_table(degree, theta.numpy())[:, degree]
    rows = [table[abs(m)] * math.sqrt(2) * torch.sin(-m * phi) for m in range(-degree, 0)]
    rows += [table[0]] + [
        table[m] * math.sqrt(2) * torch.cos(m * phi) for m in range(1, degree + 1)
    ]
    return torch.stack(rows)


@pytest.fixture
def directions():
    points = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return points / points.norm(dim=1, keepdim=True)


@pytest.fixture
def rotation():
    return matrix_from_euler(*torch.tensor([0.4, 1.1, -2.2], dtype=torch.float64))


def turn(degree, coefficients, rotation):
    """D_l(R) g through the code under test, for one degree."""
    planes = [torch.zeros(2, d + 1, 1, 1, dtype=torch.float64) for d in range(degree)]
    planes.append(to_planes(coefficients[:, None, None]))
    return from_planes(turned(planes, rotation[None])[-1])[:, 0, 0]


@pytest.mark.parametrize("degree", DEGREES)
def test_turned_coefficients_are_those_of_the_turned_function(degree, directions, rotation):
    g = torch.randn(2 * degree + 1, dtype=torch.float64)
    before = g @ real_harmonics(degree, directions @ rotation)  # (R f)(x) = f(R^T x)
    after = turn(degree, g, rotation) @ real_harmonics(degree, directions)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-11)


@pytest.mark.parametrize("degree", DEGREES)
def test_generators_are_the_derivatives_of_turning(degree):
    g = torch.randn(2 * degree + 1, dtype=torch.float64)
    step = 1e-6
    for axis, generator in zip(torch.eye(3, dtype=torch.float64), generators(degree), strict=True):
        ahead = turn(degree, g, matrix_from_rotation_vector(step * axis))
        behind = turn(degree, g, matrix_from_rotation_vector(-step * axis))
        # central differences lose eps / step and step^2 l^3
        torch.testing.assert_close(
            (ahead - behind) / (2 * step), generator @ g, rtol=0, atol=1e-7 * (degree + 1)
        )


def test_turning_twice_is_turning_by_the_product(rotation):
    other = matrix_from_euler(*torch.tensor([-1.3, 2.5, 0.7], dtype=torch.float64))
    g = torch.randn(11, dtype=torch.float64)
    twice = turn(5, turn(5, g, rotation), other)
    torch.testing.assert_close(twice, turn(5, g, other @ rotation), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", DEGREES)
def test_planes_hold_the_same_coefficients_and_generators(degree):
    g = torch.randn(2 * degree + 1, 3, dtype=torch.float64)
    planes = to_planes(g)
    assert torch.equal(from_planes(planes), g)
    assert planes[1, 0].abs().max() == 0
    turning = plane_generators(degree, torch.float64, torch.device("cpu"))
    found = (turning @ planes.flatten(0, 1)).unflatten(1, planes.shape[:2])
    for axis, generator in enumerate(generators(degree)):
        torch.testing.assert_close(from_planes(found[axis]), generator @ g)


@pytest.mark.parametrize("degree", [1, 30, 110])
def test_tilt_matrices_are_orthogonal(degree):
    tilt = tilt_matrix(degree)
    eye = torch.eye(2 * degree + 1, dtype=torch.float64)
    torch.testing.assert_close(tilt @ tilt.mT, eye, rtol=0, atol=1e-12)


def test_small_d_of_degree_one_in_closed_form():
    beta = torch.tensor([0.7], dtype=torch.float64)
    c, s = beta.cos().item(), beta.sin().item()
    root = math.sqrt(2)
    expected = [
        [(1 + c) / 2, s / root, (1 - c) / 2],
        [-s / root, c, s / root],
        [(1 - c) / 2, -s / root, (1 + c) / 2],
    ]
    found = small_wigner_d(1, beta)[0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_change_of_basis_is_unitary_and_keeps_real_functions_real(directions):
    change = complex_from_real(4)
    eye = torch.eye(9, dtype=torch.complex128)
    torch.testing.assert_close(change @ change.mH, eye, rtol=0, atol=1e-14)


def test_harmonics_are_orthonormal():
    theta, weights = gauss_legendre(13)
    phi = torch.arange(26, dtype=torch.float64) * (2 * math.pi / 26)
    sin, cos = torch.from_numpy(theta.copy()).sin(), torch.from_numpy(theta.copy()).cos()
    grid = torch.stack(
        [torch.outer(sin, phi.cos()), torch.outer(sin, phi.sin()), cos[:, None].expand(-1, 26)], -1
    )
    weight = torch.from_numpy(weights.copy())[:, None].expand(-1, 26).flatten() * 2 * math.pi / 26
    values = torch.cat([real_harmonics(degree, grid.reshape(-1, 3)) for degree in range(6)])
    gram = values * weight @ values.T
    torch.testing.assert_close(gram, torch.eye(36, dtype=torch.float64), rtol=0, atol=1e-12)
