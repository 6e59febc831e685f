"""Real spherical harmonics: Legendre tables, and the change of basis to complex ones."""

from __future__ import annotations

import numpy as np
import torch
from scipy import special
from torch import Tensor

__all__ = ["complex_from_real", "degree_slice", "gauss_legendre", "legendre_table"]


def degree_slice(degree: int) -> slice:
    """Where the 2l + 1 orders of degree l lie among the packed (lmax + 1)^2 coefficients."""
    return slice(degree**2, (degree + 1) ** 2)


def gauss_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes theta in radians (north pole first) and weights, exact to degree 2·count - 1."""
    nodes, weights = special.roots_legendre(count)
    return np.arccos(nodes[::-1]), weights[::-1]


def legendre_table(lmax: int, theta: np.ndarray) -> Tensor:
    """theta-dependent factor of the orthonormal real spherical harmonics.

    Y_lm(theta, phi) = table[m, l] · {sqrt(2) cos(m phi), 1, sqrt(2) sin(|m| phi)} for m > 0,
    m = 0, m < 0; here without the sqrt(2), and without the Condon-Shortley phase.

    Arguments:
        lmax: Largest degree.
        theta: Polar angles in radians, (n,).

    Returns:
        Float64 tensor (lmax + 1 orders m, lmax + 1 degrees l, n), zero for l < m.
    """
    table = special.sph_legendre_p_all(lmax, lmax, theta)[0][:, : lmax + 1]
    signs = (-1.0) ** np.arange(lmax + 1)
    return torch.from_numpy(np.ascontiguousarray((table * signs[:, None]).swapaxes(0, 1)))


def complex_from_real(degree: int) -> Tensor:
    """Unitary Q with c = Q g: complex coefficients (m = -l .. l) from real ones.

    c_m = (-1)^m (g_m - i g_-m) / sqrt(2), c_-m = (g_m + i g_-m) / sqrt(2) for m > 0, c_0 = g_0.

    Returns:
        Complex128 tensor (2l + 1, 2l + 1).
    """
    change = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=np.complex128)
    change[degree, degree] = 1
    for m in range(1, degree + 1):
        sign = (-1) ** m
        change[degree + m, degree + m] = sign / 2**0.5
        change[degree + m, degree - m] = -1j * sign / 2**0.5
        change[degree - m, degree + m] = 1 / 2**0.5
        change[degree - m, degree - m] = 1j / 2**0.5
    return torch.from_numpy(change)
