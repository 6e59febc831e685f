"""Exhaustive search: the correlation of pairs of volumes over a grid of all rotations.

C(R) = sum_l tr(S_l^T D_l(R)) with S_l = A_l B_l^T, the product of the two volumes' coefficients
summed over shells. On the Euler grid this is three chained matrix products (over l with Wigner d,
then over m and m' with cosines and sines), with the pairs as the contiguous last axis, so the
same few GEMMs serve many pairs on CPU and CUDA alike.

References:
    Kovacs & Wriggers, "Fast rotational matching", Acta Cryst. D58, 2002,
    doi:10.1107/S0907444902009794.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from cryodrgn_metric.so3.harmonics import complex_from_real
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.rotations import angle_between, matrix_from_euler
from cryodrgn_metric.so3.turning import chosen_columns
from cryodrgn_metric.so3.wigner import small_wigner_d

__all__ = ["CoarseCorrelation", "Peaks"]

_MAXIMA = 32  # of the grid, looked at for each pair: a peak on a flank may show as several
# On a CPU the grids of as many pairs stay in the cache from the last product to the maxima.
_PAIRS_PER_CHUNK = {"cpu": 32}


@dataclass(frozen=True)
class Peaks:
    """Local maxima of the correlation: rotations (candidates, pairs, 3, 3), best first."""

    rotations: Tensor
    values: Tensor  # (candidates, pairs); -inf where a pair has fewer maxima


class CoarseCorrelation:
    """Correlation over a grid that covers all of SO(3), at degree <= lmax.

    The grid has 2 lmax + 2 nodes in alpha and gamma and lmax + 1 in beta, Nyquist
    spacing for the band limit. A peak may lie between nodes: refinement starts from its flank.

    What belongs to one volume is made ready once, for all its pairs.

    Arguments:
        blocks: Coefficients of the volumes up to the coarse band limit, per degree
            (2l + 1, radial, volumes); degree 10 to 12 finds the right basin.
        dtype: Of the coefficients.
        device: Of the coefficients.
    """

    def __init__(self, blocks: list[Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.lmax = lmax = len(blocks) - 1
        self._fixed = [_fixed_sides(degree, block) for degree, block in enumerate(blocks)]
        self._moving = [_moving_sides(degree, block) for degree, block in enumerate(blocks)]
        self._dtype, self._device = dtype, device
        n = 2 * lmax + 2
        self._alphas = torch.arange(n, dtype=torch.float64) * (2 * pi / n)
        self._betas = (torch.arange(lmax + 1, dtype=torch.float64) + 0.5) * (pi / (lmax + 1))
        self._wigner = self._wigner_table().to(self._device, self._dtype)
        self._gamma_transform = self._gamma_table().to(self._device, self._dtype)
        self._alpha_transform = self._alpha_table().to(self._device, self._dtype)
        self.grid = self._grid_rotations().to(self._device, self._dtype)

    def _wigner_table(self) -> Tensor:
        """d^l_{m'm}(beta) as (m' >= 0, m, 1, beta, l), zero where l < max(m', |m|)."""
        size = self.lmax + 1
        table = torch.zeros(size, 2 * self.lmax + 1, 1, size, size, dtype=torch.float64)
        for degree in range(size):
            d = small_wigner_d(degree, self._betas)[:, degree:]  # beta, m' >= 0, m
            orders = slice(self.lmax - degree, self.lmax + degree + 1)
            table[: degree + 1, orders, 0, :, degree] = d.permute(1, 2, 0)
        return table

    def _gamma_table(self) -> Tensor:
        """exp(-i m gamma) as a real matrix (part', gamma | m, part)."""
        m = torch.arange(-self.lmax, self.lmax + 1, dtype=torch.float64)
        phase = self._alphas[:, None] * m
        real = torch.stack([phase.cos(), phase.sin()], dim=-1)
        imaginary = torch.stack([-phase.sin(), phase.cos()], dim=-1)
        return torch.stack([real, imaginary]).flatten(2).flatten(0, 1)

    def _alpha_table(self) -> Tensor:
        """Re exp(-i m' alpha), doubled for m' > 0 since C is real: (alpha | m', part)."""
        m = torch.arange(self.lmax + 1, dtype=torch.float64)
        phase = self._alphas[:, None] * m
        weight = torch.where(m > 0, 2.0, 1.0)[:, None]
        return (torch.stack([phase.cos(), phase.sin()], dim=-1) * weight).flatten(1)

    def _grid_rotations(self) -> Tensor:
        """(alpha, gamma, beta, 3, 3)."""
        alpha, gamma, beta = torch.meshgrid(self._alphas, self._alphas, self._betas, indexing="ij")
        return matrix_from_euler(alpha, beta, gamma)

    def correlate(self, pairs: Pairs) -> Tensor:
        """C on the whole grid, (alpha, gamma, beta, pairs)."""
        size, n, count = self.lmax + 1, 2 * self.lmax + 2, len(pairs)
        segments = [*pairs.by_row()]
        products = self._wigner.new_zeros(size, 2 * self.lmax + 1, 2, size, count)
        for degree, (fixed, moving) in enumerate(zip(self._fixed, self._moving, strict=True)):
            b = chosen_columns(moving, pairs.columns)
            orders = slice(self.lmax - degree, self.lmax + degree + 1)
            for row, where in segments:
                # m, part, m', pairs
                s = torch.matmul(fixed[row], b[..., where]).unflatten(1, (2, degree + 1))
                products[: degree + 1, orders, :, degree, where] = s.permute(2, 0, 1, 3)
        over_beta = torch.matmul(self._wigner, products)  # m', m, part, beta, pairs
        over_gamma = torch.matmul(self._gamma_transform, over_beta.flatten(1, 2).flatten(2))
        over_alpha = self._alpha_transform @ over_gamma.view(2 * size, -1)
        return over_alpha.view(n, n, size, count)

    def peaks(self, pairs: Pairs, count: int, separation: float) -> Peaks:
        """The `count` highest local maxima at least `separation` radians apart, of each pair."""
        chunk = _PAIRS_PER_CHUNK.get(pairs.rows.device.type, len(pairs))
        found = [self._local_maxima(part, _MAXIMA) for part in pairs.split(chunk)]
        values, nodes = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return _separated(self.grid.view(-1, 3, 3)[nodes], values, count, separation)

    def _local_maxima(self, pairs: Pairs, count: int) -> tuple[Tensor, Tensor]:
        """Heights and grid nodes of the highest local maxima, each (count, pairs)."""
        correlation = self.correlate(pairs)
        highest = correlation >= _neighbourhood_maximum(correlation)
        maxima = torch.where(highest, correlation, -torch.inf).view(-1, len(pairs))
        values, nodes = maxima.topk(min(count, len(maxima)), dim=0)
        return values, nodes


def _fixed_sides(degree: int, block: Tensor) -> Tensor:
    """[[Re a, Im a], [-Im a, Re a]] for orders m' >= 0: (volumes, 2 (l + 1), 2 radial)."""
    change = complex_from_real(degree)[degree:].to(block.device)
    a = torch.tensordot(change, block.to(torch.complex128), dims=1).movedim(-1, 0)
    upper = torch.cat([a.real, a.imag], dim=2)
    lower = torch.cat([-a.imag, a.real], dim=2)
    return torch.cat([upper, lower], dim=1).to(block.dtype)


def _moving_sides(degree: int, block: Tensor) -> Tensor:
    """[Re b; Im b], (2l + 1, 2 radial, volumes)."""
    change = complex_from_real(degree).to(block.device)
    b = torch.tensordot(change, block.to(torch.complex128), dims=1)
    return torch.cat([b.real, b.imag], dim=1).to(block.dtype)


def _neighbourhood_maximum(correlation: Tensor) -> Tensor:
    """Maximum over the 26 neighbours and the node itself; alpha and gamma are periodic."""
    for dim in (0, 1):
        around = torch.maximum(correlation.roll(1, dim), correlation.roll(-1, dim))
        correlation = torch.maximum(correlation, around)
    result = correlation.clone()
    torch.maximum(result[:, :, 1:], correlation[:, :, :-1], out=result[:, :, 1:])
    torch.maximum(result[:, :, :-1], correlation[:, :, 1:], out=result[:, :, :-1])
    return result


def _separated(rotations: Tensor, values: Tensor, count: int, separation: float) -> Peaks:
    """Greedy choice: walk down the peaks, drop those near one already taken."""
    kept_rotations = rotations[:1].expand(count, *rotations.shape[1:]).clone()
    kept_values = values.new_full((count, values.shape[1]), -torch.inf)
    kept_values[0] = values[0]
    taken = torch.ones(values.shape[1], dtype=torch.long, device=values.device)
    columns = torch.arange(values.shape[1], device=values.device)
    for rotation, value in zip(rotations[1:], values[1:], strict=True):
        distance = angle_between(kept_rotations, rotation)
        distance = torch.where(torch.isinf(kept_values), torch.inf, distance)
        fresh = (distance.amin(dim=0) > separation) & torch.isfinite(value) & (taken < count)
        slots, at = taken[fresh], columns[fresh]
        kept_rotations[slots, at] = rotation[fresh]
        kept_values[slots, at] = value[fresh]
        taken = taken + fresh.long()
    return Peaks(kept_rotations, kept_values)
