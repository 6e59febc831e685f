"""Landmarks as free points in 1, 2, ... dimensions, and how many of these they fill."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.fidelity import subsamples
from cryodrgn_metric.free_points import classical_points, fitted_points, pair_weights
from cryodrgn_metric.local_volume import (
    FEWEST_NEIGHBORS,
    even_share,
    last_shares,
    misplaced_shares,
    neighbors_of,
)

__all__ = ["CLEAR", "THRESHOLD", "EmbeddedLandmarks"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

THRESHOLD = 0.5  # of what points have that fill a dimension evenly
CLEAR = (0.3, 0.7)  # a dimension whose share lies between may be one
CLOSE = 3  # one in so many neighbours of a patch, at twice whose radius L2 saturates
STEPS_AGAIN = 40  # of a fit that starts from where the points were among more landmarks


@dataclass(frozen=True)
class EmbeddedLandmarks:
    """Free points whose distances equal Delta as well as they can, in each d'.

    Arguments:
        distances: Delta. (L, L)
        points: Under the loss asked for, in 1, 2, ... dimensions; (L, d') each.
        relative: The same under Eq. 8, which minds strangers laid on each other; Eq. 9 hardly
            does.
        loss: The one asked for.
        most: The most dimensions to answer.
    """

    distances: FloatArray
    points: tuple[FloatArray, ...]
    relative: tuple[FloatArray, ...]
    loss: str
    most: int
    _shares: dict[int, tuple[float, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def fitted(
        cls, distances: FloatArray, dimensions: tuple[int, ...], loss: str, most: int
    ) -> EmbeddedLandmarks:
        """Fit all of them: from most dimensions, where no point is in another's way, down to 1.

        Arguments:
            distances: Symmetric. (L, L)
            dimensions: 1, 2, ...
            loss: ``weighted`` or ``relative``.
            most: The most dimensions to answer.
        """
        even, asked = (pair_weights(distances, each) for each in ("relative", loss))
        start = classical_points(distances, dimensions[-1])
        points, relative = [], []
        for dimension in reversed(dimensions):
            start, _ = fitted_points(start[:, :dimension], distances, even)
            relative.append(start)
            points.append(fitted_points(start, distances, asked)[0])
        return cls(distances, tuple(points[::-1]), tuple(relative[::-1]), loss, most)

    def last_variance(self, count: int) -> tuple[float, ...]:
        """The median share of the last local principal component, for each d'.

        Arguments:
            count: Neighbours of a patch.
        """
        if count not in self._shares:
            patches = neighbors_of(self.distances, count)
            self._shares[count] = tuple(
                float(np.median(last_shares(points, patches))) for points in self.points
            )
        return self._shares[count]

    def dimension_at(self, count: int, threshold: float = THRESHOLD) -> int:
        """The last d' before the share drops below a part of that of evenly spread points."""
        shares = self.last_variance(count)
        return min(self.most, _before_drop(shares, count, threshold))

    def misplaced(self, count: int) -> tuple[tuple[float, float], ...]:
        """The shares that each d' lays on strangers and tears off, as points under Eq. 8."""
        fewer = max(FEWEST_NEIGHBORS, count // CLOSE)
        return tuple(misplaced_shares(points, self.distances, fewer) for points in self.relative)

    def dimensions_of_subsamples(self, count: int, seed: int, repeats: int) -> list[int]:
        """The answers of subsamples of the landmarks, each embedded anew; at the same scale.

        Arguments:
            count: Neighbours of a patch among all landmarks.
            seed: Of the draws.
            repeats: How many.
        """
        drawn = subsamples(len(self.distances), seed, repeats)
        return [self._dimension_among(rows, count) for rows in drawn]

    def _dimension_among(self, rows: IntArray, count: int) -> int:
        distances = self.distances[np.ix_(rows, rows)]
        fewer = round(count * len(rows) / len(self.distances))
        fewer = min(max(FEWEST_NEIGHBORS, fewer), len(rows) - 1)
        patches = neighbors_of(distances, fewer)
        weights = pair_weights(distances, self.loss)
        for number, points in enumerate(self.points[: self.most]):
            again, _ = fitted_points(points[rows], distances, weights, STEPS_AGAIN)
            share = float(np.median(last_shares(again, patches)))
            if share < THRESHOLD * even_share(fewer + 1, number + 1):
                return number
        return min(self.most, len(self.points))


def _before_drop(shares: tuple[float, ...], count: int, threshold: float) -> int:
    for number, share in enumerate(shares):
        if share < threshold * even_share(count + 1, number + 1):
            return number
    return len(shares)
