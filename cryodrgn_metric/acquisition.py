"""Which landmarks to measure next: those whose distances the nets of an ensemble dispute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.config import LandmarkConfig
from cryodrgn_metric.distance_ensemble import DistanceEnsemble
from cryodrgn_metric.landmarks import Landmarks, choose_landmarks
from cryodrgn_metric.sketches import kmeans_sketch, largest_cluster_sketch

__all__ = ["disagreement", "first_landmarks", "more_landmarks", "training_sizes"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

GROWTH = 1.5  # of the training landmarks from round to round
ROUNDS = 5
FEWEST_FIRST = 4  # training landmarks of the first round
MOST_CANDIDATES = 2000  # of all particles, at random: of more, the farthest are mere outliers
PER_LANDMARK = 10  # candidates at least for each that is wanted
MOST_LANDMARKS = 64  # to which their distances are predicted


def training_sizes(most: int) -> list[int]:
    """How many landmarks train in each round: up to five rounds, each half as many again.

    All pairs of every round together are about 2.3 times those of the last.

    Arguments:
        most: Of the last round.

    Example:
        >>> training_sizes(360)
        [71, 107, 160, 240, 360]
    """
    sizes = [round(most / GROWTH**step) for step in reversed(range(ROUNDS))]
    return sorted({size for size in sizes if size >= FEWEST_FIRST} | {most})


def first_landmarks(
    latents: npt.ArrayLike,
    config: LandmarkConfig,
    seed: int,
    candidates: npt.ArrayLike | None = None,
) -> Landmarks:
    """Draws the landmarks of the first round: test, validation, and a small k-means sketch.

    The test set is that of every other sampling. The landmarks that stop training are drawn at
    random from the particles, all of them now: they also decide when no more landmarks are
    needed, and the errors of two rounds can only be compared on the same pairs. (A share of the
    sketch, as other samplings take, would move with it to where errors are large.)

    Arguments:
        latents, config, seed, candidates: As for `choose_landmarks`; the sampling is not used.

    Returns:
        Test landmarks first, then validation, then those that train.

    Raises:
        ArgumentError: As from `choose_landmarks`.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(900, 4))
        >>> marks = first_landmarks(z, LandmarkConfig(count=500), seed=0)
        >>> len(marks.test), len(marks.validation), len(marks.train)
        (100, 40, 71)
    """
    z = np.asarray(latents, dtype=np.float64)
    drawn = choose_landmarks(z, replace(config, sampling="random"), seed, candidates)
    fixed = np.concatenate([drawn.indices[drawn.test], drawn.indices[drawn.validation]])
    pool = np.arange(len(z)) if candidates is None else np.unique(np.asarray(candidates))
    rest = np.setdiff1d(pool, fixed)
    count = training_sizes(len(drawn.train))[0]
    rng = np.random.default_rng([seed, count])
    sketch = rest[kmeans_sketch(z[rest], count, rng)] if count < len(rest) else rest
    indices = np.concatenate([fixed, sketch])
    place = np.arange(len(indices))
    is_test = place < len(drawn.test)
    return Landmarks(indices, is_test, (place < len(fixed)) & ~is_test)


def more_landmarks(
    ensemble: DistanceEnsemble,
    latents: npt.ArrayLike,
    landmarks: Landmarks,
    candidates: npt.ArrayLike,
    count: int,
    seed: int,
) -> Landmarks:
    """Adds landmarks that train, where the ensemble's members disagree.

    Every particle belongs to the nearest landmark that trains, in z with every column by its
    standard deviation. One after the other, the landmark whose particles' squared disagreement
    times squared distance sums to most gets a new one, that with the largest product: the dispute
    says where, the sum that many particles live there, the distance keeps a batch from being fifty
    times the same place. Asked are 2,000 particles at random, or ten for each that is wanted.

    Arguments:
        ensemble: Fitted; its calibration is not used, so that no test landmark has a say.
        latents: Of all particles. (N, d)
        landmarks: So far.
        candidates: Rows of z that may be landmarks. (M,)
        count: How many are wanted.
        seed: Of the draws.

    Returns:
        The landmarks so far, and the new ones behind them; fewer where candidates run out.

    References:
        | A framework and benchmark for deep batch active learning for regression (Holzmüller et
          al., 2023), arXiv:2203.09410
    """
    z = np.asarray(latents, dtype=np.float32)
    rng = np.random.default_rng([seed, len(landmarks)])
    free = np.setdiff1d(np.asarray(candidates), landmarks.indices)
    asked = max(MOST_CANDIDATES, PER_LANDMARK * count)
    if len(free) > asked:
        free = np.sort(rng.choice(free, asked, replace=False))
    if count < len(free):
        known = landmarks.indices[~landmarks.is_test]
        dispute = disagreement(ensemble, z[free], z[rng.permutation(known)[:MOST_LANDMARKS]])
        spread = z.std(axis=0, dtype=np.float64)
        scaled = z / np.where(spread > 0, spread, 1)
        training = landmarks.indices[landmarks.train]
        free = free[largest_cluster_sketch(scaled[free], scaled[training], count, dispute)]
    none = np.zeros(len(free), dtype=bool)
    return Landmarks(
        np.concatenate([landmarks.indices, free]),
        np.concatenate([landmarks.is_test, none]),
        np.concatenate([landmarks.is_validation, none]),
    )


def disagreement(
    ensemble: DistanceEnsemble, z: npt.ArrayLike, landmarks: npt.ArrayLike
) -> FloatArray:
    r"""Says how much the members of an ensemble dispute the distances of each latent.

    .. math::
        u(z) = \Big\langle \big( s(z, z_l) / \max(h(z, z_l), 0.1\, u_h) \big)^2
            \Big\rangle_l^{1/2}

    with s the standard deviation over members, and :math:`u_h` the unit of h_psi.

    Arguments:
        ensemble: Fitted.
        z: Latents. (n, d)
        landmarks: Latents of some landmarks :math:`z_l`. (k, d)

    Returns:
        Relative, not negative. (n,)
    """
    distances, spread = ensemble.spread_to(z, landmarks)
    relative = spread / np.maximum(distances, ensemble.shortest)
    return np.asarray(np.sqrt(np.mean(relative**2, axis=1)))
