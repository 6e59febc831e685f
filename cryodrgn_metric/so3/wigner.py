"""Wigner matrices: how the coefficients of one degree turn, and the generators of turning.

All tables come from the angular-momentum matrices J_x, J_y, J_z in float64: d(beta) is
U exp(-i beta m) U^H with U the eigenvectors of J_y, which is stable at any degree.

References:
    Feng, Wang, Yang, Jin, "High-precision evaluation of Wigner's d matrix by exact
    diagonalization", 2015, arXiv:1507.04535.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cryodrgn_metric.so3.harmonics import complex_from_real

__all__ = ["generators", "small_wigner_d", "tilt_matrix"]


def _angular_momentum(degree: int) -> tuple[Tensor, Tensor, Tensor]:
    """J_x, J_y, J_z on the complex harmonics m = -l .. l, each (2l + 1, 2l + 1) complex128."""
    m = torch.arange(-degree, degree + 1, dtype=torch.float64)
    raising = torch.diag(((degree - m[:-1]) * (degree + m[:-1] + 1)).sqrt(), -1)
    raising = raising.to(torch.complex128)
    lowering = raising.mT
    return (raising + lowering) / 2, (raising - lowering) / 2j, torch.diag(m).to(raising)


def _eigenvectors_of_jy(degree: int) -> Tensor:
    """U with J_y = U diag(m) U^H."""
    vectors: Tensor = torch.linalg.eigh(_angular_momentum(degree)[1])[1]
    return vectors


def small_wigner_d(degree: int, beta: Tensor) -> Tensor:
    """d^l_{m'm}(beta) = <l m'| exp(-i beta J_y) |l m>, orders from -l to l.

    Arguments:
        degree: l.
        beta: Angles in radians, (n,).

    Returns:
        Float64 tensor (n, 2l + 1, 2l + 1).

    Example:
        >>> d = small_wigner_d(1, torch.tensor([0.5], dtype=torch.float64))[0]
        >>> bool(torch.isclose(d[1, 1], torch.tensor(0.5).double().cos()))
        True
    """
    vectors = _eigenvectors_of_jy(degree)
    m = torch.arange(-degree, degree + 1, dtype=torch.float64)
    phases = torch.exp(-1j * beta.to(torch.float64)[:, None] * m)
    return ((vectors * phases[:, None, :]) @ vectors.mH).real


def _real_matrix(degree: int, matrix: Tensor) -> Tensor:
    change = complex_from_real(degree)
    return (change.mH @ matrix @ change).real.contiguous()


def tilt_matrix(degree: int) -> Tensor:
    """K = D(Rx(-pi/2)) on real coefficients, with which Ry(beta) = K Rz(beta) K^T.

    Returns:
        Float64 orthogonal tensor (2l + 1, 2l + 1).
    """
    m = torch.arange(-degree, degree + 1, dtype=torch.float64)
    quarter = torch.exp(-1j * torch.pi / 2 * m)
    d = small_wigner_d(degree, torch.tensor([-torch.pi / 2], dtype=torch.float64))[0]
    # Rx(angle) = Rz(-pi/2) Ry(angle) Rz(pi/2)
    return _real_matrix(degree, quarter.conj()[:, None] * d * quarter)


def generators(degree: int) -> Tensor:
    """L_i = d/dt D(R_i(t)) at t = 0 for i = x, y, z: real and antisymmetric.

    Returns:
        Float64 tensor (3, 2l + 1, 2l + 1).
    """
    return torch.stack([_real_matrix(degree, -1j * j) for j in _angular_momentum(degree)])
