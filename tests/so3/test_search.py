"""The grid is exhaustive, its peaks are real ones, Newton's derivatives are derivatives."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryodrgn_metric.so3.correlation import CoarseCorrelation
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.refine import Derivatives, climb, residual_squared
from cryodrgn_metric.so3.rotations import angle_between, matrix_from_rotation_vector
from cryodrgn_metric.so3.search import RotationSearch, converged_degree
from cryodrgn_metric.so3.turning import to_planes, turned

LMAX, RADIAL, VOLUMES = 5, 3, 5
CPU = torch.device("cpu")
# two fixed volumes, one of them with a single pair
PAIRS = Pairs(torch.tensor([0, 0, 0, 0, 3]), torch.tensor([1, 2, 3, 4, 2]))


@pytest.fixture
def blocks():
    draw = torch.Generator().manual_seed(0)
    return [
        torch.randn(2 * d + 1, RADIAL, VOLUMES, dtype=torch.float64, generator=draw)
        for d in range(LMAX + 1)
    ]


@pytest.fixture
def volumes(blocks):
    return [to_planes(block) for block in blocks]


@pytest.fixture
def rotations():
    draw = torch.Generator().manual_seed(1)
    return matrix_from_rotation_vector(
        torch.randn(len(PAIRS), 3, dtype=torch.float64, generator=draw)
    )


def correlation_at(volumes, rotations, pairs=PAIRS):
    """<a, D(R) b> of every pair, straight from its definition."""
    moved = turned([block[..., pairs.columns] for block in volumes], rotations)
    parts = [
        (block[..., pairs.rows] * b).sum(dim=(0, 1, 2))
        for block, b in zip(volumes, moved, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


@pytest.fixture
def coarse(blocks):
    return CoarseCorrelation(blocks, torch.float64, CPU)


def test_grid_holds_the_correlation_at_every_node(coarse, volumes):
    grid = coarse.correlate(PAIRS)
    assert grid.shape == (12, 12, 6, len(PAIRS))
    for node in [(0, 0, 0), (3, 7, 2), (11, 1, 5), (6, 6, 3)]:
        rotation = coarse.grid[node].expand(len(PAIRS), 3, 3)
        expected = correlation_at(volumes, rotation)
        torch.testing.assert_close(grid[node], expected, rtol=1e-10, atol=1e-10)


def test_peaks_are_separated_and_sorted_and_the_first_is_the_highest(coarse):
    grid = coarse.correlate(PAIRS)
    peaks = coarse.peaks(PAIRS, count=4, separation=0.3)
    torch.testing.assert_close(peaks.values[0], grid.view(-1, len(PAIRS)).amax(dim=0))
    assert bool((peaks.values[:-1] >= peaks.values[1:]).all())
    for first in range(4):
        for second in range(first):
            apart = angle_between(peaks.rotations[first], peaks.rotations[second])
            assert bool((apart > 0.3).all())


def test_many_pairs_are_searched_in_parts_with_the_same_result(coarse):
    many = Pairs(PAIRS.rows.repeat_interleave(20), PAIRS.columns.repeat_interleave(20))
    once, often = (coarse.peaks(pairs, count=4, separation=0.3) for pairs in (PAIRS, many))
    torch.testing.assert_close(often.values, once.values.repeat_interleave(20, dim=1))


def test_gradient_and_hessian_agree_with_differences(volumes, rotations):
    derivatives = Derivatives(volumes, rows=[0, 3])
    value, gradient, hessian = derivatives.at(PAIRS, rotations, LMAX)
    torch.testing.assert_close(value, correlation_at(volumes, rotations))
    step = 1e-4
    for axis in range(3):
        vector = torch.zeros(3, dtype=torch.float64)
        vector[axis] = step
        ahead, behind = matrix_from_rotation_vector(vector), matrix_from_rotation_vector(-vector)
        up = derivatives.at(PAIRS, ahead @ rotations, LMAX)
        down = derivatives.at(PAIRS, behind @ rotations, LMAX)
        # central differences: step^2 times third derivatives, here about l^3 = 125 of the value
        slope = (up[0] - down[0]) / (2 * step)
        torch.testing.assert_close(gradient[:, axis], slope, rtol=1e-4, atol=1e-4)
        bend = (up[0] - 2 * value + down[0]) / step**2
        torch.testing.assert_close(hessian[:, axis, axis], bend, rtol=1e-3, atol=1e-3)


def test_climb_ends_on_a_maximum_no_lower_than_its_start(volumes, rotations):
    derivatives = Derivatives(volumes, rows=[0, 3])
    before = derivatives.at(PAIRS, rotations, LMAX)[0]
    found, after = climb(derivatives, PAIRS, rotations, LMAX, 1e-5, steps=60)
    values, gradient, hessian = derivatives.at(PAIRS, found, LMAX)
    assert bool((after >= before).all())
    torch.testing.assert_close(after, values)  # the last step was taken unseen
    assert gradient.abs().max() < 1e-6
    assert bool((torch.linalg.eigvalsh(hessian) < 0).all())


def test_residual_is_the_definition(volumes, rotations):
    squares = torch.stack([block.square().sum(dim=(0, 1, 2)) for block in volumes]).sum(dim=0)
    expected = (
        squares[PAIRS.rows] + squares[PAIRS.columns] - 2 * correlation_at(volumes, rotations)
    )
    torch.testing.assert_close(residual_squared(volumes, PAIRS, rotations), expected)


def test_nothing_is_found_from_300_other_starts(blocks):
    """No smaller distance, on a spectrum that falls as maps' do; and second peaks but for one.

    Of the lower peaks only the two best at the coarse degree are followed.
    """
    nearest = []
    blocks = [block / (degree + 1) for degree, block in enumerate(blocks)]
    volumes = [to_planes(block) for block in blocks]
    found = RotationSearch(blocks, torch.float64, CPU).compare(PAIRS)
    starts = torch.from_numpy(Rotation.random(300, random_state=2).as_matrix())
    derivatives = Derivatives(volumes, rows=[0, 3])
    squares = torch.stack([block.square().sum(dim=(0, 1, 2)) for block in volumes]).sum(dim=0)
    for pair, (row, column) in enumerate(zip(PAIRS.rows, PAIRS.columns, strict=True)):
        many = Pairs(row.repeat(300), column.repeat(300))
        rotations, values = climb(derivatives, many, starts, LMAX, 1e-5, steps=60)
        distances = (squares[row] + squares[column] - 2 * values).sqrt()
        assert float(found.distances[pair]) == pytest.approx(float(distances.min()), rel=1e-6)
        apart = angle_between(rotations, found.rotations[pair]) > math.radians(20)
        gap = (distances[apart].min() - distances.min()) / squares.mean().sqrt()
        nearest.append(float(gap))
    exact = np.isclose(found.second_peak_gaps.numpy(), nearest, rtol=1e-6)
    assert exact.sum() >= 4 and (found.second_peak_gaps.numpy() >= np.array(nearest) - 1e-6).all()


def test_converged_degree_follows_delta_and_not_energy():
    energies = torch.tensor([1.0] + [1e-9] * 29)
    shares = torch.full((30, 50), 1e-12)
    shares[25] = 1.0
    assert converged_degree(shares, energies) == 25


def test_converged_degree_of_equal_volumes_follows_energy():
    energies = torch.tensor([1.0] * 20 + [1e-6] * 10)
    assert converged_degree(torch.zeros(30, 50), energies) == 19
