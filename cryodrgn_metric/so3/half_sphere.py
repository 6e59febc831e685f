"""Exact integrals over the sphere of functions that are known on its other half as well.

Where f(-theta) follows from f(theta), as it does for the Fourier transform of a real volume and
for the projections of a density, half of a Gauss-Legendre x uniform grid suffices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, pi

import numpy as np
import torch
from torch import Tensor

from cryodrgn_metric.so3.harmonics import gauss_legendre, legendre_table

__all__ = ["HalfSphere"]


@dataclass(frozen=True)
class HalfSphere:
    """Directions of the northern half sphere, and the table that integrates over both.

    Arguments:
        lmax: Largest degree of `analyse`.
        n_theta, n_phi: Rings of the half sphere, directions on each.
        directions: (n_theta * n_phi, 3) x, y, z of length 1.
        waves: (n_phi, wave, m), cosines and sines of m phi.
        table: (m, l, n_theta), Legendre table times quadrature weight.
        places: Of the packed coefficients among (m, l, wave, part).
    """

    lmax: int
    n_theta: int
    n_phi: int
    directions: np.ndarray
    waves: Tensor
    table: Tensor
    places: Tensor

    @classmethod
    def make(cls, lmax: int, band: int, weight: float = 1.0) -> HalfSphere:
        """Lay out the grid.

        Arguments:
            lmax: Largest degree of `analyse`.
            band: Products of this total degree are integrated exactly.
            weight: Of all integrals.
        """
        n_theta = ceil((band + 1) / 2)
        n_theta, n_phi = n_theta + n_theta % 2, band + 1
        theta, theta_weights = gauss_legendre(n_theta)
        theta, theta_weights = theta[: n_theta // 2], theta_weights[: n_theta // 2]
        phi = np.arange(n_phi) * (2 * pi / n_phi)
        directions = np.stack(
            [
                np.outer(np.sin(theta), np.cos(phi)),
                np.outer(np.sin(theta), np.sin(phi)),
                np.outer(np.cos(theta), np.ones(n_phi)),
            ],
            axis=-1,
        )
        # Twice: the southern half repeats the northern one.
        scale = 2 * theta_weights * (2 * pi / n_phi) * weight
        table = legendre_table(lmax, theta) * torch.from_numpy(scale.copy())
        table[1:] *= 2**0.5
        angles = torch.from_numpy(np.outer(phi, np.arange(lmax + 1)))
        waves = torch.stack([angles.cos(), angles.sin()], dim=1)
        size = n_theta // 2, n_phi
        return cls(lmax, *size, directions.reshape(-1, 3), waves, table, _places(lmax))

    def to(self, device: torch.device, dtype: torch.dtype) -> HalfSphere:
        """The same with its tables where and as they are used."""
        waves, table = self.waves.to(device, dtype), self.table.to(device, dtype)
        return replace(self, waves=waves, table=table, places=self.places.to(device))

    def analyse(self, samples: Tensor) -> Tensor:
        """Project samples on the harmonics of degree <= lmax.

        Two products; an FFT over phi would be no faster at these sizes, and needs more calls.

        Arguments:
            samples: The parts of the functions that are even under theta -> -theta, and the odd
                ones, at the directions: (2, functions, directions).

        Returns:
            ((lmax + 1)^2, functions); even l come from the even part, odd l from the odd one.
        """
        functions = samples.shape[1]
        rings = samples.unflatten(2, (self.n_theta, self.n_phi)).flatten(0, 2)
        orders = (rings @ self.waves.flatten(1)).view(2, functions, self.n_theta, 2, -1)
        by_order = orders.permute(4, 2, 3, 0, 1).flatten(2)  # m, theta, (wave, part, function)
        return torch.bmm(self.table, by_order).view(-1, functions)[self.places]


def _places(lmax: int) -> Tensor:
    """Where each packed coefficient (l, m) stands among (|m|, l, wave, part).

    The wave is a cosine, or a sine for m < 0; even l come from the even part, odd ones from the
    odd part.
    """
    places = [
        ((abs(m) * (lmax + 1) + degree) * 2 + (m < 0)) * 2 + degree % 2
        for degree in range(lmax + 1)
        for m in range(-degree, degree + 1)
    ]
    return torch.tensor(places)
