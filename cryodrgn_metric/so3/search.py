"""The whole search for one volume against many: coarse grid, candidates, refinement, residual."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import radians

import torch
from torch import Tensor

from cryodrgn_metric.so3.correlation import CoarseCorrelation, Peaks
from cryodrgn_metric.so3.refine import Derivatives, march, residual_squared, turned
from cryodrgn_metric.so3.rotations import angle_between

__all__ = [
    "COARSE_LMAX",
    "RotationSearch",
    "RowResult",
    "converged_degree",
    "residual_by_degree",
]

COARSE_LMAX = 11
"""Degree of the exhaustive search: 10 to 12 found the right basin in every pair tried."""

_CANDIDATES = 4
_SEPARATION = radians(20)
_CLOSE = 0.05  # candidates within this share of |a||b| of the best are refined to the end


@dataclass(frozen=True)
class RowResult:
    """One row tile: columns are the volumes that were turned onto the row's volume."""

    distances: Tensor
    rotations: Tensor
    raw_distances: Tensor
    second_peak_gaps: Tensor


class RotationSearch:
    """Exhaustive search, then refinement, of one volume against a range of others."""

    def __init__(self, blocks: list[Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.blocks = blocks
        self.count = blocks[0].shape[-1]
        lmax = len(blocks) - 1
        coarse = min(COARSE_LMAX, lmax)
        self.coarse = CoarseCorrelation(coarse, dtype, device)
        self.fine_bands = tuple(sorted({min(2 * coarse, lmax), lmax}))
        self._moving = self.coarse.moving_side(blocks)
        self._norms = _squares(blocks).sqrt()
        self._rms_norm = self._norms.square().mean().sqrt()

    def row(self, row: int, columns: slice) -> RowResult:
        """Compare volume `row` with the volumes in `columns`, which are turned onto it."""
        reference = [block[:, :, row] for block in self.blocks]
        moving = [block[:, :, columns] for block in self.blocks]
        rotations, values = self._candidates(reference, moving, row, columns)
        return self._measure(reference, moving, rotations, values)

    def _candidates(
        self, reference: list[Tensor], moving: list[Tensor], row: int, columns: slice
    ) -> tuple[Tensor, Tensor]:
        """Refined local maxima (candidates, columns, 3, 3) and correlations, best first."""
        grid = self.coarse.correlate(
            self.coarse.reference_side(reference),
            [side[..., columns] for side in self._moving],
        )
        peaks = self.coarse.peaks(grid, _CANDIDATES, _SEPARATION / 2)
        derivatives = Derivatives(reference)
        coarse_band = (self.coarse.lmax,)
        peaks = self._climb(derivatives, moving, peaks, coarse_band, torch.isfinite(peaks.values))
        scale = self._norms[row] * self._norms[columns]
        worthy = peaks.values >= peaks.values[0] - _CLOSE * scale
        worthy[:2] |= torch.isfinite(peaks.values[:2])
        peaks = self._climb(derivatives, moving, peaks, self.fine_bands, worthy)
        return peaks.rotations, peaks.values

    def _climb(
        self,
        derivatives: Derivatives,
        moving: list[Tensor],
        peaks: Peaks,
        bands: tuple[int, ...],
        worthy: Tensor,
    ) -> Peaks:
        """March the worthy candidates up the bands; merge those that met; best first."""
        _, columns = worthy.nonzero(as_tuple=True)
        chosen = [block[:, :, columns] for block in moving[: bands[-1] + 1]]
        climbed, heights = march(derivatives, chosen, peaks.rotations[worthy], bands, steps=4)
        rotations = peaks.rotations.clone()
        values = torch.full_like(peaks.values, -torch.inf)
        rotations[worthy], values[worthy] = climbed, heights
        return _merged(rotations, values)

    def _measure(
        self, reference: list[Tensor], moving: list[Tensor], rotations: Tensor, values: Tensor
    ) -> RowResult:
        """Distances from residuals; the identity is a candidate, so delta <= raw."""
        distances = residual_squared(reference, moving, rotations[0]).sqrt()
        raw = _squares(a[..., None] - b for a, b in zip(reference, moving, strict=True)).sqrt()
        second = residual_squared(reference, moving, rotations[1]).sqrt()
        gaps = ((second - distances) / self._rms_norm).clamp(min=0)
        gaps = torch.where(torch.isfinite(values[1]), gaps, torch.inf)
        keep = distances <= raw
        eye = torch.eye(3, dtype=raw.dtype, device=raw.device)
        best = torch.where(keep[:, None, None], rotations[0], eye)
        return RowResult(torch.minimum(distances, raw), best, raw, gaps)


def _squares(blocks: Iterable[Tensor]) -> Tensor:
    """Sum of squares over degrees, orders and radial directions, per column."""
    return torch.stack([block.square().sum(dim=(0, 1)) for block in blocks]).sum(dim=0)


def _merged(rotations: Tensor, values: Tensor) -> Peaks:
    """Sort candidates by height and drop (-inf) those within 20 degrees of a higher one."""
    order = values.argsort(dim=0, descending=True, stable=True)
    values = values.gather(0, order)
    rotations = rotations.gather(0, order[..., None, None].expand_as(rotations))
    for later in range(1, len(values)):
        apart = angle_between(rotations[:later], rotations[later])
        near = (apart < _SEPARATION) & torch.isfinite(values[:later])
        values[later] = torch.where(near.any(dim=0), -torch.inf, values[later])
    order = values.argsort(dim=0, descending=True, stable=True)
    return Peaks(
        rotations.gather(0, order[..., None, None].expand_as(rotations)), values.gather(0, order)
    )


def residual_by_degree(blocks: list[Tensor], rotations: Tensor) -> Tensor:
    """|a_l - D_l(R) b_l|^2 for every degree and pair i < j.

    Arguments:
        blocks: Per degree (2l + 1, radial, volumes).
        rotations: (volumes, volumes, 3, 3).

    Returns:
        (lmax + 1, pairs); its sum over degrees is Delta^2.
    """
    count = blocks[0].shape[-1]
    columns = []
    for row in range(count - 1):
        onto_row = rotations[row, row + 1 :].to(blocks[0])
        moved = turned([block[:, :, row + 1 :] for block in blocks], onto_row)
        degrees = [
            (block[:, :, row, None] - b).square().sum(dim=(0, 1))
            for block, b in zip(blocks, moved, strict=True)
        ]
        columns.append(torch.stack(degrees))
    return torch.cat(columns, dim=1)


def converged_degree(shares: Tensor, energies: Tensor) -> int:
    """Smallest lmax at which Delta is converged.

    It holds 99.75 % of Delta for the median pair and 99 % for all but one pair in a hundred.
    Where no two volumes differ by more than rounding, it holds 99.9 % of their energy instead.

    Arguments:
        shares: |a_l - D_l(R) b_l|^2, (lmax + 1, pairs), as from `residual_by_degree`.
        energies: Mean |a_l|^2 of the volumes, (lmax + 1,).
    """
    squared = shares.sum(dim=0)
    differing = squared > 1e-5 * energies.sum()
    if bool(differing.any()):
        held = (shares[:, differing].cumsum(dim=0) / squared[differing]).sqrt()
        enough = (held.median(dim=1).values >= 0.9975) & (held.quantile(0.01, dim=1) >= 0.99)
    else:
        enough = energies.cumsum(dim=0) >= 0.999 * energies.sum()
    return max(int(enough.nonzero()[0]), min(COARSE_LMAX, len(shares) - 1))
