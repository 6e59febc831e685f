"""Eq. 5 over free points: how low the stress of any map can go, with no map in between."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.manifold import smacof

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.fidelity import fidelity_of
from cryodrgn_metric.free_points import (
    WEIGHTINGS,
    classical_points,
    fitted_points,
    pair_weights,
)

__all__ = ["free_points", "lowest_stress"]

FloatArray = npt.NDArray[np.float64]

STARTS = 3  # classical scaling, and random ones
MOST_STEPS = 500
TOLERANCE = 1e-9
MOST_POINTS = 500  # of which the stress is looked for: a second


def free_points(
    distances: npt.ArrayLike, dimension: int, weighting: str = "stress", seed: int = 0
) -> FloatArray:
    r"""Places points so that their distances are as close to the given ones as they can be.

    Minimises over the points :math:`x_i \in \mathbb{R}^{d'}` themselves, with
    :math:`d_{ij} = \|x_i - x_j\|` and p = 0 (``stress``), 1 (``sammon``), 2 (``relative``, Eq. 5)
    or 4 (``weighted``, Eq. 9),

    .. math:: \sum_{i < j} (d_{ij} - \Delta_{ij})^2 / \max(\Delta_{ij}, \epsilon)^p,

    :math:`\epsilon` being 0.1 of the median distance. The stress is minimised by SMACOF, from
    classical scaling and from two random starts, the best of which counts; the others by L-BFGS
    from there. A map that must be a function of z cannot do better, but for local minima (in one
    dimension there are many).

    Arguments:
        distances: Measured, symmetric. (n, n)
        dimension: d'.
        weighting: One of WEIGHTINGS.
        seed: Of the random starts.

    Returns:
        (n, d') in the units of the distance, centred.

    Raises:
        ArgumentError: If distances are not square, symmetric and finite, or another argument is
            out of range.

    References:
        | Modern multidimensional scaling (Borg & Groenen, 2005), doi:10.1007/0-387-28981-X
        | A nonlinear mapping for data structure analysis (Sammon, 1969),
          doi:10.1109/T-C.1969.222678

    Example:
        >>> from scipy.spatial.distance import pdist, squareform
        >>> plane = np.random.default_rng(0).normal(size=(30, 2))
        >>> found = free_points(squareform(pdist(plane)), 2, "relative")
        >>> bool(np.allclose(pdist(found), pdist(plane), atol=1e-3))
        True
    """
    target = _checked(distances)
    if weighting not in WEIGHTINGS or dimension < 1:
        raise ArgumentError(
            f"expected a dimension >= 1 and one of {', '.join(WEIGHTINGS)}; "
            f"got {dimension}, {weighting!r}."
        )
    if not target.any():
        return np.zeros((len(target), dimension))
    points = _smacof(target, dimension, seed)
    if weighting != "stress":
        weights = pair_weights(target, weighting)
        points, _ = fitted_points(points, target, weights, MOST_STEPS, TOLERANCE)
    return _centred(points)


def lowest_stress(
    distances: npt.ArrayLike, dimension: int, weighting: str, seed: int = 0
) -> dict[str, float]:
    """How low stress-1 gets without any map, to set that of a map beside it.

    Arguments:
        distances: Measured; of more than 500 points, those among the first 500 count. (n, n)
        dimension: d'.
        weighting: What the map was trained by, one of WEIGHTINGS.
        seed: As of `free_points`.

    Returns:
        ``points``, their number; ``stress1`` of SMACOF; and ``stress1_same_loss`` where the loss
        of the map is minimised instead, which is what the map should be held against.

    Raises:
        ArgumentError: As `free_points`.

    Example:
        >>> from scipy.spatial.distance import pdist, squareform
        >>> cube = np.random.default_rng(0).normal(size=(30, 3))
        >>> found = lowest_stress(squareform(pdist(cube)), 2, "relative")
        >>> 0.05 < found["stress1"] < found["stress1_same_loss"]
        True
    """
    target = np.asarray(distances, dtype=np.float64)[:MOST_POINTS, :MOST_POINTS]
    of_loss = {
        name: fidelity_of(free_points(target, dimension, name, seed), target)["stress1"]
        for name in ("stress", weighting)
    }
    return {
        "points": len(target),
        "stress1": of_loss["stress"],
        "stress1_same_loss": of_loss[weighting],
    }


def _smacof(target: FloatArray, dimension: int, seed: int) -> FloatArray:
    rng = np.random.default_rng(seed)
    size = float(target.mean())
    starts = [classical_points(target, dimension)]
    starts += [size * rng.normal(size=(len(target), dimension)) for _ in range(STARTS - 1)]
    found = [_from_start(target, start) for start in starts]
    return min(found, key=lambda points: fidelity_of(points, target)["stress1"])


def _from_start(target: FloatArray, start: FloatArray) -> FloatArray:
    with warnings.catch_warnings():  # of its number of starts, which is one here by its `init`
        warnings.filterwarnings("ignore", category=FutureWarning, module="sklearn")
        points, _ = smacof(
            target, n_components=start.shape[1], init=start, n_init=1, max_iter=MOST_STEPS
        )
    return np.asarray(points, dtype=np.float64)


def _centred(points: FloatArray) -> FloatArray:
    return np.asarray(points - points.mean(axis=0))


def _checked(distances: npt.ArrayLike) -> FloatArray:
    target = np.asarray(distances, dtype=np.float64)
    square = target.ndim == 2 and target.shape[0] == target.shape[1] and len(target) >= 3
    if not square or not np.isfinite(target).all() or (target < 0).any():
        raise ArgumentError(
            "expected a square matrix of finite distances >= 0 among at least 3 points; "
            f"got shape {target.shape}."
        )
    if not np.allclose(target, target.T, rtol=1e-4, atol=1e-6 * target.max()):
        raise ArgumentError("expected symmetric distances; got distances[i, j] != [j, i].")
    symmetric = np.asarray((target + target.T) / 2)
    np.fill_diagonal(symmetric, 0)
    return symmetric
