"""Where rotation was hiding: its share of the raw distance, and how far z predicts it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation
from scipy.stats import rankdata
from sklearn.compose import TransformedTargetRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cryodrgn_metric.errors import ArgumentError

__all__ = ["PoseDrift", "pose_drift", "rotation_share", "striking_pairs", "unambiguous"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

CLEAR_GAP = 0.05  # of Delta: what the second-best rotation must cost on top
FEWEST_LANDMARKS = 30
MOST_LANDMARKS = 1000  # the regression costs the third power of their number
LEAST_ANGLE = np.radians(1.0)
FOLDS = 5
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 100.0)
SHARPNESSES = (0.1, 0.3, 1.0, 3.0)  # of the kernel, over the mean squared distance of latents
MOST_STEPS = 100  # of the mean rotation, each of which shrinks the rest severalfold


def rotation_share(raw_distances: npt.ArrayLike, distances: npt.ArrayLike) -> float:
    r"""Gives the share of the squared voxel distance that is pure rotation.

    .. math:: 1 - \sum_{i<j} \Delta_{ij}^2 \,\Big/ \sum_{i<j} \|V_i - V_j\|^2

    Arguments:
        raw_distances: Nothing turned. :math:`(L, L)`
        distances: Delta, after the optimal rotation. :math:`(L, L)`

    Returns:
        Between 0 and 1; nan if all raw distances are 0.

    Raises:
        ArgumentError: If the shapes differ or are not square.

    Example:
        >>> rotation_share([[0, 2], [2, 0]], [[0, 1], [1, 0]])
        0.75
    """
    raw, turned = _checked_square(raw_distances), _checked_square(distances)
    if raw.shape != turned.shape:
        raise ArgumentError(
            f"expected distances as raw_distances; got {turned.shape} and {raw.shape}."
        )
    total = float(np.square(raw).sum())
    return 1 - float(np.square(turned).sum()) / total if total > 0 else float("nan")


def unambiguous(
    second_peak_gaps: npt.ArrayLike, distances: npt.ArrayLike, rms_norm: float
) -> BoolArray:
    r"""Tells which pairs have one optimal rotation, and not two that are nearly as good.

    A pair is unambiguous if the best rotation at least 20 degrees away would raise its distance
    by more than 5 %: :math:`\Delta_2 - \Delta > 0.05\, \Delta`. Near-symmetric molecules, and
    pairs so different that nothing fits, have none.

    Arguments:
        second_peak_gaps: :math:`(\Delta_2 - \Delta)` / RMS norm, inf if there is no second peak.
            Any shape
        distances: Delta of the same pairs.
        rms_norm: The root mean square of the norms of the landmark volumes, in units of Delta.

    Returns:
        One bool a pair.

    Example:
        >>> unambiguous([0.001, 0.5, np.inf], [1.0, 1.0, 0.0], rms_norm=10.0)
        array([False,  True,  True])
    """
    gaps = np.asarray(second_peak_gaps, dtype=np.float64)
    delta = np.asarray(distances, dtype=np.float64)
    return np.asarray(gaps * rms_norm > CLEAR_GAP * delta)


@dataclass(frozen=True)
class PoseDrift:
    r"""How well the rotation between a landmark and the medoid is predicted from its latent.

    Arguments:
        landmarks: How many were used, of those with an unambiguous rotation.
        score: 1 - mean squared error / variance, cross-validated: near 1 where z encodes the
            pose, about 0 or below where it knows nothing of it. None if it was not measured.
        shuffled_score: The same after the rotations were dealt to other landmarks: what chance
            gives.
        rms_angle_in_degrees: The root of the variance: the typical rotation from the mean one.
        rms_error_in_degrees: The root of the mean squared error.
        angles_in_degrees: Of each landmark from the mean rotation.
        errors_in_degrees: Of each prediction.
        reason: Why there is no score; else empty.
    """

    landmarks: int
    score: float | None = None
    shuffled_score: float | None = None
    rms_angle_in_degrees: float | None = None
    rms_error_in_degrees: float | None = None
    angles_in_degrees: tuple[float, ...] = ()
    errors_in_degrees: tuple[float, ...] = ()
    reason: str = ""


def pose_drift(
    latents: npt.ArrayLike,
    rotations: npt.ArrayLike,
    is_unambiguous: npt.ArrayLike,
    seed: int = 0,
) -> PoseDrift:
    r"""Measures how much of the landmarks' rotations their latents give away.

    With :math:`\hat R_i` predicted from :math:`z_i` by a model that saw neither, and
    :math:`\bar R` the Fréchet mean, the rotation with the least mean squared geodesic angle,

    .. math:: \text{score} = 1 - \frac{\sum_i \angle(\hat R_i, R_i)^2}
        {\sum_i \angle(\bar R, R_i)^2}.

    The score is not clamped: below 0, predicting is worse than the mean. It is a lower bound:
    more landmarks may find more. The model is a kernel ridge regression of the nine entries, with
    a Gaussian kernel on standardised latents, whose result is projected to the nearest rotation:
    unlike angles, entries survive full turns. Ridge and width of the kernel are chosen by 5-fold
    cross-validation within the training part of each of 5 folds.

    Arguments:
        latents: Of the landmarks. :math:`(L, d)`
        rotations: Of each onto the medoid, ``rotations[:, medoid]`` of distances.npz.
            :math:`(L, 3, 3)`
        is_unambiguous: Which count; ``unambiguous`` of the medoid's column. :math:`(L,)`
        seed: The seed of the folds, of the shuffle, and of the 1,000 that are used of more.

    Returns:
        The score, and that of chance. No score, with the reason, if fewer than 30 landmarks
        count, or if they hardly turn: by less than 1 degree (RMS) about their mean.

    Raises:
        ArgumentError: If shapes disagree.

    References:
        | Moments and distributions of rotations (Moakher, 2002), doi:10.1137/S0895479801383877

    Example:
        >>> z = np.linspace(-1, 1, 60)[:, None]
        >>> turns = Rotation.from_rotvec(np.pi * z * [0, 0, 1]).as_matrix()
        >>> pose_drift(z, turns, np.ones(60, bool)).score > 0.9
        True
    """
    z, turns, chosen = _checked_turns(latents, rotations, is_unambiguous)
    used = np.flatnonzero(chosen)
    if len(used) > MOST_LANDMARKS:
        used = np.random.default_rng(seed).choice(used, MOST_LANDMARKS, replace=False)
    z, turns = z[used], turns[used]
    if len(z) < FEWEST_LANDMARKS:
        few = f"only {len(z)} landmarks have an unambiguous rotation, of {FEWEST_LANDMARKS} needed"
        return PoseDrift(len(z), reason=few)
    squared = _squared_angles(turns, _mean_rotation(turns))
    typical = float(np.degrees(np.sqrt(squared.mean())))
    if squared.mean() < LEAST_ANGLE**2:
        still = "the landmarks do not turn: less than 1 degree about their mean"
        return PoseDrift(len(z), rms_angle_in_degrees=typical, reason=still)
    error = _squared_angles(turns, _predicted(z, turns, seed))
    shuffled = np.random.default_rng(seed).permutation(turns)
    chance = _squared_angles(shuffled, _predicted(z, shuffled, seed))
    return PoseDrift(
        len(z),
        score=1 - float(error.mean() / squared.mean()),
        shuffled_score=1 - float(chance.mean() / squared.mean()),
        rms_angle_in_degrees=typical,
        rms_error_in_degrees=float(np.degrees(np.sqrt(error.mean()))),
        angles_in_degrees=tuple(np.degrees(np.sqrt(squared)).tolist()),
        errors_in_degrees=tuple(np.degrees(np.sqrt(error)).tolist()),
    )


def striking_pairs(
    latents: npt.ArrayLike, distances: npt.ArrayLike, count: int = 10
) -> tuple[IntArray, IntArray]:
    r"""Finds pairs that z and Delta disagree on most, by the ranks of both among all pairs.

    Arguments:
        latents: Of the landmarks. :math:`(L, d)`
        distances: Delta. :math:`(L, L)`
        count: The most pairs of each kind.

    Returns:
        Positions of landmarks: pairs far apart in z with a small Delta (often the same molecule,
        turned), and pairs close in z with a large Delta, the most striking first, no landmark
        twice in a list. Fewer where there are few landmarks, or no disagreement.
        :math:`(n, 2)` each

    Raises:
        ArgumentError: If shapes disagree.

    Example:
        >>> z = np.array([[0.0], [1.0], [5.0], [5.5]])
        >>> motion = np.array([[0.0], [3.0], [0.1], [9.0]])
        >>> far, near = striking_pairs(z, np.abs(motion - motion.T))
        >>> far.tolist()[0], near.tolist()[0]
        ([0, 2], [2, 3])
    """
    z, delta = np.asarray(latents, dtype=np.float64), _checked_square(distances)
    if z.ndim != 2 or len(z) != len(delta):
        raise ArgumentError(f"expected latents ({len(delta)}, d); got {z.shape}.")
    pairs = np.stack(np.triu_indices(len(z), 1), axis=1)
    disagreement = rankdata(pdist(z)) - rankdata(delta[tuple(pairs.T)])
    far = _each_landmark_once(pairs, disagreement, count)
    return far, _each_landmark_once(pairs, -disagreement, count)


def _each_landmark_once(pairs: IntArray, score: FloatArray, count: int) -> IntArray:
    used: set[int] = set()
    found: list[tuple[int, int]] = []
    for row in np.argsort(-score, kind="stable"):
        if score[row] <= 0 or len(found) == count:
            break
        first, second = map(int, pairs[row])
        if not used & {first, second}:
            used |= {first, second}
            found.append((first, second))
    return np.array(found, dtype=np.int64).reshape(-1, 2)


# -- rotations


def _predicted(z: FloatArray, turns: FloatArray, seed: int) -> FloatArray:
    """The rotation of each landmark, from models that never saw it. (L, 3, 3)"""
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    entries = cross_val_predict(_regression(z.shape[1], seed), z, turns.reshape(-1, 9), cv=folds)
    return _nearest_rotations(entries.reshape(-1, 3, 3))


def _regression(dimension: int, seed: int) -> TransformedTargetRegressor:
    """Kernel ridge about the mean of the targets, its settings chosen within what it is given."""
    settings = {"alpha": RIDGES, "gamma": [each / (2 * dimension) for each in SHARPNESSES]}
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    # Not KernelRidge's own score, R2: an entry that does not vary would make it NaN.
    search = GridSearchCV(
        KernelRidge(kernel="rbf"), settings, scoring="neg_mean_squared_error", cv=folds
    )
    return TransformedTargetRegressor(
        make_pipeline(StandardScaler(), search),
        transformer=StandardScaler(with_std=False),
        check_inverse=False,
    )


def _nearest_rotations(matrices: FloatArray) -> FloatArray:
    """The rotation nearest to each matrix in the Frobenius norm, however far it is. (L, 3, 3)"""
    left, _, right = np.linalg.svd(matrices)
    signs = np.ones(left.shape[:2])
    signs[:, 2] = np.linalg.det(left) * np.linalg.det(right)
    return np.asarray((left * signs[:, None, :]) @ right)


def _mean_rotation(turns: FloatArray) -> FloatArray:
    """The Fréchet mean: from the rotation in the middle, along the mean of the logarithms."""
    squares = np.array([_squared_angles(turns, turn).mean() for turn in turns])
    mean = Rotation.from_matrix(turns[squares.argmin()])
    everything = Rotation.from_matrix(turns)
    for _ in range(MOST_STEPS):
        step = (mean.inv() * everything).as_rotvec().mean(axis=0)
        mean = mean * Rotation.from_rotvec(step)
        if np.linalg.norm(step) < 1e-8:
            break
    return np.asarray(mean.as_matrix())


def _squared_angles(turns: FloatArray, others: FloatArray) -> FloatArray:
    """Squared geodesic angles between rotations (L, 3, 3) and (L, 3, 3) or (3, 3)."""
    between = np.swapaxes(others, -1, -2) @ turns
    return np.asarray(Rotation.from_matrix(between).magnitude() ** 2)


def _checked_turns(
    latents: npt.ArrayLike, rotations: npt.ArrayLike, chosen: npt.ArrayLike
) -> tuple[FloatArray, FloatArray, BoolArray]:
    z = np.asarray(latents, dtype=np.float64)
    turns = np.asarray(rotations, dtype=np.float64)
    mask = np.asarray(chosen, dtype=bool)
    if z.ndim != 2 or turns.shape != (len(z), 3, 3) or mask.shape != (len(z),):
        raise ArgumentError(
            "expected latents (L, d), rotations (L, 3, 3) and a mask (L,); "
            f"got {z.shape}, {turns.shape} and {mask.shape}."
        )
    return z, turns, mask


def _checked_square(distances: npt.ArrayLike) -> FloatArray:
    square = np.asarray(distances, dtype=np.float64)
    if square.ndim != 2 or square.shape[0] != square.shape[1]:
        raise ArgumentError(f"expected distances (L, L); got {square.shape}.")
    return square
