r"""Optimal superposition of point sets: the rotation and translation of least RMSD (Kabsch).

rmsd(X, Y) = min over rotations R and translations t of sqrt(mean_a |x_a - R y_a - t|^2)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["centred", "optimal_rotations", "rotations_and_gains", "superposed"]


def centred(positions: Tensor) -> Tensor:
    """Point sets (..., A, 3) with their centroids at the origin."""
    return positions - positions.mean(dim=-2, keepdim=True)


def optimal_rotations(fixed: Tensor, moving: Tensor) -> Tensor:
    """The rotations R with fixed ≈ R·moving, both about their centroids.

    Arguments:
        fixed, moving: (..., A, 3), point a of one belongs to point a of the other.

    Returns:
        (..., 3, 3), of determinant +1.

    References:
        | A solution for the best rotation to relate two sets of vectors (Kabsch, 1976),
          doi:10.1107/S0567739476001873

    Example:
        >>> points = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        >>> turn = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
        >>> bool((optimal_rotations(points @ turn.T, points) - turn).abs().max() < 1e-5)
        True
    """
    return rotations_and_gains(centred(fixed).mT @ centred(moving))[0]


def rotations_and_gains(covariances: Tensor) -> tuple[Tensor, Tensor]:
    """Kabsch's rotation for covariances of centred points, reflections excluded.

    Arguments:
        covariances: (..., 3, 3), sum over points of fixed_a moving_a^T.

    Returns:
        R (..., 3, 3), and the overlap sum_a fixed_a · R moving_a that it reaches (...).
    """
    left, strengths, right = torch.linalg.svd(covariances)
    signs = torch.ones_like(strengths)
    signs[..., 2] = torch.where(torch.linalg.det(left @ right) < 0, -1.0, 1.0)
    return (left * signs[..., None, :]) @ right, (strengths * signs).sum(dim=-1)


def superposed(moving: Tensor, fixed: Tensor) -> Tensor:
    """`moving` laid on `fixed` by a rotation and a translation, (..., A, 3)."""
    turn = optimal_rotations(fixed, moving)
    return centred(moving) @ turn.mT + fixed.mean(dim=-2, keepdim=True)
