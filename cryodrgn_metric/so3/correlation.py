"""Exhaustive search: the correlation of one volume with many over a grid of all rotations.

C(R) = sum_l tr(S_l^T D_l(R)) with S_l = A_l B_l^T, the product of the two volumes' coefficients
summed over shells. On the Euler grid this is three chained matrix products (over l with Wigner d,
then over m and m' with cosines and sines), with the pairs as the contiguous last axis, so the
same few GEMMs serve a whole row of pairs on CPU and CUDA alike.

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
from cryodrgn_metric.so3.rotations import angle_between, matrix_from_euler
from cryodrgn_metric.so3.wigner import small_wigner_d

__all__ = ["CoarseCorrelation", "Peaks"]


@dataclass(frozen=True)
class Peaks:
    """Local maxima of the correlation: rotations (candidates, columns, 3, 3), best first."""

    rotations: Tensor
    values: Tensor  # (candidates, columns); -inf where a column has fewer maxima


class CoarseCorrelation:
    """Correlation over a grid that covers all of SO(3), at degree <= lmax.

    The grid has 2 lmax + 2 nodes in alpha and gamma and lmax + 1 in beta, Nyquist
    spacing for the band limit. A peak may lie between nodes: refinement starts from its flank.

    Arguments:
        lmax: Coarse angular band limit; 10 to 12 finds the right basin.
        dtype: Of the coefficients.
        device: Of the coefficients.
    """

    def __init__(self, lmax: int, dtype: torch.dtype, device: torch.device) -> None:
        self.lmax = lmax
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

    def reference_side(self, blocks: list[Tensor]) -> list[Tensor]:
        """Coefficients (2l + 1, radial) of the fixed volume, made ready for `correlate`.

        Returns:
            Per degree [[Re a, Im a], [-Im a, Re a]], (2 (l + 1), 2 radial), for orders m' >= 0.
        """
        sides = []
        for degree, block in enumerate(blocks[: self.lmax + 1]):
            change = complex_from_real(degree)[degree:].to(block.device)
            a = change.to(torch.complex128) @ block.to(torch.complex128)
            upper = torch.cat([a.real, a.imag], dim=1)
            lower = torch.cat([-a.imag, a.real], dim=1)
            sides.append(torch.cat([upper, lower]).to(self._device, self._dtype))
        return sides

    def moving_side(self, blocks: list[Tensor]) -> list[Tensor]:
        """Coefficients (2l + 1, radial, columns) of the turned volumes, made ready once for all.

        Returns:
            Per degree [Re b; Im b], (2l + 1, 2 radial, columns).
        """
        sides = []
        for degree, block in enumerate(blocks[: self.lmax + 1]):
            change = complex_from_real(degree).to(block.device)
            flat = block.flatten(1)
            real = change.real.to(flat) @ flat
            imaginary = change.imag.to(flat) @ flat
            both = torch.stack([real, imaginary], dim=1).unflatten(2, block.shape[1:])
            sides.append(both.flatten(1, 2))
        return sides

    def correlate(self, reference: list[Tensor], moving: list[Tensor]) -> Tensor:
        """C on the whole grid, (alpha, gamma, beta, columns), of both prepared sides."""
        columns = moving[0].shape[-1]
        size, n = self.lmax + 1, 2 * self.lmax + 2
        products = moving[0].new_zeros(size, 2 * self.lmax + 1, 2, size, columns)
        for degree, (a, b) in enumerate(zip(reference, moving, strict=True)):
            s = torch.matmul(a, b).unflatten(1, (2, degree + 1))  # m, part, m', columns
            orders = slice(self.lmax - degree, self.lmax + degree + 1)
            products[: degree + 1, orders, :, degree] = s.permute(2, 0, 1, 3)
        over_beta = torch.matmul(self._wigner, products)  # m', m, part, beta, columns
        over_gamma = torch.matmul(self._gamma_transform, over_beta.flatten(1, 2).flatten(2))
        over_alpha = self._alpha_transform @ over_gamma.view(2 * size, -1)
        return over_alpha.view(n, n, size, columns)

    def peaks(self, correlation: Tensor, count: int, separation: float) -> Peaks:
        """The `count` highest local maxima at least `separation` radians apart, per column."""
        columns = correlation.shape[-1]
        maxima = torch.where(
            correlation >= _neighbourhood_maximum(correlation), correlation, -torch.inf
        )
        values, indices = maxima.view(-1, columns).topk(4 * count, dim=0)
        rotations = self.grid.view(-1, 3, 3)[indices]
        return _separated(rotations, values, count, separation)


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
    kept_values = torch.full_like(values[:count], -torch.inf)
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
