"""Fidelity: how well Euclidean distances of an embedding equal the measured distances."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform
from scipy.stats import rankdata
from sklearn.decomposition import PCA

from cryodrgn_metric.errors import ArgumentError

__all__ = [
    "distance_errors",
    "fidelity_of",
    "intervals_of",
    "median_distance",
    "principal_components",
    "reference_spaces",
    "subsampling_interval",
    "umap_of",
]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOST_FOR_UMAP = 50_000
SUBSAMPLE_FRACTION = 0.63
NEIGHBORS = 10


def fidelity_of(embedding: npt.ArrayLike, distances: npt.ArrayLike) -> dict[str, float]:
    r"""Measures how faithfully an embedding shows the distances of its points.

    With :math:`d` the embedding's distances and :math:`\Delta` the measured ones over all
    pairs :math:`i < j`, and for each measure the best scale :math:`a \geq 0`,

    .. math::
        \text{stress1} = \sqrt{\frac{\sum (a d - \Delta)^2}{\sum \Delta^2}}, \quad
        \text{sammon} = \frac{\sum (a d - \Delta)^2 / \Delta}{\sum \Delta}.

    Pairs with :math:`\Delta = 0` are left out of the Sammon stress, which is not defined there.

    Arguments:
        embedding: Coordinates :math:`(n, d')`, or square distances :math:`(n, n)` (recognised by
            being square, symmetric and zero on the diagonal).
        distances: Measured distances, symmetric. :math:`(n, n)`

    Returns:
        ``stress1``, ``stress1_unscaled`` (:math:`a = 1`), ``sammon``, ``spearman``, ``pearson``
        and ``trustworthiness`` (of the 10 nearest neighbours, fewer where there are few
        points). A correlation with a constant is nan.

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
    coverage: float = 0.95,
) -> tuple[float, float]:
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
    size = max(3, round(SUBSAMPLE_FRACTION * count))
    rng = np.random.default_rng(seed)
    full = statistic(np.arange(count))
    draws = [statistic(np.sort(rng.permutation(count)[:size])) for _ in range(repeats)]
    spread = np.array([value for value in draws if np.isfinite(value)]) - full
    if len(spread) == 0:
        return float("nan"), float("nan")
    tail = (1 - coverage) / 2
    low, high = np.sqrt(size / count) * np.quantile(spread, [tail, 1 - tail])
    return float(full - high), float(full - low)


def reference_spaces(
    latents: npt.ArrayLike,
    landmark_indices: npt.ArrayLike,
    dimension: int,
    seed: int,
    skip_umap: bool = False,
) -> dict[str, FloatArray]:
    r"""Embeds the landmarks in the usual ways, to be compared with z'.

    Arguments:
        latents: The latents of all particles. :math:`(N, d)`
        landmark_indices: Rows of z of the landmarks. :math:`(L,)`
        dimension: The dimension d' of PCA and UMAP; PCA has at most d.
        seed: The seed of UMAP and of the particles it sees.
        skip_umap: Leaves UMAP out.

    Returns:
        ``z`` (:math:`(L, d)`), ``pca`` (:math:`(L, \min(d, d'))`) and, unless skipped, ``umap``
        (:math:`(L, d')`, of at most 50,000 particles with the landmarks in it).

    Raises:
        ArgumentError: If latents are not (N, d), indices out of range, or dimension < 1.

    References:
        | UMAP (McInnes et al., 2018), arXiv:1802.03426

    Example:
        >>> z = np.random.default_rng(0).normal(size=(100, 4))
        >>> spaces = reference_spaces(z, [3, 1, 4], dimension=2, seed=0, skip_umap=True)
        >>> {name: found.shape for name, found in spaces.items()}
        {'z': (3, 4), 'pca': (3, 2)}
    """
    z = np.asarray(latents, dtype=np.float64)
    rows = np.asarray(landmark_indices, dtype=np.int64)
    if z.ndim != 2 or dimension < 1:
        raise ArgumentError(
            f"expected latents (N, d), dimension >= 1; got {z.shape}, {dimension}."
        )
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(z):
        raise ArgumentError(f"expected landmark indices in 0..{len(z) - 1}; got {rows}.")
    pca = PCA(min(dimension, *z.shape), svd_solver="full").fit(z)
    spaces: dict[str, FloatArray] = {"z": z[rows], "pca": pca.transform(z[rows])}
    if not skip_umap:
        spaces["umap"] = _umap_rows(z, rows, dimension, seed)
    return spaces


