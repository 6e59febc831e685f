"""Fourier transforms at the points of a ball, from coefficients that are turned already.

A translation multiplies F(k) by a phase, which mixes all degrees; so turned coefficients are
evaluated on a quadrature of the half ball, shells x Gauss-Legendre x uniform, exact for the
product of two volumes and the phase between them. Three products do it: over the radial
directions, over l for every order m, over m.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, pi

import numpy as np
import torch
from torch import Tensor

from cryodrgn_metric.se3.motions import MOST_TRANSLATION
from cryodrgn_metric.so3.harmonics import gauss_legendre, legendre_table

__all__ = ["BallPoints"]


class BallPoints:
    """The quadrature, and how volumes are evaluated on it.

    Values are weighted: the sum of their squares over the points, real and imaginary parts, is
    the squared norm of the coefficients. Arrays of values are (2 · count, columns), in the order
    (phi, part, theta, shell) of rows.

    Arguments:
        directions: Radial directions per degree, (shells, radial).
        frequencies: Of the shells, 1/box, (shells,).
        dtype, device: Of the values.

    Attributes:
        k: Where the points lie, (count, 3) x, y, z in 1/box, in the order (phi, theta, shell).
        max_frequency: Of the outermost shell.
    """

    def __init__(
        self,
        directions: Sequence[Tensor],
        frequencies: Tensor,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lmax = len(directions) - 1
        self.max_frequency = float(frequencies.max())
        self._directions = [one.to(device, dtype) for one in directions]
        self._shells = len(frequencies)
        band = 2 * self.lmax + ceil(2 * pi * self.max_frequency * MOST_TRANSLATION) + 5
        half, self._n_phi = ceil((band + 1) / 4), band + 1
        theta, weights = gauss_legendre(2 * half)
        theta, weights = theta[:half], weights[:half]
        self._n_theta = half
        phi = np.arange(self._n_phi) * (2 * pi / self._n_phi)
        self._table = self._theta_table(theta, 2 * weights * (2 * pi / self._n_phi))
        self._table = self._table.to(device, dtype)
        self._waves = self._phi_table(phi).to(device, dtype)
        on_sphere = np.stack(
            [
                np.outer(np.cos(phi), np.sin(theta)),
                np.outer(np.sin(phi), np.sin(theta)),
                np.outer(np.ones_like(phi), np.cos(theta)),
            ],
            axis=-1,
        )
        k = torch.from_numpy(on_sphere)[:, :, None] * frequencies.double().cpu()[:, None]
        self.k = k.flatten(0, 2).to(device, dtype)

    def __len__(self) -> int:
        return len(self.k)

    def _theta_table(self, theta: np.ndarray, weights: np.ndarray) -> Tensor:
        """(m, plane, parity of l, theta, l of that parity), flattened to a batch of matrices."""
        degrees = self.lmax + 1
        legendre = legendre_table(self.lmax, theta) * torch.from_numpy(np.sqrt(weights))
        legendre[1:] *= 2**0.5
        table = torch.zeros(degrees, 2, 2, self._n_theta, (degrees + 1) // 2, dtype=torch.float64)
        for parity in range(2):
            of_parity = legendre[:, parity::2].mT  # m, theta, l
            table[:, :, parity, :, : of_parity.shape[2]] = of_parity[:, None]
        return table.flatten(0, 2)

    def _phi_table(self, phi: np.ndarray) -> Tensor:
        """(phi | m, plane): the even plane holds cosines of even m and sines of odd m."""
        m = np.arange(self.lmax + 1)
        angles = torch.from_numpy(np.outer(phi, m))
        planes = torch.stack([angles.cos(), angles.sin()], dim=2)
        planes[:, 1::2] = planes[:, 1::2].flip(2)
        return planes.flatten(1)

    def values(self, planes: Sequence[Tensor]) -> Tensor:
        """F at every point.

        Arguments:
            planes: Per degree (2, l + 1, radial, columns), as `so3.turning` lays them out.

        Returns:
            (2 · count, columns).
        """
        count, degrees = planes[0].shape[-1], self.lmax + 1
        shape = degrees, 2, 2, (degrees + 1) // 2, self._shells, count
        by_order = planes[0].new_zeros(shape)
        for degree, (directions, block) in enumerate(zip(self._directions, planes, strict=True)):
            shells = torch.matmul(directions, block)  # plane, m, shell, column
            by_order[: degree + 1, :, degree % 2, degree // 2] = shells.transpose(0, 1)
        over_theta = torch.bmm(self._table, by_order.flatten(0, 2).flatten(2))
        return (self._waves @ over_theta.view(2 * degrees, -1)).view(-1, count)

    def moved(self, values: Tensor, shifts: Tensor) -> Tensor:
        """exp(-i k·s) F: the volumes translated.

        Arguments:
            values: (2 · count, columns).
            shifts: s, (columns, 3), translations times 2 pi / box.
        """
        phase = self._spread(self.k @ shifts.mT)
        cos, sin = phase.cos(), phase.sin()
        real, imaginary = values.view(self._n_phi, 2, -1, values.shape[1]).unbind(1)
        moved = torch.stack([cos * real + sin * imaginary, cos * imaginary - sin * real], dim=1)
        return moved.view(values.shape)

    def times_i_k(self, values: Tensor, axis: int) -> Tensor:
        """i k_axis F at every point, what a translation does to first order, negated."""
        k = self._spread(self.k[:, axis : axis + 1])
        real, imaginary = values.view(self._n_phi, 2, -1, values.shape[1]).unbind(1)
        return torch.stack([-k * imaginary, k * real], dim=1).view(values.shape)

    def _spread(self, of_points: Tensor) -> Tensor:
        return of_points.view(self._n_phi, -1, of_points.shape[1])

    def product(self, fixed: Tensor, values: Tensor) -> Tensor:
        """conj(F1) F2 at every point, real and imaginary parts, as `waves` wants it.

        Arguments:
            fixed: (2 · count, 1).
            values: (2 · count, columns).
        """
        a, b = fixed.view(self._n_phi, 2, -1, 1).unbind(1)
        real, imaginary = values.view(self._n_phi, 2, -1, values.shape[1]).unbind(1)
        return torch.stack([a * real + b * imaginary, a * imaginary - b * real], 1).view(
            values.shape
        )

    def waves(self, shifts: Tensor) -> Tensor:
        """The matrix (shifts, 2 · count) that makes correlations of a `product`.

        Re sum of exp(-i k·s) conj(F1) F2 for every s.

        Arguments:
            shifts: (shifts, 3).
        """
        phase = self._spread(self.k @ shifts.mT)
        return torch.stack([phase.cos(), phase.sin()], dim=1).flatten(0, 2).mT.contiguous()
