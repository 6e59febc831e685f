"""Continuous refinement: Newton steps on SO(3) from each candidate, marching up in degree.

With b' = D(R) b the correlation near R is C(w) = <a, exp(w·L) b'>, so value, gradient and
Hessian are ten inner products of b' with arrays that belong to a alone:

    C = <a, b'>,   dC/dw_i = -<L_i a, b'>,   d2C/dw_i dw_j = <(L_i L_j + L_j L_i) a, b'> / 2

Turning b uses Ry(beta) = K Rz(beta) K^T: phases and one fixed matrix a degree, shared by all
pairs, so a whole row of pairs is a handful of GEMMs.

References:
    Kruse et al., "Fast volume alignment by frequency-marched Newton", 2026, arXiv:2603.15285.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cryodrgn_metric.so3.rotations import (
    euler_from_matrix,
    matrix_from_rotation_vector,
    nearest_rotation,
)
from cryodrgn_metric.so3.wigner import Phases, generators, tilt_matrix, turn_about_z

__all__ = ["Derivatives", "march", "residual_squared", "turned"]

_STEP_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}  # radians
_PAIRS_OF_AXES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def _euler_phases(rotations: Tensor, lmax: int) -> tuple[Phases, Phases, Phases]:
    alpha, beta, gamma = euler_from_matrix(rotations)
    return Phases(alpha, lmax), Phases(beta, lmax), Phases(gamma, lmax)


def _turn_degree(block: Tensor, alpha: Phases, beta: Phases, gamma: Phases) -> Tensor:
    tilt = tilt_matrix(block.shape[0] // 2).to(block)
    turned_block = turn_about_z(block, gamma)
    turned_block = (tilt.mT @ turned_block.flatten(1)).view_as(block)
    turned_block = turn_about_z(turned_block, beta)
    turned_block = (tilt @ turned_block.flatten(1)).view_as(block)
    return turn_about_z(turned_block, alpha)


def turned(blocks: list[Tensor], rotations: Tensor) -> list[Tensor]:
    """Coefficients of R·V: D_l(R) applied to each degree.

    Arguments:
        blocks: Per degree (2l + 1, radial, columns), real.
        rotations: One per column, (columns, 3, 3).

    Returns:
        New blocks of the same shapes.
    """
    phases = _euler_phases(rotations, len(blocks) - 1)
    return [_turn_degree(block, *phases) for block in blocks]


class Derivatives:
    """Value, gradient and Hessian of the correlation with one fixed volume a.

    Arguments:
        reference: Coefficients of a, per degree (2l + 1, radial).
    """

    def __init__(self, reference: list[Tensor]) -> None:
        self._arrays = [self._degree_arrays(degree, a) for degree, a in enumerate(reference)]

    @staticmethod
    def _degree_arrays(degree: int, a: Tensor) -> Tensor:
        """a, -L_i a and (L_i L_j + L_j L_i) a / 2 as (10, (2l + 1) radial)."""
        generator = generators(degree).to(a)
        first = generator @ a
        second = [
            (generator[i] @ first[j] + generator[j] @ first[i]) / 2 for i, j in _PAIRS_OF_AXES
        ]
        return torch.cat([a[None], -first, torch.stack(second)]).flatten(1)

    def at(self, moving: list[Tensor], rotations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C (columns,), gradient (columns, 3), Hessian (columns, 3, 3) at the rotations."""
        phases = _euler_phases(rotations, len(moving) - 1)
        products = moving[0].new_zeros(10, rotations.shape[0])
        for arrays, block in zip(self._arrays, moving, strict=False):
            products += arrays @ _turn_degree(block, *phases).flatten(0, 1)
        xx, yy, zz, xy, xz, yz = products[4:]
        hessian = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=-1).reshape(-1, 3, 3)
        return products[0], products[1:4].T, hessian


@dataclass
class _Best:
    """The best point seen in each column, and how far the next step may go."""

    rotations: Tensor
    values: Tensor
    gradients: Tensor
    hessians: Tensor
    reach: Tensor

    def take(self, rotations: Tensor, derivatives: tuple[Tensor, Tensor, Tensor]) -> None:
        values, gradients, hessians = derivatives
        better = values >= self.values
        self.rotations = torch.where(better[:, None, None], rotations, self.rotations)
        self.gradients = torch.where(better[:, None], gradients, self.gradients)
        self.hessians = torch.where(better[:, None, None], hessians, self.hessians)
        self.values = torch.where(better, values, self.values)
        # A step that made it worse overshot: come back and go a quarter as far.
        self.reach = torch.where(better, self.reach, self.reach / 4)

    def step(self) -> Tensor:
        """Newton's step with the Hessian made negative definite, capped at `reach` radians."""
        scale, axes = torch.linalg.eigh(self.hessians)
        floor = 1e-6 * scale.abs().amax(dim=-1, keepdim=True) + torch.finfo(scale.dtype).tiny
        along = torch.einsum("cij,ci->cj", axes, self.gradients) / scale.abs().maximum(floor)
        step = torch.einsum("cij,cj->ci", axes, along)
        length = step.norm(dim=-1, keepdim=True)
        shrink: Tensor = (self.reach[:, None] / length.clamp(min=1e-30)).clamp(max=1.0)
        return step * shrink


def _climb(
    derivatives: Derivatives, moving: list[Tensor], rotations: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Up to `steps` safeguarded Newton steps at the degrees that `moving` holds."""
    reach = rotations.new_full((len(rotations),), 1.5 / len(moving))
    best = _Best(rotations, *derivatives.at(moving, rotations), reach)
    for _ in range(steps):
        step = best.step()
        trial = nearest_rotation(matrix_from_rotation_vector(step) @ best.rotations)
        best.take(trial, derivatives.at(moving, trial))
        if float(step.norm(dim=-1).amax()) < _STEP_TOLERANCE[rotations.dtype]:
            break
    return best.rotations, best.values


def march(
    derivatives: Derivatives,
    moving: list[Tensor],
    rotations: Tensor,
    bands: tuple[int, ...],
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Climb at each band limit in turn; peaks narrow as the degree rises.

    Arguments:
        derivatives: Of the fixed volume.
        moving: Coefficients per degree (2l + 1, radial, columns).
        rotations: Starts, (columns, 3, 3).
        bands: Band limits, rising.
        steps: Newton steps a band at most.

    Returns:
        Rotations (columns, 3, 3) and correlations (columns,) at the last band.
    """
    values = rotations.new_zeros(len(rotations))
    for band in bands:
        rotations, values = _climb(derivatives, moving[: band + 1], rotations, steps)
    return rotations, values


def residual_squared(reference: list[Tensor], moving: list[Tensor], rotations: Tensor) -> Tensor:
    """|a - D(R) b|^2 per column, summed from the residual itself.

    |a|^2 + |b|^2 - 2 C would lose everything below 1e-3 of |a| to cancellation in float32.
    """
    total = rotations.new_zeros(len(rotations))
    phases = _euler_phases(rotations, len(moving) - 1)
    for a, block in zip(reference, moving, strict=True):
        total += (a[..., None] - _turn_degree(block, *phases)).square().sum(dim=(0, 1))
    return total
