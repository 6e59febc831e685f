"""Landmarks: the L of N particles that are decoded, and which of them test, stop and train."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.config import LandmarkConfig
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.landmark_candidates import candidate_pool
from cryodrgn_metric.sketches import farthest_sketch, kmeans_sketch

__all__ = ["Landmarks", "choose_landmarks"]

logger = logging.getLogger(__name__)

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

TEST_FRACTION = 0.2
FEWEST_TEST = 20
VALIDATION_FRACTION = 0.1


@dataclass(frozen=True)
class Landmarks:
    r"""The chosen particles and their roles.

    Arguments:
        indices: Rows of z, each once. :math:`(L,)`
        is_test: True where fidelity is measured; never seen in training. :math:`(L,)`
        is_validation: True where training of h_psi is stopped. :math:`(L,)`

    Raises:
        ArgumentError: If shapes differ, a particle comes twice, or roles overlap.

    Example:
        >>> marks = Landmarks(np.array([7, 2, 9]), np.array([1, 0, 0], bool),
        ...                   np.array([0, 1, 0], bool))
        >>> marks.train, marks.test
        (array([2]), array([0]))
    """

    indices: IntArray
    is_test: BoolArray
    is_validation: BoolArray

    def __post_init__(self) -> None:
        shapes = {self.indices.shape, self.is_test.shape, self.is_validation.shape}
        if len(shapes) != 1 or self.indices.ndim != 1:
            raise ArgumentError(f"landmark arrays must share one shape (L,); got {shapes}.")
        if len(np.unique(self.indices)) != len(self.indices):
            raise ArgumentError("landmark indices must be distinct; got a particle twice.")
        if np.any(self.is_test & self.is_validation):
            raise ArgumentError("a landmark must be test or validation, not both.")

    def __len__(self) -> int:
        return len(self.indices)

    def only(self, chosen: BoolArray) -> Landmarks:
        """Some of them, in their roles; one that trained stops training if no other is left.

        Arguments:
            chosen: Which. :math:`(L,)`
        """
        is_test, is_validation = self.is_test[chosen], self.is_validation[chosen]
        if self.is_validation.any() and not is_validation.any():
            is_validation[np.flatnonzero(~is_test)[-1:]] = True
        return Landmarks(self.indices[chosen], is_test, is_validation)

    def as_table(self) -> IntArray:
        """The three arrays as rows of integers, for `from_table`. :math:`(3, L)`"""
        return np.stack([self.indices, self.is_test, self.is_validation]).astype(np.int64)

    @classmethod
    def from_table(cls, table: IntArray) -> Landmarks:
        """The landmarks that `as_table` wrote down. :math:`(3, L)`"""
        return cls(table[0], table[1].astype(bool), table[2].astype(bool))

    @property
    def test(self) -> IntArray:
        """Positions (rows of the distance matrix) of the test landmarks."""
        return np.flatnonzero(self.is_test)

    def halves_of_test(self, seed: int) -> tuple[IntArray, IntArray]:
        """Positions of two random halves of the test landmarks: to calibrate with, and to judge.

        Arguments:
            seed: Of the draw.
        """
        order = np.random.default_rng(seed).permutation(self.test)
        return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])

    @property
    def validation(self) -> IntArray:
        """Positions of the landmarks that stop training."""
        return np.flatnonzero(self.is_validation)

    @property
    def train(self) -> IntArray:
        """Positions of the landmarks that train."""
        return np.flatnonzero(~(self.is_test | self.is_validation))


def choose_landmarks(
    latents: npt.ArrayLike,
    config: LandmarkConfig,
    seed: int,
    candidates: npt.ArrayLike | None = None,
) -> Landmarks:
    r"""Draws the landmarks: a uniform test set first, then a sketch of the latent space.

    The test set is the first 20 % of :math:`L` (at least 20, at most half), uniform over the
    candidates and the same for every sampling strategy given a seed. The rest is the sketch:
    the particles nearest to k-means centres (fitted on at most 100,000 particles, duplicates
    replaced by the next nearest unused particle), farthest-point sampling, or uniform. 10 % of
    the sketch, at random, stops training. (Sampling ``active``, which learns on the way, starts
    from `acquisition.first_landmarks` instead.)

    Arguments:
        latents: One latent per particle. :math:`(N, d)`
        config: How many landmarks, and which sampling.
        seed: The seed of every draw.
        candidates: Rows of z that may be landmarks. :math:`(M,)`; default: all.

    Returns:
        The landmarks, test first; fewer than asked for where there are fewer candidates.

    Raises:
        ArgumentError: If latents are not a finite (N, d) array, or candidates are out of range
            or fewer than 10.

    References:
        | Farthest-point sampling (Gonzalez, 1985), doi:10.1016/0304-3975(85)90224-5
        | k-means++ (Arthur & Vassilvitskii, 2007), SODA '07

    Example:
        >>> z = np.random.default_rng(0).normal(size=(300, 4))
        >>> marks = choose_landmarks(z, LandmarkConfig(count=100), seed=0)
        >>> len(marks), len(marks.test), len(marks.validation), len(marks.train)
        (100, 20, 8, 72)
    """
    z = _checked_latents(latents)
    pool = candidate_pool(candidates, len(z))
    count = min(config.count, len(pool))
    if count < config.count:
        logger.warning(
            "%d landmarks were asked for; there are %d candidates: all are used.",
            config.count,
            count,
        )
    test_rng, sketch_rng, role_rng = np.random.default_rng(seed).spawn(3)
    n_test = _test_size(count)
    test = test_rng.choice(pool, n_test, replace=False)
    rest = pool[~np.isin(pool, test)]
    sketch = _sketch(z, rest, test, count - n_test, config.sampling, sketch_rng)
    indices = np.concatenate([test, sketch])
    return Landmarks(indices, np.arange(count) < n_test, _validation(count, n_test, role_rng))


def _test_size(count: int) -> int:
    return min(max(FEWEST_TEST, round(TEST_FRACTION * count)), count // 2)


def _validation(count: int, n_test: int, rng: np.random.Generator) -> BoolArray:
    size = min(max(1, round(VALIDATION_FRACTION * (count - n_test))), count - n_test - 1)
    mask = np.zeros(count, dtype=bool)
    mask[rng.choice(np.arange(n_test, count), size, replace=False)] = True
    return mask


def _sketch(
    z: npt.NDArray[np.float64],
    rest: IntArray,
    test: IntArray,
    count: int,
    sampling: str,
    rng: np.random.Generator,
) -> IntArray:
    if count == len(rest):
        return rng.permutation(rest)
    if sampling == "random":
        return rng.choice(rest, count, replace=False)
    if sampling == "farthest":
        return rest[farthest_sketch(z[rest], z[test], count)]
    return rest[kmeans_sketch(z[rest], count, rng)]


def _checked_latents(latents: npt.ArrayLike) -> npt.NDArray[np.float64]:
    z = np.asarray(latents, dtype=np.float64)
    if z.ndim != 2 or not np.isfinite(z).all():
        raise ArgumentError(f"latents must be a finite array (N, d); got shape {z.shape}.")
    return z
