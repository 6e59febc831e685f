"""Contrast: closed forms, and unit distances against those that are measured."""

from functools import cache

import numpy as np
import pytest
import torch
from conftest import quiet
from gaussian_atoms import compact, hinged, render
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr
from shipped import DEMO

from cryodrgn_metric.contrast import contrast_of, norm_share, unit_distances
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.so3.conventions import spherical_window, windowed
from cryodrgn_metric.workdir import open_workdir

BOX, SIGMA = 24, 1.5


@cache
def features() -> torch.Tensor:
    """Coefficients of a hinge in 14 states, each turned at random and of another contrast."""
    generator = np.random.default_rng(4)
    atoms = compact(30, 6.5, generator)
    volumes = [
        generator.uniform(0.7, 1.4)
        * render(hinged(atoms, 10, angle) @ turn.as_matrix().T, BOX, SIGMA)
        for angle, turn in zip(
            np.linspace(0, 1.5, 14), Rotation.random(14, random_state=3), strict=True
        )
    ]
    prepared = windowed(torch.from_numpy(np.stack(volumes)), spherical_window(BOX, 0.85))
    return measure(unit_norm=False).features(prepared)


def measure(unit_norm: bool) -> RotationDistance:
    return RotationDistance(box=BOX, lmax=10, unit_norm=unit_norm, dtype=torch.float64)


@cache
def measured(unit_norm: bool) -> np.ndarray:
    return measure(unit_norm).pairwise(features()).distances.numpy()


def norms() -> np.ndarray:
    return features().square().sum(dim=(0, 1)).sqrt().numpy()


def test_unit_distances_are_those_that_scale_unit_measures():
    found, expected = unit_distances(measured(False), norms()), measured(True)
    # each drops its own small radial components, worth 1e-9 of the energy here
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    assert not np.allclose(found, measured(False) / norms().mean(), atol=0.05)


def test_unit_distances_of_decoded_volumes():
    """In float32, with band limit and radial basis as each run would choose them."""
    workdir = open_workdir(DEMO)
    with quiet():
        volumes = Decoder.from_workdir(workdir, device="cpu").decode(workdir.latents[:160:8])
    windowed_volumes = windowed(volumes, spherical_window(volumes.shape[-1], 0.85))
    matrices = {}
    for unit in (False, True):
        distance = RotationDistance(box=volumes.shape[-1], unit_norm=unit)
        distance.calibrate(distance.full_features(windowed_volumes[:10]))
        coefficients = distance.features(windowed_volumes)
        matrices[unit] = distance.pairwise(coefficients).distances.numpy()
        if not unit:
            lengths = coefficients.square().sum(dim=(0, 1)).sqrt().numpy()
    upper = np.triu_indices(len(volumes), 1)
    found = unit_distances(matrices[False], lengths)[upper]
    error = np.abs(found - matrices[True][upper]) / matrices[True][upper]
    assert np.median(error) < 1e-5
    # each run drops up to 1e-3 of the median Delta^2; the worst of 190 pairs had 1.1e-4
    assert error.max() < 1e-3


def test_contrast_of_the_hinge():
    found = contrast_of(measured(False), norms())
    upper = np.triu_indices(14, 1)
    expected = spearmanr(measured(False)[upper], measured(True)[upper]).statistic
    assert found.unit_spearman == pytest.approx(expected, abs=1e-3)
    assert found.norm_variation == pytest.approx(norms().std() / norms().mean())
    assert 0.2 < found.norm_share < 0.9


def test_volumes_that_differ_by_contrast_only():
    scales = np.array([1.0, 1.5, 2.0, 4.0])
    distances = np.abs(scales[:, None] - scales)
    assert norm_share(scales, distances) == pytest.approx(1)
    assert not unit_distances(distances, scales).any()
    assert np.isnan(contrast_of(distances, scales).unit_spearman)


def test_volumes_of_one_norm():
    points = np.random.default_rng(0).normal(size=(20, 3))
    points *= 7 / np.linalg.norm(points, axis=1, keepdims=True)
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    lengths = np.linalg.norm(points, axis=1)
    assert norm_share(lengths, distances) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(unit_distances(distances, lengths), distances / 7, atol=1e-6)


def test_share_is_a_ratio_of_sums_over_pairs():
    assert norm_share([3, 4, 6], [[0, 2, 5], [2, 0, 4], [5, 4, 0]]) == pytest.approx(14 / 45)
    assert np.isnan(norm_share([1, 1], np.zeros((2, 2))))


def test_unlike_arguments_are_refused():
    for distances, lengths in [
        (np.zeros((3, 3)), [1, 1]),
        (np.zeros(3), [1, 1, 1]),
        (np.zeros((2, 2)), [1, 0]),
        (np.zeros((2, 2)), [1, np.nan]),
    ]:
        for function in (unit_distances, contrast_of):
            with pytest.raises(ArgumentError):
                function(distances, lengths)
