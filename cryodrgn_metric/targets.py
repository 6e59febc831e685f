"""What f_xi is trained on: a distance of latents, whatever its kind, for pairs of particles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric.errors import ArgumentError

__all__ = [
    "Distance",
    "MatrixPredictor",
    "Targets",
    "batches_of",
    "median_of_pairs",
    "targets_of",
]

POINTS_FOR_MEDIAN = 512


class MatrixPredictor(Protocol):
    """What can predict all distances among latents at once, as DistanceNet can."""

    def predict_matrix(self, z: Tensor) -> Tensor:
        """Maps latents (n, d) to distances (n, n)."""
        ...


Distance = Callable[[Tensor, Tensor], Tensor] | MatrixPredictor | npt.ArrayLike | Tensor
Targets = Callable[[Tensor], Tensor]  # particle numbers (P,) -> distances of their pairs


def targets_of(distance: Distance, z: Tensor) -> Targets:
    """Turns any kind of distance into a function of particle numbers.

    Arguments:
        distance: A function of tensors (n, d), (n, d) -> (n,); an object whose predict_matrix
            maps latents (n, d) to (n, n), or its predict; or a matrix (N, N).
        z: The latents of all particles. (N, d)

    Returns:
        A function from particle numbers (P,) to the distances of their pairs i < j, float32,
        which raises ArgumentError if those are negative or not finite.

    Raises:
        ArgumentError: If a matrix has another shape.

    Example:
        >>> targets = targets_of([[0, 1, 2], [1, 0, 3], [2, 3, 0]], torch.zeros(3, 1))
        >>> targets(torch.tensor([0, 2]))
        tensor([2.])
    """
    owner: Any = getattr(distance, "__self__", distance)
    if hasattr(owner, "predict_matrix") and (owner is distance or distance == owner.predict):
        return lambda rows: _checked(_pairs_of(owner.predict_matrix(z[rows])), len(rows))
    if callable(distance):
        return lambda rows: _called(distance, z, rows)
    matrix = torch.as_tensor(distance, dtype=torch.float64, device=z.device)
    if matrix.shape != (len(z), len(z)):
        raise ArgumentError(
            f"expected a function, or distances ({len(z)}, {len(z)}); got {tuple(matrix.shape)}."
        )
    return lambda rows: _checked(_pairs_of(matrix[rows][:, rows]), len(rows))


def _called(distance: Callable[[Tensor, Tensor], Tensor], z: Tensor, rows: Tensor) -> Tensor:
    i, j = torch.triu_indices(len(rows), len(rows), offset=1, device=z.device)
    with torch.no_grad():
        found = distance(z[rows[i]], z[rows[j]])
    return _checked(torch.as_tensor(found, device=z.device), len(rows))


def _pairs_of(matrix: Tensor) -> Tensor:
    i, j = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return matrix[i, j]


def _checked(distances: Tensor, points: int) -> Tensor:
    expected = (points * (points - 1) // 2,)
    if distances.shape != expected:
        raise ArgumentError(f"expected distances {expected}; got {tuple(distances.shape)}.")
    if not bool(((distances >= 0) & distances.isfinite()).all()):
        raise ArgumentError("expected finite distances >= 0; got NaN, infinity or negative.")
    return distances.float()


def median_of_pairs(targets: Targets, count: int, seed: int) -> float:
    """The median distance of at most 512 particles; their mean or 1 where that is 0.

    Arguments:
        targets: As from `targets_of`.
        count: The number of particles, N.
        seed: The seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(count, generator=generator)[:POINTS_FOR_MEDIAN]
    values = targets(rows).double().cpu()
    return float(values.quantile(0.5)) or float(values.mean()) or 1.0


def batches_of(count: int, pairs: int, seed: int) -> Iterator[Tensor]:
    """Draws distinct particles for each step, from one shuffle of all after another.

    Arguments:
        count: The number of particles, N.
        pairs: In a step, rounded up to all pairs of some particles.
        seed: The seed of the shuffles.

    Returns:
        Particle numbers (P,), without end.

    Example:
        >>> len(next(batches_of(1000, pairs=8128, seed=0)))
        128
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(_points_for(pairs), count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def _points_for(pairs: int) -> int:
    return int(np.ceil((1 + np.sqrt(1 + 8 * pairs)) / 2))
