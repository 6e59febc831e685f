"""The whole search for the best rigid motion: rotations, translations of each, joint refinement.

Rotations come from two exhaustive searches, one about the middles of the volumes, which a
translation can't mislead, one about the middle of the box, whose winner is always a candidate.
For each, the correlation is mapped over all translations at low resolution; the peaks are
refined in all six parameters, first at that resolution, the best of them at the full one.

References:
    Rotation first, then translation, is the order of molecular replacement:
    Tong, Rossmann & Arnold, International Tables for Crystallography B, ch. 2.3, 2010,
    doi:10.1107/97809553602060000765.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, radians

import torch
from torch import Tensor

from cryodrgn_metric.se3.candidates import Following, Motions, merged
from cryodrgn_metric.se3.motions import MOST_TRANSLATION
from cryodrgn_metric.se3.points import BallPoints
from cryodrgn_metric.se3.refine import Climb, MovedVolumes, RigidDerivatives, Sphere
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.rotations import angle_between
from cryodrgn_metric.so3.search import PairResults, RotationSearch
from cryodrgn_metric.so3.turning import to_planes

__all__ = ["CentredVolumes", "RigidSearch"]

_ABOUT_MIDDLES = 8  # rotations
_ABOUT_BOX = 4  # besides the best
_PEAKS = 2  # translations of each
_APART = radians(20)  # second peaks are at least as far from the best
_LOW_FREQUENCY = 8.0  # 1/box: where translations are looked for
_LOW_LMAX = 16
_STEPS_TO_BOUND = 3  # of the grid of translations: 1/30 of the box, half a period at 15/box


@dataclass(frozen=True)
class _Thoroughness:
    """How far to climb; steps in units in which the correlation changes as fast on all axes."""

    last_step: float
    steps: int


_FROM_MAP = Following(6, 10, 0.1)
_FROM_LOW = Following(3, 5, 0.03)
_TO_LAST = Following(1, 3, 0.004)
_AS_A_START = _Thoroughness(0.3, steps=3)
_NEARLY = _Thoroughness(0.1, steps=3)
_TO_THE_END = {
    torch.float32: _Thoroughness(5e-3, steps=12),
    torch.float64: _Thoroughness(1e-4, steps=20),
}


@dataclass(frozen=True)
class CentredVolumes:
    """Volumes about their own middles.

    Arguments:
        blocks: Coefficients, per degree (2l + 1, radial, volumes).
        directions: The radial directions of each degree, (shells, radial).
        frequencies: Of the shells, 1/box.
        centroids: The middles, (volumes, 3), times 2 pi / box.
    """

    blocks: list[Tensor]
    directions: list[Tensor]
    frequencies: Tensor
    centroids: Tensor


class RigidSearch:
    """The best rigid motion of any pairs among many volumes, |t| <= 10 % of the box.

    Arguments:
        about_box: Coefficients about the middle of the box, per degree (2l + 1, radial, volumes).
        centred: The same volumes about their own middles.
        dtype, device: Theirs.
    """

    def __init__(
        self,
        about_box: list[Tensor],
        centred: CentredVolumes,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.count = about_box[0].shape[-1]
        self._about_box = RotationSearch(about_box, dtype, device)
        self._about_middles = RotationSearch(centred.blocks, dtype, device)
        self._planes = [to_planes(block) for block in centred.blocks]
        self._centroids = centred.centroids.to(device, dtype)
        squares = torch.stack([b.square().sum(dim=(0, 1)) for b in centred.blocks]).sum(dim=0)
        self._norms = squares.sqrt()
        self._full = BallPoints(centred.directions, centred.frequencies, dtype, device)
        low = centred.frequencies <= max(_LOW_FREQUENCY, float(centred.frequencies[0]))
        self._low = BallPoints(
            [one[low] for one in centred.directions[: _LOW_LMAX + 1]],
            centred.frequencies[low],
            dtype,
            device,
        )
        self._grid = _ball_grid(_STEPS_TO_BOUND).to(device, dtype)
        self._radius = 2 * pi * MOST_TRANSLATION
        inside = self._grid.norm(dim=1) <= 1 + 1e-6
        self._nodes = inside.nonzero()[:, 0]
        self._grid_shifts = self._grid[self._nodes] * self._radius
        self._grid_waves = self._low.waves(self._grid_shifts)
        self._dtype, self._device = dtype, device

    def compare(self, pairs: Pairs) -> PairResults:
        """Search for the best motion of every pair, and measure what it leaves.

        Returns:
            `PairResults`; translations in 2 pi / box. What rotation alone leaves is an upper
            bound: where nothing below it is found, it is the answer, with a translation of zero.
        """
        pairs = pairs.to(self._device)
        turned = self._about_box.compare(pairs)
        peaks = [
            self._about_middles.rough_candidates(pairs, _ABOUT_MIDDLES),
            self._about_box.rough_candidates(pairs, _ABOUT_BOX),
        ]
        starts = torch.cat([turned.rotations[None], *(one.rotations for one in peaks)])
        there = torch.cat([torch.isfinite(one.values) for one in peaks])
        there = torch.cat([torch.ones_like(there[:1]), there])
        found = [
            self._of_row(row, pairs.columns[where], starts[:, where], there[:, where])
            for row, where in pairs.by_row()
        ]
        distances, gaps, rotations, translations = (
            torch.cat(part) for part in zip(*found, strict=True)
        )
        better = distances < turned.distances
        return PairResults(
            torch.minimum(distances, turned.distances),
            torch.where(better[:, None, None], rotations, turned.rotations),
            turned.raw_distances,
            torch.where(better, gaps, turned.second_peak_gaps),
            torch.where(better[:, None], translations, 0.0),
        )

    def refined(
        self, row: int, columns: Tensor, rotations: Tensor, translations: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Climb from any motions of volumes onto one, and measure: for audits of the search.

        Arguments:
            row: The volume that stays.
            columns: Which volume each motion moves, (motions,).
            rotations, translations: The starts; translations in 2 pi / box.

        Returns:
            Distances, rotations, translations.
        """
        sphere = Sphere(self._radius, self._centroids[row], self._centroids[columns])
        shifts = sphere.shifts(rotations, translations)
        low, full = self._derivatives(row)
        for derivatives, how in (
            (low, _TO_THE_END[self._dtype]),
            (full, _TO_THE_END[self._dtype]),
        ):
            climb = Climb(derivatives, sphere, columns, rotations)
            climb.run(shifts, how.last_step, how.steps)
            rotations, shifts = climb.rotations, climb.shifts
        squared = full.residual_squared(columns, rotations, shifts)
        return squared.sqrt(), rotations, sphere.translations(rotations, shifts)

    def _derivatives(self, row: int) -> tuple[RigidDerivatives, RigidDerivatives]:
        """At low and at full resolution."""
        fixed = [block[..., row : row + 1] for block in self._planes]
        low = RigidDerivatives(fixed, MovedVolumes(self._planes, self._low))
        return low, RigidDerivatives(fixed, MovedVolumes(self._planes, self._full))

    def _of_row(
        self, row: int, columns: Tensor, starts: Tensor, there: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Distance, second-peak gap, rotation and translation of one volume's pairs."""
        low, full = self._derivatives(row)
        scale = self._norms[row] * self._norms[columns]
        sphere = Sphere(self._radius, self._centroids[row], self._centroids[columns])
        motions = self._mapped(low, sphere, columns, starts, there)
        motions = motions.only(motions.followed(scale, _FROM_MAP))
        motions = _climbed(low, sphere, columns, motions, _AS_A_START)
        motions = motions.only(motions.followed(scale, _FROM_LOW))
        motions = _climbed(full, sphere, columns, motions, _NEARLY)
        last = motions.followed(scale, _TO_LAST)
        motions = _climbed(full, sphere, columns, motions, _TO_THE_END[self._dtype], last)
        best, shift = motions.rotations[0], motions.shifts[0]
        squared = full.residual_squared(columns, best, shift)
        distances = squared.sqrt()
        gaps = _gaps(motions, squared) / self._norms.square().mean().sqrt()
        return distances, gaps, best, sphere.translations(best, shift)

    def _mapped(
        self,
        low: RigidDerivatives,
        sphere: Sphere,
        columns: Tensor,
        starts: Tensor,
        there: Tensor,
    ) -> Motions:
        """The highest translations of every rotation that is a start."""
        of_start, of_pair = there.nonzero(as_tuple=True)
        rotations = starts[of_start, of_pair]
        offsets = sphere.at(of_pair).shifts(rotations, torch.zeros_like(rotations[:, 0]))
        maps = []
        for part in low.moving.chunks(len(of_pair)):
            moved = low.moving.moved(columns[of_pair[part]], rotations[part], offsets[part])
            maps.append(self._grid_waves @ low.moving.points.product(low.values, moved))
        values, nodes = self._map_peaks(torch.cat(maps, dim=1))
        shape = (_PEAKS, *there.shape)
        result = Motions(
            starts.expand(*shape, 3, 3).clone(),
            starts.new_zeros(*shape, 3),
            starts.new_full(shape, -torch.inf),
        )
        result.values[:, of_start, of_pair] = values
        result.shifts[:, of_start, of_pair] = offsets + self._grid_shifts[nodes]
        flat = (getattr(result, name).flatten(0, 1) for name in ("rotations", "shifts", "values"))
        return Motions(*flat).sorted()

    def _map_peaks(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Heights and nodes of the highest local maxima, each (peaks, columns)."""
        side = 2 * _STEPS_TO_BOUND + 1
        cubes = maps.new_full((maps.shape[1], side**3), -torch.inf)
        cubes[:, self._nodes] = maps.T
        cubes = cubes.view(-1, 1, side, side, side)
        highest = torch.nn.functional.max_pool3d(cubes, 3, stride=1, padding=1)
        peaks = torch.where(cubes >= highest, cubes, -torch.inf).flatten(1)[:, self._nodes]
        values, nodes = peaks.topk(_PEAKS, dim=1)
        return values.T, nodes.T


def _ball_grid(steps: int) -> Tensor:
    """A cubic grid over [-1, 1]^3, ((2 steps + 1)^3, 3)."""
    axis = torch.linspace(-1, 1, 2 * steps + 1, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis, axis)


def _climbed(
    derivatives: RigidDerivatives,
    sphere: Sphere,
    columns: Tensor,
    motions: Motions,
    how: _Thoroughness,
    chosen: Tensor | None = None,
) -> Motions:
    """Climb from all candidates, or the chosen (candidates, pairs)."""
    if chosen is None:
        chosen = torch.isfinite(motions.values)
    at = chosen.nonzero(as_tuple=True)
    of_pair = at[1]
    climb = Climb(derivatives, sphere.at(of_pair), columns[of_pair], motions.rotations[at])
    climb.run(motions.shifts[at], how.last_step, how.steps)
    rotations, shifts = motions.rotations.clone(), motions.shifts.clone()
    values = motions.values.clone()
    rotations[at], shifts[at], values[at] = climb.rotations, climb.shifts, climb.values
    return merged(Motions(rotations, shifts, values).sorted())


def _gaps(motions: Motions, squared: Tensor) -> Tensor:
    """How much farther the best motion is that turns by 20 degrees more or less; inf for none."""
    apart = angle_between(motions.rotations, motions.rotations[0]) >= _APART
    second = torch.where(apart, motions.values, -torch.inf).amax(dim=0)
    return (squared + 2 * (motions.values[0] - second)).sqrt() - squared.sqrt()
