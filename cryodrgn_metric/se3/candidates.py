"""Candidate motions of pairs of volumes: sorted by their correlation, thinned out, merged."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, radians

import torch
from torch import Tensor

from cryodrgn_metric.so3.rotations import angle_between

__all__ = ["Following", "Motions", "merged"]

_MET = radians(5)  # candidates nearer to each other than this have climbed the same peak
_MET_SHIFT = 2 * pi * 0.01


@dataclass(frozen=True)
class Following:
    """How many motions are followed: between two numbers, those within a margin of the best.

    `margin` is a share of |a||b|.
    """

    at_least: int
    at_most: int
    margin: float


@dataclass(frozen=True)
class Motions:
    """Candidates of every pair, best first: (candidates, pairs, ...); values -inf for none."""

    rotations: Tensor
    shifts: Tensor
    values: Tensor

    def sorted(self) -> Motions:
        """The same, best first."""
        order = self.values.argsort(dim=0, descending=True, stable=True)
        return Motions(
            self.rotations.gather(0, order[..., None, None].expand_as(self.rotations)),
            self.shifts.gather(0, order[..., None].expand_as(self.shifts)),
            self.values.gather(0, order),
        )

    def followed(self, scale: Tensor, rule: Following) -> Tensor:
        """Which of them to follow, (candidates, pairs)."""
        close = self.values >= self.values[0] - rule.margin * scale
        close[: rule.at_least] |= torch.isfinite(self.values[: rule.at_least])
        close[rule.at_most :] = False
        return close

    def only(self, kept: Tensor) -> Motions:
        """The others are dropped (-inf), and places at the end that no pair needs any more."""
        values = torch.where(kept, self.values, -torch.inf)
        needed = max(1, int(torch.isfinite(values).sum(dim=0).max()))
        return Motions(self.rotations[:needed], self.shifts[:needed], values[:needed])


def merged(motions: Motions) -> Motions:
    """Drop (-inf) those that have climbed the same peak as a higher one."""
    values = motions.values.clone()
    for later in range(1, len(values)):
        apart = angle_between(motions.rotations[:later], motions.rotations[later])
        shifted = (motions.shifts[:later] - motions.shifts[later]).norm(dim=-1)
        met = (apart < _MET) & (shifted < _MET_SHIFT) & torch.isfinite(values[:later])
        values[later] = torch.where(met.any(dim=0), -torch.inf, values[later])
    return Motions(motions.rotations, motions.shifts, values).sorted()
