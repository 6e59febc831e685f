"""Densities in closed form, false basins of a stretched map, and speed at a million particles."""

import time

import numpy as np
import pytest
from stretched_maps import HALF, stretched_maps

from cryodrgn_metric.density import density_of, limits_of, negative_log
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.local_geometry import local_geometry


def normal(count=100_000, columns=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, columns))


@pytest.mark.parametrize("columns", [1, 2])
def test_density_of_a_normal_distribution(columns):
    found = density_of(normal(1_000_000, columns), limits=((-4, 4),) * columns)
    grid = np.stack(np.meshgrid(*found.centers, indexing="ij"), axis=-1)
    # smoothing adds the variance of the kernel
    variance = 1 + found.bandwidth[0] ** 2
    expected = np.exp(-(grid**2).sum(axis=-1) / 2 / variance) / (2 * np.pi * variance) ** (
        columns / 2
    )
    # four standard deviations of what a million particles leave under the kernel at the peak
    assert np.abs(found.values - expected).max() < 0.03 * expected.max()
    assert found.bandwidth == pytest.approx(1_000_000 ** (-1 / (columns + 4)), rel=0.02)


def test_it_integrates_to_one_and_scales_with_units():
    view = normal()
    once, ten = density_of(view), density_of(10 * view)
    area = np.prod([edges[1] - edges[0] for edges in once.edges])
    assert once.values.sum() * area == pytest.approx(1, abs=0.01)  # a few are outside
    np.testing.assert_allclose(100 * ten.values, once.values, atol=1e-9)


def test_the_first_axis_of_the_view_is_the_first_of_the_grid():
    view = np.concatenate([normal(1000) * 0.1 + [3, 0], normal(9000) * 0.1 + [0, 5]])
    found = density_of(view)
    row, column = np.unravel_index(found.values.argmax(), found.values.shape)
    assert (found.centers[0][row], found.centers[1][column]) == pytest.approx((0, 5), abs=0.2)


def test_weights_count_as_copies():
    view = normal(2000)
    weights = np.random.default_rng(1).integers(1, 4, 2000)
    limits = limits_of(view)
    weighted = density_of(view, weights, limits)
    repeated = density_of(np.repeat(view, weights, axis=0), None, limits)
    # the bandwidths differ: copies are not new particles
    assert np.corrcoef(weighted.values.ravel(), repeated.values.ravel())[0, 1] > 0.99


def test_outliers_do_not_widen_the_view_and_columns_may_be_constant():
    view = normal(10_000)
    view[0] = 1e6
    ((low, high), _) = limits_of(view)
    assert -6 < low < -3 and 3 < high < 6
    assert np.isfinite(density_of(view).values).all()
    view[:, 1] = 7
    assert np.isfinite(density_of(view).values).all()
    assert np.isfinite(density_of(view[:1]).values).all()


def test_negative_log_is_that_of_a_normal_distribution():
    found = density_of(normal(1_000_000), limits=((-6, 6), (-6, 6)))
    values = negative_log(found)
    grid = np.stack(np.meshgrid(*found.centers, indexing="ij"), axis=-1)
    square = (grid**2).sum(axis=-1) / (1 + found.bandwidth[0] ** 2)
    inner = square < 4
    assert np.abs(values - square / 2)[inner].max() < 0.1  # nats: bins hold 100 particles and more
    assert np.nanmin(values) == 0
    assert np.isnan(values[square > 36]).all()  # e^-18 of a million: nobody is there
    assert np.isfinite(values[square < 9]).all()


@pytest.mark.parametrize("dimension", [1, 2])
def test_a_stretched_map_shows_a_false_basin_and_the_correction_removes_it(dimension):
    made = stretched_maps(dimension)
    view = made.stretched.transform(made.z)
    correction = local_geometry(made.stretched, made.net, made.z).density_correction
    axis = np.abs([np.corrcoef(made.z[:, 0], column)[0, 1] for column in view.T]).argmax()
    inside = view[(np.abs(made.z) < 0.75 * HALF).all(axis=1)]  # clear of the blurred border
    low, high = inside.min(axis=0), inside.max(axis=0)
    limits = limits_of(view)

    def depth_and_roughness(weights):
        """How much deeper the middle is than the rest, in nats, and the range of all of it."""
        found = density_of(view, weights, limits)
        values = negative_log(found)
        grid = np.stack(np.meshgrid(*found.centers, indexing="ij"), axis=-1)
        shown = ((low < grid) & (grid < high)).all(axis=-1)
        along = np.abs(grid[..., axis])
        middle, rest = values[shown & (along < 0.05)], values[shown & (along > 0.5)]
        return np.median(rest) - np.median(middle), np.ptp(values[shown])

    plain, roughness = depth_and_roughness(None)
    assert plain > 0.7 and roughness > 0.7  # ln 4, less what the smoothing takes
    corrected, roughness = depth_and_roughness(correction)
    # flat: to 10 % in the middle; the range is that of 16,000 bins of a small sample
    assert abs(corrected) < 0.1 and roughness < 0.25


def test_a_million_particles_in_a_second():
    view, weights = normal(1_000_000), np.random.default_rng(1).uniform(0.5, 2, 1_000_000)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        negative_log(density_of(view, weights))
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_unlike_arguments_are_refused():
    view = normal(10)
    for points in (view[:0], view[:, 0], normal(5, 3), view * np.nan):
        with pytest.raises(ArgumentError):
            density_of(points)
    for weights in (np.ones(9), -np.ones(10), np.zeros(10), np.full(10, np.inf)):
        with pytest.raises(ArgumentError):
            density_of(view, weights)
