"""The whole search for pairs of volumes: coarse grid, candidates, refinement, residual."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import radians

import torch
from torch import Tensor

from cryodrgn_metric.so3.correlation import CoarseCorrelation, Peaks
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.refine import Derivatives, climb, residual_squared
from cryodrgn_metric.so3.rotations import angle_between
from cryodrgn_metric.so3.turning import chosen_columns, to_planes, turned

__all__ = [
    "COARSE_LMAX",
    "PairResults",
    "RotationSearch",
    "converged_degree",
    "residual_by_degree",
]

COARSE_LMAX = 11
"""Degree of the exhaustive search: 10 to 12 found the right basin in every pair tried."""

_APART = radians(20)  # second peaks are at least as far from the best
_GRID_PEAKS_APART = radians(10)
_MET = radians(5)  # candidates as near to each other as this have climbed the same peak
_MOST_CANDIDATES = 12
"""Near-symmetric maps have as many peaks, nearly as high, as their group has rotations."""


@dataclass(frozen=True)
class _Following:
    """Which candidates are followed: so many in any case, and all nearly as high as the best.

    `margin` is a share of |a||b| without degree 0. A peak may lie between the nodes of the grid,
    where it looks lower by a tenth.
    """

    at_least: int
    margin: float


_FROM_GRID = _Following(at_least=4, margin=0.15)
_FROM_COARSE = _Following(at_least=3, margin=0.05)
_TO_LAST = _Following(at_least=1, margin=0.01)


@dataclass(frozen=True)
class _Thoroughness:
    """How far to climb.

    A last step of at most `last_step` / (lmax + 1) radians is taken unseen. What the second order
    misses of C is about last_step^3 / 6 of |a||b|.
    """

    last_step: float
    steps: int


_AS_A_START = _Thoroughness(0.3, steps=2)
_NEARLY = _Thoroughness(0.1, steps=3)  # 2e-4: tells which candidates can win
_TO_THE_END = {
    torch.float32: _Thoroughness(5e-3, steps=6),  # 2e-8
    torch.float64: _Thoroughness(1e-4, steps=6),  # 2e-13
}


@dataclass(frozen=True)
class PairResults:
    """What was found for each of many pairs, in their order; rotations are (pairs, 3, 3)."""

    distances: Tensor
    rotations: Tensor
    raw_distances: Tensor
    second_peak_gaps: Tensor
    translations: Tensor | None = None  # (pairs, 3), where a translation is taken out as well


class RotationSearch:
    """Exhaustive search, then refinement, of any pairs among many volumes.

    Arguments:
        blocks: Coefficients, per degree (2l + 1, radial, volumes).
        dtype: Theirs.
        device: Theirs.
    """

    translates = False

    def __init__(self, blocks: list[Tensor], dtype: torch.dtype, device: torch.device) -> None:
        self.count = blocks[0].shape[-1]
        self.lmax = len(blocks) - 1
        rough = [_strongest(block) for block in blocks[: 2 * COARSE_LMAX + 1]]
        self.coarse = CoarseCorrelation(rough[: COARSE_LMAX + 1], dtype, device)
        self._rough_volumes = [to_planes(block) for block in rough]
        self._volumes = [to_planes(block) for block in blocks]
        self._rms_norm = _squares(self._volumes).mean().sqrt()
        # of what turns: degree 0 adds the same to every correlation of a pair
        self._turning_norms = _squares(self._volumes[min(1, self.lmax) :]).sqrt()
        self._dtype, self._device = dtype, device

    def compare(self, pairs: Pairs) -> PairResults:
        """Search for the best rotation of every pair, and measure what it leaves."""
        pairs = pairs.to(self._device)
        return self._measure(pairs, self._candidates(pairs))

    def _candidates(self, pairs: Pairs) -> Peaks:
        """Refined local maxima of the correlation, best first."""
        scale = self._turning_norms[pairs.rows] * self._turning_norms[pairs.columns]
        rows = pairs.rows.unique_consecutive().tolist()
        rough, full = Derivatives(self._rough_volumes, rows), Derivatives(self._volumes, rows)
        peaks = self.coarse.peaks(pairs, _MOST_CANDIDATES, _GRID_PEAKS_APART)
        peaks = _only(peaks, _followed(peaks, scale, _FROM_GRID))
        peaks = _climbed(rough, pairs, peaks, self.coarse.lmax, _AS_A_START)
        peaks = _only(peaks, _followed(peaks, scale, _FROM_COARSE))
        if rough.lmax > self.coarse.lmax:
            peaks = _climbed(rough, pairs, peaks, rough.lmax, _AS_A_START)
        peaks = _climbed(full, pairs, peaks, self.lmax, _NEARLY)
        contenders = _followed(peaks, scale, _TO_LAST)
        peaks = _climbed(full, pairs, peaks, self.lmax, _TO_THE_END[self._dtype], contenders)
        return _merged(peaks, _APART)

    def rough_candidates(self, pairs: Pairs, count: int) -> Peaks:
        """Local maxima at the coarse degree, best first: starts for a search of another kind.

        Arguments:
            pairs: Which volumes.
            count: At most; a pair with fewer has values of -inf.
        """
        pairs = pairs.to(self._device)
        rough = Derivatives(self._rough_volumes, pairs.rows.unique_consecutive().tolist())
        peaks = self.coarse.peaks(pairs, count, _GRID_PEAKS_APART)
        return _climbed(rough, pairs, peaks, self.coarse.lmax, _AS_A_START)

    def _measure(self, pairs: Pairs, peaks: Peaks) -> PairResults:
        """Distances from residuals; the identity is a candidate, so delta <= raw."""
        best = peaks.rotations[0]
        squared = residual_squared(self._volumes, pairs, best)
        # of the second only the difference matters: |a|^2 + |b|^2 - 2 C cancels in it
        second = (squared + 2 * (peaks.values[0] - peaks.values[1])).sqrt()
        distances = squared.sqrt()
        gaps = (second - distances) / self._rms_norm
        raw = self._raw_squared(pairs).sqrt()
        eye = torch.eye(3, dtype=raw.dtype, device=raw.device)
        rotations = torch.where((distances <= raw)[:, None, None], best, eye)
        return PairResults(torch.minimum(distances, raw), rotations, raw, gaps)

    def _raw_squared(self, pairs: Pairs) -> Tensor:
        differences = (
            chosen_columns(block, pairs.rows) - chosen_columns(block, pairs.columns)
            for block in self._volumes
        )
        return _squares(differences)


def _strongest(block: Tensor) -> Tensor:
    """The first radial directions, which hold 99 % of a degree's energy: enough for a start.

    Arguments:
        block: (2l + 1, radial, volumes), the strongest directions first.
    """
    energy = block.square().sum(dim=(0, 2)).cumsum(0)
    return block[:, : int((energy < 0.99 * energy[-1]).sum()) + 1]


def _climbed(
    derivatives: Derivatives,
    pairs: Pairs,
    peaks: Peaks,
    lmax: int,
    thoroughness: _Thoroughness,
    chosen: Tensor | None = None,
) -> Peaks:
    """Climb from all candidates, or the chosen (candidates, pairs); merge those that met."""
    if chosen is None:
        chosen = torch.isfinite(peaks.values)
    of_pair, candidate = chosen.T.nonzero(as_tuple=True)
    at = candidate, of_pair
    rotations, values = peaks.rotations.clone(), peaks.values.clone()
    last_step, steps = thoroughness.last_step / (lmax + 1), thoroughness.steps
    rotations[at], values[at] = climb(
        derivatives, pairs.at(of_pair), peaks.rotations[at], lmax, last_step, steps
    )
    return _merged(Peaks(rotations, values), _MET)


def _followed(peaks: Peaks, scale: Tensor, rule: _Following) -> Tensor:
    """Which candidates to follow, (candidates, pairs), by their heights, the best first."""
    close = peaks.values >= peaks.values[0] - rule.margin * scale
    close[: rule.at_least] |= torch.isfinite(peaks.values[: rule.at_least])
    return close


def _only(peaks: Peaks, kept: Tensor) -> Peaks:
    """The others are dropped (-inf), and places at the end that no pair needs any more."""
    values = torch.where(kept, peaks.values, -torch.inf)
    needed = max(2, int(torch.isfinite(values).sum(dim=0).max()))
    return Peaks(peaks.rotations[:needed], values[:needed])


def _squares(planes: Iterable[Tensor]) -> Tensor:
    """Sum of squares over degrees, orders and radial directions, per column."""
    return torch.stack([block.square().sum(dim=(0, 1, 2)) for block in planes]).sum(dim=0)


def _merged(peaks: Peaks, separation: float) -> Peaks:
    """Sort candidates by height and drop (-inf) those nearer to a higher one, in radians."""
    order = peaks.values.argsort(dim=0, descending=True, stable=True)
    values = peaks.values.gather(0, order)
    rotations = peaks.rotations.gather(0, order[..., None, None].expand_as(peaks.rotations))
    for later in range(1, len(values)):
        apart = angle_between(rotations[:later], rotations[later])
        near = (apart < separation) & torch.isfinite(values[:later])
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
    count, device = blocks[0].shape[-1], blocks[0].device
    rows, columns = torch.triu_indices(count, count, offset=1, device=device)
    moving = [to_planes(block[..., columns]) for block in blocks]
    moved = turned(moving, rotations.to(blocks[0])[rows, columns])
    fixed = [to_planes(block[..., rows]) for block in blocks]
    return torch.stack([_squares([a - b]) for a, b in zip(fixed, moved, strict=True)])


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
