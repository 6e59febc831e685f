"""What the interactive scatter draws: of many particles a sample that every cluster is in."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.report.content import Scatter

__all__ = ["MOST_POINTS", "scatter_of"]

Array = npt.NDArray[Any]

MOST_POINTS = 20_000  # a browser draws these at once, and ten columns of them are a megabyte
SPREAD = "(spread for view)"


def scatter_of(
    particles: Array,
    clusters: Array,
    axes: dict[str, Array],
    colors: dict[str, Array],
    seed: int = 0,
    most: int = MOST_POINTS,
) -> Scatter:
    """Draw at most `most` of N particles at random, one of every cluster at least.

    They come in random order, so that no cluster hides another, the representatives first, so
    that any beginning is a sample too. One axis alone gets a second, at random, to be seen.

    Arguments:
        particles: Numbers in the original stack, (N,) int.
        clusters: k-means labels, (N,) int.
        axes: Name to coordinates, (N,) float each, the default x and y first.
        colors: Name to values, (N,) each: integers, bools and text are categories, floats a
            scale.
        seed: Of the sample.
        most: How many are drawn, at most.

    Returns:
        The sample, min(N, most) long; floats are float32.

    Raises:
        ArgumentError: There is no axis, or a column is not (N,).

    Example:
        >>> labels = np.arange(1000) // 999
        >>> sample = scatter_of(np.arange(1000), labels, {"z' 1": np.zeros(1000)}, {}, most=10)
        >>> len(sample), sample.total, sorted(set(sample.clusters.tolist()))
        (10, 1000, [0, 1])
    """
    _require_columns(particles, {"clusters": clusters, **axes, **colors})
    if not axes:
        raise ArgumentError("expected one axis to draw at least; got none.")
    generator = np.random.default_rng(seed)
    rows = _sample(np.asarray(clusters), most, generator)
    taken = {name: _narrow(np.asarray(column)[rows]) for name, column in axes.items()}
    if len(taken) == 1:
        (only,) = taken.values()
        taken[SPREAD] = _spread(only, generator)
    return Scatter(
        particles=np.asarray(particles)[rows],
        clusters=np.asarray(clusters)[rows],
        axes=taken,
        colors={name: _narrow(np.asarray(column)[rows]) for name, column in colors.items()},
        total=len(particles),
    )


def _require_columns(particles: Array, columns: dict[str, Array]) -> None:
    for name, column in columns.items():
        if np.shape(column) != np.shape(particles):
            raise ArgumentError(
                f"expected a value of {name} for each of {np.shape(particles)} particles; got "
                f"{np.shape(column)}."
            )


def _sample(clusters: Array, most: int, generator: np.random.Generator) -> Array:
    """Rows in random order, the first of every cluster before all others."""
    order = generator.permutation(len(clusters))
    first = np.sort(np.unique(clusters[order], return_index=True)[1])
    others = np.ones(len(order), bool)
    others[first] = False
    return np.concatenate([order[first], order[others]])[:most]


def _spread(column: Array, generator: np.random.Generator) -> Array:
    """A band a fifth as high as it is long, where both axes have one scale."""
    known = column[np.isfinite(column)]
    length = float(np.ptp(known)) if len(known) else 0.0
    return _narrow(0.1 * length * generator.uniform(-1, 1, len(column)))


def _narrow(column: Array) -> Array:
    return column.astype(np.float32) if column.dtype.kind == "f" else column
