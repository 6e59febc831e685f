"""Fidelity: how well Euclidean distances of an embedding equal the measured distances."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata

from cryodrgn_metric.errors import ArgumentError

__all__ = [
    "MEASURES",
    "distance_errors",
    "fidelity_of",
    "intervals_of",
    "median_distance",
    "subsampling_interval",
    "subsamples",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Interval = tuple[float, float]

SUBSAMPLE_FRACTION = 0.63
NEIGHBORS = 10
REPEATS, COVERAGE = 100, 0.95  # of intervals_of

MEASURES = ("stress1", "sammon", "spearman", "trustworthiness", "continuity")
"""What the report shows of `fidelity_of`, each with its interval."""


def fidelity_of(embedding: npt.ArrayLike, distances: npt.ArrayLike) -> dict[str, float]:
    r"""Measures how faithfully an embedding shows the distances of its points.

    With :math:`d` the embedding's distances and :math:`\Delta` the measured ones over all
    pairs :math:`i < j`, and for each measure the best scale :math:`a \geq 0`,

    .. math::
        \text{stress1} = \sqrt{\frac{\sum (a d - \Delta)^2}{\sum \Delta^2}}, \quad
        \text{sammon} = \frac{\sum (a d - \Delta)^2 / \Delta}{\sum \Delta}.

    Pairs with :math:`\Delta = 0` are left out of the Sammon stress, which is not defined there.
    Trustworthiness is lost where the embedding shows neighbours that are none, continuity where
    it tears neighbours apart.

    Arguments:
        embedding: Coordinates :math:`(n, d')`, or square distances :math:`(n, n)` (recognised by
            being square, symmetric and zero on the diagonal).
        distances: Measured distances, symmetric. :math:`(n, n)`

    Returns:
        ``stress1``, ``stress1_unscaled`` (:math:`a = 1`), ``sammon``, ``spearman``, ``pearson``,
        ``trustworthiness`` and ``continuity`` (of the 10 nearest neighbours, fewer where there
        are few points). A correlation with a constant is nan.

    Raises:
        ArgumentError: If shapes disagree, or there are fewer than 3 points.

    References:
        | Multidimensional scaling by optimizing goodness of fit (Kruskal, 1964),
          doi:10.1007/BF02289565
        | A nonlinear mapping for data structure analysis (Sammon, 1969),
          doi:10.1109/T-C.1969.222678
        | Neighborhood preservation in nonlinear projection methods (Venna & Kaski, 2001),
          doi:10.1007/3-540-44668-0_68

    Example:
        >>> points = np.random.default_rng(0).normal(size=(30, 2))
        >>> measured = squareform(pdist(points))
        >>> found = fidelity_of(3 * points, measured)
        >>> print(f"{found['stress1']:.3f} {found['stress1_unscaled']:.3f}")
        0.000 2.000
    """
    measured = _checked_square(distances)
    shown = _as_distances(embedding, len(measured))
    upper = np.triu_indices(len(measured), 1)
    d, target = shown[upper], measured[upper]
    return {
        "stress1": _stress1(d * _scale(d, target, np.ones_like(d)), target),
        "stress1_unscaled": _stress1(d, target),
        "sammon": _sammon(d, target),
        "spearman": _correlation(rankdata(d), rankdata(target)),
        "pearson": _correlation(d, target),
        "trustworthiness": _trustworthiness(shown, measured),
        "continuity": _trustworthiness(measured, shown),
    }


def distance_errors(predicted: npt.ArrayLike, measured: npt.ArrayLike) -> dict[str, float]:
    r"""Summarises the error of predicted distances.

    The relative error of a pair is :math:`|h - \Delta| / \Delta`; pairs with
    :math:`\Delta = 0` have none and are left out of it.

    Arguments:
        predicted: :math:`h_\psi`, one number per pair. :math:`(n,)`
        measured: :math:`\Delta` of the same pairs. :math:`(n,)`

    Returns:
        ``median_relative_error``, ``percentile_90_relative_error``, ``pearson``, ``spearman``.

    Raises:
        ArgumentError: If the shapes differ or there are no pairs.

    Example:
        >>> errors = distance_errors([1.1, 2.0, 3.3], [1.0, 2.0, 3.0])
        >>> round(errors["median_relative_error"], 3)
        0.1
    """
    h = np.asarray(predicted, dtype=np.float64).ravel()
    target = np.asarray(measured, dtype=np.float64).ravel()
    if h.shape != target.shape or len(h) == 0:
        raise ArgumentError(
            f"expected as many predicted as measured distances; got {len(h)} and {len(target)}."
        )
    positive = target > 0
    relative = np.abs(h - target)[positive] / target[positive]
    median, percentile_90 = (
        np.percentile(relative, [50, 90]) if len(relative) else (np.nan, np.nan)
    )
    return {
        "median_relative_error": float(median),
        "percentile_90_relative_error": float(percentile_90),
        "pearson": _correlation(h, target),
        "spearman": _correlation(rankdata(h), rankdata(target)),
    }


def subsampling_interval(
    statistic: Callable[[IntArray], float],
    count: int,
    seed: int,
    repeats: int = 200,
    coverage: float = COVERAGE,
) -> Interval:
    r"""Gives the interval of a statistic over landmarks, by subsampling without replacement.

    The statistic is recomputed on :math:`m = 0.63 L` landmarks; the spread about the full
    sample's value is scaled by :math:`\sqrt{m / L}`:
    :math:`[\hat\theta - \sqrt{m/L}\, q_{1-\alpha/2}, \hat\theta - \sqrt{m/L}\, q_{\alpha/2}]`
    with :math:`q` the quantiles of :math:`\theta_m - \hat\theta`. Landmarks are never repeated
    (their distance would be zero) and pairs are never drawn on their own (they share landmarks).
    The theory asks for :math:`m \ll L`: at 0.63 the subsamples overlap, and for a mean the
    interval is 0.61 of the nominal width (76 % coverage for a nominal 95 %).

    Arguments:
        statistic: Maps positions of landmarks to a number.
        count: The number of landmarks, :math:`L`.
        seed: The seed of the draws.
        repeats: The number of subsamples.
        coverage: The nominal coverage, in (0, 1).

    Returns:
        The lower and the upper end; subsamples where the statistic is nan are left out.

    Raises:
        ArgumentError: If count < 3, repeats < 1, or coverage is outside (0, 1).

    References:
        | Large sample confidence regions based on subsamples (Politis & Romano, 1994),
          doi:10.1214/aos/1176325770

    Example:
        >>> x = np.random.default_rng(0).normal(size=400)
        >>> low, high = subsampling_interval(lambda rows: float(x[rows].mean()), 400, seed=0)
        >>> bool(low < x.mean() < high)
        True
    """
    if count < 3 or repeats < 1 or not 0 < coverage < 1:
        raise ArgumentError(
            "expected count >= 3, repeats >= 1 and 0 < coverage < 1; "
            f"got {count}, {repeats}, {coverage}."
        )
    drawn = subsamples(count, seed, repeats)
    values = [statistic(rows) for rows in drawn]
    shrinkage = np.sqrt(len(drawn[0]) / count)
    return _interval(statistic(np.arange(count)), values, shrinkage, coverage)


def median_distance(distances: npt.ArrayLike) -> float:
    """Median over pairs of a square matrix of distances."""
    square = np.asarray(distances, dtype=np.float64)
    return float(np.median(square[np.triu_indices(len(square), 1)]))


def intervals_of(
    spaces: dict[str, FloatArray], distances: npt.ArrayLike, seed: int
) -> dict[str, dict[str, Interval]]:
    """Gives the 95 % subsampling intervals over landmarks, of what the report shows of a space.

    Every space and every measure is computed on the same 100 subsamples.

    Arguments:
        spaces: Name to coordinates. (n, d)
        distances: Measured. (n, n)
        seed: The seed of the subsamples.

    Returns:
        Of every space the interval of each of MEASURES, as from `subsampling_interval`.

    Example:
        >>> points = np.random.default_rng(0).normal(size=(30, 2))
        >>> found = intervals_of({"z": points[:, :1]}, squareform(pdist(points)), seed=0)
        >>> sorted(found["z"]) == sorted(MEASURES)
        True
    """
    measured = _checked_square(distances)
    drawn = subsamples(len(measured), seed, REPEATS)
    shrinkage = np.sqrt(len(drawn[0]) / len(measured))

    def intervals(points: FloatArray) -> dict[str, Interval]:
        full = fidelity_of(points, measured)
        found = [fidelity_of(points[rows], measured[np.ix_(rows, rows)]) for rows in drawn]
        return {
            name: _interval(full[name], [each[name] for each in found], shrinkage, COVERAGE)
            for name in MEASURES
        }

    return {space: intervals(points) for space, points in spaces.items()}


def subsamples(count: int, seed: int, repeats: int) -> list[IntArray]:
    """Draws 0.63 of the landmarks, without replacement, several times.

    Arguments:
        count: The number of landmarks.
        seed: The seed of the draws.
        repeats: How many draws.

    Returns:
        Sorted positions of landmarks, at least 3 each.
    """
    size = max(3, round(SUBSAMPLE_FRACTION * count))
    rng = np.random.default_rng(seed)
    return [np.sort(rng.permutation(count)[:size]) for _ in range(repeats)]


def _interval(full: float, values: list[float], shrinkage: float, coverage: float) -> Interval:
    spread = np.array([value for value in values if np.isfinite(value)]) - full
    if len(spread) == 0:
        return float("nan"), float("nan")
    tail = (1 - coverage) / 2
    low, high = shrinkage * np.quantile(spread, [tail, 1 - tail])
    return float(full - high), float(full - low)


def _scale(d: FloatArray, target: FloatArray, weight: FloatArray) -> float:
    square = float(np.sum(weight * d**2))
    return float(np.sum(weight * d * target)) / square if square > 0 else 0.0


def _stress1(d: FloatArray, target: FloatArray) -> float:
    total = float(np.sum(target**2))
    return float(np.sqrt(np.sum((d - target) ** 2) / total)) if total > 0 else float("nan")


def _sammon(d: FloatArray, target: FloatArray) -> float:
    positive = target > 0
    d, target = d[positive], target[positive]
    if len(d) == 0:
        return float("nan")
    fitted = d * _scale(d, target, 1 / target)
    return float(np.sum((fitted - target) ** 2 / target) / np.sum(target))


def _correlation(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(np.clip(np.dot(x, y) / norm, -1, 1)) if norm > 0 else float("nan")


def _trustworthiness(shown: FloatArray, measured: FloatArray) -> float:
    # scikit-learn's takes the embedding as coordinates only; here both sides are distances, which
    # may change roles: that is the continuity.
    count = len(measured)
    k = min(NEIGHBORS, (count - 1) // 2)
    ranks = np.argsort(np.argsort(_without_self(measured), axis=1, kind="stable"), axis=1)
    neighbors = np.argsort(_without_self(shown), axis=1, kind="stable")[:, :k]
    excess = np.take_along_axis(ranks, neighbors, axis=1) + 1 - k
    worst = count * k * (2 * count - 3 * k - 1)
    return float(1 - 2 * np.sum(excess[excess > 0]) / worst)


def _without_self(distances: FloatArray) -> FloatArray:
    return np.where(np.eye(len(distances), dtype=bool), np.inf, distances)


def _checked_square(distances: npt.ArrayLike) -> FloatArray:
    measured = np.asarray(distances, dtype=np.float64)
    if measured.ndim != 2 or measured.shape[0] != measured.shape[1] or len(measured) < 3:
        raise ArgumentError(
            f"distances must be a square matrix of at least 3 points; got {measured.shape}."
        )
    return measured


def _as_distances(embedding: npt.ArrayLike, count: int) -> FloatArray:
    values = np.asarray(embedding, dtype=np.float64)
    if values.ndim != 2 or len(values) != count:
        raise ArgumentError(
            f"embedding must have {count} rows, as distances has; got shape {values.shape}."
        )
    square = values.shape[1] == count and not values.diagonal().any()
    if square and np.array_equal(values, values.T):
        return values
    return np.asarray(squareform(pdist(values)))
