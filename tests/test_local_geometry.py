"""The geometry of maps whose stretch is known, of pure rotations, and of volumes all alike."""

import resource
import time

import numpy as np
import pytest
import torch
from stretched_maps import slope, stretched_maps

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import ArgumentError, MetricError
from cryodrgn_metric.local_geometry import local_geometry
from cryodrgn_metric.metric_map import MetricMap


@pytest.mark.parametrize("dimension", [1, 2])
def test_correction_is_one_where_the_map_follows_the_distance(dimension):
    made = stretched_maps(dimension)
    found = local_geometry(made.faithful, made.net, made.z)
    assert found.rank == dimension
    # "1 where f_xi follows h_psi"; both are nets, so to 5 %
    assert np.abs(np.percentile(found.density_correction, [5, 95]) - 1).max() < 0.05


@pytest.mark.parametrize(("dimension", "percent"), [(1, 5), (2, 20)])
def test_correction_is_the_stretch_of_a_stretched_map(dimension, percent):
    made = stretched_maps(dimension)
    found = local_geometry(made.stretched, made.net, made.z)
    ratio = found.density_correction / slope(made.z[:, 0])
    assert np.median(ratio) == pytest.approx(1, abs=0.02)
    # the net's own error, larger where two columns are to be learned
    assert np.abs(np.percentile(ratio, [5, 95]) - 1).max() < percent / 100
    # G is 1 along every axis, so the k singular values multiply to the correction
    product = found.stretch.astype(float) ** dimension
    assert np.median(np.abs(product / found.density_correction - 1)) < 0.05


def test_values_are_those_of_the_formulas():
    made = stretched_maps(2)
    z = made.z[:200]
    logvar = np.random.default_rng(1).normal(-4, 1, z.shape)
    found = local_geometry(made.stretched, made.net, z, logvar)
    jacobian = made.stretched.jacobian(z).astype(float)
    tensor = made.net.metric_tensor(z).astype(float)
    squared = np.linalg.det(jacobian) ** 2 / np.linalg.det(tensor)
    np.testing.assert_allclose(found.density_correction, np.sqrt(squared), rtol=1e-4)
    covariance = jacobian @ (np.exp(logvar)[:, :, None] * jacobian.transpose(0, 2, 1))
    np.testing.assert_allclose(
        found.uncertainty, np.sqrt(np.trace(covariance, axis1=1, axis2=2)), rtol=1e-5
    )
    np.testing.assert_allclose(found.stretch, np.sqrt(np.abs(np.linalg.det(jacobian))), rtol=1e-4)
    assert (np.diff(found.singular_values, axis=1) <= 0).all()
    for values in (found.stretch, found.density_correction, found.uncertainty):
        assert (values.shape, values.dtype) == ((200,), np.float32)


def test_uncertainty_is_the_spread_of_the_mapped_noise():
    made = stretched_maps(1)
    z = np.array([[-1.0], [0.0], [0.7]], np.float32)
    deviation = 0.01
    noise = np.random.default_rng(2).normal(0, deviation, (4000, 3)).astype(np.float32)
    mapped = made.stretched.transform((z[:, 0] + noise).reshape(-1, 1)).reshape(4000, 3)
    logvar = np.full_like(z, 2 * np.log(deviation))
    found = local_geometry(made.stretched, made.net, z, logvar).uncertainty
    # a sample of 4,000
    np.testing.assert_allclose(found, mapped.std(axis=0), rtol=0.05)


def turning_only_in_the_last_column(count=400):
    """Latents of which the first column moves and the others turn, and their distances."""
    z = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    distances = np.abs(z[:, None, 0] - z[None, :, 0])
    net = DistanceNet(max_epochs=60, progress=False).fit(z, distances)
    return z, net


def test_directions_without_extent_are_not_counted():
    z, net = turning_only_in_the_last_column()
    metric_map = MetricMap(2, steps=400, pairs_per_step=2000, progress=False).fit(z, net)
    found = local_geometry(metric_map, net, z)
    assert found.singular_values.shape == (400, 2)
    assert found.rank == 1
    # the second direction, noise over noise, would have been far from 1
    assert np.abs(np.percentile(found.density_correction, [5, 95]) - 1).max() < 0.1
    assert np.median(found.stretch) == pytest.approx(1, abs=0.05)


def test_volumes_all_alike_give_finite_numbers():
    z = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    net = DistanceNet(max_epochs=2, progress=False).fit(z, np.zeros((50, 50)))
    metric_map = MetricMap(steps=3, progress=False).fit(z, np.zeros((50, 50)))
    for network in (net._network, metric_map._network):
        with torch.no_grad():
            network.layers[-1].weight.zero_()  # what endless training would end with
    found = local_geometry(metric_map, net, z)
    assert (found.density_correction == 1).all()
    assert not found.stretch.any()
    assert found.rank >= 1


def test_a_particle_does_not_depend_on_its_chunk(monkeypatch):
    made = stretched_maps(2)
    whole = local_geometry(made.stretched, made.net, made.z[:90], 0 * made.z[:90])
    monkeypatch.setattr("cryodrgn_metric.local_geometry.ROWS_PER_CHUNK", 7)
    parts = local_geometry(made.stretched, made.net, made.z[:90], 0 * made.z[:90])
    for name in ("singular_values", "density_correction", "uncertainty"):
        # another shape of product may round elsewhere
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4)


def test_unlike_arguments_are_refused():
    made = stretched_maps(2)
    for z, logvar in [
        (made.z[:, 0], None),
        (made.z[:0], None),
        (made.z[:5, :1], None),
        (made.z[:5], made.z[:4]),
        (made.z[:5], made.z[:5] * np.inf),
        (made.z[:5] * np.nan, None),
    ]:
        with pytest.raises(ArgumentError):
            local_geometry(made.stretched, made.net, z, logvar)
    with pytest.raises(MetricError):
        local_geometry(MetricMap(), made.net, made.z[:5])


@pytest.mark.slow
def test_a_million_latents():
    z = np.random.default_rng(0).normal(size=(1_000_000, 8)).astype(np.float32)
    distances = np.linalg.norm(z[:100, None, :2] - z[None, :100, :2], axis=-1)
    net = DistanceNet(max_epochs=2, progress=False).fit(z[:100], distances)
    metric_map = MetricMap(steps=2, progress=False).fit(z[:100], distances)
    start = time.process_time()
    found = local_geometry(metric_map, net, z, 0 * z)
    # of one core
    assert time.process_time() - start < 60
    assert found.singular_values.shape == (1_000_000, 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2e6  # KiB
