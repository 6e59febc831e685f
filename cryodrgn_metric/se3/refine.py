"""Joint refinement: Newton steps in all six parameters of a rigid motion, many motions at once.

With Y = T_s D(R) b the correlation near (R, s) is C(w, v) = <a, T_v exp(w·L) Y>, so value,
gradient and Hessian are 28 inner products of Y with arrays that belong to a alone:

    C = <a, Y>,   dC/dw_i = -<L_i a, Y>,   dC/dv_j = <i k_j a, Y>,
    d2C/dw_i dw_j = <(L_i L_j + L_j L_i) a, Y> / 2,   d2C/dv_i dv_j = -<k_i k_j a, Y>,
    d2C/dw_i dv_j = -<L_i (i k_j a), Y>,   L_i (i k_j a) = i k_j L_i a - i (e_i x k)_j a

and a step leads to (exp(w) R, exp(w) s + v). Angles are radians, shifts translations times
2 pi / box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cryodrgn_metric.se3.points import BallPoints
from cryodrgn_metric.so3.rotations import matrix_from_rotation_vector, nearest_rotation
from cryodrgn_metric.so3.turning import EulerPhases, chosen_columns, plane_generators, turn

__all__ = ["Climb", "MovedVolumes", "RigidDerivatives", "Sphere"]

_ROUNDINGS = 4
_PAIRS_OF_AXES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
# Values of volumes that are worked on together: on a CPU they should stay in a core's cache.
_VALUES_AT_ONCE = {"cpu": 1 << 20}
_VALUES_AT_ONCE_ELSEWHERE = 1 << 26


@dataclass(frozen=True)
class MovedVolumes:
    """Volumes that are moved onto another: their coefficients, and where they are evaluated.

    Arguments:
        planes: Per degree (2, l + 1, radial, volumes).
        points: Where.
    """

    planes: Sequence[Tensor]
    points: BallPoints

    def turned(self, columns: Tensor, rotations: Tensor) -> Tensor:
        """F of R·V at every point, (2 · count, columns)."""
        lmax = self.points.lmax
        phases = EulerPhases(rotations, lmax)
        planes = [turn(chosen_columns(b, columns), phases) for b in self.planes[: lmax + 1]]
        return self.points.values(planes)

    def moved(self, columns: Tensor, rotations: Tensor, shifts: Tensor) -> Tensor:
        """F of T_s R·V at every point."""
        return self.points.moved(self.turned(columns, rotations), shifts)

    def chunks(self, count: int) -> list[slice]:
        """Columns that are worked on together."""
        kind = self.points.k.device.type
        size = _VALUES_AT_ONCE.get(kind, _VALUES_AT_ONCE_ELSEWHERE) // (2 * len(self.points))
        size = max(4, size)
        return [slice(start, start + size) for start in range(0, count, size)]


class RigidDerivatives:
    """Value, gradient and Hessian of the correlation of one volume with others that move.

    Arguments:
        fixed: Its coefficients, per degree (2, l + 1, radial, 1).
        moving: The others.
    """

    def __init__(self, fixed: Sequence[Tensor], moving: MovedVolumes) -> None:
        self.moving = moving
        points = moving.points
        turning = points.values(
            [_turned_to_second_order(block) for block in fixed[: points.lmax + 1]]
        )
        a, first, second = turning[:, :1], turning[:, 1:4], turning[:, 4:]
        self.values = a
        along = [points.times_i_k(a, axis) for axis in range(3)]
        both = [points.times_i_k(along[i], j) for i, j in _PAIRS_OF_AXES]
        mixed = []
        for i in range(3):
            turned_k = [points.times_i_k(first[:, i : i + 1], axis) for axis in range(3)]
            # (e_i x k)_j: e_i x k has -k_m at j and k_j at m, for (i, j, m) cyclic
            j, m = (i + 1) % 3, (i + 2) % 3
            turned_k[j] = turned_k[j] + along[m]
            turned_k[m] = turned_k[m] - along[j]
            mixed += turned_k
        columns = [a, -first, *along, second, *both, *(-one for one in mixed)]
        self._arrays = torch.cat(columns, dim=1).mT.contiguous()

    def at(
        self, columns: Tensor, rotations: Tensor, shifts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """C (columns,), gradient (columns, 6), Hessian (columns, 6, 6); w first, then v."""
        found = [
            self._arrays @ self.moving.moved(columns[part], rotations[part], shifts[part])
            for part in self.moving.chunks(len(columns))
        ]
        products = torch.cat(found, dim=1)
        hessians = products.new_empty(len(columns), 6, 6)
        for start, offset in ((7, 0), (13, 3)):
            for number, (i, j) in enumerate(_PAIRS_OF_AXES):
                hessians[:, offset + i, offset + j] = products[start + number]
                hessians[:, offset + j, offset + i] = products[start + number]
        mixed = products[19:].view(3, 3, -1).permute(2, 0, 1)
        hessians[:, :3, 3:], hessians[:, 3:, :3] = mixed, mixed.mT
        return products[0], products[1:7].T, hessians

    def residual_squared(self, columns: Tensor, rotations: Tensor, shifts: Tensor) -> Tensor:
        """|a - T_s D(R) b|^2 of every column, summed from the residual itself."""
        found = [
            (self.moving.moved(columns[part], rotations[part], shifts[part]) - self.values)
            .square()
            .sum(dim=0)
            for part in self.moving.chunks(len(columns))
        ]
        return torch.cat(found)


def _turned_to_second_order(block: Tensor) -> Tensor:
    """a, L_i a, (L_i L_j + L_j L_i) a / 2 of one volume: (2, l + 1, radial, 10)."""
    generator = plane_generators(block.shape[1] - 1, block.dtype, block.device)
    flat = block[..., 0].flatten(0, 1)
    first = generator @ flat
    second = [(generator[i] @ first[j] + generator[j] @ first[i]) / 2 for i, j in _PAIRS_OF_AXES]
    stacked: Tensor = torch.stack([flat, *first, *second], dim=-1)
    planes: Tensor = stacked.unflatten(0, block.shape[:2])
    return planes


@dataclass(frozen=True)
class Sphere:
    """How far a volume may be translated: |t| <= radius, t = s + c1 - R c2.

    Volumes are compared about their own middles c, so a shift s between middles isn't yet the
    translation t between volumes. All are times 2 pi / box.

    Arguments:
        radius: The bound.
        fixed: c1, (3,).
        moving: c2 of every column, (columns, 3).
    """

    radius: float
    fixed: Tensor
    moving: Tensor

    def at(self, chosen: Tensor) -> Sphere:
        """The same for some of the columns."""
        return Sphere(self.radius, self.fixed, self.moving[chosen])

    def translations(self, rotations: Tensor, shifts: Tensor) -> Tensor:
        """t, (columns, 3)."""
        return shifts + self.fixed - (rotations @ self.moving[..., None])[..., 0]

    def shifts(self, rotations: Tensor, translations: Tensor) -> Tensor:
        """s, (columns, 3)."""
        return translations - self.fixed + (rotations @ self.moving[..., None])[..., 0]

    def held(self, rotations: Tensor, shifts: Tensor) -> Tensor:
        """The shifts, those beyond the bound brought back to it."""
        t = self.translations(rotations, shifts)
        length = t.norm(dim=-1, keepdim=True)
        inside = self.shifts(rotations, t * (self.radius / length.clamp(min=1e-12)))
        return torch.where(length > self.radius, inside, shifts)


class Climb:
    """Safeguarded Newton steps until each motion's is short enough.

    Arguments:
        derivatives: Of the fixed volume and those that move.
        sphere: The bound on translations, one entry a motion.
        columns: Which volume is moved, (motions,).

    Attributes:
        rotations, shifts, values: The best point seen of every motion.
    """

    def __init__(
        self, derivatives: RigidDerivatives, sphere: Sphere, columns: Tensor, rotations: Tensor
    ) -> None:
        points = derivatives.moving.points
        self._derivatives, self._sphere, self._columns = derivatives, sphere, columns
        # of steps in which the correlation changes as fast along all axes
        turn_unit, shift_unit = 1 / (points.lmax + 1), 1 / points.max_frequency
        self._units = rotations.new_tensor([turn_unit] * 3 + [shift_unit] * 3)
        count = len(columns)
        self.rotations = rotations.clone()
        self.shifts = rotations.new_zeros(count, 3)
        self.values = rotations.new_full((count,), -torch.inf)
        self._gradients = rotations.new_zeros(count, 6)
        self._hessians = rotations.new_zeros(count, 6, 6)
        self._reach = rotations.new_full((count,), 1.5)

    def run(self, shifts: Tensor, last_step: float, steps: int) -> Climb:
        """Climb from the rotations and these shifts.

        Arguments:
            shifts: (motions, 3).
            last_step: In units in which the correlation changes as fast along all axes: a step
                as short as this is the last one, and believed.
            steps: At most.
        """
        active = torch.arange(len(shifts), device=shifts.device)
        rotations = self.rotations.clone()
        shifts = self._sphere.held(rotations, shifts)
        for left in reversed(range(steps + 1)):
            self._take(active, rotations, shifts)
            step, gains = self._step(active)
            last = (step.norm(dim=-1) <= last_step) | (gains <= self._rounding(active))
            done = active[last]
            self.rotations[done], self.shifts[done] = self._moved(done, step[last])
            self.values[done] += gains[last]
            active, step = active[~last], step[~last]
            if not (left and len(active)):
                break
            rotations, shifts = self._moved(active, step)
        return self

    def _take(self, at: Tensor, rotations: Tensor, shifts: Tensor) -> None:
        values, gradients, hessians = self._derivatives.at(self._columns[at], rotations, shifts)
        better = values >= self.values[at] - self._rounding(at)
        good = at[better]
        self.rotations[good], self.shifts[good] = rotations[better], shifts[better]
        self.values[good] = values[better]
        self._gradients[good] = gradients[better] * self._units
        self._hessians[good] = hessians[better] * self._units * self._units[:, None]
        self._reach[at[~better]] /= 4

    def _rounding(self, at: Tensor) -> Tensor:
        seen: Tensor = self.values[at].abs() * torch.finfo(self.values.dtype).eps
        return torch.where(torch.isinf(seen), 0.0, _ROUNDINGS * seen)

    def _step(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Newton's step, its Hessian made negative definite, and what it should gain."""
        gradients, hessians = self._within_bound(at)
        scale, axes = torch.linalg.eigh(hessians)
        floor = 1e-6 * scale.abs().amax(dim=-1, keepdim=True) + torch.finfo(scale.dtype).tiny
        slopes = torch.einsum("cij,ci->cj", axes, gradients)
        along = slopes / scale.abs().maximum(floor)
        length = along.norm(dim=-1, keepdim=True)
        along = along * (self._reach[at, None] / length.clamp(min=1e-30)).clamp(max=1.0)
        gains = (slopes * along + 0.5 * scale * along.square()).sum(dim=-1)
        return torch.einsum("cij,cj->ci", axes, along), gains

    def _within_bound(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and Hessian along the bound, where the way up leads beyond it."""
        gradients, hessians = self._gradients[at], self._hessians[at]
        sphere = self._sphere.at(at)
        t = sphere.translations(self.rotations[at], self.shifts[at])
        length = t.norm(dim=-1).clamp(min=1e-12)
        outward = t / length[:, None]
        # of |t| to first order: t moves by v + w x (t - c1)
        normal = torch.cat([torch.linalg.cross(t - sphere.fixed, outward), outward], dim=1)
        normal = normal * self._units
        normal = normal / normal.norm(dim=1, keepdim=True)
        uphill = (normal * gradients).sum(dim=1)
        held = (length >= (1 - 1e-5) * sphere.radius) & (uphill > 0)
        if not bool(held.any()):
            return gradients, hessians
        n = torch.where(held[:, None], normal, 0.0)
        gradients = gradients - n * (n * gradients).sum(dim=1, keepdim=True)
        across = n[:, :, None] * n[:, None, :]
        keep = torch.eye(6, dtype=n.dtype, device=n.device) - across
        steepest = hessians.abs().amax(dim=(1, 2))[:, None, None]
        return gradients, keep @ hessians @ keep - steepest * across

    def _moved(self, at: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """Where these steps lead, no farther than the bound."""
        steps = steps * self._units
        turns = matrix_from_rotation_vector(steps[:, :3])
        rotations = nearest_rotation(turns @ self.rotations[at])
        shifts = (turns @ self.shifts[at][..., None])[..., 0] + steps[:, 3:]
        return rotations, self._sphere.at(at).held(rotations, shifts)
