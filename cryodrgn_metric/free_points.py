"""Points without a map: coordinates whose Euclidean distances equal given ones (Eq. 5, 8, 9)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

__all__ = ["WEIGHTINGS", "classical_points", "fitted_points", "pair_weights"]

FloatArray = npt.NDArray[np.float64]

WEIGHTINGS = {"stress": 0, "sammon": 1, "relative": 2, "weighted": 4}
"""The power of Delta that a squared error is divided by: stress-1, Sammon, Eq. 5 and 8, Eq. 9."""

FLOOR = 0.1  # of the median distance: shorter ones weigh no more than that


def pair_weights(distances: FloatArray, weighting: str, floor: float = FLOOR) -> FloatArray:
    r"""Weights of pairs in the stress, :math:`1 / \max(\Delta, \epsilon)^p`, of mean 1.

    Arguments:
        distances: Symmetric. :math:`(n, n)`
        weighting: One of WEIGHTINGS, which gives p.
        floor: :math:`\epsilon` as a fraction of the median distance.

    Returns:
        Zero on the diagonal. :math:`(n, n)`

    Example:
        >>> weights = pair_weights(np.array([[0.0, 1.0], [1.0, 0.0]]), "weighted")
        >>> weights.tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    upper = np.triu_indices(len(distances), 1)
    typical = float(np.median(distances[upper])) or float(distances.mean()) or 1.0
    weights = np.maximum(distances / typical, floor) ** -float(WEIGHTINGS[weighting])
    np.fill_diagonal(weights, 0.0)
    return np.asarray(weights / weights[upper].mean())


def classical_points(distances: FloatArray, dimension: int) -> FloatArray:
    """Classical scaling, where a fit may start: principal axes first, (n, dimension).

    References:
        | Multidimensional scaling: I. Theory and method (Torgerson, 1952), doi:10.1007/BF02288916

    Example:
        >>> points = np.array([[0.0], [1.0], [5.0]])
        >>> found = classical_points(np.abs(points - points.T), 1)
        >>> np.abs(found - found.T).round(6).tolist()
        [[0.0, 1.0, 5.0], [1.0, 0.0, 4.0], [5.0, 4.0, 0.0]]
    """
    centred = distances**2 - (distances**2).mean(axis=0)
    values, vectors = np.linalg.eigh(-0.5 * (centred - centred.mean(axis=1, keepdims=True)))
    lengths = np.sqrt(np.maximum(values[::-1], 0.0))
    found = np.zeros((len(distances), dimension))
    count = min(dimension, len(distances))
    found[:, :count] = (vectors[:, ::-1] * lengths)[:, :count]
    return found


def fitted_points(
    start: FloatArray,
    distances: FloatArray,
    weights: FloatArray,
    steps: int = 300,
    tolerance: float = 1e-7,
) -> tuple[FloatArray, float]:
    r"""Moves points until their distances equal the given ones as well as they can.

    .. math:: \sum_{i < j} w_{ij} \left( \|x_i - x_j\|_2 - \Delta_{ij} \right)^2

    by L-BFGS, which needs fewer steps than majorization (SMACOF) where weights differ by orders
    of magnitude. A local minimum: it depends on where the points start.

    Arguments:
        start: :math:`(n, d')`
        distances: Symmetric. :math:`(n, n)`
        weights: As from `pair_weights`. :math:`(n, n)`
        steps: The most steps.
        tolerance: The relative progress of a step below which no more are made.

    Returns:
        Points, centred and along their principal axes :math:`(n, d')`, and the weighted stress:
        the square root of that sum, of its value for points in one place.

    References:
        | Modern multidimensional scaling (Borg & Groenen, 2005), doi:10.1007/0-387-28981-X

    Example:
        >>> points = np.array([[0.0], [1.0], [5.0]])
        >>> distances = np.abs(points - points.T)
        >>> _, stress = fitted_points(points + [[0.1], [0], [0]], distances, np.ones((3, 3)))
        >>> round(stress, 4)
        0.0
    """
    total = float((weights * distances**2).sum()) or 1.0
    size = float(np.sqrt((distances**2).mean())) or 1.0

    def stress(flat: FloatArray) -> tuple[float, FloatArray]:
        points = flat.reshape(start.shape) * size
        squares = (points**2).sum(axis=1)
        apart = squares[:, None] + squares - 2 * (points @ points.T)
        np.sqrt(np.maximum(apart, (1e-9 * size) ** 2, out=apart), out=apart)
        missed = apart - distances
        pull = weights * missed
        value = float(np.vdot(pull, missed))
        pull /= apart
        slope = 4 * size * (pull.sum(axis=1)[:, None] * points - pull @ points)
        return value / total, slope.ravel() / total

    found = minimize(
        stress,
        start.ravel() / size,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "ftol": tolerance, "gtol": 1e-9},
    )
    points = found.x.reshape(start.shape) * size
    points -= points.mean(axis=0)
    axes = np.linalg.svd(points, full_matrices=False)[2]
    return points @ axes.T, float(np.sqrt(max(found.fun, 0.0)))
