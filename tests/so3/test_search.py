"""The grid is exhaustive, its peaks are real ones, Newton's derivatives are derivatives."""

import pytest
import torch

from cryodrgn_metric.so3.correlation import CoarseCorrelation
from cryodrgn_metric.so3.refine import Derivatives, march, residual_squared, turned
from cryodrgn_metric.so3.rotations import angle_between, matrix_from_rotation_vector
from cryodrgn_metric.so3.search import converged_degree

LMAX, RADIAL, COLUMNS = 5, 3, 4
CPU = torch.device("cpu")


@pytest.fixture
def coefficients():
    draw = torch.Generator().manual_seed(0)
    reference = [
        torch.randn(2 * d + 1, RADIAL, dtype=torch.float64, generator=draw)
        for d in range(LMAX + 1)
    ]
    moving = [
        torch.randn(2 * d + 1, RADIAL, COLUMNS, dtype=torch.float64, generator=draw)
        for d in range(LMAX + 1)
    ]
    return reference, moving


def correlation_at(reference, moving, rotations):
    """<a, D(R) b>, one rotation a column, straight from its definition."""
    parts = [
        (a[:, :, None] * b).sum(dim=(0, 1))
        for a, b in zip(reference, turned(moving, rotations), strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


@pytest.fixture
def coarse():
    return CoarseCorrelation(LMAX, torch.float64, CPU)


def test_grid_holds_the_correlation_at_every_node(coarse, coefficients):
    reference, moving = coefficients
    grid = coarse.correlate(coarse.reference_side(reference), coarse.moving_side(moving))
    assert grid.shape == (12, 12, 6, COLUMNS)
    for node in [(0, 0, 0), (3, 7, 2), (11, 1, 5), (6, 6, 3)]:
        rotation = coarse.grid[node].expand(COLUMNS, 3, 3)
        expected = correlation_at(reference, moving, rotation)
        torch.testing.assert_close(grid[node], expected, rtol=1e-10, atol=1e-10)


def test_peaks_are_separated_and_sorted_and_the_first_is_the_highest(coarse, coefficients):
    reference, moving = coefficients
    grid = coarse.correlate(coarse.reference_side(reference), coarse.moving_side(moving))
    peaks = coarse.peaks(grid, count=4, separation=0.3)
    torch.testing.assert_close(peaks.values[0], grid.view(-1, COLUMNS).amax(dim=0))
    assert bool((peaks.values[:-1] >= peaks.values[1:]).all())
    for first in range(4):
        for second in range(first):
            apart = angle_between(peaks.rotations[first], peaks.rotations[second])
            assert bool((apart > 0.3).all())


def test_gradient_and_hessian_agree_with_differences(coefficients):
    reference, moving = coefficients
    at = matrix_from_rotation_vector(torch.randn(COLUMNS, 3, dtype=torch.float64))
    value, gradient, hessian = Derivatives(reference).at(moving, at)
    torch.testing.assert_close(value, correlation_at(reference, moving, at))
    step = 1e-4
    for axis in range(3):
        vector = torch.zeros(3, dtype=torch.float64)
        vector[axis] = step
        ahead, behind = matrix_from_rotation_vector(vector), matrix_from_rotation_vector(-vector)
        up = Derivatives(reference).at(moving, ahead @ at)
        down = Derivatives(reference).at(moving, behind @ at)
        # central differences: step^2 times third derivatives, here about l^3 = 125 of the value
        slope = (up[0] - down[0]) / (2 * step)
        torch.testing.assert_close(gradient[:, axis], slope, rtol=1e-4, atol=1e-4)
        bend = (up[0] - 2 * value + down[0]) / step**2
        torch.testing.assert_close(hessian[:, axis, axis], bend, rtol=1e-3, atol=1e-3)


def test_march_ends_on_a_maximum_no_lower_than_its_start(coefficients):
    reference, moving = coefficients
    derivatives = Derivatives(reference)
    start = matrix_from_rotation_vector(torch.randn(COLUMNS, 3, dtype=torch.float64))
    before = derivatives.at(moving, start)[0]
    found, after = march(derivatives, moving, start, bands=(LMAX,), steps=60)
    _, gradient, hessian = derivatives.at(moving, found)
    assert bool((after >= before).all())
    assert gradient.abs().max() < 1e-6
    assert bool((torch.linalg.eigvalsh(hessian) < 0).all())


def test_residual_is_the_definition(coefficients):
    reference, moving = coefficients
    at = matrix_from_rotation_vector(torch.randn(COLUMNS, 3, dtype=torch.float64))
    norms = sum(a.square().sum() for a in reference) + sum(
        b.square().sum(dim=(0, 1)) for b in moving
    )
    expected = norms - 2 * correlation_at(reference, moving, at)
    torch.testing.assert_close(residual_squared(reference, moving, at), expected)


def test_converged_degree_follows_delta_and_not_energy():
    energies = torch.tensor([1.0] + [1e-9] * 29)
    shares = torch.full((30, 50), 1e-12)
    shares[25] = 1.0
    assert converged_degree(shares, energies) == 25


def test_converged_degree_of_equal_volumes_follows_energy():
    energies = torch.tensor([1.0] * 20 + [1e-6] * 10)
    assert converged_degree(torch.zeros(30, 50), energies) == 19