def umap_of(points: npt.ArrayLike, dimension: int, seed: int) -> FloatArray:
    """Runs UMAP with its usual settings, reproducibly; fewer neighbours for few points.

    Arguments:
        points: (n, d).
        dimension: Of the embedding.
        seed: Of UMAP.

    Returns:
        (n, dimension) float64.
    """
    import umap  # slow to import: numba

    sample = np.asarray(points, dtype=np.float64)
    logger.info("UMAP of %d particles", len(sample))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="umap")
        reducer = umap.UMAP(
            n_components=dimension,
            n_neighbors=min(15, len(sample) - 1),
            init="random" if dimension >= len(sample) - 1 else "spectral",
            random_state=seed,
        )
        return np.asarray(reducer.fit_transform(sample), dtype=np.float64)


def _umap_rows(z: FloatArray, rows: IntArray, dimension: int, seed: int) -> FloatArray:
    """UMAP of at most 50,000 particles with `rows` in it; the coordinates of `rows`."""
    others = np.setdiff1d(np.arange(len(z)), rows)
    room = max(0, min(len(others), MOST_FOR_UMAP - len(rows)))
    extra = np.random.default_rng(seed).choice(others, room, replace=False)
    return umap_of(z[np.concatenate([rows, extra])], dimension, seed)[: len(rows)]


def principal_components(points: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Coordinates along the principal axes, (n, d), and the share of variance of each, (d,)."""
    sample = np.asarray(points, dtype=np.float64)
    pca = PCA(svd_solver="full").fit(sample)
    return pca.transform(sample), pca.explained_variance_ratio_


def median_distance(distances: npt.ArrayLike) -> float:
    """Median over pairs of a square matrix of distances."""
    square = np.asarray(distances, dtype=np.float64)
    return float(np.median(square[np.triu_indices(len(square), 1)]))


def intervals_of(
    spaces: dict[str, FloatArray], distances: npt.ArrayLike, seed: int
) -> dict[str, dict[str, tuple[float, float]]]:
    """95 % subsampling intervals over landmarks, of stress-1 and Spearman of every space.

    Arguments:
        spaces: Name to coordinates, (n, d).
        distances: Measured, (n, n).
        seed: Of the subsamples.
    """
    measured = _checked_square(distances)

    def interval(points: FloatArray, name: str) -> tuple[float, float]:
        def statistic(rows: IntArray) -> float:
            return fidelity_of(points[rows], measured[np.ix_(rows, rows)])[name]

        return subsampling_interval(statistic, len(measured), seed, repeats=100)

    names = ("stress1", "spearman")
    return {
        space: {name: interval(points, name) for name in names} for space, points in spaces.items()
    }


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
    # scikit-learn's takes the embedding as coordinates only; here both sides are distances.
    count = len(measured)
    k = min(NEIGHBORS, (count - 1) // 2)
    ranks = np.argsort(np.argsort(_without_self(measured), axis=1, kind="stable"), axis=1)
    neighbors = np.argsort(_without_self(shown), axis=1, kind="stable")[:, :k]
    excess = np.take_along_axis(ranks, neighbors, axis=1) + 1 - k
    worst = count * k * (2 * count - 3 * k - 1)
    return float(1 - 2 * np.sum(excess[excess > 0]) / worst)


def _without_self(distances: FloatArray) -> FloatArray:
    filled = np.array(distances)
    np.fill_diagonal(filled, np.inf)
    return filled


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
