"""Integrals over the sphere from half of it, on harmonics that scipy evaluates."""

import numpy as np
import torch
from scipy.special import sph_harm_y

from cryodrgn_metric.so3.half_sphere import HalfSphere

LMAX = 5


def real_harmonics(directions):
    """Orthonormal and without the Condon-Shortley phase, ((LMAX + 1)^2, directions)."""
    x, y, z = directions.T
    theta, phi = np.arccos(z), np.arctan2(y, x)
    found = []
    for degree in range(LMAX + 1):
        for m in range(-degree, degree + 1):
            complex_one = (-1) ** m * sph_harm_y(degree, abs(m), theta, phi)
            part = complex_one.imag if m < 0 else complex_one.real
            found.append(part * (2**0.5 if m else 1))
    return np.array(found)


def test_every_harmonic_is_recovered():
    sphere = HalfSphere.make(LMAX, 2 * LMAX)
    values = torch.from_numpy(real_harmonics(sphere.directions))
    degrees = np.repeat(np.arange(LMAX + 1), 2 * np.arange(LMAX + 1) + 1)
    even = torch.from_numpy(degrees % 2 == 0)[:, None]
    found = sphere.analyse(torch.stack([values * even, values * ~even]))
    expected = torch.eye(len(values), dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_directions_are_of_one_half():
    sphere = HalfSphere.make(8, 24)
    assert len(sphere.directions) == sphere.n_theta * sphere.n_phi == 175
    np.testing.assert_allclose(np.linalg.norm(sphere.directions, axis=1), 1)
    assert (sphere.directions[:, 2] > 0).all()
