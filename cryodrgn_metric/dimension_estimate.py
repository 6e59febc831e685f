"""An estimated dimension: the answer, what it was read from, and what to know about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cryodrgn_metric.dimension_checks import INSTALL_LINE, checks_version

__all__ = ["NO_MOTION", "DimensionEstimate", "words_about"]

NO_MOTION = 0.05  # median Delta / |V|: below, volumes differ as much for no reason
AGREES = 0.5  # an estimate of scikit-dimension, with the answer


@dataclass(frozen=True)
class DimensionEstimate:
    """How many dimensions a motion has, how sure that is, and what it was read from.

    Arguments:
        dimension: The answer; 0: the volumes differ too little to say that anything moves.
        interval: The least and the most that subsamples of the landmarks, stricter and laxer
            thresholds, and scales a quarter larger or smaller answer.
        embedding_dimension: How many dimensions a map needs that lays no strangers on each other;
            more than `dimension` where the motion closes on itself.
        dimensions: The d' that were tried.
        last_variance: The variance of the last local principal component relative to the total,
            at `scale`, for each of them: the "volume" that drops.
        even_variance: The same of as many points spread evenly in all d' dimensions.
        folded: The share of landmarks that an embedding in d' dimensions lays on strangers.
        torn: The share that it tears from their neighbours.
        scale: The median distance of the neighbours it was read from, in units of Delta.
        scale_window: The least and the largest scale that are to be trusted.
        scales: Others, up to half the median Delta.
        dimension_by_scale: The answer at each of them.
        cross_checks: Estimates of scikit-dimension, by name; empty where it is not installed.
        relative_distance: The median Delta / |V|; None where |V| was not given.
        words: What to know about the answer, in sentences.
    """

    dimension: int
    interval: tuple[int, int]
    embedding_dimension: int
    dimensions: tuple[int, ...]
    last_variance: tuple[float, ...]
    even_variance: tuple[float, ...]
    folded: tuple[float, ...]
    torn: tuple[float, ...]
    scale: float
    scale_window: tuple[float, float]
    scales: tuple[float, ...]
    dimension_by_scale: tuple[int, ...]
    cross_checks: dict[str, float]
    relative_distance: float | None
    words: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As it is kept in intrinsic_dimension.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> DimensionEstimate:
        """What `as_dict` gave, also after it was written as JSON."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in saved.items()
        }
        return cls(**values)


def words_about(estimate: DimensionEstimate, error: float | None) -> tuple[str, ...]:
    """What a reader must know about an answer, in sentences.

    Arguments:
        estimate: Complete but for its words.
        error: The error of h_psi that it was made with, or None.
    """
    return tuple(
        [
            _answer(estimate),
            *_closing(estimate),
            *_scale(estimate, error),
            *_assumptions(estimate, error),
            *_checks(estimate),
        ]
    )


def _dimensions(count: int) -> str:
    return f"{count} dimension{'' if count == 1 else 's'}"


def _answer(estimate: DimensionEstimate) -> str:
    low, high = estimate.interval
    between = "" if low == high else f" ({low} to {high})"
    if estimate.dimension == 0:
        size = estimate.relative_distance or 0.0
        return (
            f"The motion has 0 dimensions{between}: the volumes differ by a median of "
            f"{100 * size:.1f} % of their norm, and below {100 * NO_MOTION:.0f} % z' is not to be "
            "interpreted."
        )
    at_least = "at least " if estimate.dimension == len(estimate.dimensions) else ""
    return f"The motion has {at_least}{_dimensions(estimate.dimension)}{between}."


def _closing(estimate: DimensionEstimate) -> Iterator[str]:
    if estimate.embedding_dimension > estimate.dimension:
        yield (
            f"Locally it has {_dimensions(estimate.dimension)}, but it closes on itself, as a "
            f"full turn does, bends as strongly, or is in pieces: to embed it without laying "
            f"different volumes on each other takes {estimate.embedding_dimension}."
        )


def _scale(estimate: DimensionEstimate, error: float | None) -> Iterator[str]:
    low, high = estimate.scale_window
    if estimate.dimension == 0:
        return
    if low > high:
        yield (
            "h_psi is too uncertain for it: three of its errors are more than a quarter of the "
            "median Delta, so that the answer was read where L2 already saturates. More "
            "--landmarks would help."
        )
    elif estimate.scale > 1.1 * high:
        yield (
            "There are too few landmarks for it: the nearest are further apart than a quarter of "
            "the median Delta, where L2 saturates. More --landmarks would help."
        )
    if len(set(estimate.dimension_by_scale)) > 1:
        yield (
            f"The answer depends on the scale, in units of Delta: {_by_scale(estimate)}. At small "
            "scales noise of the decoder fills all dimensions, at large ones L2 bends what is "
            "straight."
        )


def _by_scale(estimate: DimensionEstimate) -> str:
    """The answers from small scales to large ones, each with where it begins."""
    steps: list[str] = []
    last = None
    for scale, answer in zip(estimate.scales, estimate.dimension_by_scale, strict=True):
        if answer != last:
            steps.append(f"{answer} from {scale:.3g} on")
        last = answer
    return ", ".join(steps)


def _assumptions(estimate: DimensionEstimate, error: float | None) -> Iterator[str]:
    if estimate.relative_distance is None:
        yield "The volumes' norm was not given: it is assumed that something moves."
    if error is None:
        yield "h_psi's error was not given: it is assumed that distances are free of noise."


def _checks(estimate: DimensionEstimate) -> Iterator[str]:
    if checks_version() is None:
        yield f"For two further estimates: {INSTALL_LINE}"
    if not estimate.cross_checks:
        return
    found = {name: f"{name} ({value:.1f})" for name, value in estimate.cross_checks.items()}
    other = [
        found[name]
        for name, value in estimate.cross_checks.items()
        if abs(value - estimate.dimension) > AGREES
    ]
    if not other:
        yield f"{' and '.join(found.values())} agree."
        return
    agree = [text for text in found.values() if text not in other]
    yield (
        f"{' and '.join(other)} disagree{'s' if len(other) == 1 else ''}"
        f"{', ' + ' and '.join(agree) + ' agrees' if agree else ''}: they count neighbours, and "
        "so see the noise of near volumes, the saturation of L2 and an uneven density as "
        "dimensions, too."
    )
