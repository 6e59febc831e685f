"""The density of particles in a view of z', on a grid: plain, or per unit of Delta."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from cryodrgn_metric.errors import ArgumentError

__all__ = ["GridDensity", "Limits", "density_of", "limits_of", "negative_log"]

FloatArray = npt.NDArray[np.float64]
Limits = tuple[tuple[float, float], ...]

BINS = 128
OUTLYING = 0.0005  # of the particles, at each end of an axis, that do not widen the view
MARGIN = 0.12  # of the span, on each side
TRUNCATION = 4.0  # standard deviations at which the kernel ends
IQR_OF_NORMAL = 1.349  # interquartile range of a normal distribution, in standard deviations


@dataclass(frozen=True)
class GridDensity:
    r"""A density on a regular grid; it integrates to 1 over the particles, those outside included.

    Arguments:
        values: At the centres of the bins, per unit of length or area. :math:`(B,)` or
            :math:`(B, B)`, the first axis of the view first
        edges: Of the bins along each axis, in units of the view. :math:`(B + 1,)` each
        bandwidth: The standard deviation of the smoothing along each axis. :math:`(m,)`
        single: The peak that one particle alone would make.
    """

    values: FloatArray
    edges: tuple[FloatArray, ...]
    bandwidth: FloatArray
    single: float

    @property
    def centers(self) -> tuple[FloatArray, ...]:
        """The centres of the bins along each axis."""
        return tuple((edges[1:] + edges[:-1]) / 2 for edges in self.edges)


def limits_of(view: npt.ArrayLike) -> Limits:
    """The part of a view that a grid covers: nearly all particles, and a margin.

    Arguments:
        view: Coordinates of particles. (N, m)

    Returns:
        Lower and upper end of each axis: the 0.05th and 99.95th percentile, and 12 % of what
        lies between on each side.

    Example:
        >>> [(low, high)] = limits_of(np.linspace(0, 1, 10_001)[:, None])
        >>> round(low, 3), round(high, 3)
        (-0.119, 1.119)
    """
    points = _checked_view(view)
    low, high = np.quantile(points, [OUTLYING, 1 - OUTLYING], axis=0)
    margin = np.where(high > low, MARGIN * (high - low), 0.5)  # a column that does not vary
    return tuple(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def density_of(
    view: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    limits: Limits | None = None,
    bins: int = BINS,
) -> GridDensity:
    r"""Estimates the density of particles by a histogram, smoothed by a Gaussian.

    The bandwidth along each axis is Scott's, :math:`\sigma\, n^{-1/(m + 4)}`, with n the
    effective number of particles, :math:`(\sum w)^2 / \sum w^2`, and :math:`\sigma` the smaller
    of standard deviation and interquartile range / 1.349, so that far clusters don't blur all.

    With ``weights`` = `LocalGeometry.density_correction` this is the density per unit of Delta:
    what it would be in a map that is an isometry of h_psi. That is true of views that are
    isometries or projections of z' (its axes, its principal components), not of a UMAP.

    Arguments:
        view: One or two coordinates of each particle, in units of Delta. :math:`(N, m)`
        weights: What each particle counts, not negative; default: 1. :math:`(N,)`
        limits: As from `limits_of`, which is the default; one for all densities to be compared.
        bins: The number of bins B along each axis.

    Returns:
        The density; particles outside the limits have been counted, but are not shown.

    Raises:
        ArgumentError: If the view is not finite, empty or has more than two columns, or weights
            are negative, not finite or all zero.

    References:
        | Multivariate density estimation (Scott, 1992), doi:10.1002/9780470316849

    Example:
        >>> view = np.random.default_rng(0).normal(size=(10_000, 1))
        >>> density = density_of(view)
        >>> abs(float(density.values.max()) - 0.4) < 0.02  # 1 / sqrt(2 pi)
        True
    """
    points = _checked_view(view)
    mass = _checked_weights(weights, len(points))
    shown = limits_of(points) if limits is None else limits
    counts, edges = np.histogramdd(points, bins=bins, range=shown, weights=mass)
    effective = mass.sum() ** 2 / np.square(mass).sum()
    widths = np.array([edge[1] - edge[0] for edge in edges])
    bandwidth = _spread(points) * effective ** (-1 / (points.shape[1] + 4))
    bandwidth = np.maximum(bandwidth, widths)  # a kernel narrower than a bin shows the bins
    smooth = gaussian_filter(counts, bandwidth / widths, mode="constant", truncate=TRUNCATION)
    return GridDensity(
        values=smooth / (mass.sum() * widths.prod()),
        edges=tuple(edges),
        bandwidth=bandwidth,
        single=float(1 / (effective * np.prod(np.sqrt(2 * np.pi) * bandwidth))),
    )


def negative_log(density: GridDensity) -> FloatArray:
    r"""Gives :math:`-\ln(\rho / \max \rho)`, for contours; 0 at the densest point.

    One unit is a factor of e in density, as one kT would be, but this is NOT a free energy. The
    particles are those that were picked, kept and sorted by somebody; they froze in milliseconds
    or more, from a buffer, near an air-water interface; and a density depends on the coordinates
    in which it is taken, of which z' (or Delta) is one choice and no canonical one.

    Arguments:
        density: As from `density_of`.

    Returns:
        As ``density.values``; nan where there are no particles: where the density is below the
        peak that one particle alone would make.

    Example:
        >>> view = np.random.default_rng(0).normal(size=(10_000, 2))
        >>> values = negative_log(density_of(view))
        >>> float(np.nanmin(values)), bool(np.isnan(values[0, 0]))
        (0.0, True)
    """
    values = density.values
    is_empty = values < density.single
    shown = np.where(is_empty, values.max(), values)
    return np.asarray(np.where(is_empty, np.nan, np.log(values.max() / shown)))


def _spread(points: FloatArray) -> FloatArray:
    """A standard deviation along each axis that far particles do not inflate."""
    low, high = np.quantile(points, [0.25, 0.75], axis=0)
    deviation, robust = points.std(axis=0), (high - low) / IQR_OF_NORMAL
    return np.asarray(np.where(robust > 0, np.minimum(deviation, robust), deviation))


def _checked_view(view: npt.ArrayLike) -> FloatArray:
    points = np.asarray(view, dtype=np.float64)
    if points.ndim != 2 or len(points) == 0 or points.shape[1] not in (1, 2):
        raise ArgumentError(f"expected a view (N, 1) or (N, 2), N >= 1; got {points.shape}.")
    if not np.isfinite(points).all():
        raise ArgumentError("expected a finite view; got NaN or infinity.")
    return points


def _checked_weights(weights: npt.ArrayLike | None, count: int) -> FloatArray:
    if weights is None:
        return np.ones(count)
    mass = np.asarray(weights, dtype=np.float64)
    if mass.shape != (count,) or not np.isfinite(mass).all():
        raise ArgumentError(f"expected {count} finite weights; got shape {mass.shape}.")
    if (mass < 0).any() or not mass.any():
        raise ArgumentError("expected weights >= 0, not all 0.")
    return mass
