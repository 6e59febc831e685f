"""How many dimensions a motion has: where the volume of the embedded landmarks drops."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.config import LOSSES
from cryodrgn_metric.dimension_checks import cross_check
from cryodrgn_metric.dimension_estimate import NO_MOTION, DimensionEstimate, words_about
from cryodrgn_metric.embedded_landmarks import CLEAR, THRESHOLD, EmbeddedLandmarks
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.fidelity import median_distance, subsampling_interval
from cryodrgn_metric.local_volume import count_at_scale, even_share, neighbor_scale

__all__ = ["FEWEST_LANDMARKS", "MOST_DIMENSIONS", "intrinsic_dimension"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

FEWEST_LANDMARKS = 30
MOST_LANDMARKS = 500  # more are a random sample: time grows with their square
MOST_DIMENSIONS = 8
ERRORS_IN_SCALE = 3.0  # the smallest scale, in errors of h_psi
LARGEST_SCALE = 0.25  # of the median Delta: beyond, L2 saturates and bends what is straight
LAST_SCALE = 0.5  # of the median Delta, that the answer is shown at
SCALES = 9
AS_GOOD = 1.25  # times a scale, or of it: the answer there counts in the interval
MOST_FOLDED, MOST_TORN = 0.1, 0.02  # of the landmarks; a tear has few on either side
REPEATS, COVERAGE = 20, 0.95


def intrinsic_dimension(
    z: npt.ArrayLike,
    distances: npt.ArrayLike,
    dimensions: Iterable[int] = range(1, MOST_DIMENSIONS + 1),
    loss: str = "weighted",
    seed: int = 0,
    *,
    norm: float | None = None,
    error: float | None = None,
) -> DimensionEstimate:
    r"""Estimates how many dimensions a motion has, from the distances of volumes.

    Landmarks are embedded in :math:`d' = 1, 2, \dots` dimensions, as free points under the loss
    of Eq. 9. A landmark and its nearest ones by :math:`\Delta` make a patch there; with
    :math:`\lambda_1 \geq \dots \geq \lambda_{d'}` the variances of its principal components,

    .. math:: v(d') = \operatorname{median}\; \lambda_{d'} / (\lambda_1 + \dots + \lambda_{d'})

    is what it fills of the last direction. Beyond the dimension of the motion that drops: the
    answer is the last :math:`d'` before v falls below half of what as many points have that fill
    all d' dimensions evenly. Patches are as large as they may be, the median distance of
    neighbours a quarter of the median :math:`\Delta`: beyond, L2 saturates and bends what is
    straight, and the smaller they are, the more of them is noise. Below three errors of h_psi
    nothing is believed. (The elbow of a plain stress curve answers too much, because bent lines
    take several dimensions.)

    Arguments:
        z: Latents of the landmarks; a motion has at most as many dimensions. (L, d)
        distances: Delta, symmetric, L >= 30; of more than 500 landmarks, 500 at random. (L, L)
        dimensions: The d' to try: 1, 2, ... without a gap.
        loss: ``weighted`` (Eq. 9) or ``relative`` (Eq. 8).
        seed: The seed of all draws.
        norm: The RMS norm of the volumes, in units of Delta. Without it, it is assumed that
            something moves; with it, the answer is 0 where the median Delta is below 5 % of it.
        error: The typical error of h_psi on held-out pairs, in units of Delta. Without it, it is
            assumed that distances are free of noise.

    Returns:
        The answer with its interval, and what it was read from.

    Raises:
        ArgumentError: If there are fewer than 30 landmarks, shapes disagree, distances are not
            finite, dimensions are not 1, 2, ..., or an option is out of range.

    References:
        | An algorithm for finding intrinsic dimensionality of data (Fukunaga & Olsen, 1971),
          doi:10.1109/T-C.1971.223208
        | Large sample confidence regions based on subsamples (Politis & Romano, 1994),
          doi:10.1214/aos/1176325770

    Example:
        >>> z = np.random.default_rng(0).uniform(size=(100, 3))
        >>> apart = z[:, None, :2] - z[None, :, :2]  # the third column: a rotation
        >>> found = intrinsic_dimension(z, np.linalg.norm(apart, axis=-1))
        >>> found.dimension, found.interval
        (2, (2, 2))
    """
    latents, delta, tried = _checked(z, distances, dimensions, loss, norm, error)
    rows = np.random.default_rng(seed).permutation(len(delta))[:MOST_LANDMARKS]
    delta = delta[np.ix_(rows, rows)]
    sheet = EmbeddedLandmarks.fitted(delta, tried, loss, most=latents.shape[1])
    typical = median_distance(delta)
    window = (ERRORS_IN_SCALE * float(error or 0), LARGEST_SCALE * typical)
    # where no scale is both, noise weighs more than what bends
    target = max(window[1], min(window[0], LAST_SCALE * typical))
    count = count_at_scale(delta, target)
    scale = neighbor_scale(delta, count)
    counts = _counts(delta, count, typical)
    scales = [neighbor_scale(delta, each) for each in counts]
    answers = [sheet.dimension_at(each) for each in counts]
    moves, may_rest = _motion(delta, norm, seed)
    dimension = sheet.dimension_at(count) if moves else 0
    folded, torn = zip(*sheet.misplaced(count), strict=True)
    estimate = DimensionEstimate(
        dimension=dimension,
        interval=_interval(sheet, count, _nearby(scales, answers, scale), seed),
        embedding_dimension=_embedding_dimension(dimension, folded, torn),
        dimensions=tried,
        last_variance=sheet.last_variance(count),
        even_variance=tuple(even_share(count + 1, each) for each in tried),
        folded=folded,
        torn=torn,
        scale=scale,
        scale_window=window,
        scales=tuple(scales),
        dimension_by_scale=tuple(answers),
        cross_checks=cross_check(delta, count) if typical > 0 else {},
        relative_distance=None if norm is None else _relative(delta, norm),
        words=(),
    )
    estimate = _reach_zero(estimate, moves, may_rest)
    return replace(estimate, words=words_about(estimate, error=error))


def _counts(delta: FloatArray, chosen: int, typical: float) -> list[int]:
    """Numbers of neighbours from few to many, the chosen one among them."""
    last = max(chosen, count_at_scale(delta, LAST_SCALE * typical))
    spread = np.geomspace(count_at_scale(delta, 0.0), last, SCALES)
    return sorted({*np.round(spread).astype(int).tolist(), chosen})


def _relative(delta: FloatArray, norm: float) -> float:
    return median_distance(delta) / max(float(norm), 1e-30)


def _motion(delta: FloatArray, norm: float | None, seed: int) -> tuple[bool, bool]:
    """Whether the volumes differ enough to say that something moves; whether that is unsure."""
    if norm is None:
        return bool(delta.any()), False
    low, high = subsampling_interval(
        lambda rows: _relative(delta[np.ix_(rows, rows)], norm), len(delta), seed, REPEATS
    )
    return _relative(delta, norm) >= NO_MOTION, low < NO_MOTION <= high


def _nearby(scales: list[float], answers: list[int], chosen: float) -> list[int]:
    """The answers at scales that are as good as the chosen one, which a convention sets."""
    within = (chosen / AS_GOOD, chosen * AS_GOOD)
    pairs = zip(scales, answers, strict=True)
    return [answer for scale, answer in pairs if within[0] <= scale <= within[1]]


def _interval(
    sheet: EmbeddedLandmarks, count: int, others: list[int], seed: int
) -> tuple[int, int]:
    """All answers that are as good: of fewer landmarks, other thresholds, scales nearby.

    An integer has no spread to be scaled by the square root of m / L: the subsamples' own answers
    count, of which the interval leaves out 2.5 % at either end.
    """
    tail = (1 - COVERAGE) / 2
    subsampled = sheet.dimensions_of_subsamples(count, seed, REPEATS)
    low, high = np.quantile(subsampled, [tail, 1 - tail], method="nearest").astype(int)
    stricter = [sheet.dimension_at(count, threshold) for threshold in CLEAR]
    found = [int(low), int(high), *others, *stricter, sheet.dimension_at(count, THRESHOLD)]
    return min(found), max(found)


def _embedding_dimension(
    dimension: int, folded: tuple[float, ...], torn: tuple[float, ...]
) -> int:
    """From the dimension on, the first d' that neither folds nor tears what it shows."""
    if dimension == 0:
        return 0
    for number in range(dimension, len(folded) + 1):
        if folded[number - 1] <= MOST_FOLDED and torn[number - 1] <= MOST_TORN:
            return number
    return len(folded)


def _reach_zero(estimate: DimensionEstimate, moves: bool, may_rest: bool) -> DimensionEstimate:
    """The interval of a motion that is barely one, or of none that may be one."""
    low, high = estimate.interval
    if not moves:
        return replace(estimate, interval=(0, high if may_rest else 0))
    return replace(estimate, interval=(0 if may_rest else low, high))


def _checked(
    z: npt.ArrayLike,
    distances: npt.ArrayLike,
    dimensions: Iterable[int],
    loss: str,
    norm: float | None,
    error: float | None,
) -> tuple[FloatArray, FloatArray, tuple[int, ...]]:
    latents = np.asarray(z, dtype=np.float64)
    delta = np.asarray(distances, dtype=np.float64)
    tried = tuple(dimensions)
    if latents.ndim != 2 or delta.shape != (len(latents), len(latents)):
        raise ArgumentError(
            f"expected z (L, d) and distances (L, L); got {latents.shape} and {delta.shape}."
        )
    if len(delta) < FEWEST_LANDMARKS:
        raise ArgumentError(
            f"expected at least {FEWEST_LANDMARKS} landmarks; got {len(delta)}: too few to see "
            "how many dimensions they spread in."
        )
    if not np.isfinite(delta).all() or (delta < 0).any() or not np.allclose(delta, delta.T):
        raise ArgumentError("expected symmetric, finite distances >= 0.")
    if not tried or tried != tuple(range(1, len(tried) + 1)) or len(tried) > MOST_DIMENSIONS:
        raise ArgumentError(
            f"dimensions must be 1, 2, ..., at most {MOST_DIMENSIONS}; got {tried}."
        )
    if loss not in LOSSES:
        raise ArgumentError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}.")
    for name, value in (("norm", norm), ("error", error)):
        if value is not None and not 0 <= value < np.inf:
            raise ArgumentError(f"{name} must be finite and not negative; got {value}.")
    return latents, (delta + delta.T) / 2, tried
