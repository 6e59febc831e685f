"""Continuous refinement: Newton steps on SO(3) from each candidate, marching up in degree.

With b' = D(R) b the correlation near R is C(w) = <a, exp(w·L) b'>, so value, gradient and
Hessian are ten inner products of b' with arrays that belong to a alone:

    C = <a, b'>,   dC/dw_i = -<L_i a, b'>,   d2C/dw_i dw_j = <(L_i L_j + L_j L_i) a, b'> / 2

Turning b is what costs (`turning.py`), so every pair stops as soon as it can: its last step,
so small that the second order tells what it gains, is taken without turning b again.

References:
    Kruse et al., "Fast volume alignment by frequency-marched Newton", 2026, arXiv:2603.15285.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.rotations import matrix_from_rotation_vector, nearest_rotation
from cryodrgn_metric.so3.turning import EulerPhases, chosen_columns, plane_generators, turn

__all__ = ["Derivatives", "climb", "residual_squared"]

_ROUNDINGS = 4
_PAIRS_OF_AXES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class Derivatives:
    """Value, gradient and Hessian of the correlation of pairs of volumes.

    Arguments:
        volumes: Coefficients, per degree (2, l + 1, radial, volumes).
        rows: The volumes that stay fixed.
    """

    def __init__(self, volumes: list[Tensor], rows: list[int]) -> None:
        self.lmax = len(volumes) - 1
        self._volumes = volumes
        self._arrays = [
            dict(zip(rows, _derived_arrays(block[..., rows]), strict=True)) for block in volumes
        ]

    def at(self, pairs: Pairs, rotations: Tensor, lmax: int) -> tuple[Tensor, Tensor, Tensor]:
        """C (pairs,), gradient (pairs, 3), Hessian (pairs, 3, 3) at one rotation a pair."""
        phases = EulerPhases(rotations, lmax)
        products = rotations.new_zeros(10, len(pairs))
        segments = list(pairs.by_row())
        for arrays, block in zip(self._arrays, self._volumes[: lmax + 1], strict=False):
            moved = turn(chosen_columns(block, pairs.columns), phases).flatten(0, 2)
            for row, where in segments:
                products[:, where].addmm_(arrays[row], moved[:, where])
        xx, yy, zz, xy, xz, yz = products[4:]
        hessians = torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=-1).reshape(-1, 3, 3)
        return products[0], products[1:4].T, hessians


def _derived_arrays(a: Tensor) -> Tensor:
    """a, -L_i a and (L_i L_j + L_j L_i) a / 2 of volumes (2, l + 1, radial, rows).

    Returns:
        (rows, 10, 2 (l + 1) radial).
    """
    generator = plane_generators(a.shape[1] - 1, a.dtype, a.device)
    flat = a.flatten(2).flatten(0, 1)
    first = generator @ flat
    second = [(generator[i] @ first[j] + generator[j] @ first[i]) / 2 for i, j in _PAIRS_OF_AXES]
    arrays: Tensor = torch.cat([flat[None], -first, torch.stack(second)])
    of_rows: Tensor = arrays.unflatten(-1, a.shape[2:]).flatten(1, 2).movedim(-1, 0)
    return of_rows.contiguous()


class _Best:
    """The best point seen of every pair, and how far its next step may go."""

    def __init__(self, rotations: Tensor, reach: float) -> None:
        count = len(rotations)
        self.rotations = rotations.clone()
        self.values = rotations.new_full((count,), -torch.inf)
        self._gradients = rotations.new_zeros(count, 3)
        self._hessians = rotations.new_zeros(count, 3, 3)
        self._reach = rotations.new_full((count,), reach)

    def take(
        self, pairs: Tensor, rotations: Tensor, derivatives: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        """Move `pairs`, by index, to their trial rotations where these are higher."""
        values, gradients, hessians = derivatives
        better = values >= self.values[pairs] - self.rounding(pairs)
        at = pairs[better]
        self.rotations[at], self.values[at] = rotations[better], values[better]
        self._gradients[at], self._hessians[at] = gradients[better], hessians[better]
        # A step that made it worse overshot: come back and go a quarter as far.
        self._reach[pairs[~better]] /= 4

    def rounding(self, pairs: Tensor) -> Tensor:
        """What can't be seen in a correlation: no reason to go back, none to look once more."""
        seen: Tensor = self.values[pairs].abs() * torch.finfo(self.values.dtype).eps
        return _ROUNDINGS * seen

    def step(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's step with the Hessian made negative definite, and what it should gain.

        Returns:
            Rotation vectors (pairs, 3) of at most `reach` radians; gains (pairs,).
        """
        scale, axes = torch.linalg.eigh(self._hessians[pairs])
        floor = 1e-6 * scale.abs().amax(dim=-1, keepdim=True) + torch.finfo(scale.dtype).tiny
        slopes = torch.einsum("cij,ci->cj", axes, self._gradients[pairs])
        along = slopes / scale.abs().maximum(floor)
        length = along.norm(dim=-1, keepdim=True)
        along = along * (self._reach[pairs, None] / length.clamp(min=1e-30)).clamp(max=1.0)
        gains = (slopes * along + 0.5 * scale * along.square()).sum(dim=-1)
        return torch.einsum("cij,cj->ci", axes, along), gains

    def moved(self, pairs: Tensor, steps: Tensor) -> Tensor:
        """The rotations that these steps lead to."""
        return nearest_rotation(matrix_from_rotation_vector(steps) @ self.rotations[pairs])

    def go(self, pairs: Tensor, steps: Tensor, gains: Tensor) -> None:
        """Take these steps, believing their gains."""
        self.rotations[pairs] = self.moved(pairs, steps)
        self.values[pairs] += gains


def climb(
    derivatives: Derivatives,
    pairs: Pairs,
    rotations: Tensor,
    lmax: int,
    last_step: float,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Safeguarded Newton steps at one band limit until each pair's is short enough.

    Arguments:
        derivatives: Of the volumes, for all rows of the pairs.
        pairs: Which volumes.
        rotations: Starts, (pairs, 3, 3).
        lmax: Band limit of the correlation.
        last_step: Radians. A step as short as this is the last one, and b is not turned once
            more to see what it gained.
        steps: At most.

    Returns:
        Rotations (pairs, 3, 3) and correlations (pairs,).
    """
    best = _Best(rotations, reach=1.5 / (lmax + 1))
    active, trial = torch.arange(len(pairs), device=rotations.device), rotations
    for left in reversed(range(steps + 1)):
        best.take(active, trial, derivatives.at(pairs.at(active), trial, lmax))
        step, gains = best.step(active)
        last = (step.norm(dim=-1) <= last_step) | (gains <= best.rounding(active))
        best.go(active[last], step[last], gains[last])
        active, step = active[~last], step[~last]
        if not (left and len(active)):
            break
        trial = best.moved(active, step)
    return best.rotations, best.values


def residual_squared(volumes: list[Tensor], pairs: Pairs, rotations: Tensor) -> Tensor:
    """|a - D(R) b|^2 of every pair, summed from the residual itself.

    |a|^2 + |b|^2 - 2 C would lose everything below 1e-3 of |a| to cancellation in float32.

    Arguments:
        volumes: Per degree (2, l + 1, radial, volumes).
        pairs: Which volumes.
        rotations: One a pair, (pairs, 3, 3).
    """
    total = rotations.new_zeros(len(pairs))
    phases = EulerPhases(rotations, len(volumes) - 1)
    for block in volumes:
        moved = turn(chosen_columns(block, pairs.columns), phases)
        moved -= chosen_columns(block, pairs.rows)
        total += moved.square_().sum(dim=(0, 1, 2))
    return total
