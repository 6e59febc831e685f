"""Volumes evaluated in the Fourier ball, against the Fourier transform as it is defined."""

from math import pi

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, render
from scipy.spatial.transform import Rotation

from cryodrgn_metric.se3.motions import translated
from cryodrgn_metric.se3.points import BallPoints
from cryodrgn_metric.se3.refine import MovedVolumes
from cryodrgn_metric.so3.expansion import RadialBasis, ShellExpansion
from cryodrgn_metric.so3.turning import to_planes

BOX, LMAX, SIGMA = 16, 20, 1.2
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def molecule():
    return compact(20, 4.0, np.random.default_rng(1))


def moved_volumes(*volumes):
    """The volumes, ready to be moved, and their coefficients' squared norms."""
    expand = ShellExpansion(BOX, LMAX, dtype=torch.float64)
    features = expand(torch.from_numpy(np.stack(volumes)))
    basis = RadialBasis.fit(features, 0.0)
    frequencies = torch.from_numpy(expand.frequencies)
    points = BallPoints(basis.directions, frequencies, torch.float64, CPU)
    planes = [to_planes(block) for block in basis.project(features)]
    return MovedVolumes(planes, points), features.square().sum(dim=(0, 1))


def fourier(volume, k):
    """F(k) = sum over voxels of V(x) exp(-2 pi i k·x / n), at points (count, 3) x, y, z."""
    axis = torch.arange(BOX, dtype=torch.float64) - BOX // 2
    z, y, x = (torch.exp(-2j * pi / BOX * k[:, i, None] * axis) for i in (2, 1, 0))
    return torch.einsum("zyx,kz,ky,kx->k", torch.from_numpy(volume).to(torch.complex128), z, y, x)


def as_complex(values, points):
    """Values (2 · count, 1) of one volume as complex numbers at every point."""
    real, imaginary = values.view(points._n_phi, 2, -1).unbind(1)
    return torch.complex(real, imaginary).flatten()


def test_values_are_the_fourier_transform_times_weights(molecule):
    volume = render(molecule, BOX, SIGMA)
    moving, norms = moved_volumes(volume)
    one, eye = torch.zeros(1, dtype=torch.long), torch.eye(3, dtype=torch.float64)[None]
    values = moving.turned(one, eye)
    torch.testing.assert_close(values.square().sum(), norms[0], rtol=1e-9, atol=0)
    found, expected = as_complex(values, moving.points), fourier(volume, moving.points.k)
    # the weight of a point is real and positive
    assert float((found * expected.conj()).imag.abs().max()) < 1e-6 * float(norms[0])
    large = expected.abs() > 1e-3 * expected.abs().max()
    assert bool(((found * expected.conj()).real[large] > 0).all())


def test_turned_and_translated_values_are_those_of_moved_atoms(molecule):
    rotation = Rotation.random(random_state=3).as_matrix()
    move = np.array([0.9, -0.4, 0.6])
    still, target = (render(a, BOX, SIGMA) for a in (molecule, molecule @ rotation.T + move))
    moving, norms = moved_volumes(still, target)
    turn = torch.from_numpy(rotation)[None]
    shift = torch.from_numpy(move)[None] * (2 * pi / BOX)
    found = moving.moved(torch.tensor([0]), turn, shift)
    eye = torch.eye(3, dtype=torch.float64)[None]
    expected = moving.turned(torch.tensor([1]), eye)
    # sigma 1.2 leaves 2e-4 of a Gaussian beyond the ball and the box, where grids differ
    assert float((found - expected).norm() / norms[1].sqrt()) < 2e-3


def test_a_translation_is_that_of_voxels(molecule):
    volume = render(molecule, BOX, SIGMA)
    move = torch.tensor([[0.5, 0.3, -0.8]], dtype=torch.float64)
    moved = translated(torch.from_numpy(volume[None]), move)[0].numpy()
    moving, norms = moved_volumes(volume, moved)
    eye = torch.eye(3, dtype=torch.float64)[None]
    found = moving.moved(torch.tensor([0]), eye, move * (2 * pi / BOX))
    expected = moving.turned(torch.tensor([1]), eye)
    assert float((found - expected).norm() / norms[1].sqrt()) < 1e-3


def test_a_map_of_correlations_is_one_product_after_another(molecule):
    moving, _ = moved_volumes(render(molecule, BOX, SIGMA), render(molecule[:12], BOX, SIGMA))
    points, eye = moving.points, torch.eye(3, dtype=torch.float64)[None]
    fixed, values = (moving.turned(torch.tensor([i]), eye) for i in (0, 1))
    shifts = torch.from_numpy(np.random.default_rng(0).uniform(-0.5, 0.5, (9, 3)))
    found = points.waves(shifts) @ points.product(fixed, values)
    expected = [(fixed * points.moved(values, shift[None])).sum() for shift in shifts]
    torch.testing.assert_close(found[:, 0], torch.stack(expected), rtol=1e-10, atol=1e-10)
