"""Projections of a density onto lines in all directions, by their quantile functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy import special
from torch import Tensor

from cryodrgn_metric.so3.half_sphere import HalfSphere

__all__ = ["Slices"]

_EXTRA_DEGREES = 4  # above lmax, that the quadrature over directions integrates exactly as well
_VOXELS_AT_ONCE = 8192
_BINS_PER_VOXEL = 2


@dataclass(frozen=True)
class Slices:
    """The directions and quantiles at which densities of one box are looked at.

    Arguments:
        box: n, in voxels.
        sphere: Directions theta, and what integrates over them.
        levels: p, symmetric about 1/2, (quantiles,).
        weights: Of the levels, sum 1, (quantiles,).
        positions: x, y, z of the voxels from the origin, (n^3, 3).
    """

    box: int
    sphere: HalfSphere
    levels: Tensor
    weights: Tensor
    positions: Tensor

    @classmethod
    def make(
        cls, box: int, lmax: int, quantiles: int, dtype: torch.dtype, device: torch.device
    ) -> Slices:
        """Lay out an antipodal half of the directions, and the levels.

        Arguments:
            box: n, in voxels.
            lmax: Largest degree that will be asked of the functions of theta.
            quantiles: How many, even.
            dtype: Of positions.
            device: Of everything.
        """
        # Gauss-Legendre nodes lie dense at both ends, where a small part that moved shows
        nodes, weights = special.roots_legendre(quantiles)
        axis = torch.arange(box, dtype=torch.float64) - box // 2
        zyx = torch.meshgrid(axis, axis, axis, indexing="ij")
        return cls(
            box,
            HalfSphere.make(lmax, 2 * (lmax + _EXTRA_DEGREES)).to(device, dtype),
            torch.from_numpy((1 + nodes) / 2).to(device),
            torch.from_numpy(weights / 2).to(device),
            torch.stack(zyx[::-1], dim=-1).view(-1, 3).to(device, dtype),
        )

    def quantiles(self, density: Tensor) -> Tensor:
        """q(theta, p) of a density's projection onto theta, less its mean.

        Arguments:
            density: (n^3,), nowhere negative.

        Returns:
            (directions, quantiles) float64, in voxels; NaN where there is no density.
        """
        profile = self.projected(density)
        cumulated = profile.cumsum(dim=1)
        cumulated = cumulated / cumulated[:, -1:]
        levels = self.levels.expand(len(profile), -1).contiguous()
        bins = torch.searchsorted(cumulated, levels).clamp(max=profile.shape[1] - 1)
        upper, share = cumulated.gather(1, bins), (profile / profile.sum(dim=1, keepdim=True))
        found = (bins + 0.5 - (upper - levels) / share.gather(1, bins)) / _BINS_PER_VOXEL
        return found - found @ self.weights[:, None]

    def projected(self, density: Tensor) -> Tensor:
        """The density's projections, (directions, bins) float64, in bins of half a voxel.

        Each voxel's mass is split between the two nearest bins, so that the mean is exact.
        """
        directions = torch.from_numpy(self.sphere.directions).to(self.positions)
        count, bins = len(directions), 2 * _BINS_PER_VOXEL * self.box + 3  # corners, too
        first = torch.arange(count, device=density.device)[:, None] * bins + bins // 2
        profile = density.new_zeros(count * bins, dtype=torch.float64)
        for inside in density.nonzero().squeeze(1).split(_VOXELS_AT_ONCE):
            along = _BINS_PER_VOXEL * directions @ self.positions[inside].mT
            lower = along.floor()
            upper_share = (along - lower).double() * density[inside]
            places = (lower.long() + first).flatten()
            for shift, mass in ((0, density[inside] - upper_share), (1, upper_share)):
                profile += torch.bincount(places + shift, mass.flatten(), len(profile))
        return profile.view(count, bins)
